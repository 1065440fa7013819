"""The control conversation from another machine: the same answers as on the unix socket, for who may, and nothing for who may not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from agentkit.errors import BadRequest, CallError, Forbidden, NoNode, NotFound, UnknownMethod
from agentkit.resilience.deadline import Deadline
from agentkit.security.roles import Holder
from agentkit.transport import context
from agentkit.transport.blocking import BlockingChannel
from agentkit.transport.inbox import Inbox
from agentkit.transport.peer import Inbound
from agentkit.wire import values
from startup.cli.watch import Watch
from startup.control import NodeConnection
from startup.errors import Conflict, NodeLost, Refused
from startup.node import remote_control
from startup.node.control_server import ControlServer
from startup.node.remote_control import CONTROL, RemoteControl, may_control
from startup.plan.row import AgentRow
from startup.remote import RemoteDoor, RemoteTalk
from tests.agentkit.conftest import _large_frame_sent  # noqa: F401
from tests.agentkit.support import PATIENCE_S, identity
from tests.startup.node.test_control import Server, folder  # noqa: F401
from tests.startup.plan.builders import aid


class Remote(Server):
    """The same operations on an inbox, too. `refusal`: why callers are not heard."""

    refusal: CallError | None = None

    async def _start(self) -> None:
        self.control = RemoteControl(self.handle, lambda _: self.refusal)
        self.inbox = Inbox(identity("_node", incarnation=7), self)
        self.endpoint = self.inbox.bind("tcp://127.0.0.1:*")
        self.server = ControlServer(self.path, self.handle)
        await self.server.start()

    def request(self, inbound: Inbound) -> None:
        self.control.request(self.inbox, inbound)

    def abandon(self, inbound: Inbound) -> None:
        self.control.abandon(inbound)

    def handle(self, conversation, id, operation, arguments):  # type: ignore[no-untyped-def]
        if operation == "ping":
            return {}
        if operation == "watch":
            return self.watch(conversation, id)
        return super().handle(conversation, id, operation, arguments)

    def watch(self, conversation, id):  # type: ignore[no-untyped-def]
        rows = [AgentRow(id=aid("b/A"), version=n) for n in range(3)]
        for number, row in enumerate(rows):
            self.loop.call_later(0.05 * number, conversation.tell, id, {"rows": [row.to_wire()]})
        return remote_control.Telling(lambda: self.stopped.append("watch"))

    def close(self) -> None:
        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(10)
        super().close()

    async def _end(self) -> None:
        await self.control.close()
        self.inbox.close()

    def on_loop(self, work):  # type: ignore[no-untyped-def]
        """Run in the node's thread; its result."""
        done = threading.Event()
        found = []
        self.loop.call_soon_threadsafe(lambda: (found.append(work()), done.set()))
        assert done.wait(PATIENCE_S)
        return found[0]


@pytest.fixture
def server(folder: Path) -> Iterator[Remote]:  # noqa: F811
    uvloop.new_event_loop().close()
    running = Remote(folder / "node.sock")
    yield running
    running.close()
    context.close_context()


@pytest.fixture
def talk(server: Remote) -> Iterator[RemoteTalk]:
    opened = RemoteDoor("b", server.endpoint).open(timeout_s=5.0)
    yield opened
    opened.close()


def until(is_so, within_s: float = PATIENCE_S) -> None:  # type: ignore[no-untyped-def]
    ends_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < ends_s
        time.sleep(0.005)


def test_the_answers_are_those_of_the_unix_socket(server: Remote, talk: RemoteTalk) -> None:
    with NodeConnection.connect(server.path) as near:
        for value in (None, 1, "ü", b"\x00", [1, {"a": [None]}], {"k": 1.5}, "x" * 1_000_000):
            assert talk.ask("echo", value=value) == near.ask("echo", value=value) == value
        assert talk.ask("later") == near.ask("later") == "late"


def test_refusals_arrive_as_the_errors_they_were(talk: RemoteTalk) -> None:
    with pytest.raises(Conflict, match="revision 7 by ops@pc2") as conflict:
        talk.ask("conflict")
    assert conflict.value.details == {"number": 7}
    with pytest.raises(Refused, match="it is gone"):
        talk.ask("refused")
    with pytest.raises(NotFound):
        talk.ask("known")
    for wrong in ("config", "echo"):
        with pytest.raises(BadRequest):
            talk.ask(wrong)
    with pytest.raises(Exception, match="nobody thought of this"):
        talk.ask("unforeseen")
    assert talk.ask("echo", value=1) == 1


def test_events_come_in_order_with_ticks_and_end_with_the_node(server: Remote, talk: RemoteTalk) -> None:
    events = talk.events("count", to=3, tick_s=0.05)
    assert [event for event in (next(events) for _ in range(20)) if event is not None][:3] == [0, 1, 2]
    server.close()
    assert set(events) <= {None}


def test_events_that_nobody_reads_any_more_are_not_told(server: Remote, talk: RemoteTalk) -> None:
    events = talk.events("count", to=1, tick_s=0.05)
    assert next(event for event in events if event is not None) == 0
    events.close()
    until(lambda: server.stopped == ["count"])
    assert talk.ask("echo", value=1) == 1


def test_what_a_node_refuses_to_tell_raises_as_on_the_unix_socket(talk: RemoteTalk) -> None:
    with pytest.raises(Refused, match="it is gone"):
        next(talk.events("refused"))
    with pytest.raises(BadRequest, match="ask without a stream"):
        next(talk.events("echo", value=1))
    with pytest.raises(BadRequest, match="ask for a stream"):
        talk.ask("count", to=1)


def test_a_watch_wakes_when_something_comes_and_sees_everything(server: Remote) -> None:
    with Watch({"b": RemoteDoor("b", server.endpoint)}) as watch:
        assert watch.until(lambda rows: aid("b/A") in rows and rows[aid("b/A")].version == 2, PATIENCE_S)
        server.on_loop(lambda: [stream.stop() for stream in tuple(server.control._streams)])
        assert not watch.wait(0.01)
        server.close()
        assert watch.wait(PATIENCE_S)
        assert list(watch.lost) == ["b"]


def test_a_silent_machine_is_lost_though_nobody_says_so(server: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("startup.remote.PING_AFTER_S", 0.05)
    monkeypatch.setattr("startup.remote.LOST_AFTER_S", 0.5)
    monkeypatch.setattr("startup.cli.watch.LOOK_EVERY_S", 0.05)
    with Watch({"b": RemoteDoor("b", server.endpoint)}) as watch:
        assert watch.until(lambda rows: aid("b/A") in rows and rows[aid("b/A")].version == 2, PATIENCE_S)
        assert not watch.wait(1.0)  # it says nothing of itself, but answers
        held = threading.Event()
        server.loop.call_soon_threadsafe(held.wait, 10)
        try:
            assert watch.wait(PATIENCE_S)
        finally:
            held.set()
        assert list(watch.lost) == ["b"]


def test_who_may_not_is_refused_with_the_remedy_and_nothing_of_theirs_is_read(server: Remote) -> None:
    server.refusal = may_control(None)
    with pytest.raises(NoNode, match=r"needs the operator's key.*security: \{keys: FOLDER\}"):
        RemoteDoor("b", server.endpoint).open()
    channel = BlockingChannel("b", server.endpoint, identity())
    for _ in range(50):
        with pytest.raises(Forbidden):
            channel.request(CONTROL, b"\xc1 no msgpack", Deadline.after(5))
    channel.close()
    assert server.control.refused == 51
    assert not server.control._tasks


@pytest.mark.parametrize("body", [None, 7, {}, {"operation": "echo"}, {"operation": "echo", "arguments": 3}])
def test_garbage_is_a_bad_request(server: Remote, talk: RemoteTalk, body: object) -> None:
    channel = BlockingChannel("b", server.endpoint, identity())
    with pytest.raises(BadRequest, match="operation, arguments"):
        channel.request(CONTROL, values.pack(body), Deadline.after(5))
    channel.close()
    assert talk.ask("echo", value=1) == 1


def test_what_agents_ask_of_their_own_node_is_not_asked_from_elsewhere(talk: RemoteTalk) -> None:
    with pytest.raises(BadRequest, match="agents of this machine"):
        talk.ask("report", id="b/A")


def test_who_does_not_read_is_cut_off_and_costs_no_more(
    server: Remote, talk: RemoteTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_control, "MAX_UNREAD_BYTES", 3_000_000)
    slow = RemoteDoor("b", server.endpoint).open()
    events = slow.events("flood", times=20, tick_s=0.01)
    with pytest.raises(CallError, match="was not read"):
        list(events)
    until(lambda: server.stopped == ["flood"])
    assert not server.control._streams
    assert talk.ask("echo", value=1) == 1
    slow.close()


def test_streams_are_limited(server: Remote, talk: RemoteTalk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_control, "MAX_STREAMS", 1)
    first = RemoteDoor("b", server.endpoint).open()
    assert next(event for event in first.events("count", to=1, tick_s=0.05) if event is not None) == 0
    going = first.events("count", to=1, tick_s=0.05)
    assert next(event for event in going if event is not None) == 0
    with pytest.raises(CallError, match="1 conversations"):
        next(talk.events("count", to=1))
    first.close()
    until(lambda: not server.control._streams)
    assert next(talk.events("count", to=1)) == 0


def test_a_node_that_does_not_answer_is_given_up_and_one_that_goes_is_lost(server: Remote) -> None:
    impatient = RemoteDoor("b", server.endpoint).open(timeout_s=0.2)
    with pytest.raises(TimeoutError, match=r"the node of b did not answer `never` within 0\.2 s"):
        impatient.ask("never")
    impatient.close()
    talk = RemoteDoor("b", server.endpoint).open(timeout_s=5.0)
    server.close()
    with pytest.raises(NodeLost):
        talk.ask("echo", value=1)
    talk.close()
    with pytest.raises(NoNode, match="nobody listens at tcp://"):
        RemoteDoor("b", server.endpoint).open()


def test_only_operators_control() -> None:
    assert may_control(Holder("ops", "operator")) is None
    refused = may_control(Holder("pc2", "agent"))
    assert isinstance(refused, Forbidden)
    assert "'operator'" in refused.message
    assert "pc2 (agent)" in refused.message


def test_an_inbox_without_control_knows_no_such_method(tmp_path: Path) -> None:
    from startup.node.mesh.receiver import _no_handler

    with pytest.raises(UnknownMethod):
        _no_handler(None, 0, "hello", {})
