"""How many small faults the unit tests notice: mutants by cosmic-ray, tried in a copy of the repository.

    pip install "cosmic-ray>=8.3" && python benchmarks/mutation.py --mutants 100

For each part, so many of its mutants (one operator, number or keyword changed each) are tried against the
part's own tests, and those that the tests let live are shown. About ten seconds for each on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is changed, and the tests that should notice.
PARTS = {
    "geometry": ("effdet_tf/geometry", "tests/geometry"),
    "metrics": ("effdet_tf/metrics", "tests/metrics"),
    "postprocess": ("effdet_tf/model/postprocess.py", "tests/model/test_postprocess.py"),
}
CONFIG = """[cosmic-ray]
module-path = "{code}"
timeout = 120.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider --disable-warnings {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def main() -> None:
    """Try the mutants of every part and print the score."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--mutants", type=int, default=100, help="of each part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"  # mutants are written into the files
        subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
        for part in options.parts:
            killed, lived = try_mutants(copy, part, options.mutants)
            print(f"{part}: {killed} of {killed + len(lived)} noticed", flush=True)
            print("\n".join(lived), flush=True)


def try_mutants(copy: Path, part: str, count: int) -> tuple[int, list[str]]:
    """How many of a part's mutants the tests noticed, and the changes that they let live."""
    code, tests = PARTS[part]
    session = copy.parent / f"{part}.sqlite"
    config = copy.parent / f"{part}.toml"
    config.write_text(CONFIG.format(code=code, tests=tests, python=sys.executable))
    cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
    subprocess.run([*cosmic_ray, "init", config, session], cwd=copy, check=True)
    with closing(sqlite3.connect(session)) as database, database:
        rows = database.execute(
            "SELECT job_id, module_path, operator_name, operator_args, occurrence FROM mutation_specs "
            "WHERE operator_name NOT LIKE '%BinaryOperator_BitOr%'"  # `int | None` of annotations
        ).fetchall()
        kept = {job for job, *_ in sorted(rows, key=_rank)[:count]}
        for (job,) in database.execute("SELECT job_id FROM work_items").fetchall():
            if job not in kept:
                database.execute("DELETE FROM mutation_specs WHERE job_id = ?", (job,))
                database.execute("DELETE FROM work_items WHERE job_id = ?", (job,))
    subprocess.run([*cosmic_ray, "exec", config, session], cwd=copy, check=True)
    with closing(sqlite3.connect(session)) as database:
        results = database.execute("SELECT test_outcome, diff FROM work_results").fetchall()
    lived = [diff for outcome, diff in results if outcome == "SURVIVED"]
    return len(results) - len(lived), lived


def _rank(row: tuple) -> bytes:
    """An order that is the same every time, and even over files and operators."""
    return hashlib.sha256(repr(row[1:]).encode()).digest()


if __name__ == "__main__":
    main()
