"""Identities in a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.names import AgentId, AgentName, MachineName, is_name, matching

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)


@given(names, names, st.integers(0, 10_000))
def test_an_id_is_read_as_it_is_written(machine: str, name: str, slot: int) -> None:
    one = AgentId(MachineName(machine), AgentName(name), slot)
    assert AgentId.parse(str(one)) == one
    assert str(one) == f"{machine}/{one.instance}"


@pytest.mark.parametrize("wrong", ["", "A", "/A", "m/", "m/A#", "m/A#x", "m/A#-1", "m/A/b", "m/9", "m/A#²", "m m/A"])
def test_what_is_no_id_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="machine/name or machine/name#slot"):
        AgentId.parse(wrong)


@pytest.mark.parametrize(
    ("text", "is_so"), [("A", True), ("a-b.c_1", True), ("", False), ("1a", False), ("a" * 101, False)]
)
def test_names(text: str, is_so: bool) -> None:
    assert is_name(text) is is_so


@given(st.text(max_size=20), st.lists(st.builds(AgentId, names, names, st.integers(0, 3)), max_size=5))
def test_any_text_matches_something_or_nothing(wanted: str, known: list[AgentId]) -> None:
    assert set(matching(wanted, known, here="m")) <= set(known)
    for one in known:
        assert one in matching(str(one), known)
