"""The form of the dock widget: network, image, score, shapes, buttons and progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QMenu,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleSlider

from effdet_tf.napari_plugin.viewer_layers import SHAPES

if TYPE_CHECKING:
    from napari.layers import Layer

SHOWN_PAGE, ALL_PAGES = "the one shown", "all"


class Form(QWidget):
    """Fields, buttons, a progress bar and one line of text."""

    def __init__(self, parent: QWidget, networks: Sequence[str]) -> None:
        """Lay the form out, with the names of the networks that come with the package."""
        super().__init__(parent)
        self._layers: list[Layer] = []
        self._text, self._total = "", 1
        self.networks, self.images, self.pages, self.shapes = (_combo() for _ in range(4))
        for name in networks:
            self.networks.addItem(name, name)
        self.pages.addItems([SHOWN_PAGE, ALL_PAGES])
        self.pages.setEnabled(False)
        self.shapes.addItems(SHAPES)
        self.score = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
        self.score.setRange(0, 1)
        self.score.setDecimals(2)
        self.score.setSingleStep(0.01)  # type: ignore[arg-type]
        self.score.setToolTip("Cells with this score or more are shown; moving it needs no new search")
        self.own = QCheckBox("as the network was tuned")
        self.own.setChecked(True)
        self.run, self.cancel = QPushButton("Run"), QPushButton("Cancel")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.text = QLabel()
        self.text.setWordWrap(True)
        self._lay_out()
        self.stop()

    def _lay_out(self) -> None:
        fields = QFormLayout()
        fields.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        fields.addRow("Network", _in_a_row(self.networks, self._browse_button()))
        fields.addRow("Image", self.images)
        fields.addRow("Pages", self.pages)
        fields.addRow("Score, at least", self.score)
        fields.addRow("", self.own)
        fields.addRow("Shapes as well", self.shapes)
        column = QVBoxLayout(self)
        column.addLayout(fields)
        column.addWidget(_in_a_row(self.run, self.cancel))
        column.addWidget(self.bar)
        column.addWidget(self.text)
        column.addStretch()

    def _browse_button(self) -> QPushButton:
        button = QPushButton("Browse")
        button.setToolTip("Take a network of your own")
        menu, folder, tflite = QMenu(button), "Folder of a run or a SavedModel", "TFLite file"
        choose = QFileDialog.getExistingDirectory, QFileDialog.getOpenFileName
        menu.addAction(f"{folder} ...", lambda: self.add_network(choose[0](self, folder)))
        kinds = "TFLite (*.tflite)"
        menu.addAction(f"{tflite} ...", lambda: self.add_network(choose[1](self, tflite, filter=kinds)[0]))
        button.setMenu(menu)
        return button

    def add_network(self, path: str) -> None:
        """Offer and choose a run, SavedModel or TFLite file; an empty path is a cancelled dialog."""
        if not path:
            return
        place = self.networks.findData(path)
        if place < 0:
            self.networks.addItem("/".join(Path(path).parts[-2:]), path)
            place = self.networks.count() - 1
            self.networks.setItemData(place, path, Qt.ItemDataRole.ToolTipRole)
        self.networks.setCurrentIndex(place)

    def network(self) -> str:
        """The chosen network, as `effdet_tf.load` takes it."""
        return self.networks.currentData()

    def offer_images(self, layers: list[Layer], active: Layer | None) -> None:
        """Offer image layers, the lowest first; the choice stays, or else is the active one, or the last."""
        wanted = next((layer for layer in (self.image(), active) if layer in layers), None)
        self._layers = layers
        with QSignalBlocker(self.images):
            self.images.clear()
            self.images.addItems([layer.name for layer in layers])
            self.images.setCurrentIndex(layers.index(wanted) if wanted is not None else len(layers) - 1)
        self.images.currentIndexChanged.emit(self.images.currentIndex())

    def image(self) -> Layer | None:
        """The chosen image layer; None when there is none."""
        place = self.images.currentIndex()
        return self._layers[place] if 0 <= place < len(self._layers) else None

    def set_score(self, score: float) -> None:
        """Show a score that the user did not choose."""
        with QSignalBlocker(self.score):
            self.score.setValue(score)

    def set_own(self, own: bool) -> None:
        """Show whether the score is the network's own, without taking it for the user's choice."""
        with QSignalBlocker(self.own):
            self.own.setChecked(own)

    def start(self, first: str, text: str, total: int) -> None:
        """Show that work began: what is done first, and what then with each of `total` images."""
        self._text, self._total = text, total
        self.run.setEnabled(False)
        self.cancel.setEnabled(True)
        self.bar.setRange(0, 0)  # moves without end: how long a network takes to open is unknown
        self.bar.show()
        self.say(first)

    def advance(self, done: int | None) -> None:
        """Show how many images are done; None while none could be begun."""
        if done is not None and self._total == 1:
            self.say(self._text)
        elif done is not None:
            self.bar.setRange(0, self._total)
            self.bar.setValue(done)
            self.say(f"{self._text} {done} of {self._total} pages")

    def stop(self) -> None:
        """Show that nothing is being worked on."""
        self.run.setEnabled(True)
        self.cancel.setEnabled(False)
        self.bar.hide()

    def say(self, text: str) -> None:
        """Show one line of text."""
        self.text.setText(text)


def _combo() -> QComboBox:
    """A box whose entries, however long, do not widen the dock."""
    box = QComboBox()
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(12)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box


def _in_a_row(*widgets: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row
