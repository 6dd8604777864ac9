"""Good, slow, huge and broken requests at once: `python -m benchmarks.hostile_load WHAT --seconds 120`.

Clients send them by chance; every good one must get the answer that it got alone. Prints how many were
answered, and the memory of the processes before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def memory(pid: int) -> int:
    """Resident MiB of a process and its children."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/status"):
        try:
            text = entry.read_text()
        except OSError:
            continue
        numbers = dict(re.findall(r"^(Pid|PPid|VmRSS):\s+(\d+)", text, re.MULTILINE))
        if str(pid) in (numbers.get("Pid"), numbers.get("PPid")):
            total += int(numbers.get("VmRSS", 0))
    return total // 1024


def ask(url: str, body: bytes | None = None, method: str | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    request = urllib.request.Request(url, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def broken(port: int, source: random.Random, path: str) -> None:
    """A request that stops, drips, declares what does not come, or is none."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
    text = source.choice(
        (
            b"",
            source.randbytes(200),
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            head + b"Content-Length: 999999999999\r\n\r\nx",
            head + b"Content-Length: -5\r\n\r\n",
            head + b"Content-Length: 500000\r\n\r\n" + bytes(1000),
            head + b"X: y\r\n" * 500,
            head + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n" + bytes(1000),
        )
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text)
        for _ in range(source.choice((0, 0, 5))):
            time.sleep(0.3)
            connection.sendall(b"x")


def of_server(url: str, port: int) -> tuple[Callable[[], Any], list[Callable[[random.Random], Any]]]:
    """A good request of the trial server, and bad ones."""
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).round(2).tolist()
    target = f"{url}/v1/models/cells:predict"
    body = json.dumps({"signature_name": "tensor", "inputs": pixels}).encode()

    def good() -> Any:
        code, answer = ask(target, body)
        return code, json.loads(answer).get("outputs", {}).get("scores")

    def huge(source: random.Random) -> None:
        bodies = (
            b"[" * 200_000,
            json.dumps({"signature_name": "tensor", "inputs": [[[[0]] * 3000] * 1500]}).encode(),
            json.dumps({"instances": [{"b64": ""}] * 300_000}).encode(),
            bytes(2**26 + 5),
        )
        try:
            code, _ = ask(target, source.choice(bodies))
            assert 400 <= code < 500, code
        except (urllib.error.URLError, ConnectionError):
            pass  # closed while it was sent

    return good, [huge, lambda source: broken(port, source, "/v1/models/cells:predict")]


def of_webapp(url: str, port: int) -> tuple[Callable[[], Any], list[Callable[[random.Random], Any]]]:
    """A good request of the web app, an image with its cells, and bad ones."""
    from effdet_tf.images.read import encode_png

    pixels = np.random.default_rng(0).integers(90, 110, (128, 128)).astype(np.uint8)
    pixels[40:60, 40:60] = 200
    body = encode_png(pixels)

    def good() -> Any:
        for _ in range(600):
            code, answer = ask(f"{url}/api/images?name=a.png", body)
            if code != 429:
                break
            time.sleep(0.5)
        key = json.loads(answer)["id"]
        for _ in range(1200):
            entries = {one["id"]: one for one in json.loads(ask(f"{url}/api/state")[1])["images"]}
            state = entries.get(key, {"state": "dropped"})["state"]
            if state not in ("waiting", "working"):
                break
            time.sleep(0.1)
        code, answer = ask(f"{url}/api/images/{key}/scores.json")
        ask(f"{url}/api/images/{key}", method="DELETE")
        return state, answer

    def huge(source: random.Random) -> None:
        bodies = (
            b"II*\0" + bytes(1000),
            source.randbytes(2**20),
            (ROOT / "setup.py").read_bytes(),
            body[:99],
        )
        code, _ = ask(f"{url}/api/images?name=x.tif", source.choice(bodies))
        assert code in (201, 429), code

    return good, [huge, lambda source: broken(port, source, "/api/images?name=b.png")]


def main() -> None:
    """Start the server, send requests, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("server", "webapp"))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "server":
            import zipfile

            with zipfile.ZipFile(ROOT / "tests/before/exports/saved_model.zip") as archive:
                archive.extractall(folder)
            found = next(Path(folder).rglob("saved_model.pb")).parent.parent
            command = ["-m", "export.server", str(found), "--rest-port", "0", "--grpc-port", "0"]
        else:
            run = ROOT / "tests/before/run"
            command = ["-m", "effdet_tf", "serve", "--no-open", "--port", "0", "--run", str(run)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "no_proxy": "127.0.0.1"}
        os.environ["no_proxy"] = "127.0.0.1"
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        try:
            assert process.stdout is not None
            url = next(m[0] for line in process.stdout if (m := re.search(r"http://127.0.0.1:\d+", line)))
            _send(url, options, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def _send(url: str, options: argparse.Namespace, pid: int) -> None:
    port = int(url.rsplit(":", 1)[1])
    good, bad = (of_server if options.what == "server" else of_webapp)(url, port)
    expected = good()
    for _ in range(5):
        assert good() == expected
    before, counts, end = memory(pid), Counter(), time.monotonic() + options.seconds

    def client(number: int) -> None:
        source = random.Random(number)
        while time.monotonic() < end:
            try:
                if source.random() < 0.4:
                    counts["good" if good() == expected else "WRONG"] += 1
                else:
                    source.choice(bad)(source)
                    counts["bad, refused"] += 1
            except (OSError, ValueError, KeyError) as error:
                counts[f"{type(error).__name__}"] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(2)
    started = time.monotonic()
    assert good() == expected
    print(
        f"{options.what}: {dict(counts)}; a good request after it {time.monotonic() - started:.2f} s;",
        end=" ",
    )
    print(f"memory {before} MiB before, {memory(pid)} MiB after")


if __name__ == "__main__":
    main()
