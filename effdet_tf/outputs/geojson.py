"""Outlines as GeoJSON, as QuPath imports and exports objects."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

from effdet_tf.geometry.masks import patch_to_pieces
from effdet_tf.outputs.cells import visible_shapes
from effdet_tf.outputs.overlay import cell_colour
from effdet_tf.outputs.page import ImageInfo, Page

_NAMESPACE = uuid.UUID("6f0e2c5e-6f5b-4c43-9a2b-0a5f2d1c7e11")  # ids are the same for the same cell


class GeoJson:
    """A FeatureCollection with a detection object for each cell.

    Coordinates are pixels, 0 at the corner of the first one. Measurements are the columns of the cell table.
    """

    def __init__(self, path: str | os.PathLike[str], info: ImageInfo) -> None:
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - `close` closes it
        self._file.write('{"type": "FeatureCollection", "features": [')
        self._info = info
        self._empty = True

    def add(self, page: Page) -> None:
        """Write the cells of one page."""
        skipped = ("cell", "class")
        names = [name for name in page.table.columns if name not in skipped]
        values = page.table[names].to_numpy(dtype=float).tolist()
        for number, patch in visible_shapes(page.cells):
            pieces = [[_closed(ring.tolist()) for ring in rings] for rings in patch_to_pieces(patch)]
            geometry: dict[str, Any] = {
                "type": "Polygon" if len(pieces) == 1 else "MultiPolygon",
                "coordinates": pieces[0] if len(pieces) == 1 else pieces,
            }
            if self._info.pages > 1:
                plane = {"c": -1, "z": 0, "t": 0} | {self._info.axis.lower(): page.number}
                geometry["plane"] = plane
            row = zip(names, values[number - 1], strict=True)
            classes = page.cells.result.classes
            name = self._info.class_names[classes[number - 1]]
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{self._info.file_name}/{page.number}/{number}")),
                "geometry": geometry,
                "properties": {
                    "objectType": "detection",
                    "name": str(number),
                    "classification": {"name": name, "color": cell_colour(int(classes[number - 1]) + 1)},
                    "measurements": {key: value for key, value in row if value == value},  # no NaN
                },
            }
            self._file.write(("\n" if self._empty else ",\n") + json.dumps(feature))
            self._empty = False

    def close(self) -> None:
        """Finish the file."""
        self._file.write("\n]}\n")
        self._file.close()


def _closed(ring: list[list[float]]) -> list[list[float]]:
    """The ring with its first point again at the end, whole numbers as such."""
    points = [[int(x) if x == int(x) else x, int(y) if y == int(y) else y] for x, y in ring]
    return [*points, points[0]]
