"""The link between two machines is cut, cut one way, slow and lossy; a machine's node dies; a machine comes back after its agents were
moved. Times are the real ones, ten times shorter, except where TCP's own matter; `make soak` has the real ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from startup.plan.phase import Health, Phase
from startup.spec.fleet import AgentTarget, MeshSpec
from tests.hosts.conftest import Hosts
from tests.hosts.nodes import REAL, SHORT, Asker, HostNodes, two_nodes

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Of one call in these tests, in seconds.
TIMEOUT_S = 3.0

#: One publishes and reports what it is told to, the other keeps what it hears.
TALKS = """
from agentkit import BaseAgent, Event, rpc, subscribe

class Word(Event, topic="link.word"):
    word: str

class Talks(BaseAgent):
    @rpc
    async def say(self, word: str) -> None:
        await self.publish("link.word", Word(word=word))
        self.report_error("warning", f"said {word}")

class Hears(BaseAgent):
    async def on_start(self) -> None:
        self.words = set()

    @subscribe("link.word")
    async def on_word(self, word: Word) -> None:
        self.words.add(word.word)

    @rpc(idempotent=True)
    async def heard(self) -> list[str]:
        return sorted(self.words)
"""


@pytest.fixture
def nodes(hosts: Hosts) -> Iterator[HostNodes]:
    with two_nodes(*hosts) as booted:
        yield booted


@pytest.fixture
def asker(nodes: HostNodes) -> Iterator[Asker]:
    """A client on main_pc; A runs there, B, which needs A, on pc2."""
    nodes.up(nodes.agent("main_pc/A"), nodes.agent("pc2/B", "main_pc/A"))
    nodes.wait_phase(Phase.READY)
    nodes.until(nodes.agree)
    opened = nodes.asker("main_pc")
    yield opened
    opened.close()


def test_a_fleet_over_two_machines_starts_in_order_and_stops_in_reverse(nodes: HostNodes) -> None:
    nodes.up(nodes.program("main_pc/A"), nodes.program("pc2/B", "main_pc/A"), nodes.program("main_pc/C", "pc2/B"))
    rows = nodes.wait_phase(Phase.READY)
    stamps = [rows[id].stamps for id in ("main_pc/A", "pc2/B", "main_pc/C")]
    assert stamps[0].ready_s <= stamps[1].forked_s  # type: ignore[operator]
    assert stamps[1].ready_s <= stamps[2].forked_s  # type: ignore[operator]
    nodes.until(nodes.agree)  # pc2 can't wait for what it does not know of
    nodes.up(stopped=("main_pc/A", "pc2/B", "main_pc/C"))
    nodes.wait_phase(Phase.STOPPED)
    ended = {
        line["agent"]: line["timestamp"]
        for machine in nodes.machines
        for line in map(json.loads, nodes.node_log(machine).splitlines())
        if line["message"] == "agent.phase" and line["phase"] == "stopped"
    }
    assert ended["main_pc/C"] <= ended["pc2/B"] <= ended["main_pc/A"], "one clock: they are on one host after all"


def test_a_short_cut_is_nothing_but_a_pause(nodes: HostNodes, asker: Asker, hosts: Hosts) -> None:
    before = nodes.lives("B")
    call = asker.begin("pc2/B", "wait", 30.0, seconds=0.6)
    hosts.link.cut()
    time.sleep(0.2)
    hosts.link.heal()
    assert "result" in asker.outcome(call), "a call under way lives through it"
    nodes.until(nodes.agree)
    assert "unreachable" not in nodes.node_log("main_pc") + nodes.node_log("pc2")
    assert nodes.lives("B") == before


@pytest.mark.parametrize("seconds", [2.0, pytest.param(6.0, marks=pytest.mark.soak(only=True))])
def test_a_cut_link_makes_unreachable_and_everything_heals_by_itself(
    nodes: HostNodes, asker: Asker, hosts: Hosts, seconds: float
) -> None:
    _cut_and_heal(nodes, asker, hosts, seconds, hosts.link.cut)


def test_a_link_that_is_cut_in_one_direction_is_a_cut_link_for_both(
    nodes: HostNodes, asker: Asker, hosts: Hosts
) -> None:
    _cut_and_heal(nodes, asker, hosts, 2.0, lambda: hosts.link.cut_one_way(hosts.a))


@pytest.mark.soak(only=True)
@pytest.mark.parametrize("seconds", [2.0, 20.0, 60.0])
def test_links_that_are_cut_for_long_heal_within_seconds(hosts: Hosts, seconds: float) -> None:
    with two_nodes(*hosts, REAL) as nodes:
        nodes.up(nodes.agent("main_pc/A"), nodes.agent("pc2/B", "main_pc/A"))
        nodes.wait_phase(Phase.READY)
        asker = nodes.asker("main_pc")
        try:
            _cut_and_heal(nodes, asker, hosts, seconds, hosts.link.cut)
        finally:
            asker.close()


def _cut_and_heal(nodes: HostNodes, asker: Asker, hosts: Hosts, seconds: float, cut: Callable[[], None]) -> None:
    before = {name: nodes.lives(name) for name in "AB"}
    is_long = seconds > nodes.mesh.unreachable_s
    call = asker.begin("pc2/B", "wait", 120.0, seconds=100.0)
    cut()
    cut_s = time.monotonic()
    if is_long:
        nodes.until_states("unreachable")
        assert nodes.rows("main_pc")["pc2/B"].phase is Phase.UNREACHABLE
        lost = asker.call("B", "pid", TIMEOUT_S)
        assert (lost["code"], lost["took_s"] < TIMEOUT_S) == ("unreachable", True), "without waiting for the deadline"
        assert asker.outcome(call)["code"] in ("peer_lost", "unreachable"), "the latter where it had not left yet"
        rows = nodes.wait(lambda rows: rows["pc2/B"].health is Health.DEGRADED, "pc2")
        assert "A unreachable: its machine main_pc does not answer" in rows["pc2/B"].reason
    assert "result" in asker.call("A", "pid", TIMEOUT_S), "within a side calls go on"
    time.sleep(max(0.0, cut_s + seconds - time.monotonic()))
    hosts.link.heal()
    nodes.until_states("alive")
    nodes.until(nodes.agree)
    nodes.wait(lambda rows: rows["pc2/B"].health is Health.OK, "pc2")
    assert "result" in asker.call("B", "pid", TIMEOUT_S)
    assert {name: nodes.lives(name) for name in "AB"} == before, "nobody was started twice, or again"


@pytest.mark.parametrize("seconds", [8.0, pytest.param(300.0, marks=pytest.mark.soak(only=True))])
def test_a_link_that_loses_and_delays_is_not_taken_for_a_cut_one(hosts: Hosts, seconds: float) -> None:
    """TCP's own times do not shrink with ours."""
    with two_nodes(*hosts, REAL) as nodes:
        nodes.up(nodes.program("main_pc/A"), nodes.program("pc2/B", "main_pc/A"))
        nodes.wait_phase(Phase.READY)
        hosts.link.slow(loss=0.3, delay_s=0.1)
        time.sleep(seconds)
        hosts.link.heal()
        nodes.until(nodes.agree)
        words = nodes.node_log("main_pc") + nodes.node_log("pc2")
        assert words.count('"state":"unreachable"') <= 1


@pytest.mark.parametrize("kinds", [("node",), ("zygote",), ("node", "zygote")], ids="+".join)
def test_agents_of_a_machine_whose_node_or_zygote_is_killed_go_on_being_called(
    nodes: HostNodes, asker: Asker, kinds: tuple[str, ...]
) -> None:
    before = nodes.lives("B")
    nodes.kill("pc2", *kinds)
    if len(kinds) == 2:
        nodes.until(lambda: nodes.peer_state("main_pc", "pc2") == "absent")
        assert nodes.rows("main_pc")["pc2/B"].phase is Phase.READY, "its machine answers: it may well run"
    assert "result" in asker.call("B", "pid", TIMEOUT_S)
    if len(kinds) == 2:
        nodes.boot("pc2")
    nodes.until(lambda: nodes.peer_state("main_pc", "pc2") == "alive" and nodes.agree())
    assert nodes.lives("B") == before
    assert "result" in asker.call("B", "pid", TIMEOUT_S)


def test_a_machine_that_is_switched_off_is_unreachable_and_its_agents_start_anew_with_it(
    nodes: HostNodes, asker: Asker, hosts: Hosts
) -> None:
    hosts.link.cut()
    hosts.b.off()
    nodes.until(lambda: nodes.peer_state("main_pc", "pc2") == "unreachable")
    assert asker.call("B", "pid", TIMEOUT_S)["code"] == "unreachable"
    hosts.b.on()
    hosts.link.plug()
    nodes.boot("pc2")
    nodes.until(nodes.agree)
    nodes.wait_phase(Phase.READY)
    assert "result" in asker.call("B", "pid", TIMEOUT_S)
    assert {name: [len(pids) for pids in nodes.lives(name).values()] for name in "AB"} == {"A": [1, 0], "B": [0, 1]}


def test_events_and_errors_cross_the_link_and_do_so_again_after_a_cut(nodes: HostNodes, hosts: Hosts) -> None:
    script = nodes.folder / "talks.py"
    script.write_text(TALKS)

    def target(cls: str) -> AgentTarget:
        return AgentTarget(script=str(script), cls=cls)

    nodes.up(nodes.agent("main_pc/Talks", target=target("Talks")), nodes.agent("pc2/Hears", target=target("Hears")))
    nodes.wait_phase(Phase.READY)
    nodes.until(nodes.agree)
    asker = nodes.asker("main_pc")

    def say_until_heard(word: str) -> None:
        def is_heard() -> bool:
            said = asker.call("Talks", "say", TIMEOUT_S, word=word)
            assert "result" in said, said
            return word in asker.call("Hears", "heard", TIMEOUT_S)["result"]

        nodes.until(is_heard)

    def reported(machine: str) -> set[str]:
        machines = nodes.ask(machine, "errors")["machines"]
        return {group["message"] for answer in machines.values() if answer for group in answer["groups"]}

    try:
        say_until_heard("before")
        nodes.until(lambda: "said before" in reported("pc2"))
        hosts.link.cut()
        nodes.until_states("unreachable")
        asker.call("Talks", "say", TIMEOUT_S, word="meanwhile")
        assert nodes.ask("pc2", "errors")["machines"]["main_pc"] is None, "said to be silent, not to have none"
        hosts.link.heal()
        nodes.until_states("alive")
        say_until_heard("after")
        nodes.until(lambda: {"said meanwhile", "said after"} <= reported("pc2"))
    finally:
        asker.close()


# -- moved agents


def _move(nodes: HostNodes, *, force_move: bool = False) -> None:
    """pc2 is out of the fleet, B moves to main_pc; only main_pc hears of it."""
    nodes.up(
        nodes.agent("main_pc/A"),
        nodes.agent("main_pc/B", port=20001),
        machines=("main_pc",),
        proposed_to=("main_pc",),
        force_move=force_move,
    )


def test_an_agent_is_not_started_elsewhere_while_its_machine_does_not_answer(
    nodes: HostNodes, asker: Asker, hosts: Hosts
) -> None:
    hosts.link.cut()
    nodes.until_states("unreachable")
    _move(nodes)
    rows = nodes.wait(lambda rows: rows["main_pc/B"].phase is Phase.SKIPPED)
    assert "`agentkit up --force-move` starts it here all the same" in rows["main_pc/B"].reason
    assert [len(pids) for pids in nodes.lives("B").values()] == [0, 1]
    hosts.link.heal()
    # pc2 learns that a newer revision does not want B there, and stops it; then main_pc starts it
    nodes.wait_phase(Phase.READY, "main_pc/B")
    assert [len(pids) for pids in nodes.lives("B").values()] == [1, 0]
    assert nodes.ask("pc2")["revision"]["number"] < nodes.number, "nobody but an operator gives it another revision"


def test_a_machine_that_returns_with_an_older_revision_starts_nothing_that_was_moved(hosts: Hosts) -> None:
    # a busy machine may take a second until it hears of the other: the real time that starts are held for
    with two_nodes(*hosts, MeshSpec(suspect_s=REAL.suspect_s, unreachable_s=REAL.suspect_s + 0.5)) as nodes:
        nodes.up(nodes.agent("main_pc/A"), nodes.agent("pc2/B", "main_pc/A"))
        nodes.wait_phase(Phase.READY)
        hosts.link.cut()
        hosts.b.off()
        nodes.until(lambda: nodes.peer_state("main_pc", "pc2") == "unreachable")
        _move(nodes, force_move=True)
        nodes.wait_phase(Phase.READY, "main_pc/B")
        hosts.b.on()
        hosts.link.plug()
        nodes.boot("pc2")
        rows = nodes.wait(lambda rows: rows["pc2/B"].phase is Phase.STOPPED, "pc2")
        assert f"revision {nodes.number} of main_pc does not want it here" in rows["pc2/B"].reason
        assert [len(pids) for pids in nodes.lives("B").values()] == [1, 0]
        assert nodes.places("pc2").log("B").read_text().count("agent.ready") == 1, "it was not even begun"


def test_of_an_agent_that_was_moved_by_force_only_one_lives_after_healing(
    nodes: HostNodes, asker: Asker, hosts: Hosts
) -> None:
    hosts.link.cut()
    nodes.until_states("unreachable")
    _move(nodes, force_move=True)
    nodes.wait_phase(Phase.READY, "main_pc/B")
    assert [len(pids) for pids in nodes.lives("B").values()] == [1, 1], "that is what force means"
    hosts.link.heal()
    nodes.until(lambda: [len(pids) for pids in nodes.lives("B").values()] == [1, 0])


def test_a_machine_alone_with_its_revision_starts_it_after_a_while(
    nodes: HostNodes, asker: Asker, hosts: Hosts
) -> None:
    hosts.link.cut()
    hosts.b.off()
    hosts.b.on()
    nodes.boot("pc2")
    nodes.wait(lambda rows: rows["pc2/B"].phase is Phase.SKIPPED, "pc2")  # main_pc, where A is, does not answer
    assert "fence.released" in nodes.node_log("pc2")
    hosts.link.plug()
    nodes.wait_phase(Phase.READY)


def test_an_operators_limits_hold(hosts: Hosts) -> None:
    with two_nodes(*hosts, MeshSpec(suspect_s=0.3, unreachable_s=30.0)) as nodes:
        nodes.up(nodes.program("main_pc/A"), nodes.program("pc2/B"))
        nodes.wait_phase(Phase.READY)
        hosts.link.cut()
        nodes.until_states("suspect")
        time.sleep(3 * SHORT.unreachable_s)
        assert nodes.peer_state("main_pc", "pc2") == "suspect"
