"""One reading of a COCO file, in chunks: a million polygons fit into little memory.

The annotations go to a scratch file as they are read; only their places stay in memory.
"""

from __future__ import annotations

import array
import marshal
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ijson
import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import json_file

# What is kept of an annotation, in this order.
ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation", "bbox", "iscrowd")
_CHUNK = 1 << 20
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.0+)?")
_CROWD = {"": 0, "0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}
_INT64 = 2**63


@dataclass
class CocoIndex:
    """A COCO file after one reading."""

    images: list[dict[str, Any]]  # the entries of "images"
    categories: list[dict[str, Any]]  # the entries of "categories"
    scratch: Path  # file of the annotations
    image_ids: list[Any] = field(default_factory=list)  # the annotations' image ids, in file order
    # their offsets in `scratch`; one more than there are annotations
    offsets: array.array = field(default_factory=lambda: array.array("Q", [0]))
    masks: int = 0  # how many of them, crowds left out, have a segmentation

    @property
    def boxes_only(self) -> bool:
        """Whether this is a detection set: annotated, but by boxes alone."""
        return bool(self.image_ids) and not self.masks


def index_coco(annotations: Path, scratch: Path, faults: Faults) -> CocoIndex:
    """Read a COCO file once, in chunks, and put its annotations aside.

    Args:
        annotations: the JSON file; "annotations" is a list, or a dict by annotation id.
        scratch: folder for the scratch file.
        faults: takes annotations that are no objects and annotation ids that occur twice.

    Returns:
        The index.

    Raises:
        UserError: when the file is missing, is no JSON, or lacks "images" or "annotations".
    """
    index = CocoIndex([], [], scratch / "annotations.bin")
    tops: dict[str, Any] = {}
    numbers, others = array.array("q"), []  # ids of the annotations: whole numbers compactly
    try:
        keyed = _annotations_are_keyed(annotations)
        with index.scratch.open("wb") as out:
            for annotation in _stream(annotations, keyed, tops):
                if not isinstance(annotation, dict):
                    faults.drop("annotation that is no JSON object", str(annotations.name))
                    continue
                for key in ("id", "image_id", "category_id"):
                    annotation[key] = by_value(annotation.get(key))
                annotation["iscrowd"] = _crowd(annotation, faults)
                data = marshal.dumps(tuple(annotation.get(key) for key in ANNOTATION_KEYS))
                out.write(data)
                index.image_ids.append(annotation["image_id"])
                index.offsets.append(index.offsets[-1] + len(data))
                index.masks += _has_mask(annotation)
                identity = annotation.get("id")
                if isinstance(identity, int) and -_INT64 <= identity < _INT64:
                    numbers.append(identity)
                elif identity is not None:
                    others.append(str(identity))
    except ijson.JSONError as error:
        raise UserError(f"{annotations}: {_what_is_wrong(str(error))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{annotations}: cannot be read ({error})") from error
    for key in ("images", "categories"):
        entries = tops.get(key, [])
        entries = list(entries.values()) if isinstance(entries, dict) else entries
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f'{annotations}: "{key}" is no list of objects; this is not a COCO file')
        setattr(index, key, entries)
    if "images" not in tops or keyed is None:
        missing = "images" if "images" not in tops else "annotations"
        raise UserError(f'{annotations}: has no "{missing}"; this is not a COCO file')
    for identities in (np.array(numbers, dtype=np.int64), np.array(others, dtype=str)):
        unique, counts = np.unique(identities, return_counts=True)
        for identity in np.repeat(unique, counts - 1).tolist():
            faults.note("annotation id occurs twice: both cells are kept", f"annotation {identity}")
    return index


def _what_is_wrong(said: str) -> str:
    """What ijson said of a file that is no JSON, and what to do."""
    reason = said.splitlines()[0]
    if "EOF" in reason or "ncomplete" in reason:  # in the words of both of its readers
        return f"is no complete JSON file ({reason}); copy it again"
    found = said.partition("\n")[2].split("(right here)")[0].strip()
    advice = "; JSON has neither NaN nor Infinity, write null" if re.search("NaN|Infinity", said) else ""
    return f"is no JSON ({reason} {found[:60]}){advice}"


def by_value(identity: Any) -> Any:
    """An id as it is compared: 1, 1.0 and "1" are one, as other tools write it; "01" is a name."""
    if isinstance(identity, str):
        text = identity.strip()
        return int(text.split(".")[0]) if _WHOLE.fullmatch(text) else text
    if isinstance(identity, bool):
        return None
    return int(identity) if isinstance(identity, float) and identity.is_integer() else identity


def _crowd(annotation: dict[str, Any], faults: Faults) -> int:
    """0 or 1, whatever the file writes for it."""
    given = annotation.get("iscrowd")
    found = _CROWD.get(str(0 if given is None else given).strip().lower())
    if found is None:
        faults.note("iscrowd is neither 0 nor 1: taken as 0", f"annotation {annotation['id']}")
    return found or 0


def _has_mask(annotation: dict[str, Any]) -> bool:
    segmentation = annotation.get("segmentation")
    # Detection sets leave it out, or write [] or [[]].
    given = any(segmentation) if isinstance(segmentation, list) else bool(segmentation)
    return given and not annotation.get("iscrowd")


def _annotations_are_keyed(path: Path) -> bool | None:
    """Whether "annotations" is a dict; None when there is none."""
    with json_file(path) as file:
        for prefix, event, _ in ijson.parse(file, use_float=True):
            if prefix == "annotations":
                return event == "start_map"
            if prefix == "" and event not in ("start_map", "map_key", "end_map"):
                raise UserError(
                    f"{path}: is no JSON object with images, annotations and categories; a list is what "
                    "predictions are, give the annotations"
                )
    return None


def _stream(path: Path, keyed: bool | None, tops: dict[str, Any]) -> Iterator[Any]:
    """Yield the annotations while "images" and "categories" are gathered from the same chunks into `tops`."""
    annotations = ijson.sendable_list()
    if keyed:
        readers = {"annotations": ijson.kvitems_coro(annotations, "annotations", use_float=True)}
    else:
        readers = {"annotations": ijson.items_coro(annotations, "annotations.item", use_float=True)}
    lists = {key: ijson.sendable_list() for key in ("images", "categories")}
    readers |= {key: ijson.items_coro(found, key, use_float=True) for key, found in lists.items()}
    with json_file(path) as file:
        while chunk := file.read(_CHUNK):
            for reader in readers.values():
                reader.send(chunk)
            yield from (_keyed(*item) for item in annotations) if keyed else annotations
            annotations.clear()
            for key in [key for key in lists if lists[key]]:
                # Complete: the rest of the file need not be read a second time for it.
                tops[key] = lists.pop(key)[0]
                del readers[key]
    readers["annotations"].close()


def _keyed(key: str, annotation: Any) -> Any:
    """An annotation of a dict by annotation id; the key is its id unless it holds one itself."""
    if isinstance(annotation, dict) and "id" not in annotation:
        annotation["id"] = int(key) if key.isdecimal() else key
    return annotation
