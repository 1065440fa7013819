"""The conversation with a node from both ends: a real server on a thread's loop, the blocking client, and who is found."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agentkit.directory.locate import NodeInfo, default_cluster, find_node, running_nodes
from agentkit.errors import BadRequest, ConfigError, NoNode, NotFound
from agentkit.wire import frames
from agentkit.wire.frames import FrameBuffer, pack
from startup.control import NodeConnection
from startup.errors import Conflict, NodeLost, Refused
from startup.node import control_server
from startup.node.control_server import ControlServer, Conversation, Telling
from startup.node.paths import Places


class Server:
    """A ControlServer on a loop of its own thread; operations are those of `handle`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stopped: list[str] = []
        self.loop = uvloop.new_event_loop()
        self.server: ControlServer | None = None
        self.up = threading.Event()
        self.thread = threading.Thread(target=self._run, name="server")
        self.thread.start()
        assert self.up.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._start())
        self.loop.call_soon(self.up.set)
        self.loop.run_forever()
        assert self.server is not None
        self.loop.run_until_complete(self.server.close())
        self.loop.close()

    async def _start(self) -> None:
        self.server = ControlServer(self.path, self.handle)
        await self.server.start()

    def handle(self, conversation: Conversation, id: int, operation: str, arguments: Mapping[str, Any]) -> Any:
        match operation:
            case "echo":
                return arguments["value"]
            case "later":
                return self._later()
            case "never":
                return asyncio.sleep(3600)
            case "count":
                for number in range(arguments["to"]):
                    conversation.tell(id, number)
                return Telling(lambda: self.stopped.append(operation))
            case "flood":
                for _ in range(arguments["times"]):
                    conversation.tell(id, b"x" * 1_000_000)
                return Telling(lambda: self.stopped.append(operation))
            case "conflict":
                raise Conflict("conflict: revision 7 by ops@pc2 3 s ago", {"number": 7})
            case "refused":
                raise Refused("gone", "it is gone", {"why": 1})
            case "known":
                raise NotFound("no such thing")
            case "config":
                raise ConfigError(at="x", got=1, want="2")
        raise RuntimeError("nobody thought of this")

    async def _later(self) -> str:
        await asyncio.sleep(0.01)
        return "late"

    def close(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ak-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder / "node.sock")
    yield running
    running.close()


def test_questions_are_answered_whatever_they_carry(server: Server) -> None:
    with NodeConnection.connect(server.path) as node:
        for value in (None, 1, "ü", b"\x00", [1, {"a": [None]}], {"k": 1.5}, "x" * 1_000_000):
            assert node.ask("echo", value=value) == value
        assert node.ask("later") == "late"


def test_refusals_arrive_as_the_errors_they_were(server: Server) -> None:
    with NodeConnection.connect(server.path) as node:
        with pytest.raises(Conflict, match="revision 7 by ops@pc2") as conflict:
            node.ask("conflict")
        assert conflict.value.details == {"number": 7}
        with pytest.raises(Refused, match="it is gone") as refused:
            node.ask("refused")
        assert (refused.value.code, refused.value.details) == ("gone", {"why": 1})
        with pytest.raises(NotFound):
            node.ask("known")
        for wrong in ("config", "echo"):
            with pytest.raises(BadRequest):
                node.ask(wrong)
        with pytest.raises(Exception, match="nobody thought of this"):
            node.ask("unforeseen")
        assert node.ask("echo", value=1) == 1


def test_events_come_in_order_and_end_with_the_conversation(server: Server) -> None:
    with NodeConnection.connect(server.path) as node:
        events = node.events("count", to=3, tick_s=0.05)
        assert [next(events) for _ in range(4)] == [0, 1, 2, None]  # then nothing came for a tick
        server.close()
        assert list(events) == []
    assert server.stopped == ["count"]


def test_events_of_a_refused_question_raise(server: Server) -> None:
    with NodeConnection.connect(server.path) as node, pytest.raises(Refused):
        next(node.events("refused"))


def test_a_node_that_does_not_answer_is_given_up_and_one_that_goes_is_lost(server: Server) -> None:
    with (
        NodeConnection.connect(server.path, timeout_s=0.05) as node,
        pytest.raises(TimeoutError, match=r"`never` within 0\.05 s"),
    ):
        node.ask("never")
    node = NodeConnection.connect(server.path)
    server.close()
    with pytest.raises(NodeLost):
        node.ask("echo", value=1)
    node.close()
    with pytest.raises(NoNode, match="no node answers at"):
        NodeConnection.connect(server.path)


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, pack("no request"), pack([1, "echo"]), pack(["x", "echo", {}]), b"\x00\x00\x00\x01\xc1"]
)
def test_garbage_ends_that_conversation_and_no_other(server: Server, garbage: bytes) -> None:
    with NodeConnection.connect(server.path) as good, socket.socket(socket.AF_UNIX) as bad:
        bad.settimeout(5)
        bad.connect(str(server.path))
        bad.sendall(garbage)
        assert bad.recv(100) == b""
        assert good.ask("echo", value=1) == 1


def test_requests_cut_into_single_bytes_are_understood(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(server.path))
        for byte in pack([5, "echo", {"value": "x"}]):
            raw.send(bytes([byte]))
        assert list(FrameBuffer().feed(raw.recv(100))) == [[5, "ok", "x"]]


def test_who_does_not_read_what_it_asked_for_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "MAX_UNREAD_BYTES", 3_000_000)
    with NodeConnection.connect(server.path) as slow, NodeConnection.connect(server.path) as good:
        slow._send("flood", {"times": 20})
        assert good.ask("echo", value=1) == 1
        while server.stopped != ["flood"]:
            assert good.ask("later") == "late"


def test_only_the_owner_may_enter(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(control_server, "_CREDENTIALS", _Stranger)
    with NodeConnection.connect(server.path) as node, pytest.raises((NodeLost, BrokenPipeError)):
        node.ask("echo", value=1)


class _Stranger:
    size = 12

    @staticmethod
    def unpack(_: bytes) -> tuple[int, int, int]:
        return 1, 4242, 4242


def test_a_frame_longer_than_anybody_takes_is_refused(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1000)
    with NodeConnection.connect(server.path) as node, pytest.raises(Exception, match="control message"):
        node.ask("echo", value="x" * 2000)


# -- which node is meant


def node_of(folder: Path, cluster: str, machine: str = "m") -> NodeInfo:
    places = Places(cluster, machine, folder / cluster / machine, folder / "s" / cluster / machine)
    places.prepare()
    info = NodeInfo(
        cluster=cluster,
        machine=machine,
        pid=1,
        control=str(places.control),
        mesh=None,
        file=None,
        project_root=None,
        started_s=0.0,
    )
    places.announce(info)
    return info


@pytest.fixture
def environ(folder: Path) -> dict[str, str]:
    return {"AGENTKIT_RUN_DIR": str(folder), "HOME": str(folder)}


@pytest.fixture
def listen() -> Iterator[Any]:
    opened: list[socket.socket] = []

    def start(info: NodeInfo) -> NodeInfo:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(info.control)
        sock.listen(8)
        opened.append(sock)
        return info

    yield start
    for sock in opened:
        sock.close()


def test_without_any_node_it_says_where_it_looked(folder: Path, environ: dict[str, str]) -> None:
    node_of(folder, "dead")  # its file is there, it is not
    with pytest.raises(NoNode, match=rf"no node runs here \(looked below {folder}\)"):
        find_node(environ=environ, folder=folder)


def test_the_only_running_cluster_is_meant(folder: Path, environ: dict[str, str], listen: Any) -> None:
    node_of(folder, "dead")
    info = listen(node_of(folder, "c"))
    assert find_node(environ=environ, folder=folder) == info
    assert running_nodes(environ=environ) == (info,)


def test_of_several_clusters_one_must_be_chosen_or_be_the_default_files(
    folder: Path, environ: dict[str, str], listen: Any
) -> None:
    one, two = listen(node_of(folder, "one")), listen(node_of(folder, "two"))
    with pytest.raises(NoNode, match=r"several clusters run here \(one, two\).*--cluster"):
        find_node(environ=environ, folder=folder)
    assert find_node("two", environ, folder) == two
    (folder / "startup_config.yaml").write_text("version: 1\ncluster: one   # ours\n")
    assert find_node(environ=environ, folder=folder) == one
    with pytest.raises(NoNode, match=r"'three' runs here \(running: one, two\)"):
        find_node("three", environ, folder)


def test_the_environment_may_name_the_node(folder: Path, environ: dict[str, str], listen: Any) -> None:
    one, two = listen(node_of(folder, "one")), listen(node_of(folder, "two"))
    assert find_node(environ={**environ, "AGENTKIT_NODE": one.control}, folder=folder) == one
    assert find_node("two", {**environ, "AGENTKIT_NODE": one.control}, folder) == two
    with pytest.raises(NoNode, match="AGENTKIT_NODE says"):
        find_node(environ={**environ, "AGENTKIT_NODE": str(folder / "nowhere.sock")}, folder=folder)


def test_the_default_file_is_read_for_its_name_only(folder: Path) -> None:
    assert default_cluster(folder) is None
    (folder / "startup_config.yaml").write_text("cluster: 'lower'\n")
    assert default_cluster(folder) == "lower"
    (folder / "configs").mkdir()
    (folder / "configs" / "startup_config.yaml").write_text("machines: {}\n")
    assert default_cluster(folder) is None


def test_the_client_needs_neither_sockets_nor_loops_nor_models() -> None:
    import subprocess
    import sys

    code = "import sys, json; import startup.control; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"zmq", "asyncio", "pydantic", "psutil", "yaml", "uvloop"}
