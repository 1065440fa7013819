"""The directory against a small real node: subscriptions, changes, a node that goes, comes back, hangs or talks nonsense."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentkit.directory.base import AgentRecord
from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import AgentUnknown, CallError, InternalError, Unreachable
from agentkit.names import AgentId, Incarnation
from agentkit.wire.frames import FrameBuffer, pack
from tests.agentkit.support import eventually


def record(id: str, phase: str = "ready", incarnation: int = 1) -> AgentRecord:
    return AgentRecord(
        id=AgentId.parse(id), incarnation=Incarnation(incarnation), phase=phase, endpoints={"inbox-local": "tcp://h:1"}
    )


class SmallNode:
    """The control socket of a node that knows only agents."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[AgentRecord] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Callable[[str, dict[str, Any]], Any] | None = None
        self._server: asyncio.Server | None = None
        self._feeds: list[tuple[asyncio.StreamWriter, int, str]] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._converse, str(self.path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.close()
            await self._server.wait_closed()
            await eventually(lambda: not self._writers)
            self._server = None
            self._feeds.clear()
            self.path.unlink(missing_ok=True)

    def put(self, *records: AgentRecord) -> None:
        for new in records:
            self.records = [r for r in self.records if r.id != new.id] + [new]
        for writer, id, name in self._feeds:
            self._tell(writer, id, name)

    def say(self, message: Any) -> None:
        for writer in self._writers:
            writer.write(message if isinstance(message, bytes) else pack(message))

    def _tell(self, writer: asyncio.StreamWriter, id: int, name: str) -> None:
        records = [r.to_wire() for r in self.records if r.id.name == name]
        writer.write(pack([id, "event", {"records": records}]))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        buffer = FrameBuffer()
        try:
            while data := await reader.read(65536):
                for id, operation, arguments in buffer.feed(data):
                    self.asked.append((operation, arguments))
                    self._handle(writer, id, operation, arguments)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            self._feeds = [feed for feed in self._feeds if feed[0] is not writer]
            writer.close()

    def _handle(self, writer: asyncio.StreamWriter, id: int, operation: str, arguments: dict[str, Any]) -> None:
        if operation == "directory":
            self._feeds.append((writer, id, arguments["name"]))
            self._tell(writer, id, arguments["name"])
        elif operation == "names":
            writer.write(pack([id, "ok", {"ids": sorted(str(r.id) for r in self.records)}]))
        elif self.answer is not None:
            kind, content = self.answer(operation, arguments)
            writer.write(pack([id, kind, content]))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ak-") as folder:
        yield Path(folder) / "node.sock"


@asynccontextmanager
async def a_node(path: Path) -> AsyncIterator[SmallNode]:
    node = SmallNode(path)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


@asynccontextmanager
async def a_directory(path: Path, **options: Any) -> AsyncIterator[MeshDirectory]:
    directory = MeshDirectory(str(path), here="m1", **options)
    try:
        yield directory
    finally:
        await directory.close()


async def test_a_name_is_asked_for_once_and_changes_are_told(path: Path) -> None:
    seen: list[tuple[str, tuple[str, ...]]] = []
    async with (
        a_node(path) as node,
        a_directory(path, on_records=lambda name, rs: seen.append((name, tuple(r.phase for r in rs)))) as directory,
    ):
        node.put(record("m1/A", "starting"))
        assert [r.phase for r in await directory.lookup("A")] == ["starting"]
        for _ in range(3):
            await directory.lookup("A")
            await directory.lookup("m1/A#0")
        assert node.asked == [("directory", {"name": "A"})]
        version = directory.version
        node.put(record("m1/A", "ready"))
        await eventually(lambda: directory.cached("A")[0].phase == "ready")
        assert directory.version > version
        assert seen == [("A", ("starting",)), ("A", ("ready",))]


async def test_lookups_of_one_name_at_once_share_a_subscription(path: Path) -> None:
    async with a_node(path) as node, a_directory(path) as directory:
        node.put(record("m1/A"))
        await asyncio.gather(*(directory.lookup("A") for _ in range(20)))
        assert node.asked == [("directory", {"name": "A"})]


async def test_a_bare_name_means_the_agent_of_this_machine_first(path: Path) -> None:
    async with a_node(path) as node, a_directory(path) as directory:
        node.put(record("m1/A"), record("m2/A"), record("m2/B"), record("m3/B"))
        assert [str(r.id) for r in await directory.lookup("A")] == ["m1/A"]
        with pytest.raises(AgentUnknown, match="ambiguous"):
            await directory.lookup("B")
        assert [str(r.id) for r in await directory.lookup("m3/B")] == ["m3/B"]


async def test_nobody_of_that_name_is_told_at_once_and_may_appear_later(path: Path) -> None:
    async with a_node(path) as node, a_directory(path) as directory:
        with pytest.raises(AgentUnknown) as caught:
            await directory.lookup("A")
        assert not caught.value.directory_stale
        node.put(record("m1/A"))
        await eventually(lambda: "A" in directory._records and directory._records["A"])
        assert len(await directory.lookup("A")) == 1


async def test_what_was_learnt_serves_while_the_node_is_away_and_other_names_say_that_it_is(path: Path) -> None:
    async with a_directory(path) as directory:
        async with a_node(path) as node:
            node.put(record("m1/A"))
            await directory.lookup("A")
        await eventually(lambda: not directory._connected.is_set())
        assert [str(r.id) for r in await directory.lookup("A")] == ["m1/A"]
        began = time.monotonic()
        with pytest.raises(AgentUnknown) as caught:
            await directory.lookup("Never")
        assert caught.value.directory_stale
        assert time.monotonic() - began < 20
        with pytest.raises(Unreachable, match="does not answer"):
            await directory.names()


async def test_a_node_that_comes_back_is_found_and_every_name_is_asked_for_again(path: Path) -> None:
    async with a_directory(path) as directory:
        for phase in ("starting", "ready"):
            async with a_node(path) as node:
                node.put(record("m1/A", phase))
                await eventually(lambda p=phase: "A" not in directory._records or node.asked != [] or p)  # type: ignore[misc]
                await directory.lookup("A")
                await eventually(lambda p=phase: directory.cached("A")[0].phase == p)  # type: ignore[misc]
            await eventually(lambda: not directory._connected.is_set())


async def test_a_lookup_that_waits_is_answered_when_the_node_appears(path: Path) -> None:
    async with a_directory(path) as directory:
        lookup = asyncio.create_task(directory.lookup("A"))
        await asyncio.sleep(0.05)
        async with a_node(path) as node:
            node.put(record("m1/A"))
            assert len(await lookup) == 1


async def test_each_connection_is_greeted(path: Path) -> None:
    attached: list[str] = []

    async def attach(directory: MeshDirectory) -> None:
        attached.append(await directory.ask("attach", id="m1/A", incarnation=3))

    async with a_directory(path, on_connected=attach) as directory:
        directory.start()
        for n in (1, 2):
            async with a_node(path) as node:
                node.answer = lambda operation, arguments: ("ok", f"{operation} {arguments['incarnation']}")
                await eventually(lambda n=n: len(attached) == n)  # type: ignore[misc]
    assert attached == ["attach 3", "attach 3"]


async def test_an_error_of_the_node_is_an_exception_with_its_code(path: Path) -> None:
    async with a_node(path) as node, a_directory(path) as directory:
        node.answer = lambda *_: ("error", {"code": "not_found", "message": "no such thing", "details": {"a": 1}})
        with pytest.raises(CallError, match="no such thing") as caught:
            await directory.ask("x")
        assert (caught.value.code, caught.value.details) == ("not_found", {"a": 1})
        node.answer = lambda *_: ("error", {"code": "gone", "message": "incarnation 4 is not wanted"})
        with pytest.raises(InternalError, match=r"^gone: incarnation 4"):
            await directory.ask("attach")


async def test_questions_that_are_open_when_the_node_goes_end_as_unreachable(path: Path) -> None:
    async with a_node(path) as node, a_directory(path) as directory:
        asking = asyncio.create_task(directory.ask("silence"))
        await eventually(lambda: node.asked)
        await node.stop()
        with pytest.raises(Unreachable, match="went away"):
            await asking
        assert directory._replies == {}


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        [1],
        "text",
        [1, "event", {"records": [{"id": "m1/A", "unheard": "of"}]}],
        [1, "event", {"records": [{"id": "no id"}]}],
        [1, "event", None],
        [999, "ok", None],
        [None, None, None],
        [[1], "ok", None],
    ],
)
async def test_a_node_that_talks_nonsense_is_left_and_tried_again(path: Path, nonsense: Any) -> None:
    async with a_node(path) as node, a_directory(path) as directory:
        node.put(record("m1/A"))
        await directory.lookup("A")
        node.say(nonsense)
        await asyncio.sleep(0.05)
        node.put(record("m1/A", "draining"))
        await eventually(lambda: directory.cached("A")[0].phase == "draining")


async def test_a_closed_directory_stays_closed(path: Path) -> None:
    async with a_node(path) as node:
        directory = MeshDirectory(str(path), here="m1")
        node.put(record("m1/A"))
        await directory.lookup("A")
        await directory.close()
        await directory.close()
        directory.start()
        assert directory._task is None
        assert len(await directory.lookup("A")) == 1
        with pytest.raises(AgentUnknown):
            await directory.lookup("B")
