"""When a zygote starts the next node, by a clock that is moved by hand."""

from __future__ import annotations

from startup.node.zygote.respawn import NODE_ATTEMPTS, NODE_DELAY_S, NODE_STAYED_S, Respawn


def test_each_node_that_goes_is_followed_later_than_the_one_before() -> None:
    respawn = Respawn()
    assert [respawn.plan(0.0) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_node_that_stayed_is_followed_quickly_again() -> None:
    respawn = Respawn()
    for _ in range(4):
        respawn.plan(0.0)
    respawn.lost(NODE_STAYED_S)
    assert respawn.plan(0.0) == NODE_DELAY_S[0]


def test_nodes_that_never_connect_are_given_up_and_one_that_does_begins_the_count_anew() -> None:
    respawn = Respawn()
    for _ in range(NODE_ATTEMPTS):
        assert not respawn.has_given_up
        respawn.began()
    assert respawn.has_given_up
    respawn.connected()
    assert not respawn.has_given_up


def test_the_loop_waits_until_the_next_node_is_due_and_for_ever_when_none_is() -> None:
    respawn = Respawn()
    assert respawn.patience_ms(0.0) is None
    respawn.plan(10.0)
    waited_s = (respawn.patience_ms(10.0) or 0) / 1000
    assert not respawn.is_due(10.0)
    assert respawn.is_due(10.0 + waited_s)
    respawn.cancel()
    assert not respawn.is_due(1e9)
