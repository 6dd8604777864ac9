"""The files to download: those that `predict --score X` writes, made by the same code."""

from __future__ import annotations

import tempfile
import threading
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, cast

from effdet_tf import outputs
from effdet_tf.errors import UserError
from effdet_tf.outputs.batch import SUMMARY, WELLS
from effdet_tf.outputs.page import SUFFIXES
from effdet_tf.outputs.wells import write_wells
from effdet_tf.webapp.names import names_of_outputs
from effdet_tf.webapp.session import TEMPORARY, Entry, Gone, Predicted, Session

FORMATS = {  # suffix of a file -> name of the format, media type
    SUFFIXES[name]: (name, media_type)
    for name, media_type in (
        ("table", "text/csv; charset=utf-8"),
        ("labels", "image/tiff"),
        ("overlay", "image/png"),
        ("coco", "application/json"),
        ("imagej", "application/zip"),
        ("geojson", "application/geo+json"),
    )
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
    if entry.predicted is None:
        raise Gone(f"{entry.name}: has no result yet")
    names = _names(session.entries())
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        base = Path(folder) / _STEM
        _write(session, entry, entry.predicted, score, [FORMATS[suffix][0]], base)
        file = base.with_name(_STEM + suffix)
        if not file.exists():
            raise UserError(f"{entry.name}: this network has no mask head, so there is no label image")
        name = names.get(entry, _STEM)  # removed just now: its files go on to who asked before
        return PurePosixPath(name).name + suffix, file.read_bytes()


def everything(session: Session, score: float) -> Iterator[bytes]:
    """What `predict` writes of all images, as a zip that is sent while it is made.

    Args:
        session: keeps the images; those that wait are left out, those that failed are in the summary.
        score: 0 to 1.

    Returns:
        The bytes of the zip, in pieces.

    Raises:
        Gone: when no image has a result.
    """
    entries = [(e, e.predicted) for e in session.entries() if e.state in ("done", "failed")]
    class_names = next((found[1].class_names for _, found in entries if found), None)
    if class_names is None:
        raise Gone("no image has a result yet; add some")
    return _zip(session, entries, class_names, score)


def _zip(
    session: Session,
    entries: Sequence[tuple[Entry, Predicted | None]],
    class_names: Sequence[str],
    score: float,
) -> Iterator[bytes]:
    names = _names([entry for entry, _ in entries])
    sink = _Sink()
    with (
        tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder,
        zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        tables = Path(folder) / SUMMARY, Path(folder) / WELLS
        with outputs.open_csv(tables[0], outputs.summary_columns(class_names)) as add_rows:
            for entry, predicted in entries:
                name = names[entry]
                with tempfile.TemporaryDirectory(dir=folder) as part:
                    try:
                        if predicted is None:
                            raise UserError(entry.error)
                        base = Path(part) / _STEM
                        written = _write(session, entry, predicted, score, outputs.DEFAULT_FORMATS, base)
                    except UserError as error:
                        add_rows([outputs.failed_row(name, 0, 1, class_names, str(error))])
                        continue
                    add_rows([outputs.summary_row(name, *written)])
                    for file in sorted(Path(part).iterdir()):
                        archive.write(file, name + file.name.removeprefix(_STEM))
                        yield sink.take()
        write_wells(*tables)
        for table in filter(Path.exists, tables):  # names that tell of no well give none
            archive.write(table, table.name)
    yield sink.take()


def _names(entries: Sequence[Entry]) -> dict[Entry, str]:
    return dict(zip(entries, names_of_outputs([(e.name, e.rooted) for e in entries]), strict=True))


def _write(
    session: Session, entry: Entry, predicted: Predicted, score: float, formats: Collection[str], base: Path
) -> tuple[outputs.Page, outputs.ImageInfo]:
    """Write the files of an image under `base`, a path without suffix; returns what the summary takes."""
    with _ONE_AT_A_TIME:
        result, info = predicted
        pixels, _ = session.read(entry)
        page = outputs.make_page(result.filter(score), pixels, um_per_px=info.um_per_px)
        with outputs.open_image_files(str(base), info, formats) as add:
            add(page)
        return page, info


class _Sink(bytearray):
    """A file that zipfile writes into and that forgets what was taken."""

    def write(self, data: bytes) -> int:
        self.extend(data)
        return len(data)

    def flush(self) -> None: ...

    def take(self) -> bytes:
        taken = bytes(self)
        self.clear()
        return taken
