"""Every request of the web app: what it gives, what it refuses, and that its files are those of `predict`."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from starlette.testclient import TestClient

from effdet_tf import outputs
from effdet_tf.images.content import stretch_contrast
from effdet_tf.images.read import encode_png
from effdet_tf.outputs.batch import predict_files
from effdet_tf.outputs.jobs import find_images
from effdet_tf.outputs.written import RECORD
from effdet_tf.webapp.app import STATIC, make_app
from effdet_tf.webapp.downloads import FORMATS
from effdet_tf.webapp.networks import Networks
from effdet_tf.webapp.session import Limits, Session
from tests.webapp.discs import Discs

HOST = "http://127.0.0.1:8765"


class WebApp:
    """The web app's requests, as its script makes them."""

    def __init__(self, session: Session, wait: Callable[..., None]) -> None:
        self.session, self._wait = session, wait
        self.client = TestClient(make_app(session), base_url=HOST, raise_server_exceptions=False)
        self._running = ExitStack()
        self._running.enter_context(self.client)

    def close(self) -> None:
        """End the server, once."""
        self._running.close()

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, **options)

    def add(self, content: bytes, name: str = "a.tif", rooted: bool = False) -> Any:
        return self.client.post(
            "/api/images", params={"name": name, "rooted": int(rooted)}, content=content, headers=_own()
        )

    def state(self) -> dict[str, Any]:
        return self.get("/api/state").json()

    def done(self) -> list[dict[str, Any]]:
        """The images, when none of them waits any more."""
        self._wait(lambda: all(i["state"] in ("done", "failed") for i in self.state()["images"]))
        return self.state()["images"]


def _own() -> dict[str, str]:
    return {"Origin": HOST, "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def open_app(networks: Networks, wait: Callable[..., None]) -> Iterator[Callable[..., WebApp]]:
    """`open_app(**limits)`: a web app with these limits; the tests take no more than one."""
    opened: list[WebApp] = []

    def make(run: Networks = networks, **limits: int) -> WebApp:
        opened.append(WebApp(Session(run, Limits(**limits)), wait))
        return opened[-1]

    yield make
    for app in opened:
        app.close()


@pytest.fixture
def png(images: Path) -> bytes:
    return (images / "gray.png").read_bytes()


def _content(suffix: str, file: bytes) -> Any:
    """The bytes of a file; of a zip, those of its members, as it states when it was made."""
    if not suffix.endswith(".zip"):
        return file
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("score", [0.5, 0.0, 0.77, 1.0])
def test_the_files_are_those_that_predict_writes(
    score: float, open_app: Callable[..., WebApp], networks: Any, images: Path, tmp_path: Path
) -> None:
    predict_files(networks.predictor("cells"), find_images([images]), tmp_path / "default", score=score)
    formats = outputs.FORMATS
    predict_files(
        networks.predictor("cells"), find_images([images]), tmp_path / "all", score=score, formats=formats
    )
    expected, every = _files(tmp_path / "default"), _files(tmp_path / "all")
    app = open_app()
    for path in sorted(path for path in images.rglob("*") if path.is_file()):
        name = f"plate/{path.relative_to(images).as_posix()}"
        assert app.add(path.read_bytes(), name, rooted=True).status_code == 201
    listed = app.done()
    assert [image["state"] for image in listed] == ["done"] * 3
    for image, name in zip(listed, ("deep é", "gray", "sub/x_B2_1_00d04h00m"), strict=True):
        for suffix in FORMATS:
            answer = app.get(f"/api/images/{image['id']}/files/{suffix[1:]}", params={"score": score})
            assert answer.status_code == 200
            assert _content(suffix, answer.content) == _content(suffix, every[name + suffix])
            assert answer.headers["content-disposition"].startswith("attachment; ")
    answer = app.get("/api/all.zip", params={"score": score})
    packed = _content(".zip", answer.content)
    del expected[RECORD]  # of the folder, for --overwrite
    assert packed == expected and "wells.csv" in packed


def test_counts_in_the_browser_are_those_of_the_table(open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app()
    app.add(png)
    (image,) = app.done()
    base = f"/api/images/{image['id']}"
    scores = np.float32(app.get(f"{base}/scores.json").json())
    for score in (0.0, float(scores[7]), 0.5, 1.0):
        table = app.get(f"{base}/files/cells.csv", params={"score": score}).text
        assert len(table.splitlines()) - 1 == int((scores >= np.float32(score)).sum())


def test_a_deep_image_gets_a_preview_that_a_browser_shows(
    open_app: Callable[..., WebApp], images: Path, pixels: np.ndarray
) -> None:
    app = open_app()
    app.add((images / "deep é.tif").read_bytes())
    (image,) = app.done()
    answer = app.get(f"/api/images/{image['id']}/preview.png")
    shown = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert answer.headers["content-type"] == "image/png"
    assert shown.dtype == np.uint8 and np.array_equal(shown, stretch_contrast(pixels))
    assert app.get(f"/api/images/{image['id']}/thumbnail.png").status_code == 200


def test_what_fails_is_told_in_a_line_and_the_others_go_on(
    open_app: Callable[..., WebApp], images: Path, png: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = (images / "deep é.tif").read_bytes()
    stack, flat, thirteen = io.BytesIO(), io.BytesIO(), io.BytesIO()
    tifffile.imwrite(stack, np.zeros((3, 40, 40), np.uint8), photometric="minisblack")
    tifffile.imwrite(flat, np.zeros((40, 40), np.uint8))
    tifffile.imwrite(thirteen, np.arange(13 * 20, dtype=np.uint16).reshape(13, 20))
    faults = {
        "cut.tif": (deep[: len(deep) // 2], "is cut short"),
        "text.tif": (b"hello", "is no image"),
        "empty.png": (b"", "is empty"),
        "stack.tif": (stack.getvalue(), "stack of 3 pages"),
        "flat.tif": (flat.getvalue(), "this image is flat"),
        "thirteen.tif": (thirteen.getvalue(), "unexpected: RuntimeError: thirteen"),
    }
    app = open_app()
    for name, (content, _) in faults.items():
        assert app.add(content, name).status_code == 201
    app.add(png, "good.png")
    *failed, good = app.done()
    assert good["state"] == "done"
    for image in failed:
        assert image["state"] == "failed" and faults[image["name"]][1] in image["error"]
        for hidden in ("\n", "/tmp", str(app.session.folder), f"{image['name']}: "):
            assert hidden not in image["error"]
        answer = app.get(f"/api/images/{image['id']}/files/cells.csv?score=0.5")
        assert answer.status_code == 404 and "no result" in answer.json()["error"]
    assert "RuntimeError: thirteen" in capsys.readouterr().err  # a fault of the program is traced
    with zipfile.ZipFile(io.BytesIO(app.get("/api/all.zip?score=0.5").content)) as archive:
        summary = archive.read("summary.csv").decode()
    assert all(text in summary for _, text in faults.values()) and "/tmp" not in summary


def test_the_browser_is_told_of_a_scaled_image(open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app()
    app.add(png, "a.png")
    app.add(encode_png(np.random.default_rng(0).integers(0, 255, (17, 40)).astype(np.uint8)), "b.png")
    told = {image["name"]: image["scaled"] for image in app.done()}
    assert list(told.values()) == ["", "scaled 0.5 times for the network: of 17 rows"]


def test_the_browser_is_told_what_to_expect(open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app()
    for name, rows in (("usual", 16), ("strange", 18)):
        app.add(
            encode_png(np.random.default_rng(0).integers(0, 255, (rows, 40)).astype(np.uint8)), f"{name}.png"
        )
    usual, strange = app.done()
    assert (usual["expected"], usual["unlike"]) == ("", "")
    assert strange["expected"] == "20 to 40 cells at 90 %, expected F1 0.71"
    assert strange["unlike"].startswith("the image is unlike what the network was trained on")
    for score, known in ((0.5, True), (0.6, False)):  # what is expected is of the network's own score
        rows = app.get("/api/all.zip", params={"score": score})
        table = _content(".zip", rows.content)["summary.csv"]
        assert (",20,40,0.71,1," in str(table)) == known


def test_limits_of_a_file_and_an_image(open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app(file_bytes=len(png), pixels=70 * 90 - 1)
    for content in (png + b"x", iter([png, b"x"])):  # with its length told before, and without
        answer = app.add(content)
        assert answer.status_code == 413 and "is larger than" in answer.json()["error"]
    assert app.state()["images"] == []
    assert list(app.session.folder.iterdir()) == []
    app.add(png)
    assert "70x90 is more than 6299 pixels" in app.done()[0]["error"]


def test_the_oldest_results_go_and_that_is_told(open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app(images=2)
    for number in range(4):
        app.add(png, f"{number}.png")
        app.done()
    state = app.state()
    assert [image["name"] for image in state["images"]] == ["2.png", "3.png"]
    assert state["dropped"] == {"count": 2, "names": ["0.png", "1.png"]}
    assert len(list(app.session.folder.iterdir())) == 2
    app = open_app(total_bytes=2 * app.session.entries()[0].size)  # with what was made of them
    for number in range(3):
        app.add(png, f"{number}.png")
        app.done()
    assert [image["name"] for image in app.state()["images"]] == ["1.png", "2.png"]


def test_images_that_wait_are_never_dropped(
    open_app: Callable[..., WebApp], networks: Any, png: bytes, wait: Callable[..., None]
) -> None:
    app = open_app(images=2)
    gate = networks.loaded["cells"].gate
    gate.clear()
    first, _, third = (app.add(png, f"{number}.png") for number in range(3))
    assert third.status_code == 429 and "waiting" in third.json()["error"]
    wait(lambda: app.state()["images"][0]["state"] == "working")
    assert app.get("/api/state").status_code == 200  # answered while the network is at work
    assert app.get("/api/all.zip?score=0").status_code == 404
    assert app.get(f"/api/images/{first.json()['id']}/outlines.json").status_code == 404
    gate.set()
    app.done()
    assert app.add(png, "3.png").status_code == 201
    assert Discs.most == 1  # one at a time


def test_another_network_looks_at_all_images_again(
    open_app: Callable[..., WebApp], networks: Any, png: bytes
) -> None:
    app = open_app()
    start = app.get("/api/start").json()
    assert [network["name"] for network in start["networks"]] == ["cells", "cells-large"]
    assert list(networks.loaded) == ["cells"]  # the other one is not loaded before it is chosen
    app.add(png)
    (image,) = app.done()
    base = f"/api/images/{image['id']}"
    before = app.get(f"{base}/outlines.json").json()
    assert app.client.post("/api/network?name=cells-large", headers=_own()).status_code == 204
    assert app.state()["network"] == "cells-large"
    (image,) = app.done()
    assert image["revision"] == 2 and app.get(f"{base}/outlines.json").json() != before
    answer = app.client.post("/api/network?name=../x", headers=_own())
    assert answer.status_code == 400 and "there is no network" in answer.json()["error"]
    assert app.state()["network"] == "cells-large"


def test_older_work_does_not_overwrite_newer(
    open_app: Callable[..., WebApp], networks: Any, png: bytes, wait: Callable[..., None]
) -> None:
    app = open_app()
    gate = networks.loaded["cells"].gate
    gate.clear()
    app.add(png, "one.png")
    removed = app.add(png, "two.png").json()["id"]
    wait(lambda: app.state()["images"][0]["state"] == "working")
    app.client.post("/api/network?name=cells-large", headers=_own())
    assert app.client.delete(f"/api/images/{removed}", headers=_own()).status_code == 204
    gate.set()
    (image,) = app.done()
    assert image["name"] == "one.png" and image["revision"] == 1
    network = networks.loaded["cells-large"]
    expected = network.predict(cv2.imdecode(np.frombuffer(png, np.uint8), -1)[..., None])
    assert np.array_equal(app.session.entries()[0].predicted[0].scores, expected.scores)
    assert not (app.session.folder / removed).exists()


def test_images_are_removed_and_nothing_stays(open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app()
    for _ in range(3):
        app.add(png)
    first = app.done()[0]["id"]
    assert app.client.delete(f"/api/images/{first}", headers=_own()).status_code == 204
    assert app.client.delete(f"/api/images/{first}", headers=_own()).status_code == 404
    assert len(app.state()["images"]) == 2
    assert app.client.delete("/api/images", headers=_own()).status_code == 204
    assert app.state()["images"] == []
    app.add(png)
    app.done()
    folder = app.session.folder
    assert folder.exists() and folder.stat().st_mode & 0o077 == 0  # for this user alone
    app.close()
    assert not folder.exists()


def test_the_end_does_not_wait_for_the_network(
    open_app: Callable[..., WebApp], networks: Any, png: bytes, wait: Callable[..., None]
) -> None:
    app = open_app()
    gate = networks.loaded["cells"].gate
    gate.clear()
    app.add(png)
    app.add(png)
    wait(lambda: app.session.at_work)
    folder = app.session.folder
    app.close()
    assert app.session.at_work and not folder.exists()
    gate.set()
    wait(lambda: not app.session.at_work)
    assert not folder.exists()


def test_a_network_without_masks_makes_no_label_image(
    open_app: Callable[..., WebApp], networks: Any, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "boxes").mkdir()
    app = open_app(Networks(tmp_path / "boxes"))
    assert app.get("/api/start").json()["networks"][0]["name"] == str(tmp_path / "boxes")
    app.add(png)
    (image,) = app.done()
    answer = app.get(f"/api/images/{image['id']}/files/labels.tif?score=0.5")
    assert answer.status_code == 400 and "no mask head" in answer.json()["error"]
    assert app.get(f"/api/images/{image['id']}/files/cells.csv?score=0.5").status_code == 200
    with zipfile.ZipFile(io.BytesIO(app.get("/api/all.zip?score=0.5").content)) as archive:
        assert sorted(archive.namelist()) == ["a.cells.csv", "a.coco.json", "a.overlay.png", "summary.csv"]


def test_a_users_folder_named_as_a_network_of_the_package_is_told_apart(
    networks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "best.npz").touch()
    monkeypatch.chdir(tmp_path)
    assert Networks("cells").names == ["./cells", "cells", "cells-large"]


@pytest.mark.parametrize("score", ["", "x", "-0.1", "1.1", "nan"])
def test_a_score_that_is_none_is_refused(score: str, open_app: Callable[..., WebApp], png: bytes) -> None:
    app = open_app()
    app.add(png)
    (image,) = app.done()
    for path in (f"/api/images/{image['id']}/files/cells.csv", "/api/all.zip"):
        answer = app.get(path, params={"score": score})
        assert answer.status_code == 400 and "from 0 to 1" in answer.json()["error"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "10.0.0.1:8765",
        "localhost@evil",
        "",
        "[::1",
    ],
)
def test_a_host_that_is_not_this_servers_is_refused(host: str, open_app: Callable[..., WebApp]) -> None:
    app = open_app()
    for path in ("/", "/api/state", "/app.js"):
        answer = app.get(path, headers={"Host": host})
        assert answer.status_code == 403 and "host name" in answer.json()["error"]


def test_two_host_headers_are_refused(open_app: Callable[..., WebApp]) -> None:
    """Which of them counts is anybody's guess, so neither does; the first one is this server's own."""
    for second in ("evil.example", "127.0.0.1:8765"):
        answer = open_app().get("/api/state", headers=[("Host", "127.0.0.1:8765"), ("Host", second)])
        assert answer.status_code == 403 and "twice" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:1234", "LOCALHOST"])
def test_names_of_this_computer_are_answered(host: str, open_app: Callable[..., WebApp]) -> None:
    assert open_app().get("/api/state", headers={"Host": host}).status_code == 200


def test_beyond_this_computer_addresses_are_answered_but_not_other_names(networks: Any) -> None:
    app = make_app(Session(networks), {"lab-pc"}, any_address=True)
    with TestClient(app, base_url=HOST) as client:
        codes = [
            client.get("/", headers={"Host": h}).status_code for h in ("10.0.0.7:8765", "lab-pc", "evil")
        ]
    assert codes == [200, 200, 403]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": HOST, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_what_another_site_asks_is_refused(
    headers: dict[str, str], open_app: Callable[..., WebApp], png: bytes
) -> None:
    app = open_app()
    asked = [
        app.client.post("/api/images?name=a.png", content=png, headers=headers),
        app.client.post("/api/network?name=cells-large", headers=headers),
        app.client.delete("/api/images", headers=headers),
    ]
    if "Sec-Fetch-Site" in headers:
        asked.append(app.get("/api/state", headers=headers))
    assert [answer.status_code for answer in asked] == [403] * len(asked)
    assert app.state() == {"network": "cells", "images": [], "dropped": {"count": 0, "names": []}}


def test_every_answer_forbids_what_is_not_the_web_apps_own(open_app: Callable[..., WebApp]) -> None:
    app = open_app()
    for path in ("/", "/app.js", "/app.css", "/api/state", "/nothing", "/api/all.zip?score=0"):
        headers = app.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_web_app_names_no_other_host_and_holds_no_inline_script() -> None:
    files = {path.name: path.read_text() for path in STATIC.iterdir()}
    assert set(files) >= {"index.html", "app.js", "app.css"}
    for name, text in files.items():
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9.]+\.[a-z]{2,}", text), name
    assert re.findall(r"<script(?![^>]* src=)|<style| on[a-z]+=| style=", files["index.html"]) == []


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/static/../app.py",
        "/%2e%2e/app.py",
        "/..%2fapp.py",
        "/etc/passwd",
        "/api/images/../start/preview.png",
        "/api/images/%2e%2e/preview.png",
        "/api/images/..%2f..%2f/preview.png",
        "/api/images/x/files/../../setup.py",
        "/api/images/x/image",
    ],
)
def test_no_path_leads_out(path: str, open_app: Callable[..., WebApp]) -> None:
    answer = open_app().get(path)
    assert answer.status_code in (404, 405) and "error" in answer.json()


def test_a_name_from_the_browser_is_no_path(
    open_app: Callable[..., WebApp], png: bytes, tmp_path: Path
) -> None:
    app = open_app()
    answer = app.add(png, f"../../..{tmp_path}/evil\r\nX: y.png")
    assert answer.status_code == 201 and ".." not in answer.json()["name"]
    (image,) = app.done()
    assert list(tmp_path.iterdir()) == []
    answer = app.get(f"/api/images/{image['id']}/files/cells.csv?score=0.5")
    assert answer.headers["content-disposition"].count("\n") == 0 and "x" not in answer.headers
    with zipfile.ZipFile(io.BytesIO(app.get("/api/all.zip?score=0.5").content)) as archive:
        for name in archive.namelist():
            assert not name.startswith("/") and ".." not in name.split("/")
