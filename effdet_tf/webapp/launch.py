"""Bind an address, serve the web app, end on Ctrl-C."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
import webbrowser

import uvicorn

from effdet_tf.errors import UserError
from effdet_tf.webapp.app import LOOPBACK, make_app
from effdet_tf.webapp.session import Session

FIRST_PORT, PORTS_TRIED = 8765, 20


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


def serve(session: Session, listening: socket.socket, host: str, open_browser: bool) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Args:
        session: keeps images and results; it is closed at the end.
        listening: from `bind`.
        host: as it was given to `bind`.
        open_browser: open the web app when it can be answered.

    Raises:
        KeyboardInterrupt: at the end, by Ctrl-C, where the process does not ignore it.
    """
    url, beyond, hosts = address(listening, host), not is_loopback(listening), {*LOOPBACK, host}
    if beyond:
        hosts |= {socket.gethostname(), socket.getfqdn()}
        print(
            f"warning: {host} is reached from other computers: whoever can reach it sees the images given to "
            "the web app and uses this computer's time; no password is asked for",
            file=sys.stderr,
        )
    print(f"{url} (Ctrl-C ends)", flush=True)
    opening = threading.Thread(target=webbrowser.open, args=(url,), daemon=True)
    config = uvicorn.Config(
        make_app(
            session, hosts, any_address=beyond, on_start=opening.start if open_browser else lambda: None
        ),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=5,  # seconds; a download that goes on longer is cut
    )
    uvicorn.Server(config).run(sockets=[listening])
