"""Webhooks against a real HTTP server: what arrives, and what happens when nobody takes it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from startup.node.errors import webhooks
from startup.node.errors.webhooks import Webhooks


class Receiver:
    """An HTTP server that remembers what it was sent, and answers as it is told."""

    def __init__(self) -> None:
        self.received: list[tuple[str, Any]] = []
        self.arrived = threading.Semaphore(0)
        self.statuses: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((self.path, json.loads(body)))
                receiver.arrived.release()
                receiver.gate.wait(30)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def hooks() -> Iterator[Webhooks]:
    hooks = Webhooks(again_s=0.01)
    yield hooks
    hooks.close()


def until(is_so: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        ended.wait(0.005)
    raise AssertionError("not reached")


def test_a_document_arrives_as_json(receiver: Receiver, hooks: Webhooks) -> None:
    assert hooks.post(receiver.url("/a?b=c"), {"message": "disk füll", "count": 3})
    until(lambda: hooks.delivered == 1)
    assert receiver.received == [("/a?b=c", {"message": "disk füll", "count": 3})]


def test_a_failure_is_tried_once_more(receiver: Receiver, hooks: Webhooks) -> None:
    receiver.statuses = [500]
    hooks.post(receiver.url(), {"n": 1})
    until(lambda: hooks.delivered == 1)
    assert len(receiver.received) == 2


def test_what_can_not_be_delivered_is_counted_and_its_address_is_not_shown(
    receiver: Receiver, hooks: Webhooks, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [404, 404]
    with caplog.at_level(logging.WARNING):
        hooks.post(receiver.url("/?token=hunter2"), {})
        hooks.post("http://127.0.0.1:9/?token=hunter2", {})
        until(lambda: hooks.failed == 2)
    assert "127.0.0.1" in str([vars(record) for record in caplog.records])
    assert "hunter2" not in str([vars(record) for record in caplog.records])


def test_a_redirect_is_not_followed(receiver: Receiver, hooks: Webhooks) -> None:
    receiver.statuses = [302, 307]
    hooks.post(receiver.url(), {})
    until(lambda: hooks.failed == 1)
    assert [path for path, _ in receiver.received] == ["/hook", "/hook"]


def test_addresses_that_hang_cost_a_bounded_queue_and_nobody_waits(
    receiver: Receiver, hooks: Webhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_WAITING", 10)
    receiver.gate.clear()
    assert [hooks.post(receiver.url(), {"n": n}) for n in range(15)] == [True] * 10 + [False] * 5
    assert hooks.dropped == 5
    receiver.gate.set()
    until(lambda: hooks.delivered == 10)


def test_a_server_that_never_answers_is_given_up(receiver: Receiver) -> None:
    receiver.gate.clear()
    hooks = Webhooks(limit_s=0.1, again_s=0.01)
    hooks.post(receiver.url(), {})
    until(lambda: hooks.failed == 1)
    hooks.close()
    assert not hooks.post(receiver.url(), {})
