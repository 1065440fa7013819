"""Listeners that were handed down: found, checked, adopted, and never closed or aborted over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from agentkit.errors import ConfigError
from agentkit.transport import adopt, context
from tests.agentkit.support import ROOT, Listener, an_inbox, raw


@contextmanager
def handed_down(monkeypatch: pytest.MonkeyPatch, *socks: socket.socket | int) -> Iterator[dict[str, str]]:
    """An environment that hands down duplicates of `socks`, on descriptors that are free here."""
    first = 400
    monkeypatch.setattr(adopt, "FIRST_FD", first)
    for place, sock in enumerate(socks, start=first):
        os.dup2(sock if isinstance(sock, int) else sock.fileno(), place)
    try:
        yield {"LISTEN_FDS": str(len(socks)), "LISTEN_PID": str(os.getpid()), "PATH": "x"}
    finally:
        for place in range(first, first + len(socks)):
            with suppress(OSError):
                os.close(place)


def test_nothing_is_adopted_where_nothing_was_handed_down() -> None:
    environ = {"PATH": "x"}
    assert adopt.adopted(environ) == {}
    assert environ == {"PATH": "x"}


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "inbox-local"}
    assert adopt.adopted(environ) == {}
    assert environ == {}


def test_listeners_come_by_name_nonblocking_closed_on_exec_and_the_variables_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Listener() as one, Listener() as two:
        one.sock.setblocking(True)
        with handed_down(monkeypatch, one.sock, two.sock) as environ:
            environ["LISTEN_FDNAMES"] = "inbox-local:http"
            found = adopt.adopted(environ)
            assert adopt.endpoints(found) == {"inbox-local": one.endpoint, "http": two.endpoint}
            for sock in found.values():
                assert not os.get_blocking(sock.fileno())
                assert not os.get_inheritable(sock.fileno())
                sock.close()
            assert environ == {"PATH": "x"}


def test_descriptors_without_a_name_are_named_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener() as one, handed_down(monkeypatch, one.sock) as environ:
        (found,) = adopt.adopted(environ).items()
        assert found[0] == "fd400"
        found[1].close()


def not_listening() -> socket.socket:
    return socket.socket()


def a_datagram_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def a_unix_listener() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # an abstract address of the kernel's choice
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (not_listening, "a socket that does not listen"),
        (a_datagram_socket, "a socket that does not listen"),
        (a_unix_listener, "AF_UNIX"),
    ],
)
def test_a_wrong_socket_is_named_and_left_open(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], socket.socket], says: str
) -> None:
    with make() as wrong, handed_down(monkeypatch, wrong) as environ:
        with pytest.raises(ConfigError, match=rf"descriptor 400 \(inbox-local\) of LISTEN_FDS: got .*{says}"):
            adopt.adopted(environ | {"LISTEN_FDNAMES": "inbox-local"})
        os.fstat(400)


def test_a_file_and_a_closed_descriptor_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with handed_down(monkeypatch, fd) as environ, pytest.raises(ConfigError, match="non-socket"):
        adopt.adopted(environ)
    os.close(fd)
    with pytest.raises(ConfigError, match="Bad file descriptor"):
        adopt.adopted({"LISTEN_FDS": "1"})
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        adopt.adopted({"LISTEN_FDS": "many"})


async def test_two_inboxes_share_a_listener_which_outlives_both() -> None:
    with Listener() as listener:
        for _ in range(2):
            async with an_inbox() as (first, _, _), an_inbox() as (second, _, _):
                assert first.adopt(listener.sock) == second.adopt(listener.sock) == listener.endpoint
                with raw(listener.endpoint) as caller:
                    assert (await caller.hello()).name == "Callee"
        assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_binding_elsewhere_after_an_adoption_binds_elsewhere() -> None:
    with Listener() as listener:
        sock = context.socket(zmq.ROUTER, max_frame_bytes=-1)
        assert adopt.bind_adopted(sock, listener.sock) == listener.endpoint
        assert sock.bind_to_random_port("tcp://127.0.0.1") != listener.sock.getsockname()[1]
        sock.close()


@pytest.mark.process
def test_an_agent_given_a_wrong_descriptor_says_so_and_exits_2() -> None:
    with socket.socket() as wrong:
        program = (
            f"import os; os.dup2({wrong.fileno()}, 3); os.environ['LISTEN_FDS'] = '1'\n"
            "from tests.agentkit.worker import Worker; Worker.main()"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], pass_fds=(wrong.fileno(),), cwd=ROOT, capture_output=True, text=True
        )
    assert ended.returncode == 2
    assert "descriptor 3 (fd3) of LISTEN_FDS: got 'a socket that does not listen'" in ended.stderr + ended.stdout
