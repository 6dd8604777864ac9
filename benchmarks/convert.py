"""How fast `convert` is and how much memory its processes take together, on real and on LIVECell-sized data.

python benchmarks/convert.py                    the real Sartorius set (EFFDET_REAL_DATA) and a generated one
python benchmarks/convert.py --images 300       the same with a smaller generated set

The generated set has LIVECell's layout: 704x520 tif and one JSON with 300 polygons for each image. Its images
are few, linked under many names: what is measured is reading, rasterising and writing, not the making.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile

HEIGHT, WIDTH = 520, 704
TYPES = {"A172": 48, "BT474": 25, "BV2": 13, "Huh7": 41, "MCF7": 19, "SHSY5Y": 20, "SkBr3": 22, "SKOV3": 45}
"""Mean cell size by cell type, pixels."""


def generate(root: Path, images: int, cells: int, seed: int = 0) -> None:
    """Write a set in LIVECell's layout, its annotations before its images as the worst case for a stream."""
    rng = np.random.default_rng(seed)
    folder = root / "images" / "livecell_train_val_images"
    folder.mkdir(parents=True)
    models = []
    for number in range(16):
        texture = cv2.GaussianBlur(rng.normal(0, 60, (HEIGHT, WIDTH)), (0, 0), 3)
        pixels = np.clip(128 + texture + rng.normal(0, 4, (HEIGHT, WIDTH)), 0, 255).astype(np.uint8)
        models.append(root / f"model{number}.tif")
        tifffile.imwrite(models[-1], pixels)
    path = root / "annotations" / "LIVECell" / "livecell_coco_train.json"
    path.parent.mkdir(parents=True)
    entries = []
    with path.open("w", encoding="utf-8") as file:
        file.write('{"categories": [{"id": 1, "name": "cell"}], "annotations": [')
        for image in range(images):
            kind = list(TYPES)[image % len(TYPES)]
            name = f"{kind}_Phase_A{image}_1_00d00h00m_1.tif"
            os.link(models[image % len(models)], folder / name)
            entries.append({"id": 10**6 * image, "file_name": name, "height": HEIGHT, "width": WIDTH})
            annotations = _annotations(rng, 10**6 * image, TYPES[kind], cells)
            file.write(("," if image else "") + json.dumps(annotations)[1:-1])
        file.write(f'], "images": {json.dumps(entries)}}}')


def _annotations(rng: np.random.Generator, image_id: int, size: int, cells: int) -> list[dict]:
    """The cells of one image: bumpy ellipses, clipped to the frame."""
    corners = int(rng.integers(16, 48))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = size / 2 * rng.uniform(0.7, 1.3, (cells, 1)) * (1 + 0.1 * rng.standard_normal((cells, corners)))
    x = rng.uniform(0, WIDTH, (cells, 1)) + radius * np.cos(angles)
    y = rng.uniform(0, HEIGHT, (cells, 1)) + radius * np.sin(angles) * rng.uniform(0.5, 1, (cells, 1))
    x, y = np.clip(x, 0, WIDTH).round(2), np.clip(y, 0, HEIGHT).round(2)
    polygons = np.stack([x, y], axis=-1).reshape(cells, -1).tolist()
    boxes = np.stack([x.min(1), y.min(1), np.ptp(x, 1), np.ptp(y, 1)], axis=-1).round(2).tolist()
    return [
        {
            "id": image_id + number,
            "image_id": image_id,
            "category_id": 1,
            "segmentation": [polygon],
            "bbox": box,
        }
        | {"area": round(box[2] * box[3] * 0.78, 1), "iscrowd": 0}
        for number, (polygon, box) in enumerate(zip(polygons, boxes, strict=True), start=1)
    ]


def tree_memory(root: int) -> int:
    """Resident bytes of a process and all its descendants, each counted in full."""
    parents, pages = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it ended while we looked
                continue
            parents[int(folder.name)], pages[int(folder.name)] = int(fields[1]), int(fields[21])
    members, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return sum(pages.get(member, 0) for member in members) * os.sysconf("SC_PAGE_SIZE")


def measure(label: str, arguments: list[str], out: Path) -> str:
    """Run one conversion and give its row of the table."""
    start, peak = time.perf_counter(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "effdet_tf", "convert", *arguments], cwd=root, stdout=subprocess.DEVNULL
    )
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, tree_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{label}: convert failed with exit code {code}")
    manifest = json.loads((out / "manifest.json").read_text())
    images, cells = manifest["images"], manifest["cells"]
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    speed = f"{seconds:.0f} | {busy:.0f} | {images / seconds:.1f} | {cells / seconds:,.0f}"
    return f"| {label} | {images:,} | {cells:,} | {speed} | {peak / 2**30:.2f} | {size:,.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3000, help="generated images (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=300, help="polygons for each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        work = Path(name)
        real = os.environ.get("EFFDET_REAL_DATA")
        if real:
            source = str(Path(real) / "sartorius")
            rows.append(measure("Sartorius", ["sartorius", source, str(work / "s")], work / "s"))
        if args.images:
            generate(work / "livecell", args.images, args.cells)
            json_size = (work / "livecell/annotations/LIVECell/livecell_coco_train.json").stat().st_size / 1e6
            label = f"generated LIVECell, {json_size:.0f} MB of JSON"
            rows.append(measure(label, ["livecell", str(work / "livecell"), str(work / "l")], work / "l"))
    print("| set | images | cells | s | CPU s | images/s | cells/s | peak RSS of all, GiB | output, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
