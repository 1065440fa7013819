from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from startup.node import listeners
from startup.node.listeners import PortUnavailable, backlog_warning, open_listener


def test_listener_is_nonblocking_not_inherited_and_listens() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        assert not listener.getblocking()
        assert not os.get_blocking(listener.fileno())
        assert not listener.get_inheritable()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_port_is_free_again_as_soon_as_the_listener_is_closed() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            accepted.close()  # our side waits in TIME_WAIT
    open_listener("127.0.0.1", port).close()


@pytest.mark.process
def test_taken_port_names_the_process_that_has_it() -> None:
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdout is not None
        port = int(stranger.stdout.readline())
        with pytest.raises(PortUnavailable) as caught:
            open_listener("127.0.0.1", port)
        assert caught.value.taken
        assert str(caught.value).startswith(f"port {port} on 127.0.0.1: taken by {sys.executable} -c")
        assert f"(pid {stranger.pid})" in str(caught.value)
        assert stranger.stdin is not None
        stranger.stdin.close()


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "no address of this machine"), ("no such host", "is no address"), ("a..b", "is no address")],
)
def test_address_that_can_not_be_bound_says_why(host: str, reason: str) -> None:
    with pytest.raises(PortUnavailable, match=reason) as caught:
        open_listener(host, 0)
    assert not caught.value.taken


def test_short_backlog_of_the_kernel_is_told_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "somaxconn"
    monkeypatch.setattr(listeners, "_SOMAXCONN", setting)
    assert backlog_warning() is None  # not readable
    setting.write_text("128\n")
    warning = backlog_warning()
    assert warning is not None
    assert "sysctl -w net.core.somaxconn=4096" in warning
    setting.write_text("4096\n")
    assert backlog_warning() is None
