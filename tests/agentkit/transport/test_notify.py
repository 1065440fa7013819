"""Telling whoever started us: what leaves, that a full queue is waited for, and that nobody listening hurts nobody."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentkit.transport.notify import MAX_VALUE, Notifier, Outcome
from tests.agentkit.support import Told


def test_fields_leave_as_lines_of_one_datagram(tmp_path: Path) -> None:
    with contextlib.closing(Told(tmp_path)) as told, contextlib.closing(Notifier(told.path)) as notifier:
        assert notifier.send({"READY": 1, "STATUS": "all\nwell"})
        assert told.read() == [{"READY": "1", "STATUS": "all; well"}]


def test_values_are_bounded_and_half_characters_do_not_hurt(tmp_path: Path) -> None:
    with contextlib.closing(Told(tmp_path)) as told, contextlib.closing(Notifier(told.path)) as notifier:
        assert notifier.send({"A": "x" * 100_000, "B": "\udcff"})
        (message,) = told.read()
        assert len(message["A"]) == MAX_VALUE
        assert message["B"] == "\\udcff"


def test_without_an_address_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    assert notifier.send_now({"READY": 1}) is Outcome.NOBODY
    notifier.close()


def test_an_abstract_address_is_written_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0agentkit-test-{os.getpid()}")
        with contextlib.closing(
            Notifier.from_environment({"NOTIFY_SOCKET": f"@agentkit-test-{os.getpid()}"})
        ) as notifier:
            assert notifier.send({"READY": 1})
            assert sock.recv(100) == b"READY=1"


def test_nobody_listening_is_told_at_once(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    began = time.monotonic()
    assert not notifier.send({"READY": 1})
    assert time.monotonic() - began < 10
    notifier.close()
    assert notifier.send_now({"READY": 1}) is Outcome.NOBODY


def fill(notifier: Notifier) -> int:
    count = 0
    while notifier.send_now({"WATCHDOG": 1}) is Outcome.SENT:
        count += 1
    assert notifier.send_now({"WATCHDOG": 1}) is Outcome.FULL
    return count


def test_a_full_queue_is_waited_for_when_it_matters(tmp_path: Path) -> None:
    with contextlib.closing(Told(tmp_path)) as told, contextlib.closing(Notifier(told.path)) as notifier:
        queued = fill(notifier)
        threading.Timer(0.1, told.sock.recv, (65536,)).start()
        assert notifier.send({"READY": 1})
        assert len(told.read()) == queued
        assert told.messages[-1] == {"READY": "1"}


def test_five_hundred_at_once_all_arrive(tmp_path: Path) -> None:
    def tell(n: int) -> bool:
        with contextlib.closing(Notifier(told.path)) as notifier:
            return any(
                notifier.send({"READY": 1, "N": n}) for _ in range(10)
            )  # 500 threads of one process, on whatever machine

    with contextlib.closing(Told(tmp_path)) as told, ThreadPoolExecutor(500) as threads:
        sent = [threads.submit(tell, n) for n in range(500)]
        while not all(done.done() for done in sent):
            select.select([told.sock], [], [], 0.1)
            told.read()
        assert all(done.result() for done in sent)
        assert {m["N"] for m in told.read()} == {str(n) for n in range(500)}


def test_descriptors_travel_with_a_message(tmp_path: Path) -> None:
    with (
        contextlib.closing(Told(tmp_path)) as told,
        contextlib.closing(Notifier(told.path)) as notifier,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        assert notifier.send_now({"FDSTORE": 1}, fds=(listener.fileno(),)) is Outcome.SENT
        data, fds, _, _ = socket.recv_fds(told.sock, 1000, 5)
        assert data == b"FDSTORE=1"
        with socket.socket(fileno=fds[0]) as got:
            assert got.getsockname() == listener.getsockname()
