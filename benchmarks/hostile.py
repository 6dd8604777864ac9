"""Hostile inputs to every reader, each with 10 s and 2 GiB: `python -m benchmarks.hostile --inputs 200000`.

Each input is made from its number, so that one that goes wrong can be made again with `--only NUMBER`.
Workers are processes of their own: what hangs or crashes one is counted, and the next input goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, MEMORY, CHUNK = 10, 2 << 30, 250
ROOT = Path(__file__).resolve().parent.parent
ODD = (0, 1, 2, 255, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def tif(source: random.Random) -> bytes:
    """Directories in a chain that may lead anywhere, with sizes, samples and tiles of any kind."""
    data = zlib.compress(bytes(source.choice((256, 256, 16, 4096, 2**22))), 1)
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + len(data)) + data)
    starts = []
    for _ in range(source.randrange(1, 6)):
        fine = source.random() < 0.7
        side = lambda: 16 if fine else source.choice((1, 16, 300, 20_000, *ODD))  # noqa: E731, B023
        tags = {
            256: side(),
            257: side(),
            258: source.choice((8, 8, 1, 16, 32)),
            259: source.choice((8, 8, 8, 1, 5, 7)),
        }
        tags |= {262: source.choice((1, 1, 0, 2, 3, 5, 6, 8)), 277: source.choice((1, 1, 1, 3, 4, 65535))}
        tags |= {278: side(), 273: 8, 279: len(data), 339: source.choice((1, 2, 3))}
        if source.random() < 0.3:
            tags |= {322: side(), 323: side(), 324: 8, 325: len(data)}
        starts.append(len(out))
        out += struct.pack("<H", len(tags))
        for tag, value in sorted(tags.items()):
            out += struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF)
        following = source.choice((0, len(out) + 4, *starts, source.randrange(2**32)))
        out += struct.pack("<I", following)
    return bytes(out)


def nested(source: random.Random) -> Any:
    """A COCO document of which parts are replaced by what nests, is long, or is of another kind."""
    value: Any = source.choice(
        (1, -1, 1e300, float("inf"), float("nan"), None, "x", [], {}, True, "0", 2**70, 0.5)
    )
    for _ in range(source.choice((0, 1, 5, 90, 900))):
        value = [value] if source.random() < 0.7 else {source.choice("ab["): value}
    square = [5.0, 4.0, 12.0, 4.0, 12.0, 9.0, 5.0, 9.0]
    far = [source.choice((0, 20, 1e4, -1e4, 1e9, 3)) for _ in range(source.choice((6, 8, 200)))]
    shapes = (
        value,
        [square],
        [far],
        [square, far],
        {"size": [20, 30], "counts": source.choice(("o" * 9999, value))},
    )
    document = {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "cell"}],
        "features": [
            {
                "properties": {"objectType": source.choice(("annotation", value)), "classification": None},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": ring,
                    "plane": {"t": source.choice((0, value))},
                },
            }
            for ring in ([[[1, 1], [9, 1], [9, 9]]], value, [value], [[value, [1, 1], [2, 5]]])
        ],
        "imageHeight": source.choice((None, 20, value)),
        "imageWidth": source.choice((None, 30, value)),
        "shapes": [
            {"label": "a", "points": [[1, 1], [9, 1], [9, 9]], "group_id": source.choice((None, value))}
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 7,
                "bbox": [5, 4, 7, 5],
                "segmentation": source.choice(shapes),
            }
        ],
    }
    if source.random() < 0.3:
        document[source.choice(tuple(document))] = value
    return document


def json_text(source: random.Random) -> bytes:
    """Its text, now and then with brackets put in or taken out."""
    text = bytearray(json.dumps(nested(source)).encode())
    for _ in range(source.choice((0, 0, 1, 3))):
        place = source.randrange(len(text))
        text[place:place] = source.choice((b"[", b"]", b"{", b'"', b"\\", b"[" * 5000, b"NaN"))
    return bytes(text)


def yaml_text(source: random.Random) -> bytes:
    """Anchors, aliases, tags, depth and numbers in a configuration."""
    lines = ["preset: lite0", "model: {fpn_channels: 64}", "data: {zoom: 1.5}"]
    parts = (
        "&a [x, x]",
        "*a",
        "[*a, *a, *a]",
        "!!python/object:os.x {}",
        "[" * 200,
        "1e300",
        ".nan",
        "9" * 400,
        "{a: 1}",
    )
    for _ in range(source.randrange(1, 5)):
        lines.insert(
            source.randrange(len(lines)),
            f"{source.choice(('a', 'data', 'train', 'b'))}: {source.choice(parts)}",
        )
    return "\n".join(lines).encode()


def pickled(source: random.Random) -> bytes:
    """A zip of PyTorch with a pickle of random opcodes."""
    codes = [bytes([code]) for code in b"}(ustRQb]ae0.2\x85\x86"]
    codes += [b"K\1", b"X\1\0\0\0a", b"q\0", b"h\0", b"r\xff\xff\xff\x7f", b"J\xff\xff\xff\x7f"]
    codes += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cos\nsystem\n"]
    codes += [b"\x8e\xff\xff\xff\x7f\0\0\0\0"]
    body = b"\x80\2" + b"".join(source.choice(codes) for _ in range(source.randrange(1, 60))) + b"."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/data/0", bytes(64))
    return file.getvalue()


def npz(source: random.Random) -> bytes:
    """Arrays that state any shape, some of which expand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "b")[: source.randrange(1, 3)]:
            shape = tuple(source.choice((0, 1, 3, 2**20, 2**40)) for _ in range(source.randrange(0, 4)))
            head = str({"descr": source.choice(("<f4", "|O", "<U9")), "fortran_order": False, "shape": shape})
            text = head.ljust(117) + "\n"
            archive.writestr(
                f"{name}.npy", b"\x93NUMPY\1\0v\0" + text.encode() + bytes(source.choice((0, 12, 2**20)))
            )
    return damaged(source, file.getvalue())


def rois(source: random.Random) -> bytes:
    """A zip of regions, of which the bytes are damaged or expand."""
    from roifile import ImagejRoi

    sound = ImagejRoi.frompoints([[1, 1], [9, 1], [9, 9]]).tobytes()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(source.randrange(1, 4)):
            archive.writestr(f"{k}.roi", source.choice((damaged(source, sound), sound + bytes(2**20))))
    return damaged(source, file.getvalue()) if source.random() < 0.3 else file.getvalue()


def damaged(source: random.Random, sound: bytes) -> bytes:
    """Sound bytes with a few faults."""
    data = bytearray(sound)
    for _ in range(source.randrange(1, 5)):
        place = source.randrange(len(data))
        kind = source.randrange(4)
        if kind == 0:
            data[place] = source.randrange(256)
        elif kind == 1:
            data[place : place + 4] = source.choice(ODD).to_bytes(4, source.choice(("little", "big")))
        elif kind == 2 and len(data) > 9:
            del data[place : place + source.choice((1, 4, 300))]
        else:
            data[place:place] = data[place : place + 64]
        if not data:
            data += b"x"
    return bytes(data)


def makers() -> dict[str, tuple[Callable[[random.Random], bytes], str, Callable[[Path], Any]]]:
    """Kind of input -> what makes it, its file name, what reads it."""
    import numpy as np

    from effdet_tf.config import load_config
    from effdet_tf.data.build import build_image
    from effdet_tf.data.faults import Faults
    from effdet_tf.data.manifest import MANIFEST_NAME, load_manifest
    from effdet_tf.data.sources.coco import open_coco
    from effdet_tf.data.sources.outline_files import read_geojson, read_labelme, read_rois, read_yolo
    from effdet_tf.images.read import Stack, encode_png
    from effdet_tf.model.weights import read_arrays
    from effdet_tf.prediction.exported import checked_cells
    from effdet_tf.prediction.model_check import check_tflite
    from effdet_tf.prediction.tflite import read_description
    from effdet_tf.pretrained.torch_file import read_state_dict

    def pages(path: Path) -> None:
        with Stack(path, 2**24) as stack:
            for page in range(min(stack.pages, 3)):
                stack.read(page)

    def coco(path: Path) -> None:
        (path.parent / "1.png").write_bytes(encode_png(np.zeros((20, 30), np.uint8)))
        for task in open_coco(path, path.parent, path.parent).tasks:
            build_image(task, 28)

    sets = (ROOT / "tests/before/train" / MANIFEST_NAME).read_bytes()

    def outlines(read: Callable) -> Callable[[Path], Any]:
        return lambda path: [outline for outline in read(path, Faults())]

    def lite(path: Path) -> None:
        check_tflite(path, path.read_bytes())
        read_description(path)

    def answer(path: Path) -> None:
        found = {name: np.asarray(value) for name, value in json.loads(path.read_bytes()).items()}
        if found["masks"].dtype == np.int64:
            found["masks"] = found["masks"].astype(np.uint8)
        checked_cells(found, Config(), (40, 60), "it")

    from effdet_tf.config import Config

    def lie(source: random.Random) -> bytes:
        values: dict[str, Any] = {"count": 1, "boxes": [[1, 1, 5, 5]], "scores": [0.5], "classes": [0]}
        values |= {"masks": [[[255] * 28] * 28], "mask_boxes": [[0, 0, 6, 6]]}
        for _ in range(source.randrange(1, 4)):
            odd = (None, "x", -1, 2**40, 1e308, [], [[]], [1, 2, 3], [[1, 2, 3]], [2**70], True, [["a"]])
            values[source.choice(tuple(values))] = source.choice(odd)
        return json.dumps(values).encode()

    sound = (ROOT / "tests/before/exports/float32.tflite").read_bytes()
    pictures = [encode_png((np.arange(600) % 251).astype(np.uint8).reshape(20, 30))]
    return {
        "tif": (tif, "x.tif", pages),
        "png": (lambda s: damaged(s, pictures[0]), "x.png", pages),
        "coco": (json_text, "x.json", coco),
        "geojson": (json_text, "x.geojson", outlines(read_geojson)),
        "labelme": (json_text, "x.json", outlines(read_labelme)),
        "yolo": (
            lambda s: damaged(s, b"0 .1 .2 .3 .4\n0 .1 .2 .3 .4 .5 .6 .7\n"),
            "x.txt",
            outlines(read_yolo),
        ),
        "rois": (rois, "x.zip", outlines(read_rois)),
        "yaml": (yaml_text, "x.yaml", load_config),
        "manifest": (lambda s: damaged(s, sets), MANIFEST_NAME, lambda path: load_manifest(path.parent)),
        "pickle": (pickled, "x.pth", read_state_dict),
        "npz": (npz, "x.npz", read_arrays),
        "tflite": (lambda s: damaged(s, sound), "x.tflite", lite),
        "answer": (lie, "x.json", answer),
    }


OWN_ERRORS = {"answer": ("UserError", "ValueError", "OverflowError")}  # of the test itself


def one(number: int, kinds: dict, folder: Path) -> tuple[str, str, float]:
    """Kind, outcome and seconds of an input."""
    names = sorted(kinds)
    kind = names[number % len(names)]
    make, name, read = kinds[kind]
    path = folder / name
    path.write_bytes(make(random.Random(number)))
    started = time.monotonic()
    signal.alarm(SECONDS)
    try:
        read(path)
        outcome = "read"
    except BaseException as error:
        found = type(error).__name__
        outcome = "one line" if found in OWN_ERRORS.get(kind, ("UserError",)) else f"{found}: {error}"[:90]
        if found == "UserError" and "\n" in str(error):
            outcome = f"several lines: {error}"[:90]
    finally:
        signal.alarm(0)
    return kind, outcome, time.monotonic() - started


def work(numbers: range, results: Any) -> None:
    """Inputs of one worker; sends each outcome."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    kinds = makers()

    def late(*_: Any) -> None:
        raise TimeoutError("too slow")

    signal.signal(signal.SIGALRM, late)
    # Address space in use now, and what an input may add to it.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            results.send((number, *one(number, kinds, Path(folder))))


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(one(options.only, makers(), Path(folder)))
        return
    context = multiprocessing.get_context("fork")
    makers()  # what they import is there in every worker
    outcomes: dict[str, Counter] = {}
    slowest: dict[str, float] = {}
    odd: list[tuple[int, str, str]] = []
    number, started = 0, time.monotonic()
    while number < options.inputs:
        last = min(number + CHUNK, options.inputs)
        mine, theirs = context.Pipe()
        worker = context.Process(target=work, args=(range(number, last), theirs))
        worker.start()
        theirs.close()
        while number < last:
            if not mine.poll(SECONDS * 3):
                worker.kill()
            try:
                number, kind, outcome, seconds = mine.recv()
            except EOFError:
                worker.join()
                kind, outcome, seconds = (
                    sorted(makers())[number % len(makers())],
                    f"died ({worker.exitcode})",
                    0.0,
                )
            outcomes.setdefault(kind, Counter())[outcome if outcome in ("read", "one line") else "other"] += 1
            slowest[kind] = max(slowest.get(kind, 0.0), seconds)
            if outcome not in ("read", "one line"):
                odd.append((number, kind, outcome))
            number += 1
            if outcome.startswith("died"):
                break
        mine.close()
        worker.join()
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print("| kind | inputs | read | refused in one line | other | slowest, s |\n|---|---|---|---|---|---|")
    for kind, counts in sorted(outcomes.items()):
        total = sum(counts.values())
        row = (kind, f"{total:,}", f"{counts['read']:,}", f"{counts['one line']:,}", str(counts["other"]))
        print(f"| {' | '.join(row)} | {slowest[kind]:.2f} |")
    took = time.monotonic() - started
    print(f"\n{options.inputs:,} inputs in {took:.0f} s; most memory of a worker {most:.2f} GiB")
    for entry in odd[:40]:
        print(entry)


if __name__ == "__main__":
    main()
