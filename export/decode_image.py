"""From the bytes of an image file to what the network was trained on, inside a graph.

Nothing raises: whatever is wrong with a file comes back as a text, so that one bad image never fails its
batch. Pixels and statistics are those of `effdet_tf.images`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from keras import ops

from effdet_tf.config import Config
from effdet_tf.images.content import block_statistics, even, find_content
from effdet_tf.images.gray import LUMA
from effdet_tf.images.normalize import SIXTEEN_BIT_UNIT, fixed_statistics

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_HEADER = 26  # bytes of a PNG up to its bit depth and colour type

EMPTY = "is empty: send the bytes of a PNG or JPEG file"
FOREIGN = "is neither PNG nor JPEG: convert the image"
DAMAGED = "is damaged or cut short: send the file again"


class Header(NamedTuple):
    """What the first bytes of a file say; every field a scalar tensor."""

    height: tf.Tensor  # int32 px, 0 with an error
    width: tf.Tensor  # int32 px, 0 with an error
    png: tf.Tensor  # bool
    deep: tf.Tensor  # bool: 16 bits a channel
    error: tf.Tensor  # string, empty when there is nothing wrong so far


def read_header(data: tf.Tensor, max_pixels: int) -> Header:
    """Read the size of an encoded image, a string scalar, without decoding it: it may be huge.

    `max_pixels` is the largest height x width that is taken.
    """
    length = tf.strings.length(data)
    head = tf.strings.substr(tf.strings.join([data, b"\0" * _HEADER]), 0, _HEADER)
    png = tf.equal(tf.strings.substr(head, 0, len(_PNG)), _PNG)
    jpeg = tf.equal(tf.strings.substr(head, 0, len(_JPEG)), _JPEG)
    numbers = tf.cast(tf.io.decode_raw(tf.strings.substr(head, 16, 10), tf.uint8), tf.int64)
    place = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    of_png = tf.stack([tf.reduce_sum(numbers[:4] * place), tf.reduce_sum(numbers[4:8] * place)])  # w, h
    of_jpeg = _or_default(
        lambda data: tf.cast(tf.image.extract_jpeg_shape(data)[1::-1], tf.int64),
        tf.where(jpeg, data, b""),
        tf.zeros(2, tf.int64),
    )
    width_height = tf.where(png, of_png, of_jpeg)
    # Before the product: it must not overflow.
    large = tf.reduce_any(width_height > max_pixels) | (tf.reduce_prod(width_height) > max_pixels)
    sides = tf.strings.as_string(width_height)
    text = tf.strings.join([sides[1], "x", sides[0], f" is more than {max_pixels} pixels: cut it into parts"])
    error = tf.where(large, text, "")
    error = tf.where(tf.reduce_any(width_height < 1), DAMAGED, error)
    error = tf.where(png | jpeg, error, FOREIGN)
    error = tf.where(length > 0, error, EMPTY)
    known = tf.where(tf.equal(error, ""), width_height, 0)
    height, width = tf.cast(known[1], tf.int32), tf.cast(known[0], tf.int32)
    return Header(height, width, png, png & tf.equal(numbers[8], 16), error)


def decode(data: tf.Tensor, header: Header) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode an image, a string scalar, of which `header` was read.

    Gives float32 `[H, W, 1 or 3]` in the file's own units, without alpha, and a string, empty when all went
    well. With an error the image is 8 x 8 and black.
    """

    def pixels(data: tf.Tensor) -> tf.Tensor:
        def png() -> tf.Tensor:
            # 8-bit values come out times 257, which divides without a rest.
            image = tf.cast(tf.io.decode_png(data, dtype=tf.uint16), tf.float32)
            return tf.where(header.deep, image, image / 257)

        # The accurate transform is the one that image libraries use.
        def jpeg() -> tf.Tensor:
            return tf.cast(tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE"), tf.float32)

        image = tf.ensure_shape(tf.cond(header.png, png, jpeg), (None, None, None))
        return image[..., : tf.where(tf.shape(image)[2] > 2, 3, 1)]

    sound = tf.equal(header.error, "")
    image = _or_default(pixels, tf.where(sound, data, b""), tf.zeros((0, 0, 1)))
    image = tf.ensure_shape(image, (None, None, None))
    whole = tf.size(image) > 0
    error = tf.where(sound & ~whole, DAMAGED, header.error)
    return tf.cond(whole, lambda: image, lambda: tf.zeros((8, 8, 1))), error


def normalize(image: tf.Tensor, deep: bool | tf.Tensor, config: Config) -> tf.Tensor:
    """Turn decoded pixels into what the network was trained on: `effdet_tf.images.normalize.normalize`.

    `image` is float32 `[H, W, 1 or 3]` in its own units, which are of 16 bits where `deep` is true; the
    result is float32 `[H, W, channels]`.
    """
    channels = config.data.channels

    def luma() -> tf.Tensor:
        alike = tf.reduce_all(tf.equal(image, image[..., :1]))
        weighed = tf.linalg.matvec(tf.ensure_shape(image, (None, None, 3)), LUMA)
        return tf.where(alike, image[..., 0], weighed)

    def if_colour(yes: Callable[[], tf.Tensor], no: Callable[[], tf.Tensor]) -> tf.Tensor:
        if image.shape[2] is not None:
            return yes() if image.shape[2] == 3 else no()
        return tf.cond(tf.equal(tf.shape(image)[2], 3), yes, no)

    gray = if_colour(luma, lambda: image[..., 0])
    values = tf.repeat(gray[..., None], channels, axis=-1)
    if channels == 3:
        values = if_colour(lambda: image, lambda: values)
    values = tf.ensure_shape(values, (None, None, channels))
    if config.data.normalization == "content":
        shape = ops.shape(gray)
        content = find_content(block_statistics(tf.cast(gray, tf.float64), ops), shape, ops)
        values = even(values, gray, content, shape, tf.range(shape[0]), tf.range(shape[1]), ops)
        return (values - tf.cast(content.surface[0], tf.float32)) / tf.cast(content.std, tf.float32)
    if config.data.normalization == "image":
        exact = tf.cast(gray, tf.float64)
        mean = tf.reduce_mean(exact)
        std = tf.sqrt(tf.reduce_mean(tf.square(exact - mean)))
        std = tf.maximum(std, 1e-3 * tf.maximum(tf.constant(1.0, tf.float64), tf.abs(mean)))
        return (values - tf.cast(mean, tf.float32)) / tf.cast(std, tf.float32)
    values = tf.where(deep, values * SIXTEEN_BIT_UNIT, values)
    mean, std = fixed_statistics(config.data)
    return (values - mean) / std


def _or_default(function: Callable[[tf.Tensor], tf.Tensor], data: tf.Tensor, default: tf.Tensor) -> tf.Tensor:
    """`function(data)`, or `default` where that fails: tf.data is the one place where a graph can catch."""
    tried = tf.data.Dataset.from_tensors(data).map(function, num_parallel_calls=None).ignore_errors()
    return tried.concatenate(tf.data.Dataset.from_tensors(default)).take(1).get_single_element()
