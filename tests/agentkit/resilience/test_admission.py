"""The gate: how much is let in, who waits, and in which order."""

from __future__ import annotations

from agentkit.resilience.admission import Gate


def test_things_wait_in_order_until_there_is_room() -> None:
    gate: Gate[str] = Gate("x", limit=1, room=2)
    assert not gate.is_full
    gate.inside = 1
    assert gate.is_full
    for thing in ("a", "b"):
        assert gate.has_room
        gate.line.append(thing)
    assert not gate.has_room
    assert gate.next_waiting() is None, "nobody enters while it is full"
    gate.inside = 0
    assert gate.next_waiting() == "a"
    assert gate.next_waiting() == "b"
    assert gate.next_waiting() is None


def test_what_is_forgotten_makes_room_and_does_not_enter() -> None:
    gate: Gate[str] = Gate("x", limit=1, room=2)
    gate.line.extend(["a", "b"])
    gate.forget("a")
    gate.forget("never there")
    assert gate.has_room
    assert gate.next_waiting() == "b"
