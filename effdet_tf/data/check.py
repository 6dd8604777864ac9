"""What a data set holds and what training on it needs, told before any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from effdet_tf.config import Config
from effdet_tf.data.faults import Faults
from effdet_tf.data.ground_truth import decode_pixels
from effdet_tf.data.manifest import Manifest, load_manifest, verify_shards
from effdet_tf.data.record import ImageRecord, iterate_records
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.geometry.rle import rle_to_patch
from effdet_tf.images.content import stretch_contrast
from effdet_tf.images.gray import to_gray
from effdet_tf.images.read import encode_png
from effdet_tf.model import anchors

SIZE_EDGES = (0, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
IOU_THRESHOLDS = (0.4, 0.5, 0.6, 0.7)
BOXES_ONLY = (
    "annotation: boxes only, no masks; a network for them is trained with --set model.mask.enabled=false"
)
_SAMPLE = 4000  # cells that anchor recall is computed on
_BAR = 40  # characters of the longest bar
_CAPTION = 26  # px above each picture of the overlay


@dataclass(frozen=True, eq=False)
class DataReport:
    """The cells of a data set."""

    manifest: Manifest  # its manifest
    counts: np.ndarray  # int64 `[images]`, cells of each image
    sizes: np.ndarray  # float32 `[cells, 2]`, height and width of the tight boxes in px, crowds left out
    image_sizes: np.ndarray  # int64 `[cells, 2]`, height and width of the image of each
    types: np.ndarray  # `[cells]`, the cell type of each, empty when unknown

    @property
    def sides(self) -> np.ndarray:
        """Square root of height x width of each cell, px."""
        return np.sqrt(self.sizes.prod(1))

    @property
    def max_instances(self) -> int:
        """Places that hold the fullest image with a quarter to spare, in hundreds."""
        fullest = int(self.counts.max(initial=0))
        return max(100, -(-fullest * 5 // 400) * 100)


def read_report(directory: str | Path) -> DataReport:
    """Read every record of a converted data set.

    Raises:
        UserError: for a missing manifest, or a missing or damaged shard.
    """
    counts, sizes, types = [], [np.zeros((0, 2), np.float32)], []
    image_sizes: list[tuple[int, int]] = []
    manifest = load_manifest(directory)
    verify_shards(directory, manifest)
    for record in iterate_records(directory):
        boxes = record.boxes[record.iscrowd == 0]
        counts.append(len(record.rles))
        sizes.append(boxes[:, 2:] - boxes[:, :2])
        types += [record.cell_type] * len(boxes)
        image_sizes += [(record.height, record.width)] * len(boxes)
    return DataReport(
        manifest,
        np.array(counts, np.int64),
        np.concatenate(sizes),
        np.array(image_sizes, np.int64).reshape(-1, 2),
        np.array(types, dtype=str),
    )


def describe(report: DataReport) -> list[str]:
    """Return lines on images, cells per image, cell types, sizes and faults."""
    manifest, counts = report.manifest, report.counts
    lines = [
        f"{manifest.source}: {len(counts):,} images, {counts.sum():,} cells",
        f"classes: {', '.join(manifest.class_names)}",
        *([] if manifest.masks else [BOXES_ONLY]),
        *_image_lines(manifest),
    ]
    if len(counts):
        marks = np.percentile(counts, [5, 25, 50, 75, 95]).round().astype(int)
        shown = ", ".join(f"{p} %: {v}" for p, v in zip((5, 25, 50, 75, 95), marks, strict=True))
        empty = int((counts == 0).sum())
        lines.append(
            f"cells per image: mean {counts.mean():.1f}, {shown}, most {counts.max()}; {empty} images without"
        )
    lines += _type_lines(report) + histogram(report.sides)
    faults = Faults(manifest.dropped, manifest.notes)
    return [*lines, f"faults found by convert:{'' if faults else ' none'}", *faults.lines()]


def describe_preset(report: DataReport, config: Config) -> list[str]:
    """Return lines on what a preset needs for these cells: anchors and `max_instances`.

    Recall is the share of cells whose best anchor reaches an IoU, averaged over where a cell may lie
    on the anchor grid; for a preset that fits images into its input, of the cells at that scale.

    Raises:
        UserError: when the data set has no cells.
    """
    if not len(report.sizes):
        raise UserError("the data set has no cells, so no anchors can be chosen; convert annotated images")
    levels = tuple(range(config.model.min_level, config.model.max_level + 1))
    sizes = report.sizes
    scaled = ""
    if config.data.resize == "fit":
        height, width = config.data.crop_size
        scaled = f", cells as in images fitted into {width} x {height} px"
        sizes = sizes * (np.array(config.data.crop_size) / report.image_sizes).min(1, keepdims=True)
    elif config.data.zoom != 1:
        scaled = f", cells as in images magnified {config.data.zoom:g} times"
        sizes = sizes * config.data.zoom
    sizes = sizes[:: -(-len(sizes) // _SAMPLE)]
    strides = f"{2 ** levels[0]}-{2 ** levels[-1]}"
    lines = [f"preset {config.preset}, levels {levels[0]}-{levels[-1]} (strides {strides} px){scaled}:"]
    lines += _points(sizes, 2 ** levels[0]) if config.anchors.code == "sides" else _fit(sizes, config, levels)
    fullest, places = int(report.counts.max()), config.data.max_instances
    needed = report.max_instances
    lines.append(f"  max_instances: {needed} would do for these images, the preset has {places}")
    if fullest > places:
        lines.append(f"  suggested: --set data.max_instances={needed}, the fullest has {fullest} cells")
    return lines


def _points(sizes: np.ndarray, stride: int) -> list[str]:
    """What there is to say of cells of `sizes [N, 2]` px where every location is a point."""
    held = float(np.minimum(sizes / stride, 1.0).prod(1).mean())
    return [
        "  one point at every location: there are no anchors to fit",
        f"  cells that hold a point of the finest level: {held:.1%}; to the others the nearest one belongs",
    ]


def _fit(sizes: np.ndarray, config: Config, levels: tuple[int, ...]) -> list[str]:
    """How the anchors of a preset, and suggested ones, fit cells of `sizes [N, 2]` px."""
    # As training does where a preset takes its anchors from the data.
    per_level = len(config.anchors.sizes[0]) if config.anchors.sizes else 2
    scales = (1.0, 1.0) if config.augment.short_sides else config.augment.scale_range
    suggested = anchors.suggest_anchors(sizes, levels, per_level, scale_range=scales)
    header = "".join(f"{f'IoU {t:.1f}':>9}" for t in IOU_THRESHOLDS)
    lines = [f"  {'cells that an anchor reaches':<30}{header}"]
    reached = {}
    for name, candidate in (("anchors of the preset", config.anchors), ("suggested anchors", suggested)):
        reached[name] = anchors.anchor_recall(sizes, candidate, levels, IOU_THRESHOLDS)
        lines.append(f"  {name:<30}" + "".join(f"{value:>9.1%}" for value in reached[name]))
    ours, theirs = (recall[IOU_THRESHOLDS.index(0.5)] for recall in reached.values())
    if config.anchors.from_data:
        lines.append("  training chooses the anchors of this preset from the data by itself")
    elif ours >= theirs:
        lines.append("  the anchors of the preset reach as many cells at IoU 0.5: keep them")
    if theirs > ours and not config.anchors.from_data:
        lines.append(f"  suggested: --set 'anchors.sizes={json.dumps(suggested.sizes)}'")
        lines.append(f"             --set 'anchors.ratios={json.dumps(suggested.ratios)}'")
    return lines


def histogram(sides: np.ndarray) -> list[str]:
    """Return the sizes of the cells, `sides [N]` px, as text bars."""
    counts, _ = np.histogram(sides, [*SIZE_EDGES, np.inf])
    used = np.flatnonzero(counts)
    if not len(used):
        return []
    lines = ["size of the cells, sqrt(height x width), px:"]
    names = [f"{a}-{b}" for a, b in zip(SIZE_EDGES, SIZE_EDGES[1:], strict=False)] + [f"{SIZE_EDGES[-1]}-"]
    for place in range(used[0], used[-1] + 1):
        share = counts[place] / counts.sum()
        bar = "#" * round(_BAR * counts[place] / counts.max())
        lines.append(f"  {names[place]:>8} {share:>6.1%} {bar}".rstrip())
    return lines


def write_overlay(directory: str | Path, path: str | Path, images: int = 4) -> list[str]:
    """Write a picture of some images, evenly chosen, with the full-resolution outlines of their cells.

    Args:
        directory: a converted data set.
        path: the PNG to write.
        images: how many at most; their names are returned.

    Raises:
        UserError: when `path` does not end in .png, or the data set cannot be read or has no images.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path}: the overlay is a PNG; give a name that ends in .png")
    total = load_manifest(directory).images
    if not total:
        raise UserError(f"{directory}: no images to draw; convert a source that has some")
    wanted = set(np.linspace(0, total - 1, min(images, total)).round().astype(int).tolist())
    chosen = [record for number, record in enumerate(iterate_records(directory)) if number in wanted]
    tiles = [draw_record(record) for record in chosen]
    columns = int(np.ceil(np.sqrt(len(tiles))))
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    canvas = np.zeros((-(-len(tiles) // columns) * height, columns * width, 3), np.uint8)
    for place, tile in enumerate(tiles):
        y, x = place // columns * height, place % columns * width
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(canvas))
    return [record.file_name for record in chosen]


def draw_record(record: ImageRecord) -> np.ndarray:
    """An image, uint8 RGB, with the outline of each cell in its class's colour and a caption above."""
    gray = stretch_contrast(to_gray(decode_pixels(record)))
    factor = 2 if max(gray.shape) <= 1024 else 1
    canvas = cv2.cvtColor(cv2.resize(gray, None, fx=factor, fy=factor), cv2.COLOR_GRAY2RGB)
    for counts, class_id, box in zip(record.rles, record.classes, record.boxes, strict=True):
        if not counts:
            y0, x0, y1, x1 = np.rint(box * factor).astype(int).tolist()
            cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), _colour(int(class_id)), 1)
            continue
        patch = rle_to_patch({"size": [record.height, record.width], "counts": counts})
        if patch is None:
            continue
        mask = np.repeat(np.repeat(patch.mask.astype(np.uint8), factor, 0), factor, 1)
        offset = (patch.x * factor, patch.y * factor)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=offset)
        cv2.drawContours(canvas, outlines, -1, _colour(int(class_id)), 1)
    caption = np.zeros((_CAPTION, canvas.shape[1], 3), np.uint8)
    text = f"{record.file_name}  {record.cell_type}  {len(record.rles)} cells"
    cv2.putText(caption, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([caption, canvas])


def _image_lines(manifest: Manifest) -> list[str]:
    statistics = manifest.image_statistics
    sizes = [f"{s['width']} x {s['height']} ({s['images']})" for s in statistics.get("sizes", [])]
    shown = ", ".join(sizes[:4]) + (f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else "")
    kinds = [f"{n} of {depth} bit" for depth, n in statistics.get("bit_depths", {}).items()]
    kinds += [f"{n} of {channels} channel(s)" for channels, n in statistics.get("channels", {}).items()]
    values = [f"{key} {statistics[key]:.2f}" for key in ("mean", "std") if statistics.get(key) is not None]
    return [f"image sizes, width x height: {shown}", f"images: {', '.join(kinds + values)}"]


def _type_lines(report: DataReport) -> list[str]:
    lines = [f"{'cell type':<16}{'images':>8}{'cells':>10}   size px: 5 %, median, 95 %"]
    for name, entry in sorted(report.manifest.cell_types.items()):
        sides = report.sides[report.types == name]
        shown = ", ".join(f"{v:.1f}" for v in np.percentile(sides, [5, 50, 95])) if len(sides) else "no cells"
        lines.append(f"{name or 'unknown':<16}{entry['images']:>8,}{entry['cells']:>10,}   {shown}")
    return lines if len(lines) > 1 else []


def _colour(class_id: int) -> Sequence[int]:
    """A saturated RGB colour per class, far from that of its neighbours."""
    hue = np.array([[[(25 + class_id * 67) % 180, 230, 255]]], np.uint8)
    return [int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]]
