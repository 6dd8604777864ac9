"""Images are scaled to the size of cells that a network knows, and their cells come back in their pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.api import Model
from effdet_tf.config import Config
from effdet_tf.errors import UserError
from effdet_tf.images.normalize import Brightness
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from effdet_tf.prediction.augmented import View
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import AS_IT_IS, Sizing, predict_sized, scale_words, stated_scale
from effdet_tf.presets import preset

KNOWN = preset("cells-lite0").override(["data.cell_size=[12, 20, 38]", "data.um_per_px=1.2"])


class RectangleFinder(Predictor):
    """Finds the bright rectangles of an image, those of the sizes that it knows; counts what it is shown."""

    def __init__(self, config: Config = KNOWN) -> None:
        super().__init__(config)
        self.shown: list[tuple[int, ...]] = []

    def at_once(self, shape: tuple[int, ...]) -> int:
        return 2

    def _detect(self, image: np.ndarray, part_of: Brightness | None, score: float = 0.0) -> Result:
        self.shown.append(image.shape)
        gray = image[..., 0] if image.ndim == 3 else image
        count, _, stats, _ = cv2.connectedComponentsWithStats((gray > 100).astype(np.uint8))
        stats = stats[1:count]
        side = np.sqrt(stats[:, 2] * stats[:, 3]) if len(stats) else np.zeros(0)
        stats = stats[(side >= 10) & (side <= 48)]
        x, y, w, h = stats[:, :4].T if len(stats) else np.zeros((4, 0))
        boxes = np.stack([y, x, y + h, x + w], axis=1).astype(np.float32)
        ones = np.full((len(boxes), 4, 4), 255, np.uint8)
        scores, classes = np.full(len(boxes), 0.8, np.float32), np.zeros(len(boxes), np.int32)
        return Result(boxes, scores, classes, ones, boxes.copy(), *gray.shape, ("cell",))


def picture(times: float = 1.0) -> np.ndarray:
    """Twelve cells of 16 to 24 px, as another magnification shows them."""
    image = np.zeros((300, 400), np.uint8)
    for k in range(12):
        y, x, side = 20 + 90 * (k // 4), 30 + 90 * (k % 4), 16 + 8 * (k % 2)
        image[y : y + side, x : x + side + 4] = 200
    return View(times, False, False, False).enter(image) if times != 1 else image


@pytest.mark.parametrize(
    ("sizing", "file", "factor"),
    [
        (Sizing(), None, None),  # it has to be looked for
        (Sizing(cell_size=80), None, 0.25),
        (Sizing(cell_size=40), 1.2, 0.5),  # what the user says comes before the file
        (Sizing(cell_size=5), None, 4.0),
        (Sizing(cell_size=1000), None, 0.25),  # no further than that
        (Sizing(cell_size=1), None, 4.0),
        (Sizing(cell_size=38), None, 1.0),  # known as it is
        (Sizing(cell_size=12), None, 1.0),
        (Sizing(cell_size=38.1), None, 20 / 38.1),
        (Sizing(cell_size=11.9), None, 20 / 11.9),
        (Sizing(), 0.3, 0.25),
        (Sizing(), 0.6, 0.5),
        (Sizing(um_per_px=0.6), 1.2, 0.5),
        (Sizing(), 3.6, 3.0),
        (Sizing(), 1.25, 1.0),
        (Sizing(enabled=False), 0.3, 1.0),
        (Sizing(enabled=False, um_per_px=0.3), None, 1.0),
    ],
)
def test_what_is_said_of_the_size_gives_the_scale(sizing: Sizing, file: float, factor: float) -> None:
    scale = stated_scale(KNOWN, sizing, file)
    assert scale is None if factor is None else scale is not None and scale.factor == pytest.approx(factor)
    assert scale is None or (scale == AS_IT_IS) == (scale.factor == 1) == (not scale.reason)


def test_a_network_that_knows_no_size_scales_nothing() -> None:
    config = preset("cells-lite0")
    assert config.data.cell_size == () and config.data.um_per_px == 0
    assert stated_scale(config, Sizing(), 0.3) == stated_scale(config, Sizing(um_per_px=0.3)) == AS_IT_IS
    with pytest.raises(UserError, match=r"does not say what size of cells it knows; write data\.cell_size"):
        stated_scale(config, Sizing(cell_size=30))
    # It has a pixel's size alone: enough for a file that says its own.
    assert stated_scale(config.replace(data__um_per_px=1.2), Sizing(), 0.3).factor == 0.25
    fit = KNOWN.replace(data__resize="fit")
    assert stated_scale(fit, Sizing(), 0.3) == AS_IT_IS
    with pytest.raises(UserError, match=r"scales every image to its input \(data\.resize=fit\)"):
        stated_scale(fit, Sizing(cell_size=30))


@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["cell_size", "um_per_px"])
def test_a_size_is_above_0(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} {value}: give a number above 0"):
        Sizing(**{name: value})


def test_a_size_that_is_not_to_be_used_is_refused() -> None:
    with pytest.raises(UserError, match="leave out one of the two"):
        Sizing(enabled=False, cell_size=30)


@pytest.mark.parametrize(("times", "size"), [(2.0, 40), (4.0, 80), (0.5, 10)])
def test_a_scaled_image_has_the_cells_of_the_unscaled_one(times: float, size: float) -> None:
    finder, image = RectangleFinder(), picture(times)
    wanted = finder.predict(picture()).boxes * times
    assert len(wanted) == 12
    found = predict_sized(finder, image, sizing=Sizing(cell_size=size))
    assert finder.shown[-1] == (300, 400) and (found.height, found.width) == image.shape
    assert found.scale == pytest.approx(1 / times) and "were said" in found.scale_reason
    assert found.mask_boxes is not None
    np.testing.assert_allclose(found.boxes, wanted, atol=max(times, 1) * 1.01)
    np.testing.assert_array_equal(found.boxes, found.mask_boxes)
    assert len(found.patches()) == 12 and all(patch.mask.all() for patch in found.patches())
    few = found.filter(0.9)
    assert (len(few), few.scale, few.scale_reason) == (0, found.scale, found.scale_reason)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float64, bool])
def test_pixels_of_any_type_are_scaled(kind: Any) -> None:
    image = picture(2) > 100 if kind is bool else picture(2).astype(kind)
    found = View(0.5, False, False, False).enter(image)
    assert found.dtype == kind and found.shape == (300, 400)


def test_far_too_large_cells_are_noticed() -> None:
    finder, image = RectangleFinder(), picture(4)
    assert len(finder.predict(image)) == 0  # none that it knows
    finder.shown.clear()
    found = predict_sized(finder, image, score=0.5, sizing=Sizing())
    assert len(found) == 12 and found.scale == 0.25
    # The look had the right scale, so there was no third time.
    assert finder.shown == [(1200, 1600), (300, 400)]
    np.testing.assert_allclose(found.boxes, finder.predict(picture()).boxes * 4, atol=4.1)
    assert scale_words(found) == (
        "scaled 0.25 times for the network: its cells look to be of about 88 px, the network knows 20 px best"
    )


def test_ordinary_images_are_left_as_they_are() -> None:
    for times in (0.75, 1.0, 1.5):
        finder, image = RectangleFinder(), picture(times)
        found, wanted = predict_sized(finder, image, sizing=Sizing()), finder.predict(image)
        assert len(found) >= 6 and found.scale == 1 and scale_words(found) == ""
        for name in ("boxes", "scores", "classes", "masks", "mask_boxes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_a_few_spots_in_a_small_copy_say_nothing() -> None:
    image = np.zeros((1200, 1600), np.uint8)
    image[100:180, 100:180] = image[500:580, 700:780] = 200
    finder = RectangleFinder()
    assert len(finder.predict(View(0.25, False, False, False).enter(image))) == 2
    assert predict_sized(finder, image, sizing=Sizing()).scale == 1


def test_a_small_image_is_not_looked_at_smaller_still() -> None:
    finder = RectangleFinder()
    predict_sized(finder, picture()[:250], sizing=Sizing())
    assert finder.shown == [(250, 400)]


def test_switched_off_nothing_is_done() -> None:
    finder, image = RectangleFinder(), picture(4)
    assert len(predict_sized(finder, image, sizing=Sizing(enabled=False), um_per_px=0.3)) == 0
    assert finder.shown == [(1200, 1600)]


def write_tif(path: Path, image: np.ndarray, um_per_px: float | None) -> None:
    scale = {} if um_per_px is None else {"resolution": (1 / um_per_px,) * 2, "metadata": {"unit": "um"}}
    tifffile.imwrite(path, image, imagej=True, **scale)


def test_files_are_scaled_by_their_pixels_and_the_summary_says_so(tmp_path: Path, capsys: Any) -> None:
    write_tif(tmp_path / "a.tif", picture(2), 0.6)
    write_tif(tmp_path / "b.tif", picture(2), 0.6)
    write_tif(tmp_path / "c.tif", picture(), 1.2)
    write_tif(tmp_path / "d.tif", picture(4), None)
    images = find_images([tmp_path / "*.tif"])
    predict_files(RectangleFinder(), images, tmp_path / "on", sizing=Sizing(), progress=True)
    rows = pd.read_csv(tmp_path / "on" / "summary.csv")
    assert rows["scale"].tolist() == [0.5, 0.5, 1, 0.25]
    assert rows["cells"].tolist() == [12] * 4
    assert rows["um_per_px"].fillna(0).tolist() == pytest.approx([0.6, 0.6, 1.2, 0])
    told = [line for line in capsys.readouterr().err.splitlines() if "scaled" in line]
    assert len(told) == 2  # once for both
    assert "a.tif: scaled 0.5 times for the network: its pixels are of 0.6 um, those that" in told[0]
    predict_files(RectangleFinder(), images, tmp_path / "off", sizing=Sizing(enabled=False))
    predict_files(RectangleFinder(), images, tmp_path / "before")
    off = pd.read_csv(tmp_path / "off" / "summary.csv")
    assert off["scale"].tolist() == [1] * 4 and off["cells"].tolist() == [6, 6, 12, 0]
    for name in ("a.labels.tif", "b.cells.csv", "c.coco.json", "d.labels.tif", "summary.csv"):
        assert (tmp_path / "off" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_pages_that_are_predicted_together_get_their_own_scale(tmp_path: Path) -> None:
    large = picture(4)
    pages = [np.zeros_like(large), large, large]
    pages[0][:300, :400] = picture()
    tifffile.imwrite(tmp_path / "stack.tif", np.stack(pages), imagej=True, metadata={"axes": "TYX"})
    finder = RectangleFinder()
    predict_files(finder, find_images([tmp_path / "stack.tif"]), tmp_path / "out", sizing=Sizing())
    rows = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert rows["scale"].tolist() == [1, 0.25, 0.25] and rows["cells"].tolist() == [12] * 3
    assert [shape[0] for shape in finder.shown].count(1200) == 3  # no page twice


def test_from_python(tmp_path: Path) -> None:
    write_tif(tmp_path / "a.tif", picture(2), 0.6)
    model = Model(RectangleFinder())
    cells = model.predict(tmp_path / "a.tif")
    assert (len(cells), cells.result.scale, cells.um_per_px) == (12, 0.5, pytest.approx(0.6))
    assert "600 x 800 px, scaled 0.5 times for the network: 12 cell" in repr(cells)
    assert model.predict(tmp_path / "a.tif", rescale=False).result.scale == 1
    assert model.predict(tmp_path / "a.tif", um_per_px=1.3).result.scale == 1
    assert model.predict(picture(4), cell_size=80).result.scale == 0.25
    assert [c.result.scale for c in model.predict_many([picture(4), picture()], progress=False)] == [0.25, 1]
    with pytest.raises(UserError, match="cell_size 0: give a number above 0"):
        model.predict(picture(), cell_size=0)
    unknown = Model(RectangleFinder(preset("cells-lite0")))
    with pytest.raises(UserError, match="does not say what size of cells it knows"):
        next(unknown.predict_many([picture()], cell_size=30))


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--cell-size 0", 2, "--cell-size: 0 is not above 0"),
        ("--cell-size 30 --no-rescale", 2, "not allowed with argument --cell-size"),
        ("--magnification 10", 1, "--magnification 10: says nothing of pixels without --um-per-px"),
        ("--magnification 10 --um-per-px 6.5 --cell-size 30", 1, "both say how large cells are"),
    ],
)
def test_wrong_words_take_one_line(tmp_path: Path, capsys: Any, words: str, code: int, told: str) -> None:
    write_tif(tmp_path / "a.tif", picture(), None)
    for verb in (["predict", "--out", str(tmp_path / "o")], ["plate", "--out", str(tmp_path / "o")]):
        try:
            found = cli.main([verb[0], str(tmp_path), *verb[1:], *words.split()])
        except SystemExit as error:
            found = error.code
        lines = capsys.readouterr().err.strip().splitlines()
        assert found == code and len(lines) == 1 and told in lines[0], lines


def test_a_magnification_divides_the_pixels_of_the_camera(tmp_path: Path, monkeypatch: Any) -> None:
    write_tif(tmp_path / "a.tif", picture(4), None)
    finder = RectangleFinder()
    monkeypatch.setattr("effdet_tf.prediction.load.load", lambda run: finder)
    words = ["predict", str(tmp_path / "a.tif"), "--out", str(tmp_path / "o")]
    assert cli.main([*words, "--um-per-px", "6", "--magnification", "20"]) == 0
    row = pd.read_csv(tmp_path / "o" / "summary.csv").iloc[0]
    assert (row["um_per_px"], row["scale"], row["cells"]) == (pytest.approx(0.3), 0.25, 12)


def test_a_sizing_travels_to_workers() -> None:
    assert dataclasses.asdict(Sizing(cell_size=30.0)) == {
        "enabled": True,
        "cell_size": 30.0,
        "um_per_px": None,
    }
