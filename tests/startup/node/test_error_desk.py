"""What a node does with reports: answered when they are stored, refused when they make no sense, asked for over the cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import BadRequest, Overloaded
from agentkit.names import AgentId
from agentkit.observe.reports import PROCESS, ErrorGroup
from startup.node.errors import desk as error_desk
from startup.node.errors.desk import ErrorDesk
from startup.node.paths import Places


class Others:
    """Another machine, which answers from a desk of its own; or does not."""

    def __init__(self) -> None:
        self.desk: ErrorDesk | None = None
        self.is_silent = False

    async def ask(self, method: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        assert method == "mesh.errors"
        if self.desk is None:
            return {}
        return {"n": None if self.is_silent else await self.desk.answer(asked)}


def places(folder: Path, machine: str) -> Places:
    found = Places("c", machine, folder / "run" / machine, folder / "state" / machine)
    found.state.mkdir(parents=True)
    return found


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def desk(tmp_path: Path, others: Others) -> AsyncIterator[ErrorDesk]:
    desk = ErrorDesk(places(tmp_path, "m"), others.ask)
    yield desk
    await desk.close()


@pytest.fixture
async def neighbour(tmp_path: Path, others: Others) -> AsyncIterator[ErrorDesk]:
    others.desk = ErrorDesk(places(tmp_path, "n"), Others().ask)
    yield others.desk
    await others.desk.close()


def batch(message: str = "away", *, count: int = 1, number: int = 1, id: str = "m/A", **facts: Any) -> dict[str, Any]:
    group = ErrorGroup(
        severity="error", kind="report", where=message, message=message, count=count, first_s=1.0, last_s=2.0
    )
    return {"id": id, "incarnation": 1, "source": "s" * 16, "number": number, "groups": [group.to_wire()], **facts}


async def counts(desk: ErrorDesk, **question: Any) -> dict[str, int]:
    answer = await desk.operations["errors"](question)
    groups = [group for told in answer["machines"].values() if told for group in told["groups"]]
    return {f"{group['agent']} {group['message']}": group["count"] for group in groups}


async def test_a_report_is_answered_when_it_is_stored_and_told_to_the_rules_once(desk: ErrorDesk) -> None:
    told: list[int] = []
    desk.on_stored = lambda _, stored: told.extend(found.total for found in stored)
    assert await desk.operations["report"](batch(count=3)) == {"number": 1}
    assert await desk.operations["report"](batch(count=3)) == {"number": 1}
    assert await desk.operations["report"](batch(count=4, number=2)) == {"number": 2}
    assert told == [3, 7]
    assert (desk.stored, desk.repeated) == (7, 1)
    assert await counts(desk) == {"m/A away": 7}


async def test_what_arrives_while_the_store_is_busy_is_stored_together(desk: ErrorDesk) -> None:
    reports = [desk.operations["report"](batch(source=f"{n:016}")) for n in range(200)]
    await asyncio.gather(*reports)
    assert await counts(desk) == {"m/A away": 200}


@pytest.mark.parametrize(
    "wrong",
    [{"groups": []}, {"groups": [{}] * 200}, {"number": 0}, {"source": ""}, {"id": "n/A"}, {"groups": [{"count": 1}]},
     {"groups": 7}, {"number": "x"}],
)  # fmt: skip
async def test_a_report_that_makes_no_sense_is_refused(desk: ErrorDesk, wrong: dict[str, Any]) -> None:
    with pytest.raises((BadRequest, KeyError, TypeError, ValueError)):
        await desk.operations["report"](batch(**wrong))
    assert await counts(desk) == {}


async def test_too_many_at_once_are_told_to_come_again(desk: ErrorDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_desk, "MAX_WAITING", 10)
    found = await asyncio.gather(
        *(desk.operations["report"](batch(source=f"{n:016}")) for n in range(50)), return_exceptions=True
    )
    refused = [one for one in found if isinstance(one, Overloaded)]
    assert len(refused) == 40
    assert await counts(desk) == {"m/A away": 10}


async def test_a_store_that_can_not_be_written_keeps_the_nodes_own_words_and_sends_agents_away(
    desk: ErrorDesk, tmp_path: Path
) -> None:
    blocked = tmp_path / "state" / "m" / "errors.db"
    blocked.mkdir()
    with pytest.raises(Overloaded, match="can't store"):
        await desk.operations["report"](batch())
    own = ErrorGroup(severity="error", kind=PROCESS, where="x", message="failed", count=1)
    for _ in range(error_desk.MAX_OWN + 5):
        desk.add(AgentId.parse("m/A"), 1, own)
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="can't read"):
        await counts(desk)
    os.rmdir(blocked)
    await desk.operations["report"](batch())
    found = await counts(desk)
    assert found["m/A away"] == 1
    assert error_desk.MAX_OWN <= found["m/A failed"] <= error_desk.MAX_OWN + 5


async def test_any_node_answers_for_the_whole_cluster(desk: ErrorDesk, neighbour: ErrorDesk, others: Others) -> None:
    await desk.operations["report"](batch(count=2))
    await neighbour.operations["report"](batch(count=5, id="n/B"))
    assert await counts(desk) == {"m/A away": 2, "n/B away": 5}
    assert await counts(desk, agent="B") == {"n/B away": 5}
    (there,) = (await neighbour.operations["errors"]({}))["machines"]["n"]["groups"]
    found = (await desk.operations["error"]({"id": there["id"][:6]}))["groups"]
    assert [group["id"] for group in found] == [there["id"]]
    resolved = (await desk.operations["resolve"]({"id": there["id"], "by": "ops"}))["group"]
    assert resolved["resolved_by"] == "ops"
    assert await counts(desk) == {"m/A away": 2}
    others.is_silent = True
    answer = await desk.operations["errors"]({})
    assert answer["machines"]["n"] is None
    assert (await desk.operations["error"]({"id": "abcd"}))["silent"] == ["n"]


async def test_a_cursor_is_for_each_machine(desk: ErrorDesk, neighbour: ErrorDesk) -> None:
    await desk.operations["report"](batch())
    await neighbour.operations["report"](batch(id="n/B"))
    first = await desk.operations["errors"]({})
    after = {machine: told["cursor"] for machine, told in first["machines"].items()}
    assert await counts(desk, after=after) == {}
    await neighbour.operations["report"](batch(id="n/B", number=2))
    assert await counts(desk, after=after) == {"n/B away": 2}


@pytest.mark.parametrize("id", ["", "12", "xyzw", "'; --", "12345678901234567890g"])
async def test_what_is_no_id_is_refused(desk: ErrorDesk, id: str) -> None:
    with pytest.raises(BadRequest, match="no id of an error"):
        await desk.operations["error"]({"id": id})


async def test_a_rule_that_trips_does_not_keep_anybody_from_being_answered(desk: ErrorDesk) -> None:
    def trips(*_: Any) -> None:
        raise RuntimeError("bug")

    desk.on_stored = trips
    await asyncio.gather(*(desk.operations["report"](batch(source=f"{n:016}")) for n in range(3)))
    assert await counts(desk) == {"m/A away": 3}


async def test_nothing_is_made_before_there_is_an_error(desk: ErrorDesk, tmp_path: Path) -> None:
    assert list((tmp_path / "state" / "m").iterdir()) == []
