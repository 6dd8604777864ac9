"""Time and memory of readers for inputs of hostile.md: `python -m benchmarks.hostile_cases`.

Each is read in a process of its own.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.config import load_config
from effdet_tf.data.sources.coco import open_coco
from effdet_tf.geometry.polygons import polygons_to_rle
from effdet_tf.geometry.rle import rle_to_patch
from effdet_tf.images.read import read_image
from effdet_tf.pretrained.torch_file import read_state_dict
from tests.test_untrusted import ZEROS, put, tensor, tiff, torch


def cases(folder: Path) -> dict[str, Callable[[], Any]]:
    """Name -> what reads it."""

    def image(name: str, values: dict[int, int]) -> Callable[[], Any]:
        path = put(folder / name, tiff(values, ZEROS))
        return lambda: read_image(path)

    def coco(name: str, text: str) -> Callable[[], Any]:
        path = put(folder / name, text)
        return lambda: open_coco(path, folder, folder)

    def polygon(count: int, far: float, side: int) -> Callable[[], Any]:
        x = np.where(np.arange(count) % 2, far, side - far)
        points = np.stack([x, np.linspace(0, side, count)], axis=1).ravel()
        return lambda: len(polygons_to_rle([points], side, side)["counts"])

    names = "abcdefghi"
    aliases = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for one, other in zip(names, names[1:], strict=False):
        aliases += f"{other}: &{other} [{', '.join([f'*{one}'] * 9)}]\n"
    shared = b"\x80\2}q\0" + b"".join(b"}q%c(X\1\0\0\0ah%cX\1\0\0\0bh%cu" % (k + 1, k, k) for k in range(40))
    views = b"\x80\2}(" + b"".join(tensor(str(k), 250_000) for k in range(5000)) + b"u."
    begin = '{"images": [], "annotations": '
    return {
        "tif, samples": image("a.tif", {256: 16384, 257: 16384, 278: 16384, 277: 65535}),
        "tif, tile": image("b.tif", {256: 16, 257: 16, 322: 65520, 323: 65520}),
        "tif, expands": image("c.tif", {256: 16, 257: 16, 278: 16}),
        "dicts in each other": lambda: read_state_dict(torch(folder / "a.pth", shared + b".")),
        "5,000 tensors of a storage": lambda: read_state_dict(torch(folder / "b.pth", views, bytes(10**6))),
        "a memo of 2^30": lambda: read_state_dict(torch(folder / "c.pth", b"\x80\2}r\xff\xff\xff\x3f.")),
        "yaml, aliases": lambda: load_config(put(folder / "a.yaml", aliases)),
        "yaml, brackets": lambda: load_config(put(folder / "b.yaml", "a: " + "[" * 50_000)),
        "json, nested": coco("a.json", begin + "[" * 50_000 + "]" * 50_000 + "}"),
        "json, hidden depth": coco("b.json", '{"a": ' + '["]", ' * 50_000 + "1" + "]" * 50_000 + "}"),
        "json, text without end": coco("c.json", '{"images": "' + "x" * 50_000_000),
        "rle": lambda: rle_to_patch({"size": [500, 500], "counts": "o" * 3_000_000 + "0"}),
        "polygon, 3,000 edges far out": polygon(3000, 30_000, 2000),
        "polygon, 90,000 edges across": polygon(90_000, 2000, 2000),
    }


def main() -> None:
    """Print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        for name, read in cases(Path(folder)).items():
            started = time.monotonic()
            if (child := os.fork()) == 0:
                try:
                    said = f"read: {read()}"
                except Exception as error:
                    said = f"{type(error).__name__}: {error}"
                most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                print(f"{name}: {time.monotonic() - started:.2f} s, {most} MiB: {said[:150]}", flush=True)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
