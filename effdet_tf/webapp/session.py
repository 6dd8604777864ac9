"""The images that were given to the web app and their results, kept within limits."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from effdet_tf.errors import UserError, reason_of
from effdet_tf.files import atomic_write
from effdet_tf.outputs import ImageInfo, number_cells
from effdet_tf.prediction.network_process import read_one
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import scale_words
from effdet_tf.prediction.trust import UNLIKE
from effdet_tf.webapp.drawing import outline_files, picture_files
from effdet_tf.webapp.networks import Networks

TEMPORARY = "effdet_tf-webapp-"  # how names of temporary folders begin
IMAGE = "image"  # the upload, in a folder of its own; its real name is only told
_TOLD = 5  # names of dropped images that the browser is told
Predicted = tuple[Result, ImageInfo]
Reader = Callable[[Path, int], tuple[np.ndarray, float | None]]


@dataclass(frozen=True)
class Limits:
    """What the web app takes."""

    file_bytes: int = 256 * 2**20  # size of one file
    pixels: int = 25_000_000  # height x width of one image, for the browser: memory hardly grows with it
    images: int = 100  # kept at once
    uploads: int = 16  # under way at once
    unfinished_bytes: int = 2**29  # of these
    total_bytes: int = 2**31  # size of all files and results kept at once


class Full(UserError):
    """There is no room for another image until those that wait are done."""


class Gone(UserError):
    """The image is not kept any more, or never was."""


@dataclass(eq=False)
class Entry:
    """One image."""

    key: str  # what the browser calls it by; cannot be guessed
    name: PurePosixPath  # cleaned, with folders
    rooted: bool  # the name begins with a folder that was chosen, not with a file
    folder: Path  # where its files lie
    upload: int  # size of its file, bytes
    size: int  # of the file and of what was made of it, bytes
    state: str = "waiting"  # or working, done, failed
    error: str = ""  # the reason, when it failed; begins with the name where the file is to blame
    shown: bool = False  # there is a preview
    predicted: Predicted | None = None  # all cells, and what the downloads need to know of the image
    revision: int = 0  # grows with each result
    ticket: object = None  # the work that is wanted now; older work that comes to its end is thrown away

    def listed(self) -> dict[str, Any]:
        """What the browser's list shows of it."""
        trust = None if self.predicted is None else self.predicted[0].trust
        return {
            "id": self.key,
            "name": str(self.name),
            "state": self.state,
            "error": self.error.removeprefix(f"{self.name}: "),
            "shown": self.shown,
            "revision": self.revision,
            "truncated": self.predicted is not None and self.predicted[0].truncated,
            "scaled": "" if self.predicted is None else scale_words(self.predicted[0]),
            "expected": "" if trust is None else trust.words,
            "unlike": "" if trust is None or not trust.unlike else f"the image is {UNLIKE}",
        }


@dataclass(eq=False)
class Upload:
    """A file that is coming in."""

    path: Path
    size: int = 0  # of what has come, bytes


class Session:
    """All images, oldest first, and the one thread that asks the network.

    Attributes:
        networks: the networks to choose from.
        limits: what is taken.
        network: the network that looks at all images.
        at_work: whether the network is asked right now.
        folder: where all files are kept.
    """

    def __init__(self, networks: Networks, limits: Limits | None = None) -> None:
        self.networks, self.limits = networks, limits or Limits()
        self.network = networks.names[0]
        self.at_work = False
        self._folder = tempfile.TemporaryDirectory(prefix=TEMPORARY)  # for this user alone
        self.folder = Path(self._folder.name)
        self._entries: dict[str, Entry] = {}
        self._dropped: list[str] = []
        self._uploads: list[Upload] = []
        self._lock = threading.RLock()
        # One thread: a network asked twice at a time takes twice the memory and is no faster.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._drawer = ThreadPoolExecutor(1, thread_name_prefix="outlines")
        self._drawn: Future[None] = self._drawer.submit(lambda: None)

    @contextlib.contextmanager
    def uploading(self) -> Iterator[Upload]:
        """An upload that is under way; what is left of it at the end is removed.

        Raises:
            Full: when too many are.
        """
        path = self.folder / f"incoming-{secrets.token_hex(8)}"
        with self._lock:
            if len(self._uploads) >= self.limits.uploads:
                raise Full(f"{len(self._uploads)} uploads are under way already; add it when some are done")
            upload = Upload(path)
            self._uploads.append(upload)
        try:
            yield upload
        finally:
            with self._lock:
                self._uploads.remove(upload)
            path.unlink(missing_ok=True)

    def receive(self, upload: Upload, size: int) -> None:
        """Count bytes of an upload before they are kept.

        Raises:
            Full: when all uploads under way have too many.
        """
        with self._lock:
            if sum(one.size for one in self._uploads) + size > self.limits.unfinished_bytes:
                raise Full("the uploads under way are too large together; add it when some are done")
            upload.size += size

    def add(self, path: Path, name: PurePosixPath, rooted: bool) -> Entry:
        """Take an upload, a file from `incoming`, by its cleaned name; the oldest done images make room.

        Raises:
            Full: when nothing can go.
        """
        size = path.stat().st_size
        with self._lock:
            if not self._make_room(1, size):
                raise Full(f"{len(self._entries)} images are waiting already; add it when some are done")
            key = secrets.token_urlsafe(16)
            folder = self.folder / key
            folder.mkdir()
            path.rename(folder / IMAGE)
            entry = self._entries[key] = Entry(key, name, rooted, folder, size, size)
            self._submit(entry)
        return entry

    def _make_room(self, images: int, size: int) -> bool:
        """Drop the oldest images that are done until so many more, of `size` bytes, have room; says if so."""
        limits = self.limits
        while self._entries and (
            len(self._entries) + images > limits.images
            or sum(entry.size for entry in self._entries.values()) + size > limits.total_bytes
        ):
            done = [entry for entry in self._entries.values() if entry.state in ("done", "failed")]
            if not done:
                return False
            self._dropped.append(str(done[0].name))
            self.remove(done[0].key)
        return True

    def choose(self, network: str) -> None:
        """Let another network look at all images, those that were looked at already as well.

        Raises:
            UserError: when there is no such network.
        """
        self.networks.check(network)
        with self._lock:
            if network == self.network:
                return
            self.network = network
            for entry in self._entries.values():
                entry.state, entry.error, entry.predicted = "waiting", "", None
                self._submit(entry)

    def get(self, key: str) -> Entry:
        """An image by its key.

        Raises:
            Gone: when there is none.
        """
        with self._lock:
            if key not in self._entries:
                raise Gone("this image is not kept any more; add it again")
            return self._entries[key]

    def entries(self) -> list[Entry]:
        """All images, oldest first."""
        with self._lock:
            return list(self._entries.values())

    def remove(self, key: str) -> None:
        """Forget an image and delete its files."""
        with self._lock:
            entry = self.get(key)
            del self._entries[key]
            entry.ticket = None
            shutil.rmtree(entry.folder)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for key in list(self._entries):
                self.remove(key)
            self._dropped.clear()

    def read(self, entry: Entry, read: Reader = read_one) -> tuple[np.ndarray, float | None]:
        """Pixels `[H, W, C]` of an image, as `predict` reads them, and micrometres of one; by `read_one`.

        Raises:
            UserError: when it cannot be read; names the image by its own name.
        """
        path = entry.folder / IMAGE
        try:
            return read(path, self.limits.pixels)
        except UserError as error:
            raise UserError(str(error).replace(str(path), str(entry.name))) from error

    def state(self) -> dict[str, Any]:
        """What the browser asks for again and again."""
        with self._lock:
            return {
                "network": self.network,
                "images": [entry.listed() for entry in self._entries.values()],
                "dropped": {"count": len(self._dropped), "names": self._dropped[-_TOLD:]},
            }

    def close(self) -> None:
        """Delete all files and begin no other image; the one at work is thrown away when it is done."""
        with self._lock:
            for entry in self._entries.values():
                entry.ticket = None
        for pool in (self._worker, self._drawer):
            pool.shutdown(wait=False, cancel_futures=True)
        self.networks.close()
        self._folder.cleanup()

    def _submit(self, entry: Entry) -> None:
        entry.ticket = object()
        self._worker.submit(self._work, entry, entry.ticket)

    def _work(self, entry: Entry, ticket: object) -> None:
        """Find the cells of an image, in the worker's thread; outlines are drawn beside the next image."""
        if not self._mark(entry, ticket, state="working"):
            return
        self.at_work = True
        try:
            with self._telling(entry, ticket):
                found = self._find(entry, ticket)
                self._drawn.result()  # so that one result waits at most
                self._drawn = self._drawer.submit(self._draw, entry, ticket, *found)
        finally:
            self.at_work = False

    @contextlib.contextmanager
    def _telling(self, entry: Entry, ticket: object) -> Iterator[None]:
        """What fails in the block is told of the image."""
        try:
            yield
        except UserError as error:
            self._mark(entry, ticket, state="failed", error=str(error))
        except Exception as error:  # a fault of the program or the memory: told, and the next image goes on
            if self._mark(entry, ticket, state="failed", error=reason_of(error)):
                traceback.print_exc(file=sys.stderr)

    def _find(self, entry: Entry, ticket: object) -> tuple[Result, ImageInfo, int]:
        """The cells of an image, what the downloads need to know of it, and the bytes of its pictures."""
        predictor = self.networks.predictor(self.network)  # chosen since then: then the ticket is old, too
        image, um_per_px = self.read(entry, predictor.read)
        pictures = picture_files(image)
        self._mark(entry, ticket, pictures, shown=True)
        result = predictor.predict(image, um_per_px=um_per_px)
        classes = predictor.category_ids, result.class_names
        # The name is stated in the COCO file; no path is made of it.
        info = ImageInfo(entry.name.name, *classes, um_per_px=um_per_px)
        return result, info, sum(map(len, pictures.values()))

    def _draw(self, entry: Entry, ticket: object, result: Result, info: ImageInfo, size: int) -> None:
        """Draw the outlines of an image and keep its cells."""
        with self._telling(entry, ticket):
            outlines = outline_files(number_cells(result))
            arrays = (result.masks, result.boxes, result.mask_boxes, result.scores, result.classes)
            size += entry.upload + sum(array.nbytes for array in arrays if array is not None)
            size += sum(map(len, outlines.values()))
            with self._lock:
                self._make_room(0, size - entry.size)
                changes = {"state": "done", "predicted": (result, info), "size": size}
                self._mark(entry, ticket, outlines, **changes, revision=entry.revision + 1)

    def _mark(
        self, entry: Entry, ticket: object, files: Mapping[str, bytes] = MappingProxyType({}), **changes: Any
    ) -> bool:
        """Change an entry, and write files beside it, if this work is still wanted; says whether it is."""
        with self._lock:
            if entry.ticket is not ticket:
                return False
            for name, content in files.items():
                with atomic_write(entry.folder / name) as temporary:
                    temporary.write_bytes(content)
            vars(entry).update(changes)
            return True
