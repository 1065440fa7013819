"""What the holder of a key may do."""

from __future__ import annotations

from agentkit.security.roles import Holder, forbidden, may


def test_an_operator_fulfils_every_role_and_others_only_their_own() -> None:
    assert may(Holder("ops", "operator"), "operator")
    assert may(Holder("ops", "operator"), "reader")
    assert may(Holder("screen", "reader"), "reader")
    assert not may(Holder("screen", "reader"), "operator")
    assert not may(Holder("main_pc", "agent"), "reader")


def test_who_has_no_key_fulfils_no_role() -> None:
    assert not may(None, "agent")


def test_a_refusal_names_the_role_that_is_needed_and_who_asked() -> None:
    error = forbidden("Bank.pay", "operator", Holder("main_pc", "agent"))
    assert "'operator'" in error.message
    assert "main_pc (agent)" in error.message
    assert dict(error.details) == {"role": "operator", "name": "main_pc", "has": "agent"}
    assert not error.retry_safe


def test_without_a_key_the_refusal_says_what_would_help() -> None:
    assert "security: {local: curve}" in forbidden("Bank.pay", "operator", None).message
