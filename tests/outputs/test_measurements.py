"""Measurements of cells against scikit-image and against shapes worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import regionprops

from effdet_tf.outputs import measurements as measure
from effdet_tf.outputs.measurements import measure_cells


def _crowd(seed: int, height: int = 120, width: int = 150, cells: int = 60) -> np.ndarray:
    """Discs that touch, hide parts of each other and leave the frame."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    rows, columns = np.ogrid[:height, :width]
    for label in range(1, cells + 1):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        a, b, turn = rng.uniform(1, 14), rng.uniform(1, 6), rng.uniform(0, np.pi)
        u = (rows - y) * np.cos(turn) + (columns - x) * np.sin(turn)
        v = (columns - x) * np.cos(turn) - (rows - y) * np.sin(turn)
        labels[(u / a) ** 2 + (v / b) ** 2 <= 1] = label
    return labels


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_image(seed):
    labels = _crowd(seed)
    gray = np.random.default_rng(seed).uniform(0, 65535, labels.shape).astype(np.float32)
    measured = measure_cells(labels, gray, 60)
    regions = regionprops(labels, intensity_image=gray)
    assert len(regions) > 40
    for region in regions:
        k = region.label - 1
        assert measured["area"][k] == region.area
        assert (measured["centroid_y"][k], measured["centroid_x"][k]) == pytest.approx(region.centroid)
        assert measured["perimeter"][k] == pytest.approx(region.perimeter)
        assert measured["eccentricity"][k] == pytest.approx(region.eccentricity, abs=1e-6)
        assert measured["feret_diameter_max"][k] == pytest.approx(region.feret_diameter_max)
        for name in ("axis_major_length", "axis_minor_length"):  # the root of a difference near 0
            assert measured[name][k] == pytest.approx(getattr(region, name), abs=1e-5)
        if region.axis_major_length - region.axis_minor_length > 1e-6:
            turn = measured["orientation"][k] - region.orientation
            assert np.sin(turn) == pytest.approx(0, abs=1e-6)  # pi/2 and -pi/2 are one
        for name in ("equivalent_diameter_area", "extent", "solidity"):
            assert measured[name][k] == pytest.approx(getattr(region, name)), name
        for name in ("intensity_mean", "intensity_std", "intensity_min", "intensity_max"):
            assert measured[name][k] == pytest.approx(getattr(region, name), rel=1e-5), name


def test_bands_change_nothing(monkeypatch):
    labels = _crowd(5)
    gray = np.random.default_rng(5).uniform(0, 255, labels.shape)
    whole = measure_cells(labels, gray, 60)
    monkeypatch.setattr(measure, "_BAND", 7 * labels.shape[1])
    for name, values in measure_cells(labels, gray, 60).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_hidden_label_has_area_zero():
    labels = np.zeros((8, 8), np.int32)
    labels[2:5, 2:5] = 2
    measured = measure_cells(labels, np.ones((8, 8)), 3)
    assert measured["area"].tolist() == [0, 9, 0]
    assert np.isnan(measured["perimeter"][[0, 2]]).all() and np.isnan(measured["intensity_mean"][0])


def test_square_by_hand():
    labels = np.zeros((10, 12), np.int32)
    labels[3:7, 5:9] = 1
    gray = np.arange(120, dtype=np.float32).reshape(10, 12)
    measured = {name: values[0] for name, values in measure_cells(labels, gray, 1).items()}
    assert (measured["area"], measured["centroid_y"], measured["centroid_x"]) == (16, 4.5, 6.5)
    assert measured["perimeter"] == pytest.approx(12)  # through the centres of the 12 border pixels
    assert measured["eccentricity"] == pytest.approx(0)
    assert measured["intensity_mean"] == pytest.approx(4.5 * 12 + 6.5)


def test_line_and_single_pixel():
    labels = np.zeros((6, 12), np.int32)
    labels[1, 1:11] = 1
    labels[4, 4] = 2
    measured = measure_cells(labels, np.ones(labels.shape), 2)
    assert measured["eccentricity"].tolist() == [1, 0]
    assert measured["area"].tolist() == [10, 1]


def test_no_cell():
    measured = measure_cells(np.zeros((5, 5), np.int32), np.zeros((5, 5)), 0)
    assert all(values.shape == (0,) for values in measured.values())
