"""Outlines as GeoJSON, as QuPath imports and exports objects."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

from effdet_tf.files import atomic_write
from effdet_tf.geometry.polygons import patch_to_pieces
from effdet_tf.outputs.cells import visible_shapes
from effdet_tf.outputs.overlay import cell_colour
from effdet_tf.outputs.page import SUFFIXES, AddPage, ImageInfo, Page

_NAMESPACE = uuid.UUID("6f0e2c5e-6f5b-4c43-9a2b-0a5f2d1c7e11")  # ids are the same for the same cell


@contextlib.contextmanager
def geojson_file(base: str, info: ImageInfo) -> Iterator[AddPage]:
    """Write a FeatureCollection with a detection object for each cell.

    Coordinates are pixels, 0 at the corner of the first one. Measurements are the columns of the cell table.
    """
    with atomic_write(base + SUFFIXES["geojson"]) as path, path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        before = "\n"

        def add(page: Page) -> None:
            nonlocal before
            for feature in _features(page, info):
                file.write(before + json.dumps(feature))
                before = ",\n"

        yield add
        file.write("\n]}\n")


def _features(page: Page, info: ImageInfo) -> Iterator[dict[str, Any]]:
    table = page.table.drop(columns=["cell", "class"])
    values = table.to_numpy(dtype=float).tolist()
    for number, patch in visible_shapes(page.cells):
        pieces = [[_closed(ring.tolist()) for ring in rings] for rings in patch_to_pieces(patch)]
        geometry: dict[str, Any] = {
            "type": "Polygon" if len(pieces) == 1 else "MultiPolygon",
            "coordinates": pieces[0] if len(pieces) == 1 else pieces,
        }
        if place := info.axes.place(page.number):
            geometry["plane"] = {"c": -1, "z": 0, "t": 0} | place
        index = int(page.cells.result.classes[number - 1])
        row = zip(table, values[number - 1], strict=True)
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{info.file_name}/{page.number}/{number}")),
            "geometry": geometry,
            "properties": {
                "objectType": "detection",
                "name": str(number),
                "classification": {"name": info.class_names[index], "color": cell_colour(index + 1)},
                "measurements": {key: value for key, value in row if value == value},  # no NaN
            },
        }


def _closed(ring: list[list[float]]) -> list[list[float]]:
    """The ring with its first point again at the end, whole numbers as such."""
    points = [[int(x) if x == int(x) else x for x in point] for point in ring]
    return [*points, points[0]]
