"""The files that the page hands out: those that `predict --score X` writes, made by the same code."""

from __future__ import annotations

import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from effdet_tf import outputs
from effdet_tf.batch_predict import SUMMARY, write_image
from effdet_tf.errors import UserError
from effdet_tf.inputs import Job
from effdet_tf.page.names import names_of_outputs
from effdet_tf.page.session import TEMPORARY, Entry, Found, Gone, Session

MEDIA_TYPES = {
    outputs.LABELS: "image/tiff",
    outputs.TABLE: "text/csv; charset=utf-8",
    outputs.COCO: "application/json",
    outputs.OVERLAY: "image/png",
}
_ONE_AT_A_TIME = threading.Lock()  # the memory of one image, however many downloads are asked for
_STEM = "image"


def one_file(session: Session, key: str, suffix: str, score: float) -> tuple[str, bytes]:
    """One file of one image, of the cells with a score of `score` or more.

    Args:
        session: keeps the image.
        key: of the image.
        suffix: of `outputs`.
        score: 0 to 1.

    Returns:
        Its name, without folders, and its bytes.

    Raises:
        Gone: when the image has no result, or is not kept any more.
        UserError: when the network makes no such file.
    """
    entry = session.get(key)
    if entry.found is None:
        raise Gone(f"{entry.name}: has no result yet")
    entries = session.entries()
    names = dict(zip(entries, names_of_outputs([(e.name, e.rooted) for e in entries]), strict=True))
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        _write(session, entry, entry.found, score, [suffix], Path(folder))
        file = Path(folder) / f"{_STEM}{suffix}"
        if not file.exists():
            raise UserError(f"{entry.name}: this network has no mask head, so there is no label image")
        name = names.get(entry, _STEM)  # removed just now: its files go on to who asked before
        return PurePosixPath(name).name + suffix, file.read_bytes()


def everything(session: Session, score: float) -> Iterator[bytes]:
    """All files of all images, and the summary, as a zip that is sent while it is made.

    Args:
        session: keeps the images; those that wait are left out, those that failed are in the summary.
        score: 0 to 1.

    Returns:
        The bytes of the zip, in pieces.

    Raises:
        Gone: when no image has a result.
    """
    entries = [(e, e.found) for e in session.entries() if e.state in ("done", "failed")]
    class_names = next((found.result.class_names for _, found in entries if found), None)
    if class_names is None:
        raise Gone("no image has a result yet; add some")
    return _zip(session, entries, outputs.summary_columns(class_names), score)


def _zip(
    session: Session, entries: Sequence[tuple[Entry, Found | None]], columns: Sequence[str], score: float
) -> Iterator[bytes]:
    names = names_of_outputs([(entry.name, entry.rooted) for entry, _ in entries])
    sink = _Sink()
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        path = Path(folder) / SUMMARY
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            with outputs.AppendedCsv(path, columns) as summary:
                for (entry, found), name in zip(entries, names, strict=True):
                    part = Path(tempfile.mkdtemp(dir=folder))
                    try:
                        if found is None:
                            raise UserError(entry.error)
                        row = _write(session, entry, found, score, list(MEDIA_TYPES), part)
                    except UserError as error:
                        summary.append([[name, *[""] * (len(columns) - 2), str(error)]])
                        continue
                    summary.append([[name, *row[1:]]])
                    for file in sorted(part.iterdir()):
                        archive.write(file, name + file.name.removeprefix(_STEM))
                        yield sink.take()
                    shutil.rmtree(part)
            archive.write(path, SUMMARY)
        yield sink.take()


def _write(
    session: Session, entry: Entry, found: Found, score: float, suffixes: Sequence[str], folder: Path
) -> list[Any]:
    """Write the wanted files of an image, named `_STEM`; a network without masks makes no label image.

    Returns:
        The image's row of the summary, with `_STEM` for its name.
    """
    with _ONE_AT_A_TIME:
        cells = outputs.number_cells(found.result.filter(score))
        wanted = {suffix: suffix in suffixes for suffix in MEDIA_TYPES}
        job = Job(Path(entry.name.name), _STEM)  # the COCO file states the real name; no path is made of it
        return write_image(folder, job, session.read(entry), cells, found.category_ids, wanted)


class _Sink:
    """A file that zipfile writes into and that forgets what was taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep the bytes."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> bytes:
        """What was written since the last time."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
