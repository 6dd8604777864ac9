"""The instance-mask head: filters over a box-aligned crop, and an embedding that says which cell is meant.

Filters of each instance's own follow CondInst (Tian et al., ECCV 2020), convolutions that all share follow
Mask R-CNN (He et al., ICCV 2017), on a finer feature. Either way only the crop of the instance's own box is
seen, so no neighbour outside leaks in and 2,000 cells cost no maps of the whole image.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from effdet_tf.config import MaskConfig, ModelConfig
from effdet_tf.geometry import boxes as box_ops
from effdet_tf.geometry.boxes import Tensor
from effdet_tf.geometry.resample import sample_crops
from effdet_tf.model.layers import UpsampleLike, activation, batch_norm

Shape = tuple[int | None, ...]


def build_mask_feature(fused: dict[int, Tensor], backbone: dict[int, Tensor], config: ModelConfig) -> Tensor:
    """Make the feature that masks are cut from, `[B, H / stride, W / stride, mask.channels]`.

    The finest BiFPN level is doubled until it has `mask.stride`; on the way the backbone's finer
    features come in, since they hold the cell outlines that stride 4 or 8 has lost. Both pyramids are
    level -> `[B, H_l, W_l, C_l]`.
    """
    channels, momentum = config.mask.channels, config.batch_norm_momentum
    level = min(fused)
    x = layers.Conv2D(channels, 1, name="mask_lateral")(fused[level])
    while 2**level > config.mask.stride:
        level -= 1
        own = layers.Conv2D(channels, 1, name=f"mask_lateral{level}")(backbone[level])
        x = layers.Add(name=f"mask_add{level}")([own, UpsampleLike(name=f"mask_up{level}")([x, own])])
    for k in range(2):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"mask_conv{k}")(x)
        x = activation(batch_norm(f"mask_bn{k}", momentum)(x), config.activation)
    return x


@keras.saving.register_keras_serializable("effdet_tf")
class MaskHead(layers.Layer):
    """Bitmap logits of instances from the mask feature and each instance's embedding.

    `mask.head` decides how: `filters` makes three 1x1 filters for each instance out of its embedding
    (CondInst); `convolution` has three 3x3 convolutions that all instances share, and adds the embedding,
    projected, to the first one's output.
    """

    def __init__(self, config: MaskConfig, **kwargs: Any) -> None:
        """`config` gives kind, stride, size, expansion and widths; build it with dtype float32."""
        super().__init__(**kwargs)
        self.config = config
        inputs, hidden = config.channels + 2, config.hidden
        self.shapes = ((inputs, hidden), (hidden, hidden), (hidden, 1))
        self.parameters = sum(a * b + b for a, b in self.shapes)
        self.convolutions = []
        if config.head == "convolution":
            self.code = layers.Dense(hidden, use_bias=False, dtype=self.dtype_policy, name="code")
            self.convolutions = [
                layers.Conv2D(b, 3, padding="same", dtype=self.dtype_policy, name=f"conv{k}")
                for k, (_, b) in enumerate(self.shapes)
            ]
            return
        start = keras.initializers.RandomNormal(stddev=0.05)
        dtype = self.dtype_policy
        self.filters = layers.Dense(self.parameters, kernel_initializer=start, dtype=dtype, name="filters")

    def build(self, feature_shape: Shape, embeddings_shape: Shape, boxes_shape: Shape) -> None:
        """Make the layers that all instances share; at the start filters are near a plain shared head."""
        if self.convolutions:
            self.code.build(embeddings_shape)
            for layer, (inputs, _) in zip(self.convolutions, self.shapes, strict=True):
                layer.build((None, None, None, inputs))
            return
        start = keras.initializers.RandomNormal(stddev=0.2)
        self.base = self.add_weight(shape=(self.parameters,), initializer=start, name="base")
        self.filters.build(embeddings_shape)

    def crop_boxes(self, boxes: Tensor) -> Tensor:
        """The boxes `[..., 4]` that the bitmaps cover: grown, so a tight box does not cut the cell."""
        return box_ops.grow(boxes, self.config.expand)

    def call(self, feature: Tensor, embeddings: Tensor, boxes: Tensor) -> Tensor:
        """Predict bitmaps.

        Args:
            feature: `[B, H, W, channels]` mask feature.
            embeddings: `[B, K, C]` of the instances' locations.
            boxes: `[B, K, 4]` yxyx in input pixels: what `crop_boxes` returned.

        Returns:
            `[B, K, size, size]` float32 logits.
        """
        size = self.config.size
        values = sample_crops(feature, boxes, self.config.stride, size)
        steps = (ops.arange(size, dtype="float32") + 0.5) / size * 2 - 1
        y, x = ops.meshgrid(steps, steps, indexing="ij")
        coordinates = ops.reshape(ops.stack([y, x], axis=-1), (1, 1, size * size, 2))
        logits = (self._convolve if self.convolutions else self._filter)(values, embeddings, coordinates)
        return ops.reshape(logits, (*ops.shape(embeddings)[:2], size, size))

    def _filter(self, values: Tensor, embeddings: Tensor, coordinates: Tensor) -> Tensor:
        """`[B, K, size * size, channels]` by filters of each instance's own to `[B, K, size * size, 1]`."""
        batch, count = ops.shape(embeddings)[:2]
        parameters = self.filters(embeddings) + self.base
        start = 0
        for k, (inputs, outputs) in enumerate(self.shapes):
            kernel = ops.reshape(
                parameters[..., start : start + inputs * outputs], (batch, count, inputs, outputs)
            )
            start += inputs * outputs
            bias = parameters[..., None, start : start + outputs]
            start += outputs
            if k == 0:
                # The coordinates are alike for all: as products of their own they need no copy per instance.
                bias = bias + ops.matmul(coordinates, kernel[:, :, -2:])
                kernel = kernel[:, :, :-2]
            values = ops.matmul(values, kernel) + bias
            if k + 1 < len(self.shapes):
                values = ops.relu(values)
        return values

    def _convolve(self, values: Tensor, embeddings: Tensor, coordinates: Tensor) -> Tensor:
        """The same by convolutions over the crops."""
        size, first = self.config.size, self.convolutions[0]
        values = ops.reshape(values, (-1, size, size, self.config.channels))
        where = ops.reshape(coordinates, (1, size, size, 2))
        own = ops.reshape(self.code(embeddings), (-1, 1, 1, self.config.hidden))
        # The coordinates are alike for all, and convolved once: no copy per instance.
        shared = ops.conv(where, first.kernel[:, :, -2:], padding="same") + first.bias
        values = ops.conv(values, first.kernel[:, :, :-2], padding="same") + shared + own
        return self.convolutions[2](ops.relu(self.convolutions[1](ops.relu(values))))

    def compute_output_shape(
        self, feature_shape: Shape, embeddings_shape: Shape, boxes_shape: Shape
    ) -> tuple[Any, ...]:
        """`[B, K, size, size]`."""
        return (*embeddings_shape[:2], self.config.size, self.config.size)
