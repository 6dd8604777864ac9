"""Readers of files of outlines: ImageJ regions, GeoJSON, LabelMe and YOLO labels."""

from __future__ import annotations

import base64
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from roifile import ROI_TYPE, ImagejRoi

from effdet_tf.data.faults import Faults
from effdet_tf.errors import UserError
from effdet_tf.files import read_text
from effdet_tf.files.limits import allow
from effdet_tf.files.untrusted import parse_yaml, read_json
from effdet_tf.geometry.polygons import patch_to_pieces
from effdet_tf.geometry.rle import Patch

UNNAMED = "cell"  # class of what has none
_AREAS = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)
_OVAL_POINTS = 72
_IN_MEMORY = 8  # times its bytes, about, that a region takes once it is read
_FRAMED = 2  # outlines in an annotation from which it is no cell
_SCORES = ("score", "detection probability", "probability", "confidence")  # names of QuPath's measurements
_LABELME = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_SHARES_UP_TO = 2.0  # boxes at the edge reach a little beyond 1; pixels are more


class Outline(NamedTuple):
    """One cell as it is drawn."""

    name: str  # within its file
    rings: list[np.ndarray]  # float64 [K, 2] x, y in pixels; even-odd rule
    label: str | int  # name of its class, or YOLO's number
    # The page, {"page": 0}, or its place along some axes, {"t": 0, "c": 1}, from 0; {}: of every page.
    where: dict[str, int]
    shares: bool = False  # whether the rings are in shares of the image
    size: tuple[int, int] | None = None  # height and width of the image that it was drawn on, where known
    score: float | None = None  # where a network drew it and says how sure it is


def read_rois(path: Path, faults: Faults) -> list[Outline]:
    """The areas of an ImageJ `.roi` or `.zip`; lines and points are left out, noted.

    Raises:
        UserError: when the file is none.
    """
    try:
        members = list(_roi_members(path))
    # zipfile's own: NotImplementedError for a compression that it lacks, RuntimeError for what is encrypted.
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path}: is no file of ImageJ regions ({error}); save them by the ROI manager"
        ) from error
    outlines: list[Outline] = []
    for number, (member, data) in enumerate(members, start=1):
        try:
            roi = ImagejRoi.frombytes(data)
        except Exception as error:  # whatever damaged bytes make of it
            if len(members) == 1:
                raise UserError(f"{path}: is no ImageJ region ({error}); save it again") from error
            faults.drop("unreadable region", f"{path.name}: {member}")
            continue
        name = f"region {roi.name or number}"
        if roi.roitype not in _AREAS:
            faults.drop("region that is no area", f"{path.name}: {name}")
            continue
        outlines.append(Outline(name, _rings(roi), _class_name(roi), _roi_place(roi)))
    return outlines


def _roi_place(roi: ImagejRoi) -> dict[str, int]:
    """Positions of a hyperstack, or of a stack, count from 1; 0 is everywhere."""
    positions = {"t": roi.t_position, "z": roi.z_position, "c": roi.c_position}
    place = {axis: position - 1 for axis, position in positions.items() if position > 0}
    return place or ({"page": roi.position - 1} if roi.position > 0 else {})


def _roi_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the regions in a `.roi` or `.zip`, without what macOS adds to a zip."""
    if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
        yield path.name, path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        allow("names", len(entries), path)
        allow("bytes", _IN_MEMORY * sum(entry.file_size for entry in entries), path)
        for entry in entries:
            base = entry.filename.rsplit("/", 1)[-1]
            if base.lower().endswith(".roi") and not base.startswith("."):
                yield entry.filename, archive.read(entry)


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
        document = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: is no GeoJSON ({error}); export it again") from error
    features = document.get("features", [document]) if isinstance(document, dict) else document
    outlines: list[Outline] = []
    frames: list[int] = []  # which of them may frame what was looked at
    for number, feature in enumerate(features if isinstance(features, list) else [], start=1):
        name = f"feature {number}"
        try:
            geometry, properties = feature["geometry"], feature.get("properties") or {}
            kind, polygons = geometry["type"], geometry["coordinates"]
            if kind not in ("Polygon", "MultiPolygon"):
                faults.drop("feature that is no area", f"{path.name}: {name}, {kind}")
                continue
            rings = [_ring(r) for polygon in ([polygons] if kind == "Polygon" else polygons) for r in polygon]
            if not rings:
                raise ValueError("no ring")
            if _is_region(feature, properties):
                faults.note("locked or ignored region: no cell, left out", f"{path.name}: {name}")
                continue
            label = _qupath_class(properties.get("classification"))
            plane = geometry.get("plane") or {}
            # Channel -1 is all of them.
            place = {axis: int(plane[axis]) for axis in "ptzc" if int(plane.get(axis, -1)) >= 0}
        except (TypeError, KeyError, AttributeError, ValueError, IndexError, OverflowError):
            faults.drop("degenerate or unreadable outline", f"{path.name}: {name}")
            continue
        if properties.get("objectType") == "annotation" and not properties.get("classification"):
            frames.append(len(outlines))
        outlines.append(Outline(name, rings, label, place, score=_measured_score(properties)))
    return _without_frames(path, outlines, frames, faults)


def _without_frames(path: Path, outlines: list[Outline], frames: list[int], faults: Faults) -> list[Outline]:
    """Leave out annotations without a class that hold several other outlines: they frame these."""
    starts = np.array([one.rings[0].mean(0) for one in outlines]).reshape(-1, 2)
    left_out = set()
    for index in frames:
        low, high = outlines[index].rings[0].min(0), outlines[index].rings[0].max(0)
        near = np.flatnonzero(((starts > low) & (starts < high)).all(1))
        ring = outlines[index].rings[0].astype(np.float32)[:, None]
        inside = sum(cv2.pointPolygonTest(ring, starts[k].tolist(), False) > 0 for k in near if k != index)
        if inside >= _FRAMED:
            text = f"{path.name}: {outlines[index].name}"
            faults.note("annotation around other outlines: a region and no cell, left out", text)
            left_out.add(index)
    return [one for k, one in enumerate(outlines) if k not in left_out]


def _measured_score(properties: dict[str, Any]) -> float | None:
    """The score among QuPath's measurements, an object or a list of names and values; None without one."""
    measured = properties.get("measurements") or {}
    if isinstance(measured, list):
        measured = {str(one.get("name")): one.get("value") for one in measured if isinstance(one, dict)}
    for name, value in measured.items() if isinstance(measured, dict) else ():
        if name.casefold() in _SCORES and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def _qupath_class(classification: Any) -> str:
    """QuPath's class of an object; a class derived from others, `{"names": [...]}`, is written `A: B`."""
    if isinstance(classification, str):
        return classification or UNNAMED
    found = classification or {}
    return str(found.get("name") or ": ".join(map(str, found.get("names") or ())) or UNNAMED)


def _is_region(feature: dict[str, Any], properties: dict[str, Any]) -> bool:
    """Whether an object frames what was looked at: locked without a class, or one that ends in *."""
    classification = properties.get("classification")
    if properties.get("objectType") in ("root", "tmaCore"):
        return True
    ignored = classification and _qupath_class(classification).endswith("*")  # as QuPath itself does
    return bool(ignored or (properties.get("isLocked", feature.get("isLocked")) and not classification))


def _ring(points: Any) -> np.ndarray:
    """The ring `[K, 2]` without the first point again at its end; ValueError when it has no area."""
    ring = np.asarray(points, np.float64)
    if ring.ndim != 2 or len(ring) < 3 or ring.shape[1] < 2:
        raise ValueError("no ring")
    ring = ring[:, :2]
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def read_labelme(path: Path, faults: Faults) -> list[Outline]:
    """The areas in a LabelMe file: polygons, rectangles, circles and masks; those of one group are one cell.

    Raises:
        UserError: when the file is none.
    """
    try:
        document = read_json(path)
        shapes = document["shapes"]
        sides = document.get("imageHeight"), document.get("imageWidth")
        size = (int(sides[0]), int(sides[1])) if sides[0] and sides[1] else None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: is no LabelMe file ({error}); save it again") from error
    outlines: dict[Any, Outline] = {}
    for number, shape in enumerate(shapes if isinstance(shapes, list) else [], start=1):
        name = f"shape {number}"
        try:
            kind, points = shape.get("shape_type", "polygon"), np.array(shape["points"], np.float64)
            if kind not in _LABELME:
                faults.drop("shape that is no area", f"{path.name}: {name}, {kind}")
                continue
            rings = _labelme_rings(kind, points.reshape(-1, 2), shape)
            label, group = str(shape.get("label") or UNNAMED), shape.get("group_id")
        except (TypeError, KeyError, AttributeError, ValueError, cv2.error):
            faults.drop("degenerate or unreadable outline", f"{path.name}: {name}")
            continue
        key = number if group is None else (label, str(group))
        before = outlines.get(key, Outline(name, [], label, {}, size=size))
        outlines[key] = before._replace(rings=[*before.rings, *rings])
    return list(outlines.values())


def _labelme_rings(kind: str, points: np.ndarray, shape: dict[str, Any]) -> list[np.ndarray]:
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]
    if kind == "circle":  # its middle, and a point on it
        turn = np.linspace(0, 2 * np.pi, _OVAL_POINTS, endpoint=False)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too far is refused later
            radius = np.hypot(*(points[1] - points[0]))
            return [points[0] + radius * np.stack([np.cos(turn), np.sin(turn)], 1)]
    if kind == "mask":  # a picture of the box between the two points
        data = np.frombuffer(base64.b64decode(shape["mask"]), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if mask is None or mask.ndim != 2:
            raise ValueError("no mask")
        x, y = np.rint(points.min(0)).astype(int).tolist()
        return [ring for rings in patch_to_pieces(Patch(y, x, mask > 0)) for ring in rings]
    if len(points) < 3:
        raise ValueError("a polygon has three points")
    return [points]


def read_yolo(path: Path, faults: Faults) -> Iterator[Outline]:
    """The lines of a YOLO file: class and polygon, or class, middle x and y, width and height.

    A confidence may follow, as `save_conf` writes it. Coordinates are shares of the image; a file with one
    beyond 2 holds pixels, which is noted.

    Raises:
        UserError: when the file is no text.
    """
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no YOLO label file (it is no text)") from error
    read: list[tuple[int, int, np.ndarray, float | None]] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            label, values = float(words[0]), np.array(words[1:], np.float64)
            if not label.is_integer() or len(values) < 4 or not np.isfinite(values).all():
                raise ValueError("no class and outline")
        except ValueError:
            faults.drop("degenerate or unreadable outline", f"{path.name}: line {number}")
            continue
        values, score = _coordinates(values)
        read.append((number, int(label), values, score))
    pixels = any(values.max() > _SHARES_UP_TO for _, _, values, _ in read)
    if pixels:
        faults.note("YOLO coordinates in pixels, not in shares of the image: read as such", path.name)
    for number, label, values, score in read:
        if len(values) == 4:
            (x, y), (w, h) = values[:2], values[2:] / 2
            values = np.array([x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h])
        yield Outline(f"line {number}", [values.reshape(-1, 2)], label, {}, not pixels, score=score)


def _coordinates(values: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The box or the polygon of a line, and the confidence, behind which a track's number may stand."""
    tracked = len(values) == 6 and values[5] > _SHARES_UP_TO >= values[:5].max() and values[5] % 1 == 0
    if tracked:
        return values[:4], float(values[4])
    return (values[:-1], float(values[-1])) if len(values) % 2 else (values, None)


def yolo_classes(*folders: Path) -> dict[int, str]:
    """Names of the classes by number, from the first of the folders that has them; none where none has.

    They are the lines of `classes.txt` or of CVAT's `obj.names`, or `names` in `data.yaml`, a list or a dict
    by number.

    Raises:
        UserError: when data.yaml cannot be read.
    """
    for folder in folders:
        for path in (folder / name for name in ("classes.txt", "obj.names")):
            if path.is_file():
                lines = [line.strip() for line in read_text(path).splitlines()]
                return dict(enumerate(line for line in lines if line))
        for path in [folder / name for name in _YAML_NAMES if (folder / name).is_file()]:
            try:
                said = parse_yaml(read_text(path))
                names = said["names"]
                if "kpt_shape" in said:
                    raise UserError(f"{path}: kpt_shape says that the labels hold keypoints, no outlines")
                pairs = names.items() if isinstance(names, dict) else enumerate(names)
                return {int(number): str(name) for number, name in sorted(pairs)}
            except (TypeError, KeyError, ValueError) as error:
                raise UserError(f"{path}: has no list of names; mend it") from error
    return {}
