"""Events in a fleet: between machines, through deaths of nodes and publishers, and past subscribers that never read."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentkit.client import Client
from startup.node import procinfo
from tests.faults.scratch import PATIENCE_S, Scratch, kill, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import asyncio, os, time
    from agentkit import BaseAgent, Delivery, Event, rpc, subscribe

    class Tick(Event, topic="faults.tick"):
        n: int
        filling: str = ""

    class Talks(BaseAgent):
        """Publishes all the time, or when it is told to."""
        async def run(self) -> None:
            self.n = 0
            while True:
                if not os.path.exists("quiet"):
                    await self.publish("faults.tick", Tick(n=self.n))
                    self.n += 1
                await asyncio.sleep(0.002)

        @rpc
        async def say(self, many: int, filling: int = 0) -> int:
            for n in range(many):
                await self.publish("faults.tick", Tick(n=n, filling="x" * filling))
            return os.getpid()

        @rpc
        async def published(self) -> dict[str, int]:
            return {name: read() for name, (_, read) in self._wiring.events.counters().items()}

    class Hears(BaseAgent):
        async def on_start(self) -> None:
            self.seen, self.told, self.lives = 0, 0, set()

        @subscribe("faults.*")
        async def on_tick(self, tick: Delivery) -> None:
            self.seen += 1
            self.told += tick.lost
            self.lives.add((tick.publisher, tick.life))

        @rpc(idempotent=True)
        async def heard(self) -> dict[str, int]:
            counters = {name: read() for name, (_, read) in self._wiring.events.counters().items()}
            return {"seen": self.seen, "told": self.told, "lives": len(self.lives), **counters}

    class Blocked(Hears):
        """Its loop stands still from the first event on."""
        @subscribe("faults.*")
        async def on_tick(self, tick: Delivery) -> None:
            while os.path.exists("blocked"):
                time.sleep(0.05)
            await super().on_tick(tick)
'''


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    with Scratch(machines=("m", "n")) as scratch:
        scratch.python("ears.py", AGENTS)
        yield scratch


def heard(fleet: Scratch, name: str) -> dict[str, int]:
    found: dict[str, int] = fleet.call(name, "heard")
    return found


def test_events_reach_the_subscribers_of_all_machines_once_and_none_is_lost(fleet: Scratch) -> None:
    fleet.write(
        {
            "Talker": {"agent": "ears:Talks"},
            "Near": {"agent": "ears:Hears"},
            "Far": {"agent": "ears:Hears", "machine": "n"},
        }
    )
    (fleet.folder / "quiet").touch()
    fleet.up()
    # the first event makes the publisher's relay; the others' relays find it, then their subscriptions travel
    until(lambda: fleet.call("Talker", "say", many=1) and heard(fleet, "Far")["seen"])
    before = {name: heard(fleet, name)["seen"] for name in ("Near", "Far")}
    fleet.call("Talker", "say", many=500)
    until(lambda: all(heard(fleet, name)["seen"] == seen + 500 for name, seen in before.items()))
    for name in before:
        found = heard(fleet, name)
        assert (found["told"], found["agent_events_lost_total"], found["lives"]) == (0, 0, 1)


def published(fleet: Scratch) -> dict[str, int]:
    found: dict[str, int] = fleet.call("Talker", "published")
    return found


def accounted_for(fleet: Scratch, name: str) -> bool:
    """Whether `name` has seen, or counted as lost, everything that was ever published: it was there from the beginning on."""
    fleet.call("Talker", "say", many=1)  # a gap shows with the next event
    all_of_them = published(fleet)["agent_events_published_total"]
    ends_s = time.monotonic() + 1.0
    while time.monotonic() < ends_s:
        found = heard(fleet, name)
        if found["seen"] + found["agent_events_lost_total"] == all_of_them:
            assert found["told"] <= found["agent_events_lost_total"]
            return True
    return False


def test_events_flow_again_after_the_death_of_a_node_and_every_gap_is_counted(fleet: Scratch) -> None:
    fleet.write({"Near": {"agent": "ears:Hears"}, "Talker": {"agent": "ears:Talks", "dependencies": ["Near"]}})
    fleet.up()
    until(lambda: heard(fleet, "Near")["seen"] > 20)
    for _ in range(2):
        node = fleet.node_pid("m")
        kill(node)
        fleet.wait_for_another_node(node, "m")
        before = heard(fleet, "Near")["seen"]
        until(lambda: heard(fleet, "Near")["seen"] > before + 50)  # noqa: B023 - used before it changes
    (fleet.folder / "quiet").touch()
    assert until(lambda: accounted_for(fleet, "Near"))
    assert heard(fleet, "Near")["lives"] == 1


def test_what_found_no_room_while_there_was_no_node_is_counted_by_both_sides(fleet: Scratch) -> None:
    (fleet.folder / "quiet").touch()
    fleet.write({"Near": {"agent": "ears:Hears"}, "Talker": {"agent": "ears:Talks", "dependencies": ["Near"]}})
    fleet.up()
    assert until(lambda: accounted_for(fleet, "Near"))
    rows = fleet.rows("m")
    kill(fleet.zygote_pid("m"), fleet.node_pid("m"))
    talker = next(row for id, row in rows.items() if id == "m/Talker")
    fleet.call_directly(talker, "say", many=5_000)
    dropped = fleet.call_directly(talker, "published")["agent_events_dropped_total"]
    assert dropped >= 1_000
    fleet.up()
    assert until(lambda: accounted_for(fleet, "Near"))
    assert heard(fleet, "Near")["agent_events_lost_total"] >= dropped


def test_a_subscriber_that_never_reads_costs_bounded_memory_and_slows_nobody(fleet: Scratch) -> None:
    for name in ("quiet", "blocked"):
        (fleet.folder / name).touch()
    fleet.write(
        {
            "Near": {"agent": "ears:Hears"},
            "Stuck": {"agent": "ears:Blocked"},
            "Talker": {"agent": "ears:Talks", "dependencies": ["Near", "Stuck"]},
        }
    )
    fleet.up()
    node = fleet.node_pid("m")
    before = procinfo.pss_bytes(node)
    for batch in range(1, 11):
        fleet.call("Talker", "say", many=2_000, filling=500)
        until(lambda: heard(fleet, "Near")["seen"] == batch * 2_000)  # noqa: B023 - used before it changes
    grown = procinfo.pss_bytes(node)
    assert before is not None
    assert grown is not None
    assert grown - before < 32 * 2**20  # the queue of 4,096 events of 0.6 kB each, and what libzmq keeps around them
    assert heard(fleet, "Near")["agent_events_lost_total"] == 0
    (fleet.folder / "blocked").unlink()
    assert until(lambda: accounted_for(fleet, "Stuck"))
    assert heard(fleet, "Stuck")["agent_events_lost_total"] > 1_000


def test_a_publisher_that_is_killed_comes_back_as_another_life_and_its_numbers_are_no_gap(fleet: Scratch) -> None:
    fleet.write(
        {
            "Near": {"agent": "ears:Hears"},
            "Talker": {"agent": "ears:Talks", "restart": {"delay": "10ms", "max_attempts": 5}},
        }
    )
    fleet.up()
    until(lambda: heard(fleet, "Near")["seen"] > 20)
    first = fleet.rows("m")["m/Talker"]
    kill(first.pid)
    fleet.wait_restarted("m/Talker", first)
    until(lambda: heard(fleet, "Near")["lives"] == 2)
    before = heard(fleet, "Near")["seen"]
    until(lambda: heard(fleet, "Near")["seen"] > before + 20)
    assert heard(fleet, "Near")["agent_events_lost_total"] == 0


async def test_a_script_publishes_to_agents_and_hears_them_and_its_last_event_is_not_lost(fleet: Scratch) -> None:
    fleet.write({"Near": {"agent": "ears:Hears"}, "Talker": {"agent": "ears:Talks"}})
    (fleet.folder / "quiet").touch()
    await asyncio.to_thread(fleet.up)
    node = str(fleet.place("m").control)
    async with Client(node=node) as client, client.subscribe("faults.>") as events, asyncio.timeout(PATIENCE_S):
        await client.call("Talker", "say", {"many": 3})
        arrived = [await anext(events) for _ in range(3)]
    assert [(one.topic, one.data["n"], one.publisher) for one in arrived] == [
        ("faults.tick", n, "m/Talker") for n in range(3)
    ]
    command = (
        "import asyncio, ears; from agentkit import Client\n"
        f"async def main():\n    async with Client(node={node!r}) as client:\n"
        "        await client.publish('faults.tick', {'n': 7})\n"
        "asyncio.run(main())"
    )
    done = await asyncio.to_thread(fleet.execute, sys.executable, "-c", command)
    assert done.code == 0, done.err
    async with asyncio.timeout(PATIENCE_S):
        while (await asyncio.to_thread(heard, fleet, "Near"))["lives"] != 2:
            await asyncio.sleep(0.01)


def test_operators_see_topics_with_their_rates_and_events_as_they_come(fleet: Scratch) -> None:
    fleet.write(
        {
            "Near": {"agent": "ears:Hears"},
            "Far": {"agent": "ears:Hears", "machine": "n"},
            "Talker": {"agent": "ears:Talks", "dependencies": ["Near", "Far"]},
        }
    )
    fleet.up()
    following = fleet.popen("events", "-f", "faults.*", "--json")
    assert following.stdout is not None
    first, second = (json.loads(following.stdout.readline()) for _ in range(2))
    assert (first["topic"], first["publisher"], second["lost"]) == ("faults.tick", "m/Talker", 0)
    assert second["event"]["n"] == first["event"]["n"] + 1
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 130
    assert "Traceback" not in err

    def told() -> Any:
        found = fleet.run("events", "faults.tick", "--json").json
        is_whole = found["topics"] and found["topics"][0]["per_s"] > 0 and len(found["subscribers"]) == 2
        return found if is_whole else None

    found = until(told)
    assert found["topics"][0]["publishers"] == ["m/Talker"]
    assert [one["id"] for one in found["subscribers"]] == ["m/Near", "n/Far"]
    assert all(one["received"] > 0 and one["lost"] == 0 for one in found["subscribers"])
    text = fleet.run("events").out
    for word in ("TOPIC", "faults.tick", "m/Talker", "SUBSCRIBER", "n/Far", "faults.*"):
        assert word in text
    assert fleet.run("events", "other.*", "--json").json["topics"] == []
