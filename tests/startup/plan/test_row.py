"""Rows between nodes that are not of one age."""

from __future__ import annotations

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow, Stamps

ROW = AgentRow(id=AgentId("m", "A"), phase=Phase.READY, waiting_for=("B",), stamps=Stamps(ready_s=5.0), restarts=3)


def test_a_row_comes_back_as_it_was() -> None:
    assert AgentRow.from_wire(ROW.to_wire()) == ROW


def test_of_a_newer_nodes_row_the_rest_is_read() -> None:
    wire = ROW.to_wire()
    assert AgentRow.from_wire({**wire, "mood": "good", "stamps": {**wire["stamps"], "dreamt_s": 1.0}}) == ROW


def test_what_an_older_nodes_row_does_not_say_is_as_it_was_then() -> None:
    wire = ROW.to_wire()
    del wire["sleep"], wire["rolled"]
    assert AgentRow.from_wire(wire) == ROW
