"""Results as layers of a viewer: placed where the image lies, and replaced by the next result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from effdet_tf.napari_plugin.marks import Marks, Shapes

if TYPE_CHECKING:
    from napari.layers import Image, Layer
    from napari.viewer import Viewer

_MARK = "effdet_tf"  # in a layer's metadata: which image and what it shows
SHAPES = ("none", "boxes", "outlines")
_COLOUR = "#ffd54a"


def placement(layer: Image, origin: Sequence[int]) -> dict[str, Any]:
    """Where the result of an image layer lies.

    Args:
        layer: the image layer.
        origin: the page of a stack with which the result begins, along its axes of pages.

    Returns:
        Keyword arguments of a napari layer: scale, translate, rotate, shear, affine, units, axis labels.
    """
    from napari.utils.transforms import Affine

    corner = [*origin, *[0] * (layer.ndim - len(origin))]
    moved = Affine(scale=layer.scale, translate=layer.translate, rotate=layer.rotate, shear=layer.shear)
    same = ("scale", "rotate", "shear", "affine", "units", "axis_labels")
    return {name: getattr(layer, name) for name in same} | {"translate": moved(corner)}


def show(viewer: Viewer, image: str, marks: Marks, shapes: str, place: dict[str, Any]) -> list[Layer]:
    """Show cells, in place of those that were shown of the same image before.

    Args:
        viewer: of napari.
        image: name of the image layer.
        marks: the cells.
        shapes: one of `SHAPES`; without mask head "none" gives boxes.
        place: by `placement`.

    Returns:
        The layers: labels, when there are masks, and shapes, when there are any.
    """
    layers = []
    if marks.labels is None:
        _remove(viewer, image, "cells")
        shapes = "boxes"
    else:
        layers.append(_show_labels(viewer, image, marks, place))
    for kind in SHAPES[1:]:
        if kind == shapes:
            drawn = marks.boxes() if kind == "boxes" else marks.outlines()
            layers.append(_show_shapes(viewer, image, kind, drawn, place))
        else:
            _remove(viewer, image, kind)
    return layers


def is_shown(viewer: Viewer, image: str) -> bool:
    """Whether a result of this image is among the layers: the user may have removed it."""
    return any(_former(viewer, image, kind) is not None for kind in ("cells", *SHAPES[1:]))


def _show_labels(viewer: Viewer, image: str, marks: Marks, place: dict[str, Any]) -> Any:
    """Labels with their table; a former layer keeps the look that the user gave it."""
    layer = _former(viewer, image, "cells")
    assert marks.labels is not None
    if layer is None or layer.ndim != marks.labels.ndim:
        _remove(viewer, image, "cells")
        return viewer.add_labels(
            marks.labels,
            name=f"{image} cells",
            features=marks.features,
            metadata={_MARK: [image, "cells"]},
            **place,
        )
    layer.data = marks.labels
    layer.features = marks.features
    for name, value in place.items():
        setattr(layer, name, value)
    return layer


def _show_shapes(viewer: Viewer, image: str, kind: str, shapes: Shapes, place: dict[str, Any]) -> Any:
    _remove(viewer, image, kind)
    several = shapes.features["class"].nunique() > 1
    return viewer.add_shapes(
        shapes.vertices or None,
        ndim=len(place["scale"]),
        shape_type=shapes.kind,
        name=f"{image} {kind}",
        features=shapes.features,
        text={
            "string": "{class} {score:.2f}" if several else "{score:.2f}",
            "anchor": "upper_left",
            "size": 4,
            "scaling": True,
            "color": _COLOUR,
        },
        edge_color=_COLOUR,
        edge_width=1,
        face_color="transparent",
        metadata={_MARK: [image, kind]},
        **place,
    )


def _former(viewer: Viewer, image: str, kind: str) -> Any | None:
    """The layer that shows this of the image already."""
    found = (layer for layer in viewer.layers if layer.metadata.get(_MARK) == [image, kind])
    return next(found, None)


def _remove(viewer: Viewer, image: str, kind: str) -> None:
    layer = _former(viewer, image, kind)
    if layer is not None:
        viewer.layers.remove(layer)
