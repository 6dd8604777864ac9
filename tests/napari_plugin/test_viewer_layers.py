from __future__ import annotations

import numpy as np
import pytest

from effdet_tf.napari_plugin.marks import join, mark_page
from effdet_tf.napari_plugin.viewer_layers import is_shown, placement, show
from tests.napari_plugin.stubs import HEIGHT, WIDTH, found

IMAGE = np.ones((HEIGHT, WIDTH), np.uint8)


def marks(pages=None, first=0, **kind):
    parts = [mark_page(found(**kind), IMAGE)] * (pages or 1)
    return join(parts, first, () if pages is None else (max(pages + first, 9),))


def test_labels_lie_on_the_image(viewer):
    image = viewer.add_image(
        IMAGE,
        name="a",
        scale=(0.5, 2),
        translate=(3, 4),
        rotate=30,
        units=("um", "um"),
        axis_labels=("v", "u"),
    )
    (labels,) = show(viewer, "a", marks(), "none", placement(image, ()))
    assert labels.name == "a cells" and labels.axis_labels == ("v", "u") and labels.units == image.units
    for point in ((0, 0), (7, 11)):
        np.testing.assert_allclose(labels.data_to_world(point), image.data_to_world(point))


def test_part_of_a_stack_lies_at_its_pages(viewer):
    image = viewer.add_image(
        np.stack([IMAGE] * 9), name="a", scale=(10, 0.5, 2), translate=(100, 3, 4), shear=(0.1, 0, 0.2)
    )
    layers = show(viewer, "a", marks(2, first=5), "boxes", placement(image, (5,)))
    for layer in layers:
        np.testing.assert_allclose(layer.data_to_world((1, 7, 11)), image.data_to_world((6, 7, 11)))


def test_a_label_tells_its_score(viewer):
    image = viewer.add_image(IMAGE, name="a")
    (labels,) = show(viewer, "a", marks(), "none", placement(image, ()))
    status = labels.get_status((21, 7), world=True)
    assert "score: 0.6" in status["coordinates"] and "class: cell" in status["coordinates"]


def test_the_next_result_replaces_the_former_and_keeps_its_look(viewer):
    image = viewer.add_image(IMAGE, name="a")
    other = viewer.add_image(IMAGE, name="b")
    show(viewer, "b", marks(), "boxes", placement(other, ()))
    (labels,) = show(viewer, "a", marks(), "none", placement(image, ()))
    labels.opacity, labels.contour = 0.25, 2
    fewer = join([mark_page(found().filter(0.5), IMAGE)], 0)
    again, boxes = show(viewer, "a", fewer, "boxes", placement(image, ()))
    assert again is labels and labels.data.max() == 2 and len(labels.features) == 2
    assert (labels.opacity, labels.contour) == (0.25, 2)
    assert len(boxes.data) == 2 and boxes.features["score"].tolist() == pytest.approx([0.9, 0.6])
    assert [layer.name for layer in viewer.layers] == ["a", "b", "b cells", "b boxes", "a cells", "a boxes"]
    show(viewer, "a", fewer, "outlines", placement(image, ()))
    assert [layer.name for layer in viewer.layers[-2:]] == ["a cells", "a outlines"]
    show(viewer, "a", fewer, "none", placement(image, ()))
    assert [layer.name for layer in viewer.layers] == ["a", "b", "b cells", "b boxes", "a cells"]


def test_an_image_and_a_stack_of_the_same_name(viewer):
    image = viewer.add_image(IMAGE, name="a")
    show(viewer, "a", marks(), "none", placement(image, ()))
    viewer.layers.remove(image)
    image = viewer.add_image(np.stack([IMAGE] * 3), name="a")
    show(viewer, "a", marks(3), "none", placement(image, ()))
    assert viewer.layers["a cells"].data.shape == (3, HEIGHT, WIDTH) and len(viewer.layers) == 2


def test_boxes_are_shown_where_there_are_no_masks(viewer):
    image = viewer.add_image(IMAGE, name="a")
    show(viewer, "a", marks(), "outlines", placement(image, ()))
    (boxes,) = show(viewer, "a", marks(masks=False, class_names=("x", "y")), "none", placement(image, ()))
    assert [layer.name for layer in viewer.layers] == ["a", "a boxes"]
    assert boxes.text.values.tolist() == ["x 0.90", "y 0.60", "x 0.30"]


@pytest.mark.parametrize("shapes", ["boxes", "outlines"])
@pytest.mark.parametrize("stack", [False, True])
def test_no_cell_gives_empty_layers(viewer, shapes, stack):
    none = join([mark_page(found().filter(2), IMAGE)], 0, (1,) if stack else ())
    image = viewer.add_image(IMAGE[None] if stack else IMAGE, name="a")
    labels, empty = show(viewer, "a", none, shapes, placement(image, ()))
    assert labels.data.max() == 0 and len(empty.data) == 0 and empty.ndim == image.ndim


def test_a_removed_result_is_noticed(viewer):
    image = viewer.add_image(IMAGE, name="a")
    (labels,) = show(viewer, "a", marks(), "none", placement(image, ()))
    assert is_shown(viewer, "a") and not is_shown(viewer, "b")
    viewer.layers.remove(labels)
    assert not is_shown(viewer, "a")
