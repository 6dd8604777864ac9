"""Normalisation by what shows cells: what a microscope adds leaves the numbers where they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from effdet_tf.config import Config
from effdet_tf.data.synthetic.phase_contrast import render_image
from effdet_tf.images import normalize as normalize_lib
from effdet_tf.images.content import (
    block_statistics,
    content_of,
    describe_void,
    even,
    find_content,
    stretch_contrast,
)
from effdet_tf.images.gray import to_gray
from effdet_tf.images.normalize import disturbance, even_image, even_pixels, normalize

HEIGHT, WIDTH = 300, 420
CONTENT = Config().replace(data__normalization="content")
CLEAN = render_image(np.random.default_rng(3), HEIGHT, WIDTH, 60, "Round")[0]


def _framed(value: int, noise: int = 0):
    def change(image: np.ndarray) -> np.ndarray:
        whole = np.full((HEIGHT + 80, WIDTH + 80), value, image.dtype)
        whole += np.random.default_rng(0).integers(0, noise + 1, whole.shape).astype(image.dtype)
        whole[40:-40, 40:-40] = image
        return whole

    return change


def _bar(ground: int, text: int):
    def change(image: np.ndarray) -> np.ndarray:
        bar = np.full((30, WIDTH), ground, np.uint8)
        cv2.putText(bar, "20 um 10x 2021-03-04", (8, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.7, text, 2, cv2.LINE_AA)
        bar[5:25, 350::2] = text  # a ruler
        return np.concatenate([image, bar])

    return change


def _painted(value: int, *places: tuple[slice, slice]):
    def change(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        for place in places:
            image[place] = value
        return image

    return change


def _disc(value: int):
    return lambda image: cv2.circle(image.copy(), (100, 90), 30, value, -1)


def _round_field(noise: int):
    def change(image: np.ndarray) -> np.ndarray:
        y, x = np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
        dark = np.random.default_rng(0).integers(0, noise + 1, image.shape).astype(image.dtype)
        return np.where(y * y + x * x < 0.95, image, dark)

    return change


def _mosaic(image: np.ndarray) -> np.ndarray:
    return np.block([[image, np.zeros_like(image)], [np.zeros_like(image), image[::-1]]])


def _hot(image: np.ndarray) -> np.ndarray:
    image = image.astype(np.uint16) * 8 + 400
    image.flat[np.random.default_rng(0).integers(0, image.size, 60)] = 65535
    return image


DISTURBED = {
    "black border": _framed(0),
    "white border": _framed(255),
    "gray border": _framed(114),
    "border with noise": _framed(0, noise=4),
    "data bar": _bar(0, 255),
    "white data bar": _bar(255, 0),
    "scale bar": _painted(255, (slice(270, 280), slice(300, 400))),
    "thin scale bar": _painted(255, (slice(273, 279), slice(300, 400))),
    "black scale bar": _painted(0, (slice(270, 280), slice(300, 400))),
    "saturated blob": _disc(255),
    "round field": _round_field(0),
    "round field with noise": _round_field(4),
    "empty tiles": _mosaic,
    "hot pixels": _hot,
}


@pytest.mark.parametrize("name", DISTURBED)
def test_what_is_added_moves_neither_level_nor_deviation(name: str) -> None:
    image = DISTURBED[name](CLEAN)
    clean = even_image(CLEAN.astype(np.uint16) * 8 + 400 if name == "hot pixels" else CLEAN)[1]
    found = even_image(image)[1]
    assert abs(found.mean - clean.mean) < 0.1 * clean.std
    assert 0.88 < found.std / clean.std < 1.12  # a round field shows less of the background
    plain = normalize_lib.brightness(image)
    if "scale bar" not in name and name != "gray border":  # these move it less
        assert not 0.8 < plain.std / clean.std < 1.2


def test_of_a_clean_image_everything_counts() -> None:
    content = content_of(CLEAN)
    assert content.keep.mean() > 0.999 and not content.void.any()
    mean, std = CLEAN.mean(), CLEAN.std()
    assert content.surface[0] == pytest.approx(mean, abs=1.0) and content.std == pytest.approx(std, rel=0.02)
    assert not disturbance(CLEAN, CONTENT) and not disturbance(CLEAN, Config())


@pytest.mark.parametrize("name", ["black border", "data bar", "round field with noise", "empty tiles"])
def test_what_shows_nothing_enters_the_network_as_its_mean(name: str) -> None:
    image = DISTURBED[name](CLEAN)
    values = normalize(image, CONTENT)[..., 0]
    void = content_of(image).void.repeat(8, 0).repeat(8, 1)[: image.shape[0], : image.shape[1]]
    assert void.any() and (values[void] == 0).all()
    assert values[~void].std() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("corner", [0.5, 0.8])
@pytest.mark.parametrize("slanted", [False, True])
def test_uneven_light_is_evened(corner: float, slanted: bool) -> None:
    y, x = np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    light = (
        (1 + corner) / 2 + (1 - corner) / 2 * x + 0 * y if slanted else 1 - (1 - corner) * (y * y + x * x) / 2
    )
    values = normalize((CLEAN * light).astype(np.uint8), CONTENT)[..., 0]
    clean = normalize(CLEAN, CONTENT)[..., 0]
    for part in (np.s_[:60, :80], np.s_[120:180, 170:250], np.s_[-60:, -80:]):
        assert abs(np.median(values[part]) - np.median(clean[part])) < 0.25
    assert abs(normalize((CLEAN * light).astype(np.uint8), Config())[:60, :80].mean()) > 0.5


def test_neither_gain_nor_offset_nor_type_matter() -> None:
    base = normalize(CLEAN, CONTENT)
    for other in (
        CLEAN.astype(np.uint16) * 200 + 9,
        CLEAN.astype(np.float32) / 7 - 50,
        np.dstack([CLEAN] * 3),
    ):
        np.testing.assert_allclose(normalize(other, CONTENT), base, atol=2e-3)


@pytest.mark.parametrize("value", [0, 255, 7])
@pytest.mark.parametrize("shape", [(1, 1), (5, 70), (64, 64), (300, 400)])
def test_an_image_of_one_value_is_no_division_by_zero(shape, value: int) -> None:
    values = normalize(np.full(shape, value, np.uint8), CONTENT)
    assert (values == 0).all()
    assert (stretch_contrast(np.full(shape, value, np.uint8)) == 128).all()


def test_bands_and_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = DISTURBED["data bar"](CLEAN)
    whole, shown = content_of(image), even_image(image)[0]
    expected = shown[:, :]
    monkeypatch.setattr("effdet_tf.images.content._BAND", 20 * WIDTH)
    for a, b in zip(content_of(image), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(shown[37:200, 100:9999], expected[37:200, 100:])
    assert even_image(np.dstack([image] * 3))[0][5:9, 3:7].shape == (4, 4, 3)


def test_a_large_image_has_as_many_blocks_as_a_small_one() -> None:
    image = cv2.resize(CLEAN, (2600, 2200), interpolation=cv2.INTER_LINEAR)
    image[:, :300] = 0
    content = content_of(image)
    assert content.keep.shape == (138, 163)  # of 16 px
    assert content.void[:, :18].all() and not content.void[:, 20:].any()


def test_training_gets_the_pixels_in_their_own_type() -> None:
    image = DISTURBED["black border"](CLEAN)[..., None]
    pixels, mean, std = even_pixels(image)
    assert pixels.dtype == np.uint8 and pixels.shape == image.shape
    np.testing.assert_allclose((pixels - mean) / std, normalize(image[..., 0], CONTENT), atol=0.6 / std)
    same, *_ = even_pixels(CLEAN[..., None])
    assert np.abs(same[..., 0].astype(int) - CLEAN).max() <= 2


def test_numpy_and_a_graph_are_one_definition() -> None:
    tf = pytest.importorskip("tensorflow")
    from keras import ops

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.float32)], autograph=False)
    def graph(gray):
        shape = ops.shape(gray)
        content = find_content(block_statistics(tf.cast(gray, tf.float64), ops), shape, ops)
        rows, columns = tf.range(shape[0]), tf.range(shape[1])
        return even(gray[..., None], gray, content, shape, rows, columns, ops), content.std

    for image in (CLEAN, *(change(CLEAN) for change in DISTURBED.values()), CLEAN[:5, :7], CLEAN[:300, :17]):
        shown, std = graph(image.astype(np.float32))
        ours, statistics = even_image(image)
        np.testing.assert_allclose(shown.numpy(), ours[:, :], atol=2e-4 * statistics.std)
        assert float(std) == pytest.approx(statistics.std, rel=1e-9)


@pytest.mark.parametrize("name", ["black border", "data bar", "saturated blob", "round field", "empty tiles"])
def test_other_networks_warn_and_name_the_area(name: str) -> None:
    image = DISTURBED[name](CLEAN)
    text = disturbance(image, Config())
    assert "shows no cells (rows " in text and "data.normalization=content" in text
    assert not disturbance(image, Config().replace(data__normalization="fixed"))


def test_the_area_is_named_in_pixels() -> None:
    image = DISTURBED["data bar"](CLEAN)
    assert describe_void(image, content_of(image)) == f"rows 304-329, columns 0-{WIDTH - 1}"
    assert "hot pixels" in disturbance(DISTURBED["hot pixels"](CLEAN), Config())
    most = np.zeros((1000, 1000), np.uint8)
    most[:HEIGHT, :WIDTH] = CLEAN
    assert disturbance(most, Config()).startswith("88% of it shows no cells (rows 0-999")
    assert not disturbance(most, CONTENT)
    assert even_image(most)[1].std == pytest.approx(even_image(CLEAN)[1].std, rel=0.1)


def test_the_eye_sees_the_cells_beside_a_bright_bar() -> None:
    clean = stretch_contrast(CLEAN)
    for name in ("black border", "white data bar", "saturated blob"):
        image = DISTURBED[name](CLEAN)
        shown = stretch_contrast(image)
        part = shown[40 : 40 + HEIGHT, 40 : 40 + WIDTH] if "border" in name else shown[:HEIGHT]
        same = (part.astype(int) - clean)[to_gray(CLEAN) < 200]
        assert np.median(np.abs(same)) < 6
