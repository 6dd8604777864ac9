"""COCO results in files, written and read image by image: millions of cells fit into little memory."""

from __future__ import annotations

import array
import json
import marshal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ijson

from effdet_tf.data.sources.coco_index import by_value
from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write
from effdet_tf.files.untrusted import json_file

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
            path: a COCO results list, or a COCO dict, whose annotations count then.

        Raises:
            UserError: when the file is missing or holds something else.
        """
        self._scratch = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        self._places: dict[Any, tuple[array.array, array.array]] = {}  # image id -> offsets, numbers
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

    def take(self, image_id: int) -> tuple[Entries, list[int]]:
        """The results on an image, and their numbers in the file; each image can be asked for once."""
        offsets, numbers = self._places.pop(image_id, ((), ()))
        entries = []
        for offset in offsets:
            self._scratch.seek(offset)
            entries.append(marshal.load(self._scratch))  # noqa: S302 (our scratch file)
        return entries, list(numbers)

    def left(self) -> tuple[int, Any] | None:
        """Number and image id of the first result on an image that nobody took; None when there is none."""
        return min(((numbers[0], key) for key, (_, numbers) in self._places.items()), default=None)


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
