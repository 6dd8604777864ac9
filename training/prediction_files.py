"""COCO results in files, written and read image by image: millions of cells fit into little memory."""

from __future__ import annotations

import array
import contextlib
import json
import marshal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ijson

from effdet_tf.data.sources.coco_index import by_value
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.files.untrusted import json_file
from effdet_tf.metrics.instances import unknown_image
from training.found_files import FoundFiles, taken

Entries = list[dict[str, Any]]


@contextmanager
def prediction_writer(path: Path) -> Iterator[Callable[[Entries], None]]:
    """Yield what adds results to a file that appears when the block ends well."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        between = b"["

        def write(entries: Entries) -> None:
            nonlocal between
            for entry in entries:
                file.write(between + json.dumps(entry).encode())
                between = b",\n"

        yield write
        file.write(b"[]\n" if between == b"[" else b"]\n")


class PredictionFile:
    """The results in a file, by image. They lie in a scratch file; only their places stay in memory."""

    def __init__(self, path: str | Path) -> None:
        """Read the file once.

        Args:
            path: a COCO results list, or a COCO dict, whose annotations count then; where it names its
                images, their names count and not their ids.

        Raises:
            UserError: when the file is missing or holds something else.
        """
        self._scratch = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        self._places: dict[Any, tuple[array.array, array.array]] = {}  # image id -> offsets, numbers
        self._ids = _named_images(Path(path))
        place = 0
        for number, entry in enumerate(_entries(Path(path))):
            if "score" not in entry:
                reason = "has no score: these are annotations, or no COCO results"
                raise UserError(f"{path}: prediction {number} {reason}")
            data = marshal.dumps({**entry, "category_id": by_value(entry.get("category_id", 1))})
            self._scratch.write(data)
            key = _key(by_value(entry.get("image_id")))
            offsets, numbers = self._places.setdefault(key, (array.array("Q"), array.array("Q")))
            offsets.append(place)
            numbers.append(number)
            place += len(data)
        self._images = 0
        self._lent: dict[Any, str] = {}  # images that are named in another folder, by id

    def take(self, image: Mapping[str, Any]) -> tuple[Entries, list[int]]:
        """The results on an image, an entry of COCO's "images", and their numbers in the file.

        Each image can be asked for once.

        Raises:
            UserError: when they went to an image of that name in another folder.
        """
        self._images += 1
        name = str(image["file_name"])
        key = image["id"]
        if self._ids:
            key = self._ids.get(name, self._ids.get(name.rsplit("/", 1)[-1]))
            if key in self._lent:
                raise taken(name, self._lent[key])
            if key is not None and name not in self._ids:
                self._lent[key] = name
        offsets, numbers = self._places.pop(key, ((), ()))
        entries = []
        for offset in offsets:
            self._scratch.seek(offset)
            entries.append({**marshal.load(self._scratch), "image_id": image["id"]})  # noqa: S302 (ours)
        return entries, list(numbers)

    def close(self, whole: bool = True) -> None:
        """Refuse results on an image that nobody took; `whole`: all images were asked for.

        Raises:
            UserError: when there are some.
        """
        left = min(((numbers[0], key) for key, (_, numbers) in self._places.items()), default=None)
        if left is None or not whole:
            return
        named = [name for name, identity in self._ids.items() if identity == left[1]]
        if named:
            raise UserError(
                f"prediction {left[0]}: its image, {named[-1]}, is named as none of the {self._images} "
                "annotated images; name them alike, or give a list of results, whose image ids count"
            )
        raise unknown_image(*left, self._images)


def _named_images(path: Path) -> dict[str, Any]:
    """Image ids by file name, and by that without folders where no two are called so, of a COCO dict."""
    names: dict[str, Any] = {}
    with contextlib.suppress(OSError, ijson.JSONError, UnicodeDecodeError), json_file(path) as file:
        if file.read(4096).lstrip()[:1] == b"[":  # said when the results are read
            return {}
    with contextlib.suppress(OSError, ijson.JSONError, UnicodeDecodeError), json_file(path) as file:
        for image in ijson.items(file, "images.item", use_float=True):
            if isinstance(image, dict) and image.get("file_name"):
                page = f"#{image['page']:04d}" if isinstance(image.get("page"), int) else ""
                name, identity = str(image["file_name"]) + page, _key(by_value(image.get("id")))
                names[name] = identity
    ends: dict[str, list[Any]] = {}
    for name, identity in names.items():
        ends.setdefault(name.rsplit("/", 1)[-1], []).append(identity)
    return {name: ids[0] for name, ids in ends.items() if len(ids) == 1} | names


def _key(image_id: Any) -> Any:
    """An image id as a key, whatever the file holds in its place."""
    return image_id if isinstance(image_id, int | str | float | None) else json.dumps(image_id)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with json_file(path) as file:
            first = file.read(4096).lstrip()[:1]
        found = False
        with json_file(path) as file:
            for entry in ijson.items(file, "item" if first == b"[" else "annotations.item", use_float=True):
                if not isinstance(entry, dict):
                    raise _not_results(path)
                found = True
                yield entry
        with json_file(path) as file:
            begin = ("annotations", "start_array")
            if first != b"[" and not found and begin not in (event[:2] for event in ijson.parse(file)):
                raise _not_results(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({str(error).splitlines()[0]})") from error


def _not_results(path: Path) -> UserError:
    return UserError(f"{path}: not a COCO results file; it must hold a list of predictions")


class FoundCells(Protocol):
    """What was found in the images of a data set."""

    def take(self, image: Mapping[str, Any]) -> tuple[Entries, list[int]]:
        """The cells of an image as COCO results, and their numbers; each image can be asked for once."""

    def close(self, whole: bool = True) -> None:
        """Say, or refuse, what does not belong to the images; `whole`: all of them were asked for."""


def open_predictions(path: str | Path, categories: Sequence[Mapping[str, Any]]) -> FoundCells:
    """Open what any tool has found: COCO results, a submission, or a folder of files named as the images.

    Args:
        path: file or folder.
        categories: of the data set, COCO's.

    Raises:
        UserError: when there are no predictions.
    """
    path = Path(path)
    return FoundFiles(path, categories) if path.is_dir() or path.suffix == ".csv" else PredictionFile(path)
