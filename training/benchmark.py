"""Repeat the experiments of the LIVECell paper: `python -m training.benchmark livecell --experiment NAME`.

wide: one network for all eight types. single-type: a network for each. transfer: each of those on the test
images of every type. size: networks for 2, 4, 5, 25, 50 and 100 % of the training images. counts: the network
for all types against counts by a fluorescent marker. Every part that was done before is left as it is: the
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effdet_tf.commands.parser import Parser, exit_code
from effdet_tf.data.livecell_names import CELL_TYPES, COUNTED, SIZE_SPLITS
from effdet_tf.data.manifest import load_manifest
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write, write_json
from training import evaluate
from training import main as training_main
from training.benchmark_tables import (
    count_table,
    single_table,
    size_table,
    transfer_matrix,
    transfer_table,
    wide_table,
)
from training.steps import convert, run_step

EXPERIMENTS = ("wide", "single-type", "transfer", "size", "counts")
SHARES = {int(name.removeprefix("train").removesuffix("percent")): name for name in SIZE_SPLITS}
SHARES |= {100: "train"}
SUITE_FILE = "suite.json"
Report = dict[str, Any]


class Suite:
    """The parts that the experiments share: data sets, trainings, evaluations, each made once."""

    def __init__(
        self, source: Path, out: Path, training: Sequence[str], types: Sequence[str] = CELL_TYPES
    ) -> None:
        """Plan the suite.

        Args:
            source: LIVECell as published, see `effdet_tf download livecell`.
            out: gets `data/`, `runs/`, `results/`, and a table for each experiment.
            training: words for `training.main`: preset, length, settings.
            types: the cell types of the single-type experiments.

        Raises:
            UserError: when `out` holds a suite of another source or of other trainings.
        """
        self.source, self.out, self.training, self.types = source, out, list(training), tuple(types)
        settings = {"source": str(source.resolve()), "training": self.training}
        path = out / SUITE_FILE
        past = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
        if past != settings:
            raise UserError(
                f"{path}: its networks were trained otherwise ({past['source']}, "
                f"{shlex.join(past['training'])}); repeat that, or choose another --out"
            )
        write_json(path, settings)

    def data(self, split: str, cell_type: str | None = None) -> Path:
        """The converted images of a split, of one type or all."""
        name = f"{cell_type.lower() if cell_type else 'wide'}-{split}"
        folder = self.out / "data" / name
        own = ["--cell-type", cell_type] if cell_type else []
        convert("livecell", self.source, folder, "--split", split, *own)
        return folder

    def train(self, split: str = "train", cell_type: str | None = None) -> Path:
        """The run of a network for a split, of one type or all."""
        name = cell_type.lower() if cell_type else ("wide" if split == "train" else split)
        run = self.out / "runs" / name
        # Written at the very end: a run without it was stopped, and goes on.
        if not (run / "metrics.json").exists():
            data = ["--data", self.data(split, cell_type), "--val", self.data("val", cell_type)]
            run_step("training.main", training_main.main, [*data, *self.training, "--out", run])
        return run

    def evaluate(self, run: Path, data: Path) -> Report:
        """The report of a run on converted images."""
        path = self.out / "results" / f"{run.name}-on-{data.name}.json"
        if not path.exists():
            run_step("training.evaluate", evaluate.main, ["--run", run, "--data", data, "--out", path])
        return json.loads(path.read_text(encoding="utf-8"))

    def wide(self) -> str:
        """One network for all types."""
        return wide_table(self.evaluate(self.train(), self.data("test")))

    def single_type(self) -> str:
        """A network for each type, on its own test images."""
        return single_table({name: self._report(name, name) for name in self.types})

    def _report(self, trained: str, tested: str) -> Report:
        """Of the network for one type on the test images of another."""
        return self.evaluate(self.train("train", trained), self.data("test", tested))

    def transfer(self) -> str:
        """The networks of `single_type` on the test images of every type."""
        from training.benchmark_plots import draw_transfer

        pairs = itertools.product(self.types, self.types)
        reports = {(trained, tested): self._report(trained, tested) for trained, tested in pairs}
        matrix = transfer_matrix(reports, self.types)
        draw_transfer(matrix, self.types, self.out / "transfer.png")
        return transfer_table(matrix, self.types)

    def size(self) -> str:
        """Networks for a share of the training images."""
        from training.benchmark_plots import draw_sizes

        reports, sizes, scores = {}, {}, {}
        for share, split in SHARES.items():
            manifest = load_manifest(self.data(split))
            sizes[share] = (manifest.images, manifest.cells)
            reports[share] = self.evaluate(self.train(split), self.data("test"))
            group = reports[share]["livecell"]["all"]
            found = [group.get(kind, {}).get("AP") for kind in ("bbox", "segm")]
            box, mask = (float("nan") if value is None else value for value in found)
            scores[share] = box, mask
        draw_sizes(scores, self.out / "size.png")
        return size_table(reports, sizes)

    def counts(self) -> str:
        """The network for all types against counts by a fluorescent marker."""
        from training.benchmark_plots import draw_counts

        result = {}
        for name in COUNTED:
            path = self.out / "results" / f"counts-{name}.json"
            if not path.exists():
                write_json(path, self._count(name))
            rows = json.loads(path.read_text(encoding="utf-8"))
            result[name] = ([row["found"] for row in rows], [row["marked"] for row in rows])
        draw_counts(result, self.out / "counts.png")
        return count_table(result)

    def _count(self, name: str) -> list[dict[str, Any]]:
        """Image, marked nuclei and found cells, image by image."""
        from tqdm import tqdm

        from effdet_tf.images.read import read_image
        from effdet_tf.prediction.load import load

        folder = self.source / "nuclear_count_benchmark"
        counts, images = folder / f"{name}_counts.json", folder / name
        if not counts.is_file() or not images.is_dir():
            raise UserError(
                f"{counts} or {images}: missing; `python -m effdet_tf download livecell --annotations counts "
                f"--out {self.source}` brings them"
            )
        marked = {key: int(value) for key, value in json.loads(counts.read_text(encoding="utf-8")).items()}
        files = {path.name: path for path in images.rglob("*") if path.is_file()}
        absent = sorted(set(marked) - set(files))
        if absent:
            raise UserError(f"{images}: {len(absent)} of the counted images are missing, such as {absent[0]}")
        predictor = load(self.train())
        score = predictor.config.postprocess.report_score
        rows = []
        for file in tqdm(sorted(marked), f"count {name}", unit="image"):
            _, kept = predictor.predict(read_image(files[file]), score).label_image()
            rows.append({"image": file, "marked": marked[file], "found": len(kept)})
        return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 failed (2, wrong usage, is argparse's)."""
    options, training = _parse(arguments)
    return exit_code(
        lambda: _run(options, training),
        on_os_error="; what was done before is unharmed",
        on_interrupt="; run the same command again to go on",
    )


def _run(options: argparse.Namespace, training: list[str]) -> None:
    suite = Suite(options.source, options.out, training, options.types)
    for name in dict.fromkeys(options.experiment):
        table = getattr(suite, name.replace("-", "_"))()
        with atomic_write(options.out / f"{name}.md") as temporary:
            temporary.write_text(f"# LIVECell, {name}\n\n{table}\n", encoding="utf-8")
        print(f"\n{name}\n\n{table}\n\nwritten: {options.out / f'{name}.md'}", flush=True)


def build_parser() -> Parser:
    """The parser of the command; what it does not know is for `training.main`."""
    parser = Parser(
        prog="python -m training.benchmark",
        description=__doc__,
        examples=[
            (
                "two of the paper's experiments",
                "livecell --experiment wide transfer --source LIVECell --out benchmark --preset cells-lite0 "
                "--epochs 30",
            )
        ],
        epilog="Every further option goes to training.main.",
    )
    add = parser.add_argument
    needed: dict[str, Any] = {"type": Path, "required": True}
    several: dict[str, Any] = {"choices": EXPERIMENTS, "nargs": "+", "required": True, "metavar": "NAME"}
    add("dataset", choices=("livecell",))
    add("--experiment", help=", ".join(EXPERIMENTS), **several)
    add("--source", help="LIVECell, as `effdet_tf download` brings it", **needed)
    add("--out", help="folder of data, runs, results and tables", **needed)
    types: dict[str, Any] = {"nargs": "+", "choices": CELL_TYPES, "metavar": "TYPE"}
    names = f"for the single-type experiments: {', '.join(CELL_TYPES)} (default: all eight)"
    add("--types", default=list(CELL_TYPES), help=names, **types)
    return parser


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = build_parser()
    options, training = parser.parse_known_args(arguments)
    own = {word.partition("=")[0] for word in training} & {"--data", "--val", "--pseudo", "--out"}
    if own:
        parser.error(f"{', '.join(sorted(own))}: the suite chooses the images")
    return options, training


if __name__ == "__main__":
    sys.exit(main())
