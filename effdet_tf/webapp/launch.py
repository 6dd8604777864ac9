"""Bind an address, serve the web app, end on Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import sys
import threading
import webbrowser

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from effdet_tf.errors import UserError
from effdet_tf.webapp.app import LOOPBACK, make_app
from effdet_tf.webapp.session import Session

FIRST_PORT, PORTS_TRIED = 8765, 20
_CONNECTIONS = 128
_LOOK, _ASKING, _ANSWERING = 1, 20, 900  # seconds


class PatientProtocol(H11Protocol):
    """HTTP with an end to patience: for a request that does not come, and for an answer that is not taken."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As its base; one connection too many is closed."""
        super().connection_made(transport)
        self._since, self._was_answering = self.loop.time(), False
        if len(self.connections) > _CONNECTIONS:
            transport.close()
        else:
            self.loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering != self._was_answering:
            self._since, self._was_answering = self.loop.time(), answering
        if self.loop.time() - self._since > (_ANSWERING if answering else _ASKING):
            self.transport.abort()
        if not self.transport.is_closing():
            self.loop.call_later(_LOOK, self._look)


def bind(host: str, port: int | None) -> socket.socket:
    """Listen on an address.

    Args:
        host: name or address of this machine.
        port: 0 for any free one, None for `FIRST_PORT` or the next that is free.

    Raises:
        UserError: when the address is not this machine's, the port is in use or not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise UserError(f"--host {host}: no such address ({error.strerror}); use 127.0.0.1") from error
    tried = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else [port]
    for number in tried:
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise UserError(f"{host}:{number} cannot be listened on ({reason}); choose another") from error
    if port is not None:
        raise UserError(
            f"port {port} of {host} is in use; choose another, or leave --port out for a free one"
        )
    raise UserError(f"ports {tried[0]} to {tried[-1]} of {host} are all in use; choose one by --port")


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches the address."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def address(listening: socket.socket, host: str) -> str:
    """What to open in a browser; the machine's name where it listens on all addresses."""
    own, port = listening.getsockname()[:2]
    if ipaddress.ip_address(own.partition("%")[0]).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(session: Session, listening: socket.socket, host: str, open_browser: bool, token: str = "") -> None:
    """Answer until Ctrl-C or SIGTERM.

    Args:
        session: keeps images and results; it is closed at the end.
        listening: from `bind`.
        host: as it was given to `bind`.
        open_browser: open the web app when it can be answered.
        token: a secret that the link must have; empty for none.

    Raises:
        KeyboardInterrupt: at the end, by Ctrl-C, where the process does not ignore it.
    """
    url, beyond, hosts = address(listening, host), not is_loopback(listening), {*LOOPBACK, host}
    url += f"{token}/" if token else ""
    if beyond:
        hosts |= {socket.gethostname(), socket.getfqdn()}
    if beyond and not token:
        print(
            f"warning: {host} is reached from other computers: whoever can reach it sees the images given to "
            "the web app and uses this computer's time; no password is asked for; --token asks for a secret",
            file=sys.stderr,
        )
    print(f"{url} (Ctrl-C ends)", flush=True)
    opening = threading.Thread(target=webbrowser.open, args=(url,), daemon=True)
    config = uvicorn.Config(
        make_app(
            session,
            hosts,
            any_address=beyond,
            token=token,
            on_start=opening.start if open_browser else lambda: None,
        ),
        http=PatientProtocol,
        limit_concurrency=_CONNECTIONS,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=5,  # seconds; a download that goes on longer is cut
    )
    uvicorn.Server(config).run(sockets=[listening])
