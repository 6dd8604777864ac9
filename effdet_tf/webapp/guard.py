"""Requests are answered from the web app itself in this computer's browser, and from no other web site.

- Host must name this server: another name that leads here (DNS rebinding) would let a site read answers.
- Origin of whatever changes something must be the web app itself, and the browser must not call a request for
  data cross-site.
- With a secret, which only the link that `serve` prints has, every path begins with it: on a machine that
  several people share, the port is open to all of them.
- The web app loads nothing from elsewhere and runs no script but its own files (Content-Security-Policy).
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ONCE = ("host", "origin", "sec-fetch-site", "content-length", "content-type", "transfer-encoding")
DATA = "/api/"  # paths below are for the web app's script alone
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class Guard:
    """Middleware that refuses what does not come from the web app itself."""

    def __init__(
        self, app: ASGIApp, hosts: Iterable[str], any_address: bool = False, token: str = ""
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            hosts: names and addresses of this server.
            any_address: whether every IP address may be its own: an address needs no name server, so no
                rebinding goes by one.
            token: the secret with which all paths begin; empty for none.
        """
        self._app = app
        self._hosts = {host.casefold().strip("[]") for host in hosts}
        self._any_address, self._token = any_address, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to what is refused; add `HEADERS` to every answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the web app speaks http alone, not {scope['type']}")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        known, scope = self._below_token(scope)
        reason = self._refusal(scope) or (
            "" if known else "open the link with its secret that `serve` printed"
        )
        app = JSONResponse({"error": reason}, status_code=403) if reason else self._app
        await app(scope, receive, send_with_headers)

    def _below_token(self, scope: Scope) -> tuple[bool, Scope]:
        """Whether the path of a request begins with the secret, and the request without it."""
        if not self._token:
            return True, scope
        first, _, rest = scope["path"].encode().removeprefix(b"/").partition(b"/")
        known = hmac.compare_digest(first, self._token)
        path = f"/{rest.decode()}"
        return known, {**scope, "path": path, "raw_path": path.encode()}

    def _refusal(self, scope: Scope) -> str:
        """Why a request is refused; empty when it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if any(len(headers.getlist(name)) > 1 for name in _ONCE):
            return "refused: a header comes twice"
        if not self._is_own(host):
            return "this server does not answer to that host name; open the address that `serve` printed"
        changes = scope["method"] not in ("GET", "HEAD")
        site = headers.get("sec-fetch-site", "same-origin")
        origin = headers.get("origin")
        own = f"{scope.get('scheme', 'http')}://{host}"
        foreign = changes and origin is not None and origin.casefold() != own.casefold()
        if changes or scope["path"].startswith(DATA):
            foreign |= site not in ("same-origin", "none")
        return "refused: this request comes from another web site" if foreign else ""

    def _is_own(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].casefold().strip("[]")
        if self._any_address:
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(name)
                return True
        return name in self._hosts
