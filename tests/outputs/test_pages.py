"""The pages of every kind of tif keep their places along time, depth and channels, out and back again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from roifile import ImagejRoi, roiread, roiwrite

from effdet_tf.data.build import build_image
from effdet_tf.data.sources.base import Source
from effdet_tf.data.sources.coco import open_coco
from effdet_tf.data.sources.labelmaps import open_labelmaps
from effdet_tf.data.sources.outlines import open_outlines
from effdet_tf.images.read import Stack
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from tests.outputs.test_batch import Thresholder

H, W = 48, 80
LENGTHS = {"P": 2, "T": 3, "Z": 4, "C": 2}
KINDS = {
    "imagej": {"imagej": True},
    "ome": {"ome": True},
    "plain": {},  # tifffile's own description
    "big endian": {"imagej": True, "byteorder": ">"},
    "bigtiff": {"ome": True, "bigtiff": True},
    "tiled": {"ome": True, "tile": (16, 16)},
    "zlib": {"imagej": False, "compression": "zlib"},
}
ORDERS = ["T", "Z", "C", "TC", "ZC", "TZ", "TZC"]


def blob(page: int) -> tuple[int, int]:
    """Top and left of the only cell of a page, 6 x 5 px: no two pages have it at one place."""
    return 2 + 7 * (page % 6), 3 + 7 * (page // 6)


def write(path: Path, axes: str, options: dict) -> np.ndarray:
    lengths = [LENGTHS[axis] for axis in axes]
    pages = np.zeros((int(np.prod(lengths)), H, W), np.uint8)
    for number, page in enumerate(pages):
        y, x = blob(number)
        page[y : y + 6, x : x + 5] = 200
    metadata = {"axes": f"{axes}YX"}
    stack = pages.reshape(*lengths, H, W)
    if not axes.startswith("P"):
        tifffile.imwrite(path, stack, photometric="minisblack", metadata=metadata, **options)
        return pages
    with tifffile.TiffWriter(path, ome=True) as writer:  # an image for each position
        for position in stack:
            writer.write(position, photometric="minisblack", metadata={"axes": f"{axes[1:]}YX"})
    return pages


def places(axes: str) -> Iterator[dict[str, int]]:
    for index in np.ndindex(*[LENGTHS[axis] for axis in axes]):
        yield dict(zip(axes, index, strict=True))


def converted(folder: Path, name: str) -> Iterator[tuple[str, Source]]:
    """What `predict` wrote to out/ of in/`name`, opened again by each importer."""
    source, out = folder / "in", folder / "out"
    for kind in ("imagej", "geojson", "yolo"):
        yield kind, open_outlines(kind, folder, source, out)
    yield "coco", open_coco(next(out.glob("*.coco.json")), source, folder)
    (folder / "masks").mkdir()
    (out / f"{name.removesuffix('.tif')}.labels.tif").rename(folder / "masks" / name)
    yield "labelmaps", open_labelmaps(folder, source, folder / "masks")


@pytest.mark.parametrize(
    ("kind", "axes"), [*itertools.product(KINDS, ORDERS), *(("ome", axes) for axes in ("P", "PC", "PTZC"))]
)
def test_pages_keep_their_places(tmp_path: Path, kind: str, axes: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    name = "s.ome.tif" if KINDS[kind].get("ome") else "s.tif"
    pages = write(source / name, axes, KINDS[kind])
    formats = ("labels", "table", "coco", "imagej", "geojson", "yolo")
    report = predict_files(Thresholder(), find_images([source]), out, formats=formats, channel="all")
    assert (report.done, report.cells, report.failed) == (len(pages), len(pages), [])
    stem, expected = name.removesuffix(".tif"), list(places(axes))

    with tifffile.TiffFile(out / f"{stem}.labels.tif") as file:
        assert file.is_ome == name.endswith(".ome.tif")
        inner = axes.removeprefix("P")
        assert [one.axes for one in file.series] == [f"{inner}YX"] * (2 if inner != axes else 1)
        assert file.series[0].shape[:-2] == tuple(LENGTHS[axis] for axis in inner)
    with Stack(out / f"{stem}.labels.tif") as labels:
        assert labels.axes == (axes, tuple(LENGTHS[axis] for axis in axes))
        read = np.stack([labels.read_labels(page) for page in range(labels.pages)])
    np.testing.assert_array_equal(read > 0, pages > 0)
    regions = roiread(out / f"{stem}.rois.zip")
    assert [roi.position for roi in regions] == list(range(1, len(pages) + 1))
    if "P" not in axes:  # which ImageJ does not know
        rois = [{a: getattr(roi, f"{a.lower()}_position") - 1 for a in axes} for roi in regions]
        assert rois == expected
    planes = [f["geometry"]["plane"] for f in json.loads((out / f"{stem}.geojson").read_text())["features"]]
    assert planes == [
        {"c": -1, "z": 0, "t": 0} | {a.lower(): k for a, k in place.items()} for place in expected
    ]
    table = pd.read_csv(out / f"{stem}.cells.csv")
    assert table["page"].tolist() == list(range(1, len(pages) + 1))
    for axis in axes:
        assert table[axis.lower()].tolist() == [place[axis] + 1 for place in expected]
    images = json.loads((out / f"{stem}.coco.json").read_text())["images"]
    assert [{a: image[a.lower()] - 1 for a in axes} for image in images] == expected

    for convert, opened in converted(tmp_path, name):
        assert len(opened.tasks) == len(pages)
        for number, task in enumerate(opened.tasks):
            fields = build_image(task, 28).fields
            assert fields is not None, convert
            y, x = blob(number)
            assert fields["boxes"].tolist() == [[y, x, y + 6, x + 5]], (convert, number)


def test_pages_in_another_order_than_imagejs_keep_it(tmp_path: Path) -> None:
    lengths = (2, 3)  # channels slowest, as OME's XYTC
    pages = np.zeros((*lengths, H, W), np.uint8)
    pages[..., 10:16, 10:16] = 200
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "s.tif", pages, photometric="minisblack", metadata={"axes": "CTYX"})
    options = {"formats": ("labels", "geojson"), "channel": "all"}
    predict_files(Thresholder(), find_images([tmp_path / "in"]), tmp_path / "out", **options)
    with tifffile.TiffFile(tmp_path / "out" / "s.labels.tif") as file:  # ImageJ has no such order
        assert (file.is_ome, file.series[0].axes, file.series[0].shape) == (True, "CTYX", (2, 3, H, W))
    planes = [
        (f["geometry"]["plane"]["c"], f["geometry"]["plane"]["t"])
        for f in json.loads((tmp_path / "out" / "s.geojson").read_text())["features"]
    ]
    assert planes == [(c, t) for c in range(2) for t in range(3)]


def ome(pixels: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" Type="uint8" SizeX="{W}" SizeY="{H}" '
        f"{pixels}</Pixels></Image></OME>"
    )


def save(path: Path, said: str, values: list[int]) -> None:
    with tifffile.TiffWriter(path) as writer:
        for value in values:
            described = {"description": said} if value == values[0] else {}
            page = np.full((H, W), value, np.uint8)
            writer.write(page, photometric="minisblack", metadata=None, **described)


def test_ome_says_which_page_comes_first(tmp_path: Path) -> None:
    order = [4, 0, 5, 2, 1, 3]  # of what lies in the file, as microscopes write while they go on
    planes = "".join(
        f'<TiffData IFD="{ifd}" FirstT="{k // 2}" FirstC="{k % 2}" FirstZ="0" PlaneCount="1"/>'
        for ifd, k in enumerate(order)
    )
    said = ome(f'DimensionOrder="XYCZT" SizeZ="1" SizeC="2" SizeT="3">{planes}')
    save(tmp_path / "s.ome.tif", said, [10 + k for k in order])
    with Stack(tmp_path / "s.ome.tif") as stack:
        assert stack.axes == ("TC", (3, 2))
        assert [int(stack.read(page)[0, 0, 0]) for page in range(6)] == [10, 11, 12, 13, 14, 15]


def test_a_file_of_an_ome_set_has_its_own_pages(tmp_path: Path) -> None:
    planes = "".join(
        f'<TiffData IFD="{k % 4}" FirstT="{k // 2}" FirstC="{k % 2}" FirstZ="0" PlaneCount="1">'
        f'<UUID FileName="s{k // 4}.ome.tif">urn:uuid:{k // 4 + 1}</UUID></TiffData>'
        for k in range(8)
    )
    said = ome(f'DimensionOrder="XYCZT" SizeZ="1" SizeC="2" SizeT="4">{planes}')
    save(tmp_path / "s0.ome.tif", said, [10, 11, 12, 13])
    save(tmp_path / "s1.ome.tif", said.replace('UUID="urn:uuid:1"', 'UUID="urn:uuid:2"'), [14, 15, 16, 17])
    for first, name in ((10, "s0.ome.tif"), (14, "s1.ome.tif")):
        with Stack(tmp_path / name) as stack:
            assert stack.axes == ("TC", (2, 2))
            assert [int(stack.read(page)[0, 0, 0]) for page in range(4)] == [first + k for k in range(4)]


def test_positions_of_other_lengths_are_pages_of_one_file(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "p.ome.tif", ome=True) as writer:
        for count, value in ((3, 10), (2, 20)):
            frames = np.stack([np.full((H, W), value + k, np.uint8) for k in range(count)])
            writer.write(frames, photometric="minisblack", metadata={"axes": "TYX"})
    with Stack(tmp_path / "p.ome.tif") as stack:
        assert stack.axes == ("T", (5,))
        assert [int(stack.read(page)[0, 0, 0]) for page in range(5)] == [10, 11, 12, 20, 21]


@pytest.mark.parametrize("axes", ["C", "TC", "ZC", "TZC"])
@pytest.mark.parametrize("kind", ["imagej", "ome", "plain"])
def test_one_channel_alone_comes_back_on_its_own_pages(tmp_path: Path, kind: str, axes: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    name = "s.ome.tif" if kind == "ome" else "s.tif"
    pages = write(source / name, axes, KINDS[kind])
    own = [k for k, place in enumerate(places(axes)) if place["C"] == 1]
    formats = ("labels", "table", "coco", "imagej", "geojson", "yolo", "overlay")
    report = predict_files(Thresholder(), find_images([source]), out, formats=formats, channel=2)
    assert (report.done, report.failed) == (len(own), [])
    stem = name.removesuffix(".tif")
    labels = tifffile.imread(out / f"{stem}.labels.tif").reshape(-1, H, W)
    assert [k for k, page in enumerate(labels) if page.any()] == own
    np.testing.assert_array_equal(labels[own] > 0, pages[own] > 0)
    assert pd.read_csv(out / f"{stem}.cells.csv")["page"].tolist() == [k + 1 for k in own]
    for convert, opened in converted(tmp_path, name):
        # The other channel has no annotation, which does not say that it has no cells.
        assert [task.page for task in opened.tasks] == own, convert
        if convert not in ("coco", "yolo"):  # which name the pages that were looked at
            assert "channel 2 has some" in " ".join(opened.faults.lines())
        for task in opened.tasks:
            y, x = blob(task.page)
            assert build_image(task, 28).fields["boxes"].tolist() == [[y, x, y + 6, x + 5]]


def test_a_pyramid_is_one_page(tmp_path: Path) -> None:
    image = np.zeros((96, 160), np.uint8)
    image[10:40, 20:60] = 200
    path = tmp_path / "in" / "p.ome.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(image, subifds=2, tile=(16, 16), photometric="minisblack")
        writer.write(image[::2, ::2], subfiletype=1, tile=(16, 16), photometric="minisblack")
        writer.write(image[::4, ::4], subfiletype=1, tile=(16, 16), photometric="minisblack")
    report = predict_files(Thresholder(), find_images([path.parent]), tmp_path / "out")
    assert (report.done, report.cells) == (1, 1)
    assert tifffile.imread(tmp_path / "out" / "p.ome.labels.tif").shape == image.shape


def test_regions_on_one_axis_go_to_all_pages_along_the_others(tmp_path: Path) -> None:
    write(tmp_path / "s.tif", "TC", {"imagej": True})
    roi = ImagejRoi.frompoints([[30, 30], [40, 30], [40, 38], [30, 38]])
    roi.c_position = 2
    everywhere = ImagejRoi.frompoints([[50, 30], [60, 30], [60, 38], [50, 38]])
    roiwrite(tmp_path / "s.zip", [roi, everywhere])
    counts = [len(build_image(task, 28).fields["rles"]) for task in open_outlines("imagej", tmp_path).tasks]
    assert counts == [1, 2, 1, 2, 1, 2]


def test_regions_on_pages_that_the_image_lacks_are_lost_loudly(tmp_path: Path) -> None:
    write(tmp_path / "s.tif", "T", {"imagej": True})
    rois = [ImagejRoi.frompoints([[30, 30], [40, 30], [40, 38], [30, 38]]) for _ in range(3)]
    rois[0].t_position, rois[1].t_position, rois[2].position = 1, 4, 9
    roiwrite(tmp_path / "s.zip", rois)
    built = [build_image(task, 28) for task in open_outlines("imagej", tmp_path).tasks]
    assert [len(one.fields["rles"]) for one in built if one.fields] == [1, 0, 0]
    assert [one.faults.lost for one in built] == [{"outline on a page that the image lacks": 2}, {}, {}]


def test_a_file_that_is_named_as_an_image_is_not_a_page_of_another(tmp_path: Path) -> None:
    write(tmp_path / "s.tif", "T", {})
    tifffile.imwrite(tmp_path / "s_0002.tif", np.zeros((H, W), np.uint8))
    for number, x in ((1, 0.25), (2, 0.5), (3, 0.75)):
        line = f"0 {x} 0.5 {x + 0.1} 0.5 {x + 0.1} 0.75\n"
        (tmp_path / f"s_{number:04d}.txt").write_text(line)
    opened = open_outlines("yolo", tmp_path)
    assert [(task.file_name, task.page) for task in opened.tasks] == [
        *(("s.tif#0001", 0), ("s.tif#0003", 2)),
        ("s_0002.tif", None),
    ]
    boxes = [build_image(task, 28).fields["boxes"][0] for task in opened.tasks]
    assert [int(box[1]) for box in boxes] == [20, 60, 40]


def test_an_entry_of_a_page_that_the_stack_lacks_is_told(tmp_path: Path) -> None:
    write(tmp_path / "s.tif", "T", {})
    images = [{"id": page, "file_name": "s.tif", "width": W, "height": H, "page": page} for page in (1, 4)]
    cells = [{"id": k, "image_id": k, "category_id": 1, "bbox": [2, 2, 9, 9]} for k in (1, 4)]
    content = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    built = [build_image(task, 28) for task in open_coco(tmp_path / "c.json", tmp_path, tmp_path).tasks]
    assert [bool(one.fields) for one in built] == [True, False]
    assert "has no page 4; it has 3" in " ".join(built[1].faults.lines())
