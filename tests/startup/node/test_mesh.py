"""Nodes telling each other their rows: two meshes on one loop, then two real nodes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from os import kill as send
from pathlib import Path
from typing import Any

import pytest

from agentkit.directory.locate import NodeInfo
from agentkit.errors import BadRequest
from agentkit.names import Incarnation
from agentkit.transport.context import close_context
from startup.node.mesh.mesh import Mesh
from startup.node.mesh.peer import MeshTimes
from startup.node.paths import Places
from startup.node.table import ClusterTable
from startup.plan.phase import Health, Phase
from startup.plan.row import AgentRow
from tests.startup.node.cluster import Nodes, kill, nodes
from tests.startup.plan.builders import aid

#: Short forms of the real times: suspect after 0.12 s.
TIMES = MeshTimes(
    ping_s=0.1, suspect_s=0.08, beat_s=0.05, dial_s=0.05, unreachable_s=0.4, call_s=1.0, redial_s=(0.02, 0.1)
)


@dataclass
class Ears:
    """A node as its mesh sees it, and what it was told."""

    rows: list[AgentRow] = field(default_factory=list)
    machine: str = ""
    table: ClusterTable = field(default_factory=ClusterTable)
    heard: dict[str, tuple[int, str]] = field(default_factory=dict)
    syncs: int = 0
    number: int = 1
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_rows(self, machine: str, rows: list[AgentRow], *, generation: int, upto: int, is_all: bool) -> None:
        self.syncs += is_all
        self.table.merge(machine, rows, generation=generation, upto=upto, is_all=is_all)
        self.changed.set()

    @property
    def known(self) -> dict[str, AgentRow]:
        return {str(row.id): row for row in self.table.rows()}

    def on_peers(self) -> None:
        self.changed.set()

    def on_revision(self, machine: str, number: int, digest: str) -> None:
        self.heard[machine] = (number, digest)
        self.changed.set()

    def own_rows(self) -> list[AgentRow]:
        return self.rows

    def own_upto(self) -> int:
        return max(row.version for row in self.rows)

    def rows_digest(self, machine: str, generation: int | None = None) -> str | None:
        if machine != self.machine:
            return self.table.digest(machine, generation)
        own = ClusterTable()
        own.update(self.rows)
        return own.digest(machine)

    def own_revision(self) -> tuple[int, str]:
        return self.number, f"digest of {self.number}"

    def answers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        return {"mesh.memory": self._memory, "mesh.errors": self._errors}

    async def _memory(self, _: Mapping[str, Any]) -> Mapping[str, float]:
        return {str(row.id): 1.5 for row in self.rows}

    async def _errors(self, asked: Mapping[str, Any]) -> Any:
        if asked["what"] == "nothing":
            raise RuntimeError("it can't be told")
        return asked["what"]

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(5.0):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Side:
    """One node's mesh in a test."""

    name: str
    mesh: Mesh
    ears: Ears
    places: Places

    def write(self) -> None:
        info = NodeInfo(
            cluster="c",
            machine=self.name,
            pid=1,
            control="",
            mesh=self.mesh.endpoint,
            file=None,
            project_root=None,
            started_s=0.0,
        )
        self.places.announce(info)


@asynccontextmanager
async def side(root: Path, name: str, *, others: set[str], incarnation: int = 1) -> AsyncIterator[Side]:
    places = Places("c", name, root / "r" / "c" / name, root / "s" / "c" / name)
    places.prepare()
    ears = Ears(machine=name, rows=[AgentRow(id=aid(f"{name}/A"), version=1)])
    mesh = Mesh(places, Incarnation(incarnation), ears, TIMES)
    one = Side(name, mesh, ears, places)
    try:
        mesh.start("127.0.0.1", None)
        one.write()
        mesh.expect(dict.fromkeys({name, *others}))
        yield one
    finally:
        await mesh.close()


@pytest.fixture(autouse=True)
def _context() -> Iterator[None]:
    yield
    close_context()


async def test_two_nodes_find_each_other_and_know_each_others_rows(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m, side(tmp_path, "n", others={"m"}) as n:
        await m.ears.until(lambda: "n/A" in m.ears.known)
        await n.ears.until(lambda: "m/A" in n.ears.known)
        assert m.mesh.endpoint is not None
        assert m.mesh.endpoint.startswith("tcp://127.0.0.1:")
        assert m.mesh.circle.states() == {"n": "alive"}
        assert n.mesh.circle.numbers() == {"m": 1}


async def test_changed_rows_are_told_in_order_and_the_last_word_counts(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m, side(tmp_path, "n", others={"m"}) as n:
        await n.ears.until(lambda: "m/A" in n.ears.known)
        for version in range(2, 200):
            m.mesh.copies.publish([replace(m.ears.rows[0], version=version, requests=version)])
            if version % 10 == 0:
                await asyncio.sleep(0)
        await n.ears.until(lambda: n.ears.known["m/A"].requests == 199)
        assert n.ears.syncs == 1


async def test_a_node_that_starts_anew_is_learnt_anew_from_both_sides(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m:
        async with side(tmp_path, "n", others={"m"}):
            await m.ears.until(lambda: "n/A" in m.ears.known)
        await m.ears.until(lambda: m.mesh.circle.states()["n"] == "suspect")
        async with side(tmp_path, "n", others={"m"}, incarnation=2) as n:
            n.ears.rows[0] = replace(n.ears.rows[0], version=0, reason="new life")
            await m.ears.until(
                lambda: m.ears.known["n/A"].reason == "new life" and m.mesh.circle.states()["n"] == "alive"
            )
            await n.ears.until(lambda: "m/A" in n.ears.known)


async def test_a_node_that_is_gone_from_a_machine_that_answers_is_absent_and_a_word_makes_alive(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m:
        async with side(tmp_path, "n", others={"m"}) as n:
            await m.ears.until(lambda: "n/A" in m.ears.known)
            assert m.mesh.circle.unreachable() == frozenset()
            await n.mesh.close()
            await m.ears.until(lambda: m.mesh.circle.states()["n"] == "absent")
            assert (m.mesh.circle.unreachable(), m.mesh.circle.silent()) == ({"n"}, frozenset())
        async with side(tmp_path, "n", others={"m"}, incarnation=2):
            await m.ears.until(lambda: m.mesh.circle.states()["n"] == "alive")


async def test_a_node_that_never_came_is_unreachable_after_its_time(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m:
        await m.ears.until(lambda: m.mesh.circle.states()["n"] == "unreachable")


async def test_a_node_that_says_bye_leaves_its_last_rows_and_no_alarm(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m:
        async with side(tmp_path, "n", others={"m"}) as n:
            await n.ears.until(lambda: "m/A" in n.ears.known)
            await m.ears.until(lambda: "n/A" in m.ears.known)
            n.ears.rows[0] = replace(n.ears.rows[0], phase=Phase.STOPPED, version=9)
            await n.mesh.bye()
            assert m.ears.known["n/A"].phase is Phase.STOPPED
        await asyncio.sleep(TIMES.unreachable_s * 1.5)  # the time in which silence would be news
        assert m.mesh.circle.states() == {"n": "left"}


async def test_memory_is_asked_of_the_others(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m, side(tmp_path, "n", others={"m"}):
        await m.ears.until(lambda: "n/A" in m.ears.known)
        async with asyncio.timeout(5.0):
            while await m.mesh.ask_others("mesh.memory", {}, 1.0) != {"n": {"n/A": 1.5}}:
                await asyncio.sleep(0.01)


async def test_a_machine_that_does_not_answer_is_told_apart(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n", "away"}) as m, side(tmp_path, "n", others={"m"}):
        await m.ears.until(lambda: "n/A" in m.ears.known)
        async with asyncio.timeout(5.0):
            while await m.mesh.ask_others("mesh.errors", {"what": "x"}, 1.0) != {"n": "x", "away": None}:
                await asyncio.sleep(0.01)
        assert await m.mesh.ask_others("mesh.errors", {"what": "nothing"}, 1.0) == {"n": None, "away": None}


async def test_a_machine_that_left_the_fleet_is_forgotten(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m:
        m.mesh.expect({"m": None})
        assert m.mesh.circle.states() == {}


async def test_garbage_from_a_peer_is_refused_and_hurts_nobody(tmp_path: Path) -> None:
    async with side(tmp_path, "m", others={"n"}) as m, side(tmp_path, "n", others={"m"}) as n:
        await n.ears.until(lambda: "m/A" in n.ears.known)
        peer = n.mesh._peers["m"]
        for method, said in (("mesh.rows", {"rows": [{"id": "?"}]}), ("mesh.rows", {"rows": 7}), ("dance", {})):
            with pytest.raises(Exception, match=r"."):
                await n.mesh._ask(peer, method, said)
        m.mesh.copies.publish([replace(m.ears.rows[0], version=5, requests=5)])
        await n.ears.until(lambda: n.ears.known["m/A"].requests == 5)


@pytest.mark.parametrize("name", ["no name", "", "x" * 10_000, "one_too_many"])
async def test_a_machine_that_nobody_expects_is_not_noted_without_end(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with side(tmp_path, "m", others={"n"}) as m, side(tmp_path, "n", others={"m"}) as n:
        await n.ears.until(lambda: "m/A" in n.ears.known)
        monkeypatch.setattr("startup.node.mesh.circle.MAX_MACHINES", 1)
        with pytest.raises(BadRequest, match="the fleet file names them"):
            await n.mesh._ask(n.mesh._peers["m"], "mesh.beat", {"machine": name, "rows": None})
        assert set(m.mesh.circle.states()) == {"n"}


@pytest.mark.parametrize(
    "endpoint", ["tcp://", "tcp://h", "tcp://h:x", "tcp://[:1", "ipc:///tmp/x", 7, "tcp://" + "h" * 300]
)
async def test_an_address_that_is_none_is_refused_and_not_dialled(tmp_path: Path, endpoint: object) -> None:
    async with side(tmp_path, "m", others={"n"}) as m, side(tmp_path, "n", others={"m"}) as n:
        await n.ears.until(lambda: "m/A" in n.ears.known)
        before = m.mesh._peers["n"].told
        with pytest.raises(BadRequest, match=r"mesh\.hello"):
            await n.mesh._ask(n.mesh._peers["m"], "mesh.hello", {"endpoint": endpoint, "events": None})
        assert m.mesh._peers["n"].told == before


# -- real nodes


@pytest.fixture
def two() -> Iterator[Nodes]:
    with nodes("m", "n") as running:
        yield running


@pytest.mark.process
def test_a_fleet_over_two_nodes_starts_in_order_and_each_node_knows_all(two: Nodes) -> None:
    two.up(two.program("A"), two.program("n/B", "A"), two.program("C", "n/B"))
    rows = two.wait_phase(Phase.READY)
    assert rows["m/A"].stamps.ready_s <= rows["n/B"].stamps.forked_s <= rows["m/C"].stamps.forked_s  # type: ignore[operator]
    other = two.wait(lambda rows: len(rows) == 3 and all(row.phase is Phase.READY for row in rows.values()), "n")
    assert {id: row.pid for id, row in other.items()} == {id: row.pid for id, row in rows.items()}
    answer = two.ask("n", "status", memory=True, others=True)
    assert all(row["memory_mb"] for row in answer["agents"])
    assert (answer["peers"], answer["revisions"]) == ({"m": "alive"}, {"m": 1, "n": 1})
    two.up(down=True)
    two.down()


@pytest.mark.process
def test_an_agent_that_stops_on_one_machine_degrades_its_dependants_on_the_other(two: Nodes) -> None:
    two.up(two.program("A"), two.program("n/B", "A"))
    two.wait_phase(Phase.READY)
    two.up(stopped=("A",))
    rows = two.wait(lambda rows: rows["n/B"].health is Health.DEGRADED)
    assert rows["n/B"].reason == "A stopped by operator"


@pytest.mark.process
def test_a_killed_node_is_suspected_comes_back_and_its_agents_never_stopped(two: Nodes) -> None:
    two.up(two.program("A"), two.program("n/B", "A"))
    before = two.wait_phase(Phase.READY)
    kill(two.node_pid("n"))
    two.wait_phase(Phase.READY)
    rows = two.wait(lambda rows: rows["n/B"].phase is Phase.READY, "n")
    assert rows["n/B"].pid == before["n/B"].pid
    two.wait(lambda rows: rows.get("m/A") and rows["m/A"].phase is Phase.READY, "n")


@pytest.mark.process
@pytest.mark.slow
def test_a_node_that_hangs_is_unreachable_to_the_other_until_it_goes_on(two: Nodes) -> None:
    two.up(two.program("A", "n/B"), two.program("n/B"))
    two.wait_phase(Phase.READY)
    node = two.node_pid("n")
    send(node, signal.SIGSTOP)
    try:
        rows = two.wait(lambda rows: rows["m/A"].health is Health.DEGRADED)
    finally:
        send(node, signal.SIGCONT)
    assert "B unreachable" in rows["m/A"].reason
    two.wait(lambda rows: rows["m/A"].health is Health.OK)
