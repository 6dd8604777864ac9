"""`python -m effdet_tf serve`: addresses, ports, and what is told about them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from effdet_tf import cli
from effdet_tf.errors import UserError
from effdet_tf.webapp import launch as server


@pytest.fixture
def taken() -> int:
    """A port of this computer that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_port_in_use_is_one_line_and_code_1(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--no-open", "--port", str(taken)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: port {taken} of 127.0.0.1 is in use") and "\n" not in error


def test_without_a_port_the_next_free_one_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PORT", taken)
    with server.bind("127.0.0.1", None) as listening:
        port = listening.getsockname()[1]
        assert taken < port < taken + server.PORTS_TRIED
        assert server.address(listening, "127.0.0.1") == f"http://127.0.0.1:{port}/"
    monkeypatch.setattr(server, "PORTS_TRIED", 1)
    with pytest.raises(UserError, match="are all in use"):
        server.bind("127.0.0.1", None)


def test_an_address_of_another_machine_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot be listened on"):
        server.bind("192.0.2.1", 0)
    with pytest.raises(UserError, match="no such address"):
        server.bind("no such host.invalid", 0)


def test_what_lets_others_in_is_known() -> None:
    with server.bind("127.0.0.1", 0) as inside, server.bind("0.0.0.0", 0) as outside:
        assert server.is_loopback(inside) and not server.is_loopback(outside)
        assert socket.gethostname() in server.address(outside, "0.0.0.0")


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_a_wrong_port_is_a_wrong_usage(port: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "--port", port])
    assert left.value.code == 2


def test_a_wrong_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--no-open", "--port", "0", "--run", str(tmp_path / "none")]) == 1
    assert "no such run folder" in capsys.readouterr().err.splitlines()[-1]
