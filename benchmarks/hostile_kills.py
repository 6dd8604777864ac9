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


def commands(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> arguments and what is written, in a folder that holds `images` and `data`."""
    run, data = str(RUN), str(folder / "data")
    verb = ["-m", "effdet_tf"]
    return {
        "synthetic": ([*verb, "synthetic", "OUT", "--images", "10", "--seed", "3"], "folder"),
        "convert": (
            [*verb, "convert", "livecell", str(folder / "images"), "OUT", "--split", "train"],
            "folder",
        ),
        "pack": ([*verb, "pack", data, "OUT.npz", "--overwrite"], "file"),
        "predict": (
            [*verb, "predict", str(folder / "images"), "--run", run, "--out", "OUT", "--overwrite"],
            "folder",
        ),
        "plate": (
            [*verb, "plate", str(folder / "images"), "--run", run, "--out", "OUT", "--shard-images", "3"],
            "folder",
        ),
        "export": (["-m", "export.main", "--run", run, "--out", "OUT", "--formats", "tflite-fp32"], "folder"),
    }


def start(arguments: list[str], out: Path) -> subprocess.Popen:
    """A command with its output put in place."""
    words = [str(out) if a == "OUT" else f"{out}.npz" if a == "OUT.npz" else a for a in arguments]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=quiet, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip


def tree(out: Path) -> dict[str, str]:
    """Sums of all files of a result, those that hold times left out."""
    files = (
        [out.with_name(f"{out.name}.npz")] if not out.exists() else [p for p in out.rglob("*") if p.is_file()]
    )
    skipped = (".lock", "plan.json", ".written.jsonl")
    return {
        path.name if path.suffix == ".npz" else str(path.relative_to(out)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in files
        if path.name not in skipped and "done/" not in str(path) and path.suffix != ".zip"
    }


def main() -> None:
    """Run, and print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24)
    options = parser.parse_args()
    source = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arguments in (
            ["-m", "effdet_tf", "synthetic", str(folder / "images"), "--images", "10", "--seed", "1"],
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
        print(
            "| command | kills | unfinished files left | the next run gives the same files |\n|---|---|---|---|"
        )
        for kind, (arguments, _) in known.items():
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
                if process.returncode and "exists" in error:  # it had ended before it was killed
                    process.returncode = 0
                found = tree(again)
                renamed = {key.replace(again.name, out.name): value for key, value in found.items()}
                same += process.returncode == 0 and renamed == expected
                if renamed != expected:
                    odd = sorted(set(renamed.items()) ^ set(expected.items()))[:4]
                    print(kind, k, process.returncode, error[-300:], odd)
                shutil.rmtree(again, ignore_errors=True)
            print(f"| {kind} | {kills} | {left} | {same} of {kills} |", flush=True)


if __name__ == "__main__":
    main()
