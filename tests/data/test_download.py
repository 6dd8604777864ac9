"""Downloads from a server that breaks off, lies and serves hostile archives."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from effdet_tf import cli
from effdet_tf.data import download
from effdet_tf.data.download import fetch, unpack
from effdet_tf.data.livecell_files import annotation_files
from effdet_tf.data.livecell_names import CELL_TYPES, SETS
from effdet_tf.data.sources.livecell import find_annotations
from effdet_tf.errors import UserError

BODY = bytes(range(256)) * 400  # 102,400 bytes


class Server:
    """Serves `files`; what it does wrong is set by the attributes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []  # what was asked for
        self.break_after: list[int] = []  # of each next answer: close the line after so many bytes
        self.statuses: list[int] = []  # of each next answer, in place of the file
        self.claim: int | None = None  # Content-Length that is not true
        self.tag: str | None = None  # ETag that is not true
        self.honour_ranges = True
        self.name = "AmazonS3"
        self.wrong_range = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def version_string(self) -> str:
                return owner.name

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.ranges.append(wanted)
        body = self.files.get(handler.path.lstrip("/"))
        if self.statuses or body is None:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        tag = self.tag or f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        if wanted and self.honour_ranges and handler.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("ETag", tag)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            shown = start + 1 if self.wrong_range else start
            handler.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        handler.send_header("ETag", tag)
        handler.send_header("Content-Length", str(self.claim or len(body) - start))
        handler.end_headers()
        limit = self.break_after.pop(0) if self.break_after else len(body)
        handler.wfile.write(body[start : start + limit])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setattr(download, "BLOCK", 4096)
    server = Server()
    server.files["file.bin"] = BODY
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def bring(server: Server, tmp_path: Path) -> Callable[[], bytes]:
    def run() -> bytes:
        fetch(f"{server.url}/file.bin", tmp_path / "sub" / "file.bin", progress=False)
        assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == [
            "file.bin"
        ]  # no rest of the way there
        return (tmp_path / "sub" / "file.bin").read_bytes()

    return run


def test_a_file_comes_whole_and_only_once(server, bring):
    assert bring() == BODY
    assert bring() == BODY
    assert server.ranges == [None]


def test_it_goes_on_where_the_line_broke(server, bring):
    server.break_after = [40_000, 20_000]
    assert bring() == BODY
    assert server.ranges == [None, "bytes=40000-", "bytes=60000-"]


def test_another_call_goes_on_too(server, bring, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.break_after = [40_000]
    server.statuses = []
    original = server.answer

    def refuse_later(handler):
        if server.ranges:
            server.statuses = [503]
        original(handler)

    server.answer = refuse_later
    with pytest.raises(UserError, match=r"503 .*40,000 bytes are kept in .*file.bin.part, run the same"):
        bring()
    server.answer, server.statuses = original, []
    assert bring() == BODY
    assert server.ranges[-1] == "bytes=40000-"


def test_a_file_that_changed_meanwhile_comes_from_its_start(server, bring, tmp_path):
    part = tmp_path / "sub" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes(b"old" * 1000)
    part.with_name("file.bin.part.tag").write_text('"of the old one"')
    assert bring() == BODY
    assert server.ranges == ["bytes=3000-"]


def test_a_server_without_ranges_sends_all_again(server, bring):
    server.honour_ranges = False
    server.break_after = [40_000]
    assert bring() == BODY


def test_a_rest_that_nobody_vouches_for_is_not_gone_on_with(server, bring, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.bin.part").write_bytes(b"?" * 500)
    assert bring() == BODY
    assert server.ranges == [None]


def test_a_rest_longer_than_the_file_is_thrown_away(server, bring, tmp_path):
    (tmp_path / "sub").mkdir()
    part = tmp_path / "sub" / "file.bin.part"
    part.write_bytes(BODY + b"more")
    part.with_name("file.bin.part.tag").write_text(f'"{hashlib.md5(BODY).hexdigest()}"')
    assert bring() == BODY


@pytest.mark.parametrize("sound", [True, False])
def test_a_rest_that_is_complete_is_verified_and_not_brought_again(server, bring, tmp_path, sound):
    """A download that was killed between its last byte and its end."""
    (tmp_path / "sub").mkdir()
    part = tmp_path / "sub" / "file.bin.part"
    part.write_bytes(BODY if sound else BODY[:-1] + b"?")
    part.with_name("file.bin.part.tag").write_text(f'"{hashlib.md5(BODY).hexdigest()}"')
    if sound:
        assert bring() == BODY
    else:
        with pytest.raises(UserError, match="MD5 sum"):
            bring()
    assert server.ranges == [f"bytes={len(BODY)}-"]


def test_a_tag_of_another_server_is_no_sum(server, bring):
    server.name, server.tag = "nginx", '"' + "0123456789abcdef" * 2 + '"'
    assert bring() == BODY


def test_a_disk_that_is_full_is_not_taken_for_a_broken_line(server, bring, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, block):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(download, "open", lambda *words: Full(open(*words)), raising=False)
    with pytest.raises(OSError) as caught:
        bring()
    assert caught.value.filename == str(tmp_path / "sub" / "file.bin.part") and len(server.ranges) == 1


@pytest.mark.parametrize("url", ["example.org/x", "ftp://example.org/x", "file:///etc/passwd"])
def test_what_is_no_web_address_is_told(url, tmp_path):
    with pytest.raises(UserError, match="is no address; it begins with https://"):
        download.fetch(url, tmp_path / "x")


def test_a_server_that_promises_more_than_it_has(server, bring, tmp_path):
    server.claim = len(BODY) + 1000
    server.honour_ranges = False
    with pytest.raises(UserError, match="broke off 1,000 bytes before the end; 102,400 bytes are kept"):
        bring()
    assert not (tmp_path / "sub" / "file.bin").exists()


def test_a_server_that_promises_less_than_it_has(server, bring, tmp_path):
    server.claim = len(BODY) - 1000
    with pytest.raises(UserError, match="does not have the MD5 sum that the server gives for it; it was"):
        bring()
    assert list((tmp_path / "sub").iterdir()) == []


def test_damage_on_the_way_is_found(server, bring, tmp_path):
    server.tag = f'"{hashlib.md5(BODY + b"x").hexdigest()}"'
    with pytest.raises(UserError, match="MD5 sum"):
        bring()
    assert list((tmp_path / "sub").iterdir()) == []


def test_an_answer_for_other_bytes_is_refused(server, bring):
    server.break_after = [40_000]
    server.wrong_range = True
    with pytest.raises(UserError, match="answers for other bytes than asked for"):
        bring()


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (503, 5), (429, 5)])
def test_only_what_may_pass_is_tried_again(server, bring, status, asked):
    server.statuses = [status] * 10
    with pytest.raises(UserError, match=f"the server says {status} "):
        bring()
    assert len(server.ranges) == asked


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.0)
    with pytest.raises(UserError, match="cannot be reached .*are you offline"):
        fetch("http://127.0.0.1:9/file.bin", tmp_path / "file.bin", progress=False)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def written(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_archive_is_unpacked_and_gone_on_with(tmp_path):
    members = {"images/a/1.tif": b"one" * 100, "images/2.tif": b"two" * 100}
    (tmp_path / "a.zip").write_bytes(zipped(members))
    out = tmp_path / "out"
    assert unpack(tmp_path / "a.zip", out, False) == [out / name for name in members]
    assert written(out) == members
    # Of another size: a torn rest. Of the same: left as it is.
    (out / "images" / "2.tif").write_bytes(b"tw")
    (out / "images" / "a" / "1.tif").write_bytes(b"eno" * 100)
    unpack(tmp_path / "a.zip", out, False)
    assert written(out) == {"images/a/1.tif": b"eno" * 100, "images/2.tif": b"two" * 100}


@pytest.mark.parametrize(
    "name", ["../evil.tif", "/tmp/evil.tif", "images/../../evil.tif", "C:/evil.tif", "..\\evil.tif"]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped({"good.tif": b"good", name: b"evil"}))
    with pytest.raises(UserError, match="leaves the folder; nothing was unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tif"))


def test_a_link_in_an_archive_is_refused(tmp_path):
    member = zipfile.ZipInfo("images")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc")
        archive.writestr("images/passwd", b"x")
    with pytest.raises(UserError, match="'images' is no plain file"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)


def test_a_link_on_the_way_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a.zip").write_bytes(zipped({"images/1.tif": b"x"}))
    with pytest.raises(UserError, match="a link on its way leads out of"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)
    assert written(tmp_path / "elsewhere") == {}


def test_a_bomb_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"zeros.tif": bytes(1 << 24)}))
    with pytest.raises(UserError, match="1 files of 16,777,216 bytes out of .*nothing was unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)


def test_a_member_that_is_larger_than_it_says_is_cut_off(tmp_path, monkeypatch):
    """A bomb whose directory lies about its size."""
    monkeypatch.setattr(download, "BLOCK", 1024)
    content = zipped({"zeros.tif": bytes(100_000)})
    lied = content.replace((100_000).to_bytes(4, "little"), (10_000).to_bytes(4, "little"))
    assert lied != content
    (tmp_path / "a.zip").write_bytes(lied)
    with pytest.raises(UserError, match="not a sound zip archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)
    assert written(tmp_path / "out") == {}


def test_a_damaged_member_is_found(tmp_path):
    content = zipped({"1.tif": b"A" * 1000, "2.tif": b"B" * 1000}, zipfile.ZIP_STORED)
    (tmp_path / "a.zip").write_bytes(content.replace(b"B" * 1000, b"B" * 999 + b"C"))
    with pytest.raises(UserError, match="not a sound zip archive .*CRC"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)
    assert written(tmp_path / "out") == {"1.tif": b"A" * 1000}


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all" * 100])
def test_another_file_is_no_archive(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a.zip: not a sound zip archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(zipped({"1.tif": b"x" * 1000}))
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda folder: download.shutil._ntuple_diskusage(1, 1, 10)
    )
    with pytest.raises(UserError, match="1,000 bytes are to be unpacked, 10 are free"):
        unpack(tmp_path / "a.zip", tmp_path / "out", False)


def test_the_file_lists_are_those_that_convert_looks_for(tmp_path):
    for kind in SETS:
        for name in annotation_files(kind):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    assert len(annotation_files("single")) == 24
    for split in ("train", "val", "test"):
        assert find_annotations(tmp_path, split).is_file()
        assert all(find_annotations(tmp_path, split, name).is_file() for name in CELL_TYPES)
    assert find_annotations(tmp_path, "train2percent").is_file()


def test_the_command_brings_what_was_asked_for(server, tmp_path, capsys):
    server.files = {
        name: json.dumps({"name": name}).encode()
        for kind in SETS
        for name in annotation_files(kind)
        if name.endswith(".json")
    }
    server.files["images.zip"] = zipped({"images/livecell_test_images/A172/A172_Phase_1.tif": b"pixels" * 50})
    server.files["nuclear_count_benchmark/A172.zip"] = zipped({"A172_1.tif": b"a" * 99})
    server.files["nuclear_count_benchmark/A549.zip"] = zipped({"A549_1.tif": b"b" * 99})
    out = tmp_path / "LIVECell"
    command = ["download", "livecell", "--out", str(out), "--mirror", f"{server.url}/"]
    command += ["--annotations", "wide", "counts"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "CC BY-NC 4.0" in text and "convert livecell" in text
    found = {name for name in written(out) if not name.endswith(".unpacked")}
    assert found == {
        *annotation_files("wide"),
        "images/livecell_test_images/A172/A172_Phase_1.tif",
        "nuclear_count_benchmark/A172_counts.json",
        "nuclear_count_benchmark/A549_counts.json",
        "nuclear_count_benchmark/A172/A172_1.tif",
        "nuclear_count_benchmark/A549/A549_1.tif",
    }
    asked = len(server.ranges)
    assert cli.main(command) == 0
    assert len(server.ranges) == asked  # all is there
    rest = ["--annotations", "size", "--no-images", "--mirror", f"{server.url}/no"]
    assert cli.main([*command[:4], *rest]) == 1
    assert "0_train2percent.json: the server says 404" in capsys.readouterr().err
