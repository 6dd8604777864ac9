"""Other microscopes: tone, blur, noise, compression, uneven light and reversed contrast of a crop, in numpy.

TensorFlow's crops and numpy's share this code, so that both teach the same. Each change is made in one crop
of two, as far as `augment` says, drawn from the crop's own seed.
"""

from __future__ import annotations

import numpy as np

from effdet_tf.config import AugmentConfig

_OFTEN = 0.5  # of the crops get each change
_REACH = 4.0  # standard deviations about the mean that the tone curve bends
_BLOCK = 8  # px, of JPEG
# 8-bit levels of one standard deviation, and the mean, of an image of ordinary contrast.
_LEVELS, _MIDDLE = 32.0, 128.0
# JPEG's own table for luminance (ITU-T T.81, table K.1), at quality 50.
_QUANTA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_WAVES = np.arange(_BLOCK)
_COSINES = np.sqrt(2 / _BLOCK) * np.cos((2 * _WAVES[None] + 1) * _WAVES[:, None] * np.pi / (2 * _BLOCK))
_COSINES[0] /= np.sqrt(2)
_COSINES = _COSINES.astype(np.float32)  # orthonormal DCT-II, [wave, px]


def changes_looks(config: AugmentConfig) -> bool:
    """Whether `restyle` would ever change anything."""
    strengths = (config.blur, config.noise, config.vignette, config.invert)
    return any(strengths) or config.gamma != (1.0, 1.0) or config.jpeg < 100


def restyle(image: np.ndarray, seed: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Return a crop as another microscope might show it.

    Args:
        image: float32 `[H, W, C]`, normalised: mean 0 and deviation 1 over its whole image.
        seed: whole numbers `[2]`, decide everything.
        config: how far each change may go.

    Returns:
        float32 `[H, W, C]`.
    """
    rng = np.random.default_rng([int(part) for part in seed] + [1])
    often = rng.random(5) < _OFTEN
    low, high = np.log(config.gamma)
    gamma, sigma, amount, depth, quality = rng.uniform(size=5)
    if often[0] and low < high:
        image = bend(image, float(np.exp(low + gamma * (high - low))))
    if rng.random() < config.invert:
        image = -image
    if often[1] and config.vignette:
        image = image - np.float32(config.vignette * depth) * _bowl(rng, image.shape)[..., None]
    if often[2] and config.blur:
        image = blur(image, config.blur * sigma)
    if often[3] and config.noise:
        spread = np.float32(config.noise * amount)
        image = image + spread * rng.standard_normal(image.shape, np.float32)
    if often[4] and config.jpeg < 100:
        image = compress(image, config.jpeg + quality * (100 - config.jpeg))
    return np.ascontiguousarray(image, np.float32)


def bend(image: np.ndarray, gamma: float) -> np.ndarray:
    """Apply the tone curve u**gamma to a normalised image, its mean gray and the slope there kept."""
    u = np.clip(image / (2 * _REACH) + 0.5, 0, 1)
    slope = gamma * 0.5 ** (gamma - 1)
    return ((u ** np.float32(gamma) - np.float32(0.5**gamma)) * np.float32(2 * _REACH / slope)).astype(
        np.float32
    )


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `[H, W, C]` by `sigma` px; the edge is repeated."""
    reach = int(np.ceil(3 * sigma))
    if reach == 0:
        return image
    steps = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (steps / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        room = [(reach, reach) if axis == k else (0, 0) for k in range(3)]
        wide, length = np.pad(image, room, mode="edge"), image.shape[axis]
        image = np.zeros_like(image)
        for first, tap in enumerate(taps):
            image += wide.take(range(first, first + length), axis) * tap
    return image


def compress(image: np.ndarray, quality: float) -> np.ndarray:
    """What JPEG of this quality, 1 to 100, leaves of a normalised image `[H, W, C]`."""
    factor = 50 / quality if quality < 50 else 2 - quality / 50
    quanta = np.clip(np.rint(_QUANTA * np.float32(factor)), 1, 255)
    height, width, channels = image.shape
    room = [(0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)]
    levels = np.clip(np.pad(image, room, mode="edge") * _LEVELS + _MIDDLE, 0, 255) - _MIDDLE
    rows, columns = levels.shape[0] // _BLOCK, levels.shape[1] // _BLOCK
    blocks = levels.reshape(rows, _BLOCK, columns, _BLOCK, channels).transpose(0, 2, 4, 1, 3)
    waves = _COSINES @ blocks @ _COSINES.T
    blocks = _COSINES.T @ (np.rint(waves / quanta) * quanta) @ _COSINES
    levels = blocks.transpose(0, 3, 1, 4, 2).reshape(levels.shape)
    return (levels[:height, :width] / np.float32(_LEVELS)).astype(np.float32)


def _bowl(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Squared distance from a point of the crop, float32 `[H, W]`, mean 0 and largest step 1."""
    centre = rng.uniform(0, 1, 2)
    y, x = (np.linspace(0, 1, n, dtype=np.float32) for n in shape[:2])
    bowl = (y[:, None] - np.float32(centre[0])) ** 2 + (x[None] - np.float32(centre[1])) ** 2
    bowl = bowl / max(float(bowl.max()), 1e-6)
    return bowl - bowl.mean()
