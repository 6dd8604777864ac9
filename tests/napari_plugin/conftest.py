"""Napari without a screen, and without the settings of the person who runs the tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def napari_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["NAPARI_CONFIG"] = str(tmp_path_factory.mktemp("napari") / "settings.yaml")
    os.environ["QT_QPA_PLATFORM"] = "offscreen"


@pytest.fixture(scope="session")
def qt(napari_settings: None) -> Any:
    """The Qt application; a skip says what is missing."""
    try:
        from napari.qt.threading import create_worker  # noqa: F401
        from qtpy.QtWidgets import QApplication
    except ImportError as error:
        pytest.skip(f"napari or Qt cannot be imported ({error}): pip install -e '.[napari]', libegl1, libgl1")
    return QApplication.instance() or QApplication([])


@pytest.fixture
def viewer(napari_settings: None) -> Any:
    """All of a viewer but its window: the canvas would need OpenGL."""
    return pytest.importorskip("napari.components", reason="napari is not installed").ViewerModel()


@pytest.fixture
def make_widget(qt: Any, viewer: Any) -> Iterator[Callable[..., Any]]:
    """`make_widget(network)`: the dock widget on `viewer`; no thread outlives the test."""
    from effdet_tf.napari_plugin.widget import FindCells

    made = []

    def make(network: Any) -> Any:
        made.append(FindCells(viewer, network))
        return made[-1]

    yield make
    from qtpy.compat import isalive

    for widget in filter(isalive, made):
        widget.deleteLater()
    settle(qt, lambda: not any(map(isalive, made)))


@pytest.fixture
def wait(qt: Any) -> Callable[[Any], None]:
    """`wait(widget)` until it is idle."""
    return lambda widget: settle(qt, lambda: not widget.busy)


def settle(application: Any, done: Callable[[], bool], seconds: float = 90) -> None:
    """Let Qt work until something is done."""
    from qtpy.QtCore import QEvent

    end = time.monotonic() + seconds
    application.processEvents()
    application.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    while not done():
        assert time.monotonic() < end, "the widget does not come to rest"
        application.processEvents()
        time.sleep(0.002)
