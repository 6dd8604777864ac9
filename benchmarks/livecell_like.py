"""A generated set with LIVECell's layout, names and size: `python benchmarks/livecell_like.py OUT`.

All that the data set's publishers offer: wide, single-type and size-split annotations, images of two types
with counts by a marker. The eight types are LIVECell's names on synthetic looks, so figures on it say nothing
of the real cells; it is there to run whole experiments and to measure time and memory at full size. Of each
type `--different` images are drawn; further ones are the same under other names.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from effdet_tf.data.livecell_names import CELL_TYPES, COUNTED, SIZE_SPLITS
from effdet_tf.data.synthetic.dataset import annotate
from effdet_tf.data.synthetic.phase_contrast import render_image

LOOKS = ("Spindle", "Cluster", "Round", "Cluster", "Round", "Neuron", "Cluster", "Spindle")
# Images of the published set, which has 1.69 million cells.
PUBLISHED = {"train": 3253, "val": 570, "test": 1564}
FOLDERS = {
    "train": "livecell_train_val_images",
    "val": "livecell_train_val_images",
    "test": "livecell_test_images",
}


class Drawer:
    """Draws images of a type, each once."""

    def __init__(self, size: tuple[int, int], cells: tuple[int, int], different: int) -> None:
        self.size, self.cells, self.different = size, cells, different
        self._drawn: dict[tuple[str, str, int], tuple[Path, list]] = {}

    def draw(self, name: str, split: str, turn: int, path: Path) -> list:
        """Write the image and return its cells."""
        key = (name, split, turn % self.different)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if key in self._drawn:
            os.link(self._drawn[key][0], path)
            return self._drawn[key][1]
        look = LOOKS[(*CELL_TYPES, *COUNTED).index(name) % len(LOOKS)]
        rng = np.random.default_rng([len(split), (*CELL_TYPES, *COUNTED).index(name), key[2]])
        count = int(rng.integers(self.cells[0], self.cells[1] + 1))
        image, cells = render_image(rng, *self.size, count, look)
        tifffile.imwrite(path, image, compression="zlib", metadata=None, software=False)
        self._drawn[key] = path, cells
        return cells


def document(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """A COCO document."""
    return {
        "info": {"description": "generated"},
        "categories": [{"supercategory": "cell", "id": 1, "name": "cell"}],
        "images": images,
        "annotations": annotations,
    }


def write(path: Path, value: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def generate(
    out: Path,
    counts: dict[str, int],
    size: tuple[int, int] = (520, 704),
    cells: tuple[int, int] = (20, 680),
    different: int = 30,
    counted: int = 4,
) -> dict[str, int]:
    """Write the set.

    Args:
        out: folder.
        counts: images by split, spread over the types.
        size: height and width, px.
        cells: least and most of an image; LIVECell has 316 on average.
        different: images that are drawn of each type and split.
        counted: images of each type that is counted.

    Returns:
        Cells by split.
    """
    drawer, totals = Drawer(size, cells, different), {}
    identity = 0
    for split, wanted in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(wanted):
            name, turn = CELL_TYPES[index % len(CELL_TYPES)], index // len(CELL_TYPES)
            row = {"train": "ABCD", "val": "EF", "test": "GH"}[split]
            step = turn // 4
            well = f"{row[step % len(row)]}{step // len(row) % 12 + 1}"
            hours = 4 * (step // (12 * len(row)))
            file = f"{name}_Phase_{well}_1_{hours // 24:02d}d{hours % 24:02d}h00m_{turn % 4 + 1}.tif"
            found = drawer.draw(name, split, turn, out / "images" / FOLDERS[split] / name / file)
            identity += 1
            images.append({"id": identity, "width": size[1], "height": size[0], "file_name": file})
            annotations += annotate(found, identity, len(annotations) + 1)
        assert len({image["file_name"] for image in images}) == wanted
        totals[split] = len(annotations)
        write(out / f"annotations/LIVECell/livecell_coco_{split}.json", document(images, annotations))
        for name in CELL_TYPES:
            own = [image for image in images if image["file_name"].startswith(f"{name}_")]
            ids = {image["id"] for image in own}
            of_type = [a for a in annotations if a["image_id"] in ids]
            write(
                out / f"annotations/LIVECell_single_cells/{name.lower()}/{split}.json", document(own, of_type)
            )
        if split == "train":
            for kind, file in SIZE_SPLITS.items():
                share = int(kind.removeprefix("train").removesuffix("percent"))
                part = images[: max(round(wanted * share / 100), 1)]
                ids = {image["id"] for image in part}
                of_part = [a for a in annotations if a["image_id"] in ids]
                write(out / "annotations/LIVECell_dataset_size_split" / file, document(part, of_part))
    for name in COUNTED:
        marked = {}
        for turn in range(counted):
            file = f"{name}_Phase_A{turn + 1}_1_00d00h00m_1.tif"
            place = out / f"nuclear_count_benchmark/{name}/{file}"
            marked[file] = str(len(drawer.draw(name, "count", turn, place)))
        write(out / f"nuclear_count_benchmark/{name}_counts.json", marked)
    return totals


def main() -> None:
    """Write a set of the published size, or smaller."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the published images (default: all)")
    parser.add_argument("--size", type=int, nargs=2, default=(520, 704), metavar=("H", "W"))
    parser.add_argument("--cells", type=int, nargs=2, default=(20, 680), metavar=("LOW", "HIGH"))
    parser.add_argument("--different", type=int, default=30)
    args = parser.parse_args()
    counts = {split: max(round(count * args.share), len(CELL_TYPES)) for split, count in PUBLISHED.items()}
    totals = generate(args.out, counts, tuple(args.size), tuple(args.cells), args.different)
    for split, count in counts.items():
        print(f"{split}: {count:,} images, {totals[split]:,} cells")


if __name__ == "__main__":
    main()
