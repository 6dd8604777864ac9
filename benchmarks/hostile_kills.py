"""Kills commands at any time, then lets them finish: `python -m benchmarks.hostile_kills --kills 24`.

What a killed command leaves must be whole files or unfinished ones that the next run clears away; the next
run must end with the files of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "tests/before/run"


def commands(folder: Path) -> dict[str, list[str]]:
    """Name -> arguments, in a folder that holds `images` and `data`."""
    run, data, images = str(RUN), str(folder / "data"), str(folder / "images")
    verb = ["-m", "effdet_tf"]
    tflite = ["--formats", "tflite-fp32", "--no-parity"]
    return {
        "synthetic": [*verb, "synthetic", "OUT", "--train", "10", "--val", "2", "--seed", "3"],
        "convert": [*verb, "convert", "livecell", images, "OUT", "--split", "train"],
        "pack": [*verb, "pack", data, "OUT.npz", "--overwrite"],
        "predict": [*verb, "predict", images, "--run", run, "--out", "OUT", "--overwrite"],
        "plate": [*verb, "plate", images, "--run", run, "--out", "OUT", "--shard-images", "3"],
        "export": ["-m", "export.main", "--run", run, "--out", "OUT", *tflite],
    }


def start(arguments: list[str], out: Path) -> subprocess.Popen:
    """A command with its output put in place."""
    words = [str(out) if a == "OUT" else f"{out}.npz" if a == "OUT.npz" else a for a in arguments]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=quiet, cwd=ROOT, start_new_session=True, **pipes)


def tree(out: Path) -> dict[str, str]:
    """Sums of all files of a result, those that hold times left out."""
    single = out.with_name(f"{out.name}.npz")
    files = [p for p in out.rglob("*") if p.is_file()] if out.exists() else [single]
    skipped = (".lock", "plan.json", ".written.jsonl")
    found = {}
    for path in files:
        if path.name not in skipped and "done/" not in str(path) and path.suffix != ".zip":
            name = path.name if path == single else str(path.relative_to(out))
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> None:
    """Run, and print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24)
    options = parser.parse_args()
    source = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arguments in (
            ["-m", "effdet_tf", "synthetic", str(folder / "images"), "--train", "10", "--seed", "1"],
            [
                "-m",
                "effdet_tf",
                "convert",
                "livecell",
                str(folder / "images"),
                str(folder / "data"),
                "--split",
                "train",
            ],
        ):
            subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        known = commands(folder)
        print("| command | kills | unfinished files left | the next run gives the same |\n|---|---|---|---|")
        for kind, arguments in known.items():
            out = folder / f"{kind}-whole"
            began = time.monotonic()
            process = start(arguments, out)
            error = process.communicate()[1]
            assert process.returncode == 0, (kind, error[-400:])
            took, expected = time.monotonic() - began, tree(out)
            kills, left, same = max(options.kills // len(known), 1), 0, 0
            for k in range(kills):
                again = folder / f"{kind}-{k}"
                process = start(arguments, again)
                time.sleep(took * source.uniform(0.3, 1.0))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if again.exists():
                    left += any(path.name.startswith(".tmp-") for path in again.rglob("*"))
                process = start(arguments, again)
                error = process.communicate()[1]
                found = tree(again)
                renamed = {key.replace(again.name, out.name): value for key, value in found.items()}
                same += renamed == expected
                if renamed != expected:
                    odd = sorted(set(renamed.items()) ^ set(expected.items()))[:4]
                    print(kind, k, process.returncode, error[-300:], odd)
                shutil.rmtree(again, ignore_errors=True)
            print(f"| {kind} | {kills} | {left} | {same} of {kills} |", flush=True)


if __name__ == "__main__":
    main()
