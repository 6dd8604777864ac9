"""The trained networks that the web app offers: the package's, and the one that was named with --run."""

from __future__ import annotations

import os

from effdet_tf.errors import UserError
from effdet_tf.prediction.load import report_score
from effdet_tf.prediction.network_process import ApartPredictor
from effdet_tf.prediction.sizing import AS_THEY_ARE, Sizing
from effdet_tf.runs import MODELS, find_run, model_names


class Networks:
    """Networks by name, each in a process of its own; it is loaded when it is first asked for, and stays.

    Attributes:
        names: the one that the web app starts with comes first.
        scores: by name, the score that `predict` reports cells from, tuned on the run's validation images.
    """

    def __init__(
        self, run: str | os.PathLike[str], seconds: float = 600, sizing: Sizing = AS_THEY_ARE
    ) -> None:
        """Load the first network, so that a wrong one is told at once.

        Args:
            run: what `effdet_tf.load` opens.
            seconds: that an image may take.
            sizing: what is known of the size of cells in all images.

        Raises:
            UserError: when it cannot be loaded, or has no use for what is said of the size.
        """
        packaged = {name: MODELS / name for name in model_names()}
        source, name = find_run(run), str(run)
        if name in packaged and source != packaged[name]:  # a folder of the user's own
            name = f"./{name}"
        self._sources = {name: source} | {other: path for other, path in packaged.items() if other != name}
        self.names = list(self._sources)
        self._seconds, self._sizing = seconds, sizing
        self._loaded: dict[str, ApartPredictor] = {name: ApartPredictor(source, seconds, sizing)}
        self.scores = {other: report_score(self._sources[other]) or 0.0 for other in self.names[1:]}
        self.scores[name] = float(self._loaded[name].config.postprocess.report_score)

    def check(self, name: str) -> None:
        """Refuse what is no network.

        Raises:
            UserError: when there is no such network.
        """
        if name not in self._sources:
            raise UserError(f"there is no network {name!r}; choose one of {', '.join(self.names)}")

    def predictor(self, name: str) -> ApartPredictor:
        """The network, loaded; to be called by one thread alone.

        Raises:
            UserError: when it cannot be loaded.
        """
        if name not in self._loaded:
            self._loaded[name] = ApartPredictor(self._sources[name], self._seconds, self._sizing)
        return self._loaded[name]

    def close(self) -> None:
        """End their processes."""
        for network in list(self._loaded.values()):
            network.close()
