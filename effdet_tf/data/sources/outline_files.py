"""Readers of files of outlines: ImageJ regions, GeoJSON and YOLO labels."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from roifile import ROI_TYPE, ImagejRoi

from effdet_tf.data.faults import Faults
from effdet_tf.errors import UserError

UNNAMED = "cell"  # class of what has none
_AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)
_OVAL_POINTS = 72


class Outline(NamedTuple):
    """One cell as it is drawn."""

    name: str  # within its file
    rings: list[np.ndarray]  # float64 [K, 2] x, y in pixels, in YOLO shares of the image; even-odd rule
    label: str | int  # name of its class, or YOLO's number
    page: int | None  # of a stack, from 0; None: of every page


def read_rois(path: Path, faults: Faults) -> list[Outline]:
    """The areas of an ImageJ `.roi` or `.zip`; lines and points are left out, noted.

    Raises:
        UserError: when the file is none.
    """
    try:
        read = ImagejRoi.fromfile(path)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, IndexError) as error:
        raise UserError(
            f"{path}: is no file of ImageJ regions ({error}); save them by the ROI manager"
        ) from error
    outlines: list[Outline] = []
    for number, roi in enumerate(read if isinstance(read, list) else [read], start=1):
        name = f"region {roi.name or number}"
        if roi.roitype not in _AREAS:
            faults.drop("region that is no area", f"{path.name}: {name}")
            continue
        page = max(roi.t_position, roi.z_position, roi.position) - 1
        outlines.append(Outline(name, _rings(roi), _class_name(roi), page if page >= 0 else None))
    return outlines


def _rings(roi: ImagejRoi) -> list[np.ndarray]:
    if roi.multi_coordinates is not None:
        return [np.asarray(ring, np.float64) for ring in roi.coordinates(multi=True)]
    if roi.roitype == ROI_TYPE.OVAL:
        turn = np.linspace(0, 2 * np.pi, _OVAL_POINTS, endpoint=False)
        middle = np.array([roi.left + roi.right, roi.top + roi.bottom]) / 2
        half = np.array([roi.right - roi.left, roi.bottom - roi.top]) / 2
        return [middle + half * np.stack([np.cos(turn), np.sin(turn)], axis=1)]
    if roi.roitype == ROI_TYPE.RECT:
        left, top, right, bottom = roi.left, roi.top, roi.right, roi.bottom
        return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)]
    return [np.asarray(roi.coordinates(), np.float64)]


def _class_name(roi: ImagejRoi) -> str:
    pairs = (line.partition(":") for line in roi.props.splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == "class"), "") or UNNAMED


def read_geojson(path: Path, faults: Faults) -> list[Outline]:
    """The polygons of a GeoJSON file, as QuPath writes it: a collection, a list of features or one feature.

    Raises:
        UserError: when the file is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no GeoJSON ({error}); export it again") from error
    features = document.get("features", [document]) if isinstance(document, dict) else document
    outlines: list[Outline] = []
    for number, feature in enumerate(features if isinstance(features, list) else [], start=1):
        name = f"feature {number}"
        try:
            geometry, properties = feature["geometry"], feature.get("properties") or {}
            kind, polygons = geometry["type"], geometry["coordinates"]
            if kind not in ("Polygon", "MultiPolygon"):
                faults.drop("feature that is no area", f"{path.name}: {name}, {kind}")
                continue
            rings = [_ring(r) for polygon in ([polygons] if kind == "Polygon" else polygons) for r in polygon]
            label = str((properties.get("classification") or {}).get("name") or UNNAMED)
            plane = geometry.get("plane") or {}
            page = max(int(plane.get("t", 0)), int(plane.get("z", 0))) if plane else None
        except (TypeError, KeyError, AttributeError, ValueError, IndexError):
            faults.drop("degenerate or unreadable outline", f"{path.name}: {name}")
            continue
        outlines.append(Outline(name, rings, label, page))
    return outlines


def _ring(points: Any) -> np.ndarray:
    """The ring without the first point again at its end."""
    ring = np.asarray(points, np.float64)[:, :2]
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def read_yolo(path: Path, faults: Faults) -> Iterator[Outline]:
    """The lines of a YOLO segmentation file, or of a detection file (class, middle x and y, width, height).

    Raises:
        UserError: when the file is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no YOLO label file (it is no text)") from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), np.array(words[1:], np.float64)
            if len(values) == 4:
                (x, y), (w, h) = values[:2], values[2:] / 2
                values = np.array([x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h])
            rings = [values.reshape(-1, 2)]
        except ValueError:
            faults.drop("degenerate or unreadable outline", f"{path.name}: line {number}")
            continue
        yield Outline(f"line {number}", rings, label, None)


def yolo_classes(*folders: Path) -> list[str]:
    """Names of the classes: of `classes.txt`, or of `names` in `data.yaml`; none where there is neither.

    Raises:
        UserError: when data.yaml cannot be read.
    """
    for folder in folders:
        if (folder / "classes.txt").is_file():
            lines = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
        if (folder / "data.yaml").is_file():
            try:
                names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
                return [str(name) for name in (names.values() if isinstance(names, dict) else names)]
            except (yaml.YAMLError, TypeError, KeyError) as error:
                raise UserError(f"{folder / 'data.yaml'}: has no list of names; mend it") from error
    return []
