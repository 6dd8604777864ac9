"""Does a served network answer every request, rightly, with flat memory? Clients send good and bad images.

    python benchmarks/serving_load.py DIR/saved_model IMAGES... [--seconds 60] [--clients 4]

`export.server` runs in a process of its own; half of the clients speak REST, half gRPC. Each answer is
compared with that of the same SavedModel in this process. Exits with 1 when a request failed or an answer
was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from effdet_tf.commands.parser import exit_code, positive
from effdet_tf.errors import UserError
from effdet_tf.images.read import encode_png, read_image
from effdet_tf.outputs.jobs import find_images
from effdet_tf.prediction.load import saved_model_version
from export.remote import connect

_NAMES = ("boxes", "scores", "classes", "masks", "mask_boxes")


@dataclass
class Tally:
    """What the clients saw; one lock for all."""

    latencies: dict[str, list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float, failed: str | None, wrong: str | None) -> None:
        """Count one request."""
        with self.lock:
            self.latencies.setdefault(kind, []).append(seconds)
            if failed:
                self.failed.append(f"{kind}: {failed}")
            elif wrong:
                self.wrong.append(f"{kind}: {wrong}")


def requests_of(paths: list[Path]) -> list[tuple[str, bytes]]:
    """Kind and bytes of each request: good images of 8 and 16 bit, and every kind of bad one."""
    files = []
    for path in paths:
        image = read_image(path)
        files.append(("good", encode_png(image)))
        if image.dtype == np.uint8:
            files.append(("16 bit", encode_png(image.astype(np.uint16) * 257)))
    huge = cv2.imencode(".png", np.full((8000, 8000), 90, np.uint8))[1].tobytes()
    good = files[0][1]
    return [
        *files,
        ("corrupt", good[: len(good) // 2]),
        ("empty", b""),
        ("huge", huge),
        ("text", b"no image"),
    ]


def expected_answers(folder: Path, files: list[tuple[str, bytes]]) -> list[dict[str, np.ndarray]]:
    """What the SavedModel says of each file, asked in this process."""
    import tensorflow as tf

    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    answers = []
    for _, data in files:
        found = signature(image_bytes=tf.constant([data]))
        answers.append({name: value.numpy()[0] for name, value in found.items()})
    return answers


def difference(answer: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str | None:
    """What is wrong with an answer, None when nothing is."""
    if bool(answer["ok"]) != bool(expected["ok"]):
        return f"ok is {answer['ok']}: {answer['error']}"
    if str(answer["error"]) != expected["error"].decode():
        return f"error is {str(answer['error'])!r}"
    if bool(answer["ok"]) == bool(answer["error"]):
        return "ok and error do not fit"
    count = int(expected["count"])
    if int(answer["count"]) != count:
        return f"{int(answer['count'])} cells in place of {count}"
    for name in (name for name in _NAMES if name in expected):
        right = expected[name][:count].astype(np.float64)
        given = np.asarray(answer[name], np.float64).reshape(-1, *right.shape[1:])[:count]
        if given.shape != right.shape or (count and np.abs(given - right).max() > 1e-3):
            return f"other {name}"
    return None


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Run `export.server`; gives its process id and its addresses."""
    command = [sys.executable, "-m", "export.server", str(folder), "--rest-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("serving "):
            raise UserError("the server did not start; see above")
        yield process.pid, re.findall(r"(?:http|grpc)://\S+", line)
        process.terminate()
        if process.wait(30) != 0:
            raise UserError(f"the server ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM, MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024


def load(
    addresses: list[str],
    files: list[tuple[str, bytes]],
    expected: list[dict[str, np.ndarray]],
    clients: int,
    seconds: float,
    pid: int,
) -> tuple[Tally, list[tuple[float, float]], float]:
    """Send requests for a while; returns the tally, (second, MiB of the server) pairs and the duration."""
    tally, start = Tally(), time.perf_counter()

    def client(number: int) -> None:
        address = addresses[number % len(addresses)]
        connection = connect(address, "cells", timeout=120)
        for k in itertools.count(number):
            if time.perf_counter() - start > seconds:
                return
            kind, data = files[k % len(files)]
            begin, failed, wrong = time.perf_counter(), None, None
            try:
                answer = connection.ask("serving_default", "image_bytes", data)
            except UserError as error:
                failed = str(error)
            else:
                wrong = difference(answer, expected[k % len(files)])
            tally.add(kind, time.perf_counter() - begin, failed, wrong)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.perf_counter() - start, resident_mib(pid)))
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    return tally, memory, time.perf_counter() - start


def table(tally: Tally, memory: list[tuple[float, float]], duration: float) -> str:
    """The figures, readable."""
    everything = [value for values in tally.latencies.values() for value in values]
    lines = ["| requests | number | p50 ms | p95 ms |", "|---|---|---|---|"]
    for kind, values in [*sorted(tally.latencies.items()), ("all", everything)]:
        p50, p95 = np.percentile(np.array(values) * 1000, [50, 95])
        lines.append(f"| {kind} | {len(values)} | {p50:.0f} | {p95:.0f} |")
    early = next((size for second, size in memory if second >= 10), memory[-1][1])
    lines += [
        "",
        f"{duration:.1f} s, {len(everything) / duration:.1f} requests/s, "
        f"{len(tally.failed)} failed, {len(tally.wrong)} wrong answers",
        f"server's memory (RSS), MiB: {memory[0][1]:.0f} at the start, {early:.0f} after 10 s, "
        f"{memory[-1][1]:.0f} at the end, {max(size for _, size in memory):.0f} at most",
    ]
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> int:
    folder = saved_model_version(options.folder)
    if folder is None:
        raise UserError(f"{options.folder}: holds no SavedModel; make one with `python -m export.main`")
    files = requests_of([job.path for job in find_images(options.images)])
    expected = expected_answers(folder, files)
    with server(options.folder) as (pid, addresses):
        tally, memory, duration = load(addresses, files, expected, options.clients, options.seconds, pid)
    print(table(tally, memory, duration))
    for line in [*tally.failed, *tally.wrong][:10]:
        print(f"error: {line}", file=sys.stderr)
    return 1 if tally.failed or tally.wrong else 0


def main() -> int:
    """Run the benchmark; returns 0 when every answer came and was right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="SAVED_MODEL", help="folder of versions, or one version")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders and quoted patterns")
    parser.add_argument("--seconds", type=positive(float), default=60.0, help="how long (default: 60)")
    parser.add_argument("--clients", type=positive(int), default=4, help="at a time (default: 4)")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return exit_code(lambda: _run(options))


if __name__ == "__main__":
    raise SystemExit(main())
