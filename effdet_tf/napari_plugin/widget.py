"""The dock widget "Find cells": the form, the search in a thread, and its result as layers of the viewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from napari.qt.threading import GeneratorWorker, create_worker
from napari.utils.notifications import notification_manager, show_error, show_warning
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from effdet_tf.errors import UserError
from effdet_tf.napari_plugin import viewer_layers as layers
from effdet_tf.napari_plugin.form import ALL_PAGES, Form
from effdet_tf.napari_plugin.marks import Marks
from effdet_tf.napari_plugin.pages import LayerPages, pages_of, place_of
from effdet_tf.napari_plugin.search import Search, mark, search
from effdet_tf.prediction.load import report_score
from effdet_tf.prediction.network_process import NetworkProcess
from effdet_tf.prediction.trust import UNLIKE
from effdet_tf.runs import model_names

if TYPE_CHECKING:
    import napari.viewer

_PAUSE_MS = 150  # the slider rests this long before its value is taken


class FindCells(QWidget):
    """Finds the cells of an image layer with a network, and shows them as labels and shapes.

    The network works in a thread. What it found stays in memory down to its lowest score, so that another
    score or other shapes are shown without searching again.
    """

    def __init__(self, viewer: napari.viewer.Viewer, network: NetworkProcess | None = None) -> None:
        """Build the widget of a viewer; the network runs in a process of its own by default."""
        super().__init__()
        self._viewer = viewer
        self._work = _Work(NetworkProcess() if network is None else network)
        self._searched: Any = None  # the layer that is or was searched last, perhaps in vain
        self._image: Any = None  # the layer of what was found last
        self._found: Search | None = None  # there
        self._shown = False  # whether its result has been shown once
        self._stale = False  # whether the result must be made (again) when the work ends
        self.form = Form(self, model_names())
        QVBoxLayout(self).addWidget(self.form)
        self._pause = QTimer(self)
        self._pause.setSingleShot(True)
        self._pause.setInterval(_PAUSE_MS)
        self._connect()
        self._list_images()
        self._take_network()

    def _connect(self) -> None:
        form, events = self.form, self._viewer.layers.events
        self._pause.timeout.connect(self._mark)
        form.run.clicked.connect(self.run)
        form.cancel.clicked.connect(self.cancel)
        form.networks.currentIndexChanged.connect(self._take_network)
        form.images.currentIndexChanged.connect(self._take_image)
        form.score.valueChanged.connect(self._take_score)
        form.own.toggled.connect(self._take_own)
        form.shapes.currentIndexChanged.connect(self._change)
        for event in (events.inserted, events.removed, events.reordered):
            event.connect(self._list_images)
        self.destroyed.connect(partial(_Work.end, self._work))

    @property
    def busy(self) -> bool:
        """Whether a search goes on, or a result is being made or about to be."""
        return self._work.worker is not None or self._pause.isActive()

    def run(self) -> None:
        """Search the chosen image layer in a thread; its result is shown when it is there."""
        layer = self.form.image()
        if self._work.worker is not None:
            return
        try:
            if layer is None:
                raise UserError("no image layer: open an image, or take one of File > Open Sample")
            pages = pages_of(layer)
        except UserError as error:
            self._tell(error)
            return
        self._pause.stop()
        self._searched = layer
        chosen = self._chosen_pages(layer, pages)
        self.form.start("opening the network ...", "searching ...", len(chosen))
        self._start(self._keep, search, self._work.network, self.form.network(), pages, chosen)

    def cancel(self) -> None:
        """Stop the work; what was shown before stays."""
        self._stale = False
        if self._work.worker is not None:
            self._work.worker.quit()

    def changeEvent(self, event: QEvent | None) -> None:
        """End the work when napari takes the widget out of its dock, which is how it closes one."""
        if event is not None and event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._work.end()
        super().changeEvent(event)

    def _chosen_pages(self, layer: Image, pages: LayerPages) -> range:
        """All pages, or the one that the viewer shows."""
        if not pages.lead or self.form.pages.currentText() == ALL_PAGES:
            return range(len(pages))
        at = layer.world_to_data(self._viewer.dims.point)
        within = [min(max(round(float(x)), 0), size - 1) for x, size in zip(at, pages.lead, strict=False)]
        shown = int(np.ravel_multi_index(within, pages.lead))
        return range(shown, shown + 1)

    def _list_images(self, event: Any = None) -> None:
        """Offer the image layers that are there now."""
        if not isalive(self):  # the dock was closed, and the viewer does not know
            return
        images = [layer for layer in self._viewer.layers if isinstance(layer, Image)]
        for layer in images:
            layer.events.name.connect(self._list_images)
        self.form.offer_images(images, self._viewer.layers.selection.active)

    def _take_image(self) -> None:
        layer = self.form.image()
        self.form.pages.setEnabled(layer is not None and layer.ndim > 2)

    def _take_network(self) -> None:
        """Check the network as far as that is quick; before the first search, show its own score."""
        try:
            score = report_score(self.form.network())
        except UserError as error:
            self._tell(error)
            return
        if self.form.own.isChecked() and self._found is None and score is not None:
            self.form.set_score(score)

    def _take_score(self) -> None:
        self.form.set_own(False)
        self._change()

    def _take_own(self, own: bool) -> None:
        if own and self._found is not None:
            self.form.set_score(self._found.own_score)
            self._change()
        elif own:
            self._take_network()

    def _change(self) -> None:
        """Score or shapes are others: make the result again when the user pauses."""
        if self._found is not None:
            self._pause.start()

    def _start(self, then: Callable[[Any], None], work: Callable[..., Any], *args: Any) -> None:
        """Start a generator in a thread; `then` takes what it returns."""
        slots = {"yielded": self.form.advance, "returned": then, "errored": self._fail}
        slots |= {"aborted": self._stop, "finished": self._finish}
        self._work.worker = create_worker(work, *args, _connect=slots)

    def _keep(self, found: Search) -> None:
        """The search is done: its result is made when its thread has ended."""
        self._image, self._found, self._shown, self._stale = self._searched, found, False, True
        if self.form.own.isChecked():
            self.form.set_score(found.own_score)

    def _mark(self) -> None:
        """Make the result of the last search at the chosen score, in a thread."""
        if self._found is None:
            return
        if self._work.worker is not None:
            self._stale = True
            return
        if self._shown and not layers.is_shown(self._viewer, self._found.pages.name):
            self._found = None
            self.form.say("the result was removed: press Run for a new one")
            return
        self._stale = False
        # The slider rounds; the network's own score must give what `effdet_tf predict` gives.
        score = self._found.own_score if self.form.own.isChecked() else self.form.score.value()
        self.form.start("measuring ...", "measuring ...", len(self._found.results))
        self._start(self._show, mark, self._found, score)

    def _show(self, marks: Marks) -> None:
        """Show the result and its number of cells."""
        found = self._found
        assert found is not None
        place = layers.placement(self._image, marks.origin)
        layers.show(self._viewer, found.pages.name, marks, self.form.shapes.currentText(), place)
        self._shown = True
        count = marks.counts()
        if found.pages.lead:
            ends = [found.first, found.first + len(found.results) - 1]
            shown = [" ".join(map(str, place_of(page, found.pages.lead))) for page in ends]
            count += f" in page {shown[0]}" if ends[0] == ends[1] else f" in pages {' to '.join(shown)}"
        trust = found.results[0].trust if len(found.results) == 1 else None
        if trust is not None and self.form.own.isChecked():
            count += f"; {trust.words}"
        if marks.labels is None:
            count += " (boxes alone: this network has no mask head)"
        self.form.say(count)
        if found.truncated:
            limit = max(len(result) for result in found.results)
            show_warning(f"the network reports at most {limit} cells an image: weaker ones are missing")
        for disturbed in sorted({result.disturbed for result in found.results} - {""}):
            show_warning(disturbed)
        if any(result.trust is not None and result.trust.unlike for result in found.results):
            show_warning(f"the image is {UNLIKE}")

    def _finish(self) -> None:
        self._work.worker = None
        self.form.stop()
        if self._stale:
            self._mark()

    def _stop(self) -> None:
        """The work has been left: the network need not go on either."""
        if self._work.network.waiting:
            self._work.network.close()
        self.form.say("cancelled")

    def _fail(self, error: Exception) -> None:
        self._stale = False
        if isinstance(error, UserError):
            self._tell(error)
        else:
            self.form.say("failed: the notification has more")
            notification_manager.receive_error(type(error), error, error.__traceback__)

    def _tell(self, error: UserError) -> None:
        self.form.say(str(error))
        show_error(str(error))


@dataclass(eq=False)
class _Work:
    """The network and the thread that uses it, if any: both end with the widget."""

    network: NetworkProcess
    worker: GeneratorWorker | None = None

    def end(self, *_: object) -> None:
        if self.worker is not None:
            self.worker.quit()
        self.network.close()
