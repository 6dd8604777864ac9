"""The varied looks: what is annotated is what is drawn, and no size, number or polarity is the only one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from effdet_tf.commands import synthetic as command
from effdet_tf.commands.parser import Parser
from effdet_tf.data.synthetic.arrangement import SHAPES, arrange
from effdet_tf.data.synthetic.dataset import ANNOTATIONS, IMAGES, generate, image_name
from effdet_tf.data.synthetic.surroundings import expose
from effdet_tf.data.synthetic.varied import LOOKS, MAX_CELLS, render_varied
from effdet_tf.errors import UserError
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import decode_rle

_SIDES = (300, 400)
# Every 24th row's every 32nd pixel of 6 images of 96x128, seed 3, before there was a choice of looks.
_PHASE_PIXELS = [
    [128, 146, 125, 130, 107, 159, 121, 126, 132, 112, 136, 126, 128, 118, 128, 124],
    [127, 128, 125, 129, 127, 109, 128, 130, 127, 126, 113, 128, 127, 156, 127, 127],
    [132, 128, 129, 127, 130, 129, 141, 129, 128, 128, 125, 107, 131, 127, 128, 127],
    [129, 154, 124, 127, 133, 118, 125, 127, 131, 131, 123, 131, 129, 128, 129, 127],
    [127, 129, 139, 127, 127, 143, 76, 128, 130, 119, 145, 125, 127, 141, 128, 125],
    [127, 111, 132, 126, 129, 135, 142, 141, 129, 129, 129, 128, 127, 134, 130, 130],
]


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _rings(look: str, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Gray levels of the middle, of the rim and of the field round about, of each cell with free ground."""
    image, cells = render_varied(seed, *_SIDES, look, 40)
    masks = [decode_rle(polygons_to_rle([cell.polygon.ravel().tolist()], *_SIDES)) for cell in cells]
    taken = np.sum(masks, axis=0) if masks else np.zeros(_SIDES)
    pixels, found = image.astype(float), []
    for mask in masks:
        mask = mask.astype(np.uint8)
        alone = cv2.dilate(mask, np.ones((3, 3), np.uint8)) * taken <= mask
        around = (cv2.dilate(mask, np.ones((21, 21), np.uint8)) > 0) & (taken == 0)
        around &= cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0
        depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        # Near the image's edge a cell has no rim.
        if not alone.all() or around.sum() < 60 or depth.max() < 6 or mask[[0, -1]].any():
            continue
        if not mask[:, [0, -1]].any():
            middle, rim = depth > 0.5 * depth.max(), (depth > 0.5) & (depth < 0.25 * depth.max() + 1)
            found.append((pixels[middle], pixels[rim], pixels[around]))
    return found


def _share(look: str, holds) -> float:
    """Share of the cells of many pictures of a look for which something holds."""
    values = [holds(*ring) for seed in range(24) for ring in _rings(look, seed)]
    assert len(values) > 30
    return float(np.mean(values))


def test_a_rim_is_brighter_than_the_body_and_than_the_field():
    assert _share("Rimmed", lambda middle, rim, field: rim.mean() > middle.mean() + 2) > 0.9
    assert _share("Rimmed", lambda middle, rim, field: rim.max() > field.mean() + 10) > 0.95


def test_bright_cells_are_brighter_and_dark_ones_darker_than_the_field():
    assert _share("Bright", lambda middle, rim, field: middle.mean() > field.mean() + 10) > 0.97
    assert _share("Dark", lambda middle, rim, field: middle.mean() < field.mean() - 10) > 0.97


def test_a_relief_is_as_gray_as_the_field_but_livelier():
    def livelier(middle: np.ndarray, rim: np.ndarray, field: np.ndarray) -> bool:
        cell = np.concatenate([middle, rim])
        return abs(cell.mean() - field.mean()) < 12 and cell.std() > 1.3 * field.std()

    assert _share("Relief", livelier) > 0.8


def test_bright_field_has_faint_bodies_and_a_line():
    def faint(middle: np.ndarray, rim: np.ndarray, field: np.ndarray) -> bool:
        return abs(middle.mean() - field.mean()) < np.abs(rim - field.mean()).max()

    assert _share("Outlined", faint) > 0.9


@pytest.mark.parametrize("look", ["Bright", "Dark"])
def test_the_outline_is_where_the_gray_changes(look):
    """An outline moved two pixels in or out is a worse border between a cell and the field."""
    steps = []
    for seed in range(16):
        image, cells = render_varied(seed, *_SIDES, look, 12)
        blank = np.zeros(_SIDES, np.uint8)
        for cell in cells:
            cv2.fillPoly(blank, [np.round(cell.polygon * 16 - 8).astype(np.int32)], 1, shift=4)
        if not 0 < blank.mean() < 0.9:
            continue
        depth = cv2.distanceTransform(blank, cv2.DIST_L2, 5) - cv2.distanceTransform(
            1 - blank, cv2.DIST_L2, 5
        )
        levels = [image[(depth > at - 1) & (depth <= at + 1)].mean() for at in (-5, -3, -1, 1, 3)]
        steps.append(np.abs(np.diff(levels)) / np.abs(levels[-1] - levels[0]))
    assert len(steps) > 10
    assert int(np.argmax(np.median(steps, 0))) in (2, 3)  # between -1 and 1, or just within: domes fade out
    assert np.median(steps, 0)[0] < 0.15


def test_same_seed_same_bytes_and_other_seed_other_bytes():
    for look in LOOKS:
        first, second = render_varied(5, 120, 160, look), render_varied(5, 120, 160, look)
        assert first[0].tobytes() == second[0].tobytes()
        assert [cell.polygon.tolist() for cell in first[1]] == [cell.polygon.tolist() for cell in second[1]]
        assert first[0].tobytes() != render_varied(6, 120, 160, look)[0].tobytes()


def test_the_default_looks_are_drawn_as_before(tmp_path):
    """Not byte for byte: versions of OpenCV round a few pixels differently."""
    generate(tmp_path, train=4, val=2, size=(96, 128), cells_per_image=(4, 12), seed=3)
    images = sorted((tmp_path / IMAGES).rglob("*.tif"))
    assert len(images) == 6
    pixels = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[::24, ::32].ravel() for path in images]
    assert np.mean(np.abs(np.int32(pixels) - np.int32(_PHASE_PIXELS))) < 0.5


def test_sizes_and_numbers_span_their_range():
    diameters, counts = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        cells, diameter = arrange(rng, 520, 704, SHAPES[seed % len(SHAPES)], MAX_CELLS)
        diameters.append(diameter)
        counts.append(len(cells))
    assert min(diameters) >= 8 and max(diameters) <= 120
    assert np.percentile(diameters, 5) < 11 and np.percentile(diameters, 95) > 85
    assert counts.count(0) >= 3
    assert np.percentile(counts, 30) < 30 and max(counts) <= MAX_CELLS and np.percentile(counts, 90) > 300


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_of_its_size(shape):
    """A typical diameter means the same for rods as for balls, whether or not neighbours press."""
    ratios = []
    for seed in range(40):
        cells, _ = arrange(np.random.default_rng(seed), 520, 704, shape, 60)
        ratios += [
            cv2.contourArea(cell.pieces[0].astype(np.float32)) ** 0.5 * 1.128 / cell.size for cell in cells
        ]
    assert 0.75 < np.median(ratios) < 1.15


def test_buds_touch_their_mothers():
    cells, _ = arrange(np.random.default_rng(8), 520, 704, "budding", 40)
    assert len(cells) > 5
    middles = np.array([cell.pieces[0].mean(0) for cell in cells])
    sizes = np.array([cell.size for cell in cells])
    apart = np.hypot(*(middles[:, None] - middles[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(cells))
    touching = (apart < 0.55 * (sizes[:, None] + sizes[None])).any(1)
    assert touching.mean() > 0.5


def test_polygons_lie_in_the_image():
    for seed in range(10):
        _, cells = render_varied(seed, 200, 260)
        for cell in cells:
            assert cell.look in LOOKS and len(cell.polygon) >= 3
            assert cell.polygon.min() >= 0 and (cell.polygon.max(0) <= (260, 200)).all()


def test_debris_and_scale_bars_are_no_cells():
    bars = 0
    for seed in range(30):
        image, cells = render_varied(seed, 220, 300, "Relief", 0)
        assert cells == []
        # A bar is a run of black or white as long as no debris of a gray field has.
        extreme = ((image < 12) | (image > 243)).astype(np.uint8)
        bars += bool(cv2.erode(extreme, np.ones((1, 20), np.uint8)).any())
    assert 2 <= bars <= 15


def test_a_picture_has_no_noise_that_hides_its_cells():
    flat = np.full((256, 256), 120, np.float32)
    for seed in range(12):
        image = expose(np.random.default_rng(seed), flat, 30.0, 14.0)
        assert np.median(np.abs(image.astype(float) - 120)) < 3


def test_the_layout_is_livecells_and_names_its_looks(tmp_path):
    report = generate(tmp_path / "a", train=6, val=2, size=(96, 128), seed=3, looks="varied")
    generate(tmp_path / "b", train=6, val=2, size=(96, 128), seed=3, looks="varied")
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    document = json.loads((tmp_path / "a" / ANNOTATIONS / "livecell_coco_train.json").read_text())
    assert len(document["annotations"]) == report.cells["train"]
    assert [image["file_name"].split("_")[0] for image in document["images"]] == [*LOOKS, LOOKS[0]]
    train = [image_name("train", index, "varied") for index in range(500)]
    val = [image_name("val", index, "varied") for index in range(500)]
    assert len(set(train + val)) == 1000
    assert {name.split("_")[2] for name in train}.isdisjoint(name.split("_")[2] for name in val)


def test_the_upper_bound_of_cells_holds(tmp_path):
    generate(tmp_path, train=5, val=0, size=(96, 128), cells_per_image=(3, 5), seed=1, looks="varied")
    document = json.loads((tmp_path / ANNOTATIONS / "livecell_coco_train.json").read_text())
    images = [annotation["image_id"] for annotation in document["annotations"]]
    assert 0 < max(images.count(image) for image in set(images)) <= 5


def test_unknown_looks_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        generate(tmp_path / "out", looks="vivid")
    assert str(error.value) == "synthetic: unknown looks 'vivid'; choose one of phase, varied"
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="Rimmed, Bright"):
        render_varied(0, 64, 64, "rimmed")


def test_command(tmp_path, capsys):
    parser = Parser()
    command.add_parser(parser.add_subparsers())
    size = ["--train", "2", "--val", "1", "--size", "64", "80"]
    args = parser.parse_args(["synthetic", str(tmp_path), *size, "--looks", "varied"])
    assert args.run(args) == 0
    assert "train 2 images" in capsys.readouterr().out
    assert {path.name.split("_")[0] for path in (tmp_path / IMAGES).rglob("*.tif")} == {"Rimmed", "Bright"}
