"""Memory and time of a plate of many images: `python benchmarks/plates.py --images 10000 --out FOLDER`.

Makes images of synthetic cells (128 x 128 px, about a dozen cells each; a few hundred different ones, named
as Incucyte names them, one in a thousand damaged), works through them with `python -m effdet_tf plate`, and
prints the memory of that process at each tenth of the way. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDE, DIFFERENT = 128, 300


def make_images(folder: Path, count: int) -> None:
    """Write the images that are not there yet."""
    import cv2

    from effdet_tf.data.synthetic.phase_contrast import render_image

    originals = folder.parent / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    for k in range(min(DIFFERENT, count)):
        if not (originals / f"{k}.png").exists():
            image, _ = render_image(np.random.default_rng([5, k]), SIDE, SIDE, 14, "Round")
            cv2.imwrite(str(originals / f"{k}.png"), image)
    for k in range(count):
        time_point, place = divmod(k, 96 * 4)
        well, site = divmod(place, 4)
        hours = 4 * time_point
        name = f"Round_Phase_{'ABCDEFGH'[well // 12]}{well % 12 + 1}_{site + 1}"
        path = folder / f"plate1/{name}_{hours // 24:02d}d{hours % 24:02d}h00m.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            continue
        if k % 1000 == 999:
            path.write_bytes((originals / f"{k % DIFFERENT}.png").read_bytes()[:500])
        else:
            shutil.copyfile(originals / f"{k % DIFFERENT}.png", path)


def resident(process: int) -> int:
    """Memory of a process now, MiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


def main() -> None:
    """Print a row for each tenth of the images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of images and results")
    args = parser.parse_args()
    make_images(args.out / "images", args.images)
    command = [sys.executable, "-m", "effdet_tf", "plate", str(args.out / "images")]
    command += ["--out", str(args.out / "results")]
    print("| images | minutes | images/s | RSS, MiB |\n|---|---|---|---|", flush=True)
    started = time.monotonic()
    done, largest, told = 0, 0, 0
    with (args.out / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(1)
            now = resident(process.pid)
            largest = max(largest, now)
            marks = len(list((args.out / "results/done").glob("*.json")))
            if now and marks != done and 64 * marks * 10 // args.images > told:
                done, told = marks, 64 * marks * 10 // args.images
                passed = time.monotonic() - started
                print(
                    f"| {64 * marks:,} | {passed / 60:.1f} | {64 * marks / passed:.1f} | {now:,} |",
                    flush=True,
                )
    print(f"\nlargest {largest:,} MiB; exit code {process.returncode}")
    print("\n".join((args.out / "log.txt").read_text().splitlines()[-2:]))


if __name__ == "__main__":
    main()
