"""The dock widget with real layers and real threads, on a viewer without window."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.data.synthetic.phase_contrast import render_image
from tests.napari_plugin.conftest import settle
from tests.napari_plugin.stubs import HEIGHT, OWN_SCORE, WIDTH, StubNetwork, found

IMAGE = np.full((HEIGHT, WIDTH), 9, np.uint16)


@pytest.fixture
def notes(monkeypatch, qt):
    """What the user is notified of."""
    from effdet_tf.napari_plugin import widget

    told = []
    monkeypatch.setattr(widget, "show_error", lambda text: told.append(("error", text)))
    monkeypatch.setattr(widget, "show_warning", lambda text: told.append(("warning", text)))
    return told


def names(viewer):
    return [layer.name for layer in viewer.layers]


def test_labels_are_those_of_predict(viewer, make_widget, wait, tmp_path):
    image = render_image(3, 128, 160, 20, "Round")[0]
    cv2.imwrite(str(tmp_path / "one.png"), image)
    widget = make_widget(None)  # the network of the package, in its process
    viewer.add_image(image, name="one")
    widget.run()
    wait(widget)
    assert cli.main(["predict", str(tmp_path / "one.png"), "--out", str(tmp_path)]) == 0
    labels = tifffile.imread(tmp_path / "one.labels.tif")
    table = pd.read_csv(tmp_path / "one.cells.csv")
    assert labels.max() > 5
    assert (viewer.layers["one cells"].data == labels).all()
    text = widget.form.text.text()
    assert text.startswith(f"{len(table)} cells; ") and "cells at 90 %, expected F1 0." in text
    features = viewer.layers["one cells"].features
    assert (features["index"] == table["cell"]).all()
    for name in set(table) - {"cell"}:
        assert (features[name] == table[name]).all(), name


def test_the_slider_changes_the_result_without_another_search(viewer, make_widget, wait):
    network = StubNetwork()
    widget = make_widget(network)
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    assert widget.form.score.value() == OWN_SCORE and widget.form.own.isChecked()
    assert viewer.layers["a cells"].data.max() == 2 and widget.form.text.text() == "2 cells"
    widget.form.score.setValue(0.25)
    wait(widget)
    assert viewer.layers["a cells"].data.max() == 3 and widget.form.text.text() == "3 cells"
    assert not widget.form.own.isChecked()
    widget.form.score.setValue(0.8)
    widget.form.score.setValue(0.95)
    wait(widget)
    assert viewer.layers["a cells"].data.max() == 0 and widget.form.text.text() == "0 cells"
    widget.form.own.setChecked(True)
    wait(widget)
    assert widget.form.score.value() == OWN_SCORE and viewer.layers["a cells"].data.max() == 2
    assert len(network.images) == 1 and names(viewer) == ["a", "a cells"]


def test_a_chosen_score_holds_for_the_next_search(viewer, make_widget, wait):
    widget = make_widget(StubNetwork())
    viewer.add_image(IMAGE, name="a")
    widget.form.score.setValue(0.7)
    widget.run()
    wait(widget)
    assert widget.form.score.value() == 0.7 and widget.form.text.text() == "1 cell"


def test_shapes_come_and_go_without_another_search(viewer, make_widget, wait):
    network = StubNetwork()
    widget = make_widget(network)
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    for shapes, expected in (
        ("boxes", ["a", "a cells", "a boxes"]),
        ("outlines", ["a", "a cells", "a outlines"]),
        ("none", ["a", "a cells"]),
    ):
        widget.form.shapes.setCurrentText(shapes)
        wait(widget)
        assert names(viewer) == expected
    assert len(network.images) == 1


def test_the_page_that_is_shown_then_all_of_them(viewer, make_widget, wait):
    network = StubNetwork()
    widget = make_widget(network)
    stack = np.stack([IMAGE + k for k in range(4)])
    image = viewer.add_image(stack, name="a", scale=(5, 2, 2), translate=(50, 0, 0))
    assert widget.form.pages.isEnabled()
    viewer.dims.set_point(0, 50 + 2 * 5)
    widget.run()
    wait(widget)
    labels = viewer.layers["a cells"]
    assert [int(seen.max()) for seen in network.images] == [11]
    assert widget.form.text.text() == "2 cells in page 2"
    assert labels.data.shape == (1, HEIGHT, WIDTH) and set(labels.features["frame"]) == {2}
    np.testing.assert_allclose(labels.data_to_world((0, 1, 1)), image.data_to_world((2, 1, 1)))
    widget.form.pages.setCurrentText("all")
    widget.run()
    wait(widget)
    assert widget.form.text.text() == "8 cells in pages 0 to 3"
    assert labels.data.shape == stack.shape and labels.data.max() == 8 and names(viewer) == ["a", "a cells"]
    np.testing.assert_allclose(labels.data_to_world((2, 1, 1)), image.data_to_world((2, 1, 1)))


@pytest.mark.parametrize("shapes", ["boxes", "outlines"])
def test_frames_with_channels(viewer, make_widget, wait, shapes):
    network = StubNetwork()
    widget = make_widget(network)
    widget.form.shapes.setCurrentText(shapes)
    pages = np.stack([IMAGE + k for k in range(6)]).reshape(3, 2, HEIGHT, WIDTH)
    image = viewer.add_image(pages, name="a", scale=(5, 1, 2, 2), translate=(50, 0, 0, 0))
    viewer.dims.set_point((0, 1), (50 + 2 * 5, 1))
    widget.run()
    wait(widget)
    labels, drawn = viewer.layers["a cells"], viewer.layers[f"a {shapes}"]
    assert [int(seen.max()) for seen in network.images] == [int(pages[2, 1].max())]
    assert widget.form.text.text() == "2 cells in page 2 1"
    assert labels.data.shape == (1, 1, HEIGHT, WIDTH)
    assert set(labels.features["axis_0"]) == {2} and set(labels.features["axis_1"]) == {1}
    np.testing.assert_allclose(labels.data_to_world((0, 0, 1, 1)), image.data_to_world((2, 1, 1, 1)))
    widget.form.pages.setCurrentText("all")
    widget.run()
    wait(widget)
    labels, drawn = viewer.layers["a cells"], viewer.layers[f"a {shapes}"]
    assert widget.form.text.text() == "12 cells in pages 0 0 to 2 1"
    assert labels.data.shape == pages.shape and labels.data.max() == 12
    assert [set(np.unique(labels.data[t, c])) - {0} for t in range(3) for c in range(2)] == [
        {2 * k + 1, 2 * k + 2} for k in range(6)
    ]
    places = {tuple(shape[0, :2].astype(int)) for shape in drawn.data}
    assert places == {(t, c) for t in range(3) for c in range(2)}
    np.testing.assert_allclose(drawn.data_to_world((2, 1, 1, 1)), image.data_to_world((2, 1, 1, 1)))


def test_a_colour_image(viewer, make_widget, wait):
    network = StubNetwork()
    widget = make_widget(network)
    viewer.add_image(np.dstack([IMAGE.astype(np.uint8)] * 4), name="a", rgb=True)
    assert not widget.form.pages.isEnabled()
    widget.run()
    wait(widget)
    assert network.images[0].shape == (HEIGHT, WIDTH, 3)
    assert viewer.layers["a cells"].data.shape == (HEIGHT, WIDTH)


def test_a_network_without_masks_gives_boxes(viewer, make_widget, wait):
    widget = make_widget(StubNetwork(found(masks=False)))
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    assert names(viewer) == ["a", "a boxes"]
    assert widget.form.text.text() == "2 cells (boxes alone: this network has no mask head)"


def test_cells_beyond_the_limit_are_told(viewer, make_widget, wait, notes):
    widget = make_widget(StubNetwork(found(truncated=True)))
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    assert notes == [("warning", "the network reports at most 3 cells an image: weaker ones are missing")]


def test_faults_are_one_line_and_the_next_search_works(viewer, make_widget, wait, notes, tmp_path):
    widget = make_widget(StubNetwork())

    def told():
        wait(widget)
        ((kind, text),) = notes
        notes.clear()
        assert kind == "error" and "\n" not in text and widget.form.text.text() == text
        assert widget.form.run.isEnabled() and not widget.form.cancel.isEnabled()
        return text

    widget.run()
    assert told().startswith("no image layer: open an image")
    viewer.layers.clear()
    viewer.add_image(IMAGE * 0, name="black")
    widget.run()
    assert told() == "this image is black"
    widget.form.add_network(str(tmp_path))
    assert told().startswith(f"{tmp_path}: is neither a run nor a SavedModel")
    viewer.layers.clear()
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    assert names(viewer) == ["a", "a cells"] and notes == []


def test_cancelling_stops_the_network_and_leaves_what_was_shown(qt, viewer, make_widget, wait):
    network = StubNetwork()
    widget = make_widget(network)
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    network.asleep = True
    started = time.monotonic()
    widget.run()
    assert widget.busy and widget.form.cancel.isEnabled() and not widget.form.run.isEnabled()
    settle(qt, lambda: network.waiting)
    widget.form.cancel.click()
    wait(widget)
    assert time.monotonic() - started < 5 and network.closed == 1
    assert widget.form.text.text() == "cancelled" and names(viewer) == ["a", "a cells"]
    widget.form.score.setValue(0.25)  # of the result that is still there
    wait(widget)
    assert viewer.layers["a cells"].data.max() == 3 and network.closed == 1


def test_a_search_in_vain_leaves_the_former_result_at_its_place(viewer, make_widget, wait, notes):
    widget = make_widget(StubNetwork())
    viewer.add_image(IMAGE, name="a", translate=(5, 6))
    viewer.add_image(IMAGE * 0, name="black", translate=(70, 80))
    widget.run()
    wait(widget)
    widget.form.images.setCurrentText("black")
    widget.run()
    wait(widget)
    widget.form.score.setValue(0.25)
    wait(widget)
    assert names(viewer) == ["a", "black", "a cells"] and len(notes) == 1
    assert viewer.layers["a cells"].data.max() == 3
    assert viewer.layers["a cells"].translate.tolist() == [5, 6]


def test_the_networks_own_score_is_not_rounded(viewer, make_widget, wait, monkeypatch):
    from tests.napari_plugin import stubs

    monkeypatch.setattr(stubs, "OWN_SCORE", 0.6002)  # 0.60 on the slider, and above the second cell
    widget = make_widget(StubNetwork())
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    assert widget.form.text.text() == "1 cell"


def test_a_fault_of_the_program_is_told_with_its_traceback(viewer, make_widget, wait, monkeypatch):
    from effdet_tf.napari_plugin import widget as module

    told = []
    monkeypatch.setattr(module.notification_manager, "receive_error", lambda *error: told.append(error))
    network = StubNetwork()
    network.predict = lambda image: 1 / 0
    widget = make_widget(network)
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    ((kind, _, trace),) = told
    assert kind is ZeroDivisionError and trace is not None
    assert widget.form.text.text() == "failed: the notification has more"


def test_a_result_that_was_removed_does_not_come_back(viewer, make_widget, wait):
    widget = make_widget(StubNetwork())
    viewer.add_image(IMAGE, name="a")
    widget.run()
    wait(widget)
    viewer.layers.remove("a cells")
    widget.form.score.setValue(0.25)
    wait(widget)
    assert names(viewer) == ["a"] and "press Run" in widget.form.text.text()


def test_the_choice_of_images_follows_the_layers(viewer, make_widget):
    viewer.add_image(IMAGE, name="a")
    widget = make_widget(StubNetwork())

    def offered():
        return [widget.form.images.itemText(k) for k in range(widget.form.images.count())]

    viewer.add_image(IMAGE, name="b")
    viewer.add_labels(np.zeros((4, 4), np.uint8), name="no image")
    assert offered() == ["a", "b"] and widget.form.image().name == "a"
    viewer.layers["a"].name = "c"
    viewer.layers["c"].name = "d"
    viewer.layers["d"].name = "c"
    assert offered() == ["c", "b"] and widget.form.image().name == "c"
    viewer.layers.remove("c")
    assert offered() == ["b"] and widget.form.image().name == "b"
    viewer.layers.clear()
    assert offered() == [] and widget.form.image() is None


@pytest.mark.parametrize("way", ["deleted with the viewer", "taken out of its dock"])
def test_a_widget_that_is_gone_ends_its_work(qt, viewer, make_widget, way):
    from qtpy.QtWidgets import QDockWidget

    network = StubNetwork(asleep=True)
    widget = make_widget(network)
    viewer.add_image(IMAGE, name="a")
    widget.run()
    worker = widget._work.worker
    dock = QDockWidget()
    dock.setWidget(widget)
    assert not network.closed
    if way == "taken out of its dock":
        widget.setParent(None)
    else:
        dock.deleteLater()
    settle(qt, lambda: network.closed and not worker.is_running)
    viewer.add_image(IMAGE, name="b")  # the viewer still calls it
