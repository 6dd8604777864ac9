"""Images that bioio reads: OME-Zarr as its own writer makes it, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf.data.build import build_image
from effdet_tf.data.sources.outlines import open_outlines
from effdet_tf.errors import UserError
from effdet_tf.images import bioio_file
from effdet_tf.images.read import Stack, read_image
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from tests.outputs.test_batch import Thresholder

writers = pytest.importorskip("bioio_ome_zarr.writers")

H, W = 48, 80


def write(
    path: Path, lengths: tuple[int, int, int] = (3, 2, 1), names: tuple[str, ...] = ("GFP", "Phase")
) -> None:
    """T, C and Z; the page at t, c, z has the value 10 t + 100 c + z beside a cell that is bright."""
    volume = np.zeros((*lengths, H, W), np.uint16)
    for t, c, z in np.ndindex(*lengths):
        volume[t, c, z] = 10 * t + 100 * c + z
        volume[t, c, z, 10 : 16 + t, 20:27] = 60000
    writer = writers.OMEZarrWriter(
        str(path),
        level_shapes=[volume.shape],
        dtype=volume.dtype,
        zarr_format=2,
        channels=[writers.Channel(label=name, color="FFFFFF") for name in names],
        axes_units=[None, None, "micrometer", "micrometer", "micrometer"],
        physical_pixel_size=[1, 1, 1, 0.5, 0.5],
    )
    writer.write_full_volume(volume)


def test_pages_of_ome_zarr(tmp_path: Path) -> None:
    write(tmp_path / "s.ome.zarr", (2, 2, 3))
    with Stack(tmp_path / "s.ome.zarr") as stack:
        assert stack.axes == ("TZC", (2, 3, 2)) and stack.um_per_px == 0.5
        values = [int(stack.read(page)[0, 0, 0]) for page in range(stack.pages)]
        assert values == [10 * t + 100 * c + z for t in range(2) for z in range(3) for c in range(2)]
        assert stack.read(0).dtype == np.uint16 and stack.read(0).shape == (H, W, 1)
        assert stack.chosen(None)[0] == [1, 3, 5, 7, 9, 11]  # Phase, not GFP
        assert stack.chosen("gfp")[0] == [0, 2, 4, 6, 8, 10]
        with pytest.raises(UserError, match="has no page 13; it has 12"):
            stack.read(12)
    with pytest.raises(UserError, match="stack of 12 pages"):
        read_image(tmp_path / "s.ome.zarr")


def test_one_page_is_an_image(tmp_path: Path) -> None:
    write(tmp_path / "s.zarr", (1, 1, 1), ("Phase",))
    assert read_image(tmp_path / "s.zarr").shape == (H, W, 1)
    with pytest.raises(UserError, match=r"s\.zarr: 48x80 is more than 100 pixels"):
        read_image(tmp_path / "s.zarr", max_pixels=100)


def test_a_folder_with_ome_zarr_is_predicted(tmp_path: Path) -> None:
    write(tmp_path / "in" / "s.ome.zarr")
    tifffile.imwrite(tmp_path / "in" / "a.tif", np.zeros((H, W), np.uint8))
    for inputs in ([tmp_path / "in"], [tmp_path / "in" / "*"], [tmp_path / "in" / "s.ome.zarr"]):
        names = [job.name for job in find_images(inputs)]
        assert names == (["s.ome"] if len(inputs[0].suffixes) == 2 else ["a", "s.ome"])
    jobs = find_images([tmp_path / "in"])
    formats = ("labels", "table", "geojson")
    report = predict_files(Thresholder(), jobs, tmp_path / "out", formats=formats)
    assert (report.done, report.cells, report.failed) == (4, 3, [])
    table = pd.read_csv(tmp_path / "out" / "s.ome.cells.csv")
    assert table[["page", "t", "c", "area"]].to_numpy().tolist() == [
        [2 * t + 2, t + 1, 2, (6 + t) * 7] for t in range(3)
    ]
    planes = [
        f["geometry"]["plane"]
        for f in json.loads((tmp_path / "out" / "s.ome.geojson").read_text())["features"]
    ]
    assert planes == [{"c": 1, "z": 0, "t": t} for t in range(3)]
    with Stack(tmp_path / "out" / "s.ome.labels.tif") as labels:
        assert labels.axes == ("TC", (3, 2)) and labels.um_per_px == pytest.approx(0.5)


def test_outlines_beside_ome_zarr_come_back(tmp_path: Path) -> None:
    write(tmp_path / "in" / "s.ome.zarr")
    predict_files(Thresholder(), find_images([tmp_path / "in"]), tmp_path / "out", formats=("geojson",))
    opened = open_outlines("geojson", tmp_path, tmp_path / "in", tmp_path / "out")
    assert [task.page for task in opened.tasks] == [1, 3, 5]
    boxes = [build_image(task, 28).fields["boxes"].tolist() for task in opened.tasks]
    assert boxes == [[[10, 20, 16 + t, 27]] for t in range(3)]


@pytest.mark.parametrize("name", ["x.nd2", "x.lif", "x.zarr"])
def test_what_is_damaged_is_one_line(tmp_path: Path, name: str) -> None:
    if name.endswith("zarr"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="is damaged|cannot be decoded") as told:
        Stack(tmp_path / name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "package"), [("x.nd2", r"'effdet_tf\[bioio\]'"), ("x.czi", "bioio bioio-czi")]
)
def test_without_the_plugin_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(bioio_file, "SUFFIXES", ())
    (tmp_path / name).write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=f"pip install {package}, or save as tif"):
        Stack(tmp_path / name)
