"""The trained networks that the web app offers: the package's, and the one that was named with --run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from effdet_tf.errors import UserError
from effdet_tf.prediction.load import load, report_score
from effdet_tf.runs import MODELS, find_run, model_names


class Networks:
    """Networks by name; each is loaded when it is first asked for, and stays.

    Attributes:
        names: the one that the web app starts with comes first.
    """

    def __init__(self, run: str | os.PathLike[str]) -> None:
        """Load the first network, so that a wrong one is told at once.

        Args:
            run: what `effdet_tf.load` opens.

        Raises:
            UserError: when it cannot be loaded.
        """
        self._sources = {name: MODELS / name for name in model_names()}
        source = find_run(run)
        name = str(run)
        if source != self._sources.get(name):  # a folder of the user's own
            name = f"./{name}" if name in self._sources else name
            self._sources[name] = source
        self._loaded: dict[str, Any] = {name: load(source)}
        self.names = [name, *(other for other in self._sources if other != name)]
        self._scores = {other: float(report_score(self._sources[other])) for other in self.names[1:]}
        self._scores[name] = float(self._loaded[name].config.postprocess.report_score)

    def score(self, name: str) -> float:
        """The score from which on `predict` reports cells, tuned on the run's validation images."""
        return self._scores[name]

    def check(self, name: str) -> str:
        """The name itself.

        Raises:
            UserError: when there is no such network.
        """
        if name not in self._sources:
            raise UserError(f"there is no network {name!r}; choose one of {', '.join(self.names)}")
        return name

    def predictor(self, name: str) -> Any:
        """The network, loaded; to be called by one thread alone.

        Raises:
            UserError: when it cannot be loaded.
        """
        if name not in self._loaded:
            self._loaded[name] = load(Path(self._sources[name]))
        return self._loaded[name]
