from __future__ import annotations

import numpy as np
import pytest

from effdet_tf import outputs
from effdet_tf.napari_plugin.marks import join, mark_page
from tests.napari_plugin.stubs import BOXES, HEIGHT, SCORES, WIDTH, found

IMAGE = np.arange(HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)


def test_labels_and_table_are_those_of_predict():
    marks = join([mark_page(found(), IMAGE)], 0)
    cells = outputs.number_cells(found())
    table = outputs.cell_table(cells, IMAGE)
    assert (marks.labels == cells.labels).all() and marks.labels.max() == 3
    assert marks.features["index"].tolist() == [1, 2, 3]
    assert "frame" not in marks.features and "cell" not in marks.features
    for name in set(outputs.CELL_COLUMNS) - {"cell"}:
        assert (marks.features[name] == table[name]).all(), name


def test_numbers_go_on_from_page_to_page():
    results = [found(), found().filter(2.0), found().filter(0.5)]
    marks = join([mark_page(result, IMAGE) for result in results], 4, (9,))
    assert marks.labels.shape == (3, HEIGHT, WIDTH)
    assert [np.unique(plane).tolist() for plane in marks.labels] == [[0, 1, 2, 3], [0], [0, 4, 5]]
    assert marks.features["index"].tolist() == [1, 2, 3, 4, 5]
    assert marks.features["frame"].tolist() == [4, 4, 4, 6, 6]
    np.testing.assert_allclose(marks.features["score"], [*SCORES, *SCORES[:2]])


def test_boxes_lie_on_pixel_edges():
    boxes = join([mark_page(found(), IMAGE)], 0).boxes()
    y0, x0, y1, x1 = BOXES[0]
    assert boxes.kind == "rectangle" and len(boxes.vertices) == 3
    assert boxes.vertices[0].min(0).tolist() == [y0 - 0.5, x0 - 0.5]  # napari counts from the pixel's centre
    assert boxes.vertices[0].max(0).tolist() == [y1 - 0.5, x1 - 0.5]
    assert boxes.features["score"].tolist() == pytest.approx(SCORES)


def test_outlines_go_round_the_pixels_of_the_labels():
    marks = join([mark_page(found(), IMAGE), mark_page(found(), IMAGE)], 3, (9,))
    outlines = marks.outlines()
    assert outlines.kind == "path" and len(outlines.vertices) == 6
    for vertices, (_, row) in zip(outlines.vertices, outlines.features.iterrows(), strict=True):
        assert (vertices[0] == vertices[-1]).all()
        assert (vertices[:, 0] == row["frame"] - 3).all()  # planes of the labels, not of the image
        _, ys, xs = np.nonzero(marks.labels == row["index"])
        assert vertices[:, 1:].min(0).tolist() == [ys.min() - 0.5, xs.min() - 0.5]
        assert vertices[:, 1:].max(0).tolist() == [ys.max() + 0.5, xs.max() + 0.5]


def test_a_cell_in_two_pieces_has_two_outlines_with_its_score():
    marks = join([mark_page(found(), IMAGE)], 0)
    y0, x0, y1, _ = BOXES[1]
    marks.labels[y0:y1, x0 + 4] = 0
    outlines = marks.outlines()
    assert outlines.features["index"].tolist() == [1, 2, 2, 3]


def test_without_mask_head_there_are_boxes_alone():
    marks = join([mark_page(found(masks=False), IMAGE)], 0)
    assert marks.labels is None and marks.features["area"].isna().all()
    assert marks.outlines().kind == "rectangle"


@pytest.mark.parametrize(
    ("names", "score", "text"),
    [(("cell",), 0, "3 cells"), (("cell",), 0.9, "1 cell"), (("a", "b"), 0, "3 cells: 2 a, 1 b")],
)
def test_the_count_names_the_classes(names, score, text):
    result = found(class_names=names).filter(np.float32(score))
    assert join([mark_page(result, IMAGE)], 0).counts() == text


def test_no_cell_at_all_is_no_fault():
    marks = join([mark_page(found().filter(2), IMAGE)], 0)
    assert marks.counts() == "0 cells" and marks.labels.max() == 0
    assert marks.boxes().vertices == [] and marks.outlines().vertices == []
