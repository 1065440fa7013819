"""A node's part in events: when the relay may run, and what agents tell of theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import BadRequest
from agentkit.names import Incarnation
from startup.errors import Refused
from startup.node.events import NodeEvents
from startup.node.mesh.mesh import Mesh
from startup.node.paths import Places
from startup.node.store import Revisions
from startup.plan.revision import Revision
from startup.spec.fleet import Fleet, MachineSpec
from tests.startup.node.test_mesh import Ears
from tests.startup.plan.builders import aid


@contextmanager
def places(folder: Path) -> Iterator[Places]:
    found = Places("c", "a", folder / "r" / "c" / "a", folder / "s" / "c" / "a")
    found.prepare()
    yield found


@asynccontextmanager
async def events_of(folder: Path, host: str) -> AsyncIterator[tuple[NodeEvents, Revisions]]:
    with places(folder) as place:
        mesh = Mesh(place, Incarnation(1), Ears())
        revisions = Revisions(place)
        mesh.start(host, None)
        events = NodeEvents(place, mesh, revisions)
        yield events, revisions
        events.close()
        await mesh.close()


def revision(security: str) -> Revision:
    fleet = Fleet(
        cluster="c", project_root="/", file="/f.yaml", machines=(MachineSpec(name="a"),), agents=(), security=security
    )  # type: ignore[arg-type]
    return Revision(number=1, author="me@here", time_s=1.0, fleet=fleet)


async def test_the_relay_runs_from_the_first_use_on_and_leaves_nothing(tmp_path: Path) -> None:
    async with events_of(tmp_path, "127.0.0.1") as (events, _):
        assert events.seen(lambda _: True)["relay"] is None
        assert events.ensure({}) == events.ensure({"probe": "_probe.0123456789abcdef"}) == {}
        assert events.seen(lambda _: True)["relay"].startswith("tcp://127.0.0.1:")
    assert not list((tmp_path / "r" / "c" / "a").glob("ev-*"))


async def test_the_relay_does_not_listen_to_strangers_unless_that_is_written(tmp_path: Path) -> None:
    async with events_of(tmp_path, "0.0.0.0") as (events, revisions):
        for _ in range(2):
            with pytest.raises(Refused, match="needs CURVE keys; give a loopback address, or write `security: none`"):
                events.ensure({})
            revisions.current = revision("loopback")
        revisions.current = revision("none")
        assert events.ensure({}) == {}


@pytest.mark.parametrize("probe", ["", "task.made", "_probe.", "_probe.0123456789abcdef x", 3])
async def test_only_a_probe_is_sent_for_somebody(tmp_path: Path, probe: Any) -> None:
    async with events_of(tmp_path, "127.0.0.1") as (events, _):
        with pytest.raises(BadRequest, match="probe"):
            events.ensure({"probe": probe})


def told(published: dict[str, int], **changes: Any) -> str:
    summary = {"published": published, "dropped": 0, "patterns": ["task.*"], "received": 5, "lost": 1, "failed": 0}
    return json.dumps(summary | changes)


async def test_what_agents_tell_is_kept_for_those_that_are_known_with_rates(tmp_path: Path) -> None:
    async with events_of(tmp_path, "127.0.0.1") as (events, _):
        events.told(aid("a/X"), told({"task.made": 10}))
        events.told(aid("a/Y"), told({}))
        first = events.seen(lambda _: True)["agents"]
        assert [(agent["id"], agent["published"]) for agent in first] == [
            ("a/X", {"task.made": {"count": 10, "per_s": None}}),
            ("a/Y", {}),
        ]
        kept = events._told[aid("a/X")]
        events._told[aid("a/X")] = replace(kept, at_s=kept.at_s - 2.0)
        events.told(aid("a/X"), told({"task.made": 20}))
        (only,) = events.seen(lambda one: one == aid("a/X"))["agents"]
        assert only["published"]["task.made"]["count"] == 20
        assert 0.0 < only["published"]["task.made"]["per_s"] <= 5.0
        assert (only["received"], only["lost"], only["patterns"]) == (5, 1, ["task.*"])
        assert len(events.seen(lambda _: True)["agents"]) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", told({"a": "x"}), told({}, patterns=3), told([]), told({"a": float("inf")})]
)  # type: ignore[arg-type]
async def test_garbage_of_an_agent_changes_nothing(tmp_path: Path, text: str) -> None:
    async with events_of(tmp_path, "127.0.0.1") as (events, _):
        events.told(aid("a/X"), text)
        assert events.seen(lambda _: True)["agents"] == []
