"""Small layers that backbone, BiFPN and heads share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
from keras import layers, ops

from effdet_tf.geometry.boxes import Tensor

BATCH_NORM_EPSILON = 1e-3  # of EfficientNet and EfficientDet


@keras.saving.register_keras_serializable("effdet_tf")
class BatchNorm(layers.BatchNormalization):
    """Keras's batch normalisation, by TensorFlow's fused kernel, or a shared one over several replicas.

    Both keep the running variance with Bessel's correction, which Keras's own synchronised code does not.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalise `[B, H, W, C]`; in training, move the running statistics too."""
        if keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        from effdet_tf.model import kernels

        learning = bool(training) and self.trainable
        statistics = (self.moving_mean, self.moving_variance)
        weights = [ops.cast(v, "float32") for v in (self.gamma, self.beta, *statistics)]
        if learning and kernels.replicas() > 1:
            gamma, beta, guess, _ = weights
            y, *used = kernels.shared_batch_norm(inputs, gamma, beta, guess, self.epsilon)
        else:
            gamma, beta, mean, variance = weights
            y, *used = kernels.fused_batch_norm(inputs, gamma, beta, mean, variance, self.epsilon, learning)
        if learning:
            for variable, value in zip(statistics, used, strict=True):
                value = ops.cast(value, variable.dtype)
                variable.assign(variable * self.momentum + value * (1 - self.momentum))
        return y


def batch_norm(name: str, momentum: float) -> BatchNorm:
    """Batch normalisation whose statistics span all replicas where the backend can do that."""
    shared = keras.backend.backend() == "tensorflow"
    return BatchNorm(momentum=momentum, epsilon=BATCH_NORM_EPSILON, synchronized=shared, name=name)


def depthwise_products(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Depthwise convolution as a sum of shifted products, with padding `same`.

    XLA makes one loop of it, forward and backward. Its grouped convolutions take 3 to 9 times as long on a
    CPU, and minutes to compile for a GPU (benchmarks/training_speed.md).

    With `x [B, H, W, C]`, H and W known, and `kernel [k, k, C, 1]` the result is
    `[B, ceil(H / stride), ceil(W / stride), C]`, summed in float32, in the dtype of x.
    """
    side = kernel.shape[0]
    sizes = [-(-length // stride) for length in x.shape[1:3]]
    spans = [(size - 1) * stride + 1 for size in sizes]
    missing = [max(span + side - 1 - n, 0) for span, n in zip(spans, x.shape[1:3], strict=True)]
    room = [(m // 2, m - m // 2) for m in missing]
    padded = ops.pad(ops.cast(x, "float32"), [(0, 0), *room, (0, 0)])
    weights = ops.cast(kernel, "float32")
    terms = [
        padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride] * weights[i, j, :, 0]
        for i in range(side)
        for j in range(side)
    ]
    return ops.cast(sum(terms[1:], terms[0]), x.dtype)


_products: ContextVar[bool] = ContextVar("products", default=False)


@contextlib.contextmanager
def depthwise_by_products(wanted: bool = True) -> Iterator[None]:
    """Let depthwise convolutions that are traced in the block be `depthwise_products`, as under JAX."""
    before = _products.set(wanted)
    try:
        yield
    finally:
        _products.reset(before)


def _by_products() -> bool:
    return keras.backend.backend() == "jax" or _products.get()


@keras.saving.register_keras_serializable("effdet_tf")
class DepthwiseConv2D(layers.DepthwiseConv2D):
    """Keras's, padding `same`, without bias or activation; by `depthwise_products` under XLA."""

    def call(self, inputs: Tensor) -> Tensor:
        """Convolve `[B, H, W, C]`."""
        if not _by_products():
            return super().call(inputs)
        return depthwise_products(inputs, ops.convert_to_tensor(self.kernel), self.strides[0])


@keras.saving.register_keras_serializable("effdet_tf")
class SeparableConv2D(layers.SeparableConv2D):
    """Keras's, padding `same`, stride 1, with bias, without activation; by `depthwise_products` under XLA."""

    def call(self, inputs: Tensor) -> Tensor:
        """Convolve `[B, H, W, C]`."""
        if not _by_products():
            return super().call(inputs)
        x = depthwise_products(inputs, ops.convert_to_tensor(self.depthwise_kernel), 1)
        return ops.conv(x, self.pointwise_kernel) + self.bias


def activation(x: Tensor, kind: str, name: str | None = None) -> Tensor:
    """`swish` or `relu6`."""
    return layers.Activation("silu" if kind == "swish" else "relu6", name=name)(x)


@keras.saving.register_keras_serializable("effdet_tf")
class UpsampleLike(layers.Layer):
    """Double a feature by nearest neighbours and cut it to the size of another.

    The finer feature has `2n` or, where an odd size was halved and rounded up, `2n - 1` rows.
    Call with `[coarse, fine]`, `[B, h, w, C]` and `[B, H, W, *]`; returns `[B, H, W, C]`.
    """

    def call(self, inputs: list[Tensor]) -> Tensor:
        """Return `inputs[0]` at the size of `inputs[1]`."""
        coarse, fine = inputs
        # Not ops.image.resize: it refuses sizes that are known only at run time.
        doubled = ops.repeat(ops.repeat(coarse, 2, axis=1), 2, axis=2)
        if None not in fine.shape[1:3] and tuple(fine.shape[1:3]) == tuple(doubled.shape[1:3]):
            return doubled  # a cut that cuts nothing still costs a copy, and another on the way back
        fine_rows, fine_columns = ops.shape(fine)[1:3]
        return doubled[:, :fine_rows, :fine_columns]

    def compute_output_spec(self, inputs: list[Tensor]) -> keras.KerasTensor:
        """Shape of the fine feature with the channels of the coarse one."""
        coarse, fine = inputs
        return keras.KerasTensor((*fine.shape[:3], coarse.shape[3]), coarse.dtype)


@keras.saving.register_keras_serializable("effdet_tf")
class FastFusion(layers.Layer):
    """Fast normalised fusion: sum(relu(w_i) x_i) / (sum(relu(w_i)) + 1e-4) (EfficientDet, eq. 4)."""

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        """One scalar weight per input, 1 at the start."""
        self.factors = [
            self.add_weight(shape=(), initializer="ones", name=f"weight_{k}") for k in range(len(input_shape))
        ]

    def call(self, inputs: list[Tensor]) -> Tensor:
        """Weighted mean of equal-shaped features."""
        factors = [ops.relu(w) for w in self.factors]
        total = sum(factors[1:], factors[0]) + 1e-4
        terms = [x * (w / total) for x, w in zip(inputs, factors, strict=True)]
        return sum(terms[1:], terms[0])

    def compute_output_shape(self, input_shape: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        """Shape of any one input."""
        return tuple(input_shape[0])


@keras.saving.register_keras_serializable("effdet_tf")
class StochasticDepth(layers.Layer):
    """Drop a residual branch per example in training, scaled to keep its mean (Huang et al., 2016)."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        """`rate` is the share of examples whose branch is dropped."""
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return the branch, dropped or scaled in training."""
        if not training:
            return inputs
        keep = 1.0 - self.rate
        shape = (ops.shape(inputs)[0], 1, 1, 1)
        mask = ops.floor(keep + keras.random.uniform(shape, seed=self.seed_generator))
        return inputs / keep * ops.cast(mask, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The branch's own shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "rate": self.rate}
