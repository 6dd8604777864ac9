"""Files over HTTP(S) that a broken line cannot spoil, and archives that stay in their folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from effdet_tf.errors import UserError
from effdet_tf.files import atomic_write

ATTEMPTS = 5  # in a row without a byte of progress
WAIT = 1.0  # s before the second attempt; doubled each time
TIMEOUT = 60.0  # s of silence
BLOCK = 1 << 20
# An image archive grows little: what grows more is no image archive.
MAX_UNPACKED = 64 << 30
MAX_RATIO = 200
MAX_MEMBERS = 1_000_000
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_MD5 = re.compile(r'"([0-9a-f]{32})"')  # the ETag of an S3 object that was sent in one piece


class Answer(NamedTuple):
    """What a server says about a file before it sends it."""

    start: int  # first byte that follows
    total: int | None  # size of the whole file; None where the server does not say
    tag: str  # its ETag, or ""
    md5: str  # hexadecimal, or "" where the server gives none


def fetch(url: str, path: Path, progress: bool = True) -> None:
    """Bring a file, going on where an earlier attempt stopped.

    What has come lies beside `path` as `NAME.part` with the ETag in `NAME.part.tag` until all is there, has
    the announced size and, where the server gives an MD5 sum (Amazon S3, for files sent in one piece), that
    sum.

    Args:
        url: http or https.
        path: the final file; when it is there nothing is done.
        progress: show a bar.

    Raises:
        UserError: when the server cannot be reached, refuses, keeps breaking off, or sends something else
            than it announced; what came is kept for the next attempt unless it is wrong.
    """
    if path.exists():
        return
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: is no address; it begins with https:// or http://")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures, wait = 0, WAIT
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            answer = _receive(url, part, progress)
            break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            _refuse_for_good(url, error, part)
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failures >= ATTEMPTS:
                raise UserError(
                    f"{url}: {_reason(error)}; {after:,} bytes are kept in {part}, "
                    "run the same command again to go on"
                ) from None
            time.sleep(wait if failures else WAIT)
            wait = min(wait * 2, 30.0) if failures else WAIT
    _verify(url, part, answer)
    os.replace(part, path)
    _tag_file(part).unlink(missing_ok=True)


def _receive(url: str, part: Path, progress: bool) -> Answer:
    """Append what is missing of a file to `part`; returns what the server said of it."""
    have = part.stat().st_size if part.exists() else 0
    tag = _tag_file(part).read_text() if have and _tag_file(part).exists() else ""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})  # noqa: S310
    if have and tag:  # without a tag nobody can say whether the rest belongs to the same file
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        complete = error.headers.get("Content-Range") == f"bytes */{have}"
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and complete:
            return Answer(have, have, tag, _md5(error.headers, tag))  # all had come before
        raise
    with response:
        answer = _answer(url, response, have)
        if not answer.start:
            part.write_bytes(b"")  # before the new tag, so that no tag stands beside bytes of another file
            _tag_file(part).unlink(missing_ok=True)
        if answer.tag:
            _tag_file(part).write_text(answer.tag)
        shown = {"unit": "B", "unit_scale": True, "disable": not progress}
        name = part.name.removesuffix(".part")
        with (
            open(part, "ab") as file,
            tqdm(total=answer.total, initial=answer.start, desc=name, **shown) as bar,
        ):
            while block := response.read(BLOCK):
                try:
                    file.write(block)
                    file.flush()
                except OSError as error:  # the disk, not the line
                    error.filename = str(part)
                    raise
                bar.update(len(block))
    size = part.stat().st_size
    if answer.total is not None and size < answer.total:
        raise http.client.IncompleteRead(b"", answer.total - size)
    return answer


def _answer(url: str, response: http.client.HTTPResponse, have: int) -> Answer:
    """Read the headers of a response to a request for the bytes from `have` on."""
    tag = response.headers.get("ETag", "")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have or int(match[2]) != int(match[3]) - 1:
            raise UserError(f"{url}: the server answers for other bytes than asked for; try again later")
        return Answer(have, int(match[3]), tag, _md5(response.headers, tag))
    length = response.headers.get("Content-Length", "")
    return Answer(0, int(length) if length.isdecimal() else None, tag, _md5(response.headers, tag))


def _md5(headers: Message, tag: str) -> str:
    """The MD5 sum that an ETag is: with Amazon S3, for files sent in one piece that lie in the clear."""
    match = _MD5.fullmatch(tag)
    plain = headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
    return match[1] if match and headers.get("Server") == "AmazonS3" and plain else ""


def _refuse_for_good(url: str, error: Exception, part: Path) -> None:
    """Raise where another attempt would not help."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # longer than the file: of another one
        elif error.code < 500 and error.code != http.HTTPStatus.TOO_MANY_REQUESTS:
            raise UserError(f"{url}: the server says {error.code} {error.reason}") from None
    elif isinstance(error, OSError) and not isinstance(error, urllib.error.URLError) and error.filename:
        raise error  # the disk


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        reason = getattr(error.reason, "strerror", None) or error.reason
        return f"cannot be reached ({reason}); are you offline?"
    if isinstance(error, http.client.IncompleteRead):
        return f"the server broke off {error.expected or 0:,} bytes before the end"
    return f"the line broke ({error})"


def _verify(url: str, part: Path, answer: Answer) -> None:
    """Compare a file with what the server said of it, and remove it where it differs."""
    size = part.stat().st_size
    problem = ""
    if answer.total is not None and size != answer.total:
        problem = f"has {size:,} bytes in place of {answer.total:,}"
    elif answer.md5:
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        if digest.hexdigest() != answer.md5:
            problem = "does not have the MD5 sum that the server gives for it"
    if problem:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise UserError(f"{url}: what came {problem}; it was removed, run the same command again")


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def unpack(archive: Path, folder: Path, progress: bool = True) -> list[Path]:
    """Unpack a zip archive into a folder, and nowhere else.

    Members that are there in full size are left as they are, so that an interrupted unpacking goes on; each
    other one appears whole, its checksum verified, or not at all.

    Args:
        archive: zip file.
        folder: made when it is missing.
        progress: show a bar.

    Returns:
        The files, in the order of the archive.

    Raises:
        UserError: for a file that is no zip archive, is damaged, is encrypted, holds links or names that
            leave the folder, or unpacks to more than an archive of images can.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            targets = [_target(archive, folder, member) for member in members]
            _refuse_bomb(archive, members)
            pairs = zip(members, targets, strict=True)
            missing = [(m, t) for m, t in pairs if not (t.is_file() and t.stat().st_size == m.file_size)]
            folder.mkdir(parents=True, exist_ok=True)
            size, free = sum(member.file_size for member, _ in missing), shutil.disk_usage(folder).free
            if size > free:
                raise UserError(f"{folder}: {size:,} bytes are to be unpacked, {free:,} are free")
            for member, target in tqdm(missing, f"unpack {archive.name}", unit="file", disable=not progress):
                _write_member(opened, member, target)
            return targets
    # zipfile's own: NotImplementedError for a compression that it lacks, RuntimeError for what is encrypted.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{archive}: not a sound zip archive ({error}); remove it and download it again"
        ) from None


def _write_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(member) as source, atomic_write(target) as temporary, open(temporary, "wb") as file:
        # zipfile reads no more than the stated size, and compares the CRC at the end.
        shutil.copyfileobj(source, file, BLOCK)
        if file.tell() != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} is smaller than it says")


def _target(archive: Path, folder: Path, member: zipfile.ZipInfo) -> Path:
    """Where a member goes; refuses one that leaves the folder or is no plain file."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    outside = name.is_absolute() or ".." in name.parts or (name.parts and ":" in name.parts[0])
    kind = stat.S_IFMT(member.external_attr >> 16)
    if outside or not name.parts or kind not in (0, stat.S_IFREG):
        what = "leaves the folder" if outside else "is no plain file"
        raise UserError(
            f"{archive}: {member.filename!r} {what}; nothing was unpacked, do not trust this archive"
        )
    target = folder.joinpath(*name.parts)
    if not target.parent.resolve().is_relative_to(folder.resolve()):  # a link that lay there before
        raise UserError(f"{target}: a link on its way leads out of {folder}; remove it")
    return target


def _refuse_bomb(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that unpacks to more than images can."""
    total = sum(member.file_size for member in members)
    packed = max(archive.stat().st_size, 1)
    if len(members) > MAX_MEMBERS or total > MAX_UNPACKED or total > MAX_RATIO * packed:
        raise UserError(
            f"{archive}: {len(members):,} files of {total:,} bytes out of {packed:,}: no archive of images; "
            "nothing was unpacked"
        )
