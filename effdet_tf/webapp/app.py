"""Requests of the web app's script, and their answers.

| request | answer |
|---|---|
| GET `/`, `/app.js`, ... | the files in `static` |
| GET `/api/start` | networks with their tuned scores, limits, image suffixes |
| GET `/api/state` | network, images with their state, what was dropped |
| POST `/api/images?name=NAME&rooted=0` | takes the body as an image file |
| POST `/api/network?name=NAME` | another network looks at all images |
| DELETE `/api/images/KEY`, `/api/images` | forgets one, all |
| GET `/api/images/KEY/preview.png`, `thumbnail.png`, `outlines.json`, `scores.json` | to draw and count |
| GET `/api/images/KEY/files/NAME?score=X`: `labels.tif`, `cells.csv`, ... | as `predict` writes them |
| GET `/api/all.zip?score=X` | all of these of all images, and summary.csv |

A refusal is `{"error": LINE}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from effdet_tf._version import __version__
from effdet_tf.errors import UserError
from effdet_tf.images.read import IMAGE_SUFFIXES
from effdet_tf.outputs.jobs import OWN_PICTURES
from effdet_tf.webapp.downloads import FORMATS, everything, one_file
from effdet_tf.webapp.drawing import DRAWINGS
from effdet_tf.webapp.guard import DATA, Guard
from effdet_tf.webapp.names import clean_name
from effdet_tf.webapp.session import Full, Gone, Session

STATIC = Path(__file__).resolve().parent / "static"
_UPLOAD, _SILENT = 600, 30  # seconds that an upload may take, and that it may stay silent
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def make_app(
    session: Session,
    hosts: Iterable[str] = LOOPBACK,
    any_address: bool = False,
    token: str = "",
    on_start: Callable[[], None] = lambda: None,
) -> Starlette:
    """The web application; when it ends, the session is closed.

    `hosts`, `any_address` and `token` are for `Guard`; `on_start` is called when the app is about to answer.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        on_start()
        try:
            yield
        finally:
            session.close()

    # A route for each file by its name: no path of a request is ever looked up on the disk.
    static = {"/": STATIC / "index.html"} | {f"/{path.name}": path for path in sorted(STATIC.iterdir())}
    app = Starlette(
        routes=[
            *(Route(url, functools.partial(_static, path)) for url, path in static.items()),
            Route(f"{DATA}start", _start),
            Route(f"{DATA}state", _state),
            Route(f"{DATA}images", _add, methods=["POST"]),
            Route(f"{DATA}images", _clear, methods=["DELETE"]),
            Route(f"{DATA}network", _choose, methods=["POST"]),
            Route(f"{DATA}images/{{key}}", _remove, methods=["DELETE"]),
            *(Route(f"{DATA}images/{{key}}/{name}", _drawing) for name in DRAWINGS),
            *(Route(f"{DATA}images/{{key}}/files/{suffix[1:]}", _file) for suffix in FORMATS),
            Route(f"{DATA}all.zip", _all),
        ],
        middleware=[Middleware(Guard, hosts=hosts, any_address=any_address, token=token)],
        exception_handlers={UserError: _refused, HTTPException: _refused},
        lifespan=lifespan,
    )
    app.state.session = session
    return app


def _static(path: Path, request: Request) -> Response:
    return FileResponse(path, media_type=_TYPES[path.suffix])


def _session(request: Request) -> Session:
    return request.app.state.session


def _start(request: Request) -> Response:
    session = _session(request)
    answer = {
        "version": __version__,
        "networks": [{"name": n, "score": session.networks.scores[n]} for n in session.networks.names],
        "limits": {name: getattr(session.limits, name) for name in ("file_bytes", "pixels", "images")},
        "suffixes": IMAGE_SUFFIXES,
        "own_outputs": OWN_PICTURES,
    }
    return JSONResponse(answer)


def _state(request: Request) -> Response:
    return JSONResponse(_session(request).state())


async def _add(request: Request) -> Response:
    session = _session(request)
    limit = session.limits.file_bytes
    too_large = HTTPException(413, f"is larger than {limit / 2**20:g} MiB; cut it into parts first")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    name = clean_name(request.query_params.get("name", ""))
    try:
        with session.uploading() as upload:
            with upload.path.open("xb") as file:
                async with asyncio.timeout(_UPLOAD), asyncio.timeout(_SILENT) as silent:
                    async for chunk in request.stream():
                        silent.reschedule(asyncio.get_running_loop().time() + _SILENT)
                        session.receive(upload, len(chunk))
                        if upload.size > limit:
                            raise too_large
                        file.write(chunk)
            entry = session.add(upload.path, name, request.query_params.get("rooted") == "1")
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is left to read it
    except TimeoutError:
        raise HTTPException(408, "did not come in time; add it again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise HTTPException(507, f"cannot be kept ({reason}); remove images") from error
    return JSONResponse({"id": entry.key, "name": str(entry.name)}, status_code=201)


def _clear(request: Request) -> Response:
    _session(request).clear()
    return Response(status_code=204)


def _choose(request: Request) -> Response:
    _session(request).choose(request.query_params.get("name", ""))
    return Response(status_code=204)


def _remove(request: Request) -> Response:
    _session(request).remove(request.path_params["key"])
    return Response(status_code=204)


def _drawing(request: Request) -> Response:
    name = request.url.path.rsplit("/", 1)[1]
    try:
        content = (_session(request).get(request.path_params["key"]).folder / name).read_bytes()
    except FileNotFoundError:
        raise Gone("is not there yet, or not any more") from None
    return Response(content, media_type="image/png" if name.endswith(".png") else "application/json")


def _file(request: Request) -> Response:
    suffix = "." + request.url.path.rsplit("/", 1)[1]
    name, content = one_file(_session(request), request.path_params["key"], suffix, _score(request))
    return Response(content, media_type=FORMATS[suffix][1], headers=_attachment(name))


def _all(request: Request) -> Response:
    parts = everything(_session(request), _score(request))
    return StreamingResponse(parts, media_type="application/zip", headers=_attachment("cells.zip"))


def _score(request: Request) -> float:
    text = request.query_params.get("score", "")
    with contextlib.suppress(ValueError):
        if 0 <= (score := float(text)) <= 1:
            return score
    raise UserError(f"score {text!r}: give a number from 0 to 1")


def _attachment(name: str) -> dict[str, str]:
    plain = "".join(c if c.isascii() and c not in '"\\%' else "_" for c in name)
    names = f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    return {"Content-Disposition": f"attachment; {names}"}


def _refused(request: Request, error: Exception) -> Response:
    """One line for the browser."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, status_code=error.status_code)
    status = 404 if isinstance(error, Gone) else 429 if isinstance(error, Full) else 400
    return JSONResponse({"error": str(error)}, status_code=status)
