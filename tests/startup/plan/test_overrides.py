"""What keys in Consul say over agents' config."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from startup.plan.overrides import MAX_VALUE_BYTES, read

P = "agentkit/c/config/"


def test_a_value_is_json_or_text() -> None:
    items = [
        ("Echo/n", b"5"),
        ("Echo/text", b"hello world"),
        ("Echo/quoted", b'"5"'),
        ("Echo/list", b"[1, true, null]"),
    ]
    found = read([(P + key, value) for key, value in items], P)
    assert found.overrides == {"Echo": {"n": 5, "text": "hello world", "quoted": "5", "list": [1, True, None]}}


def test_longer_keys_are_maps_and_win_over_shorter_ones() -> None:
    items = [("Echo", b'{"a": {"x": 1, "y": 1}}'), ("Echo/a/y", b"2"), ("Other/b", b"3"), ("Echo/", b"")]
    assert read([(P + key, value) for key, value in items], P).overrides == {
        "Echo": {"a": {"x": 1, "y": 2}},
        "Other": {"b": 3},
    }


def test_a_key_that_cant_be_used_is_left_out_with_its_place_and_the_others_count() -> None:
    items = [
        ("Echo", b"5"),
        ("9/x", b"1"),
        ("Echo/a", b"1"),
        ("Echo/a/b", b"2"),
        ("Echo/bytes", b"\xff"),
        ("Echo/large", b"x" * (MAX_VALUE_BYTES + 1)),
        ("Echo/" + "/".join("d" * 20), b"1"),
    ]
    found = read([(P + key, value) for key, value in items], P)
    assert found.overrides == {"Echo": {"a": 1}}
    assert len(found.problems) == 6
    assert any(
        problem.startswith(P + "Echo/a/b: ") and "Echo" not in problem.split(": ", 1)[1] for problem in found.problems
    )


NAMES = st.text("abcdef_", min_size=1, max_size=4)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)


@given(
    st.dictionaries(NAMES, st.recursive(VALUES, lambda below: st.dictionaries(NAMES, below, min_size=1), max_leaves=8))
)
def test_a_config_written_key_by_key_is_read_as_it_was(config: dict[str, Any]) -> None:
    items: list[tuple[str, bytes]] = []

    def write(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                write(f"{path}/{name}", below)
        else:
            items.append((path, json.dumps(value).encode()))

    write(P + "Echo", config)
    assert read(items, P) == (({"Echo": config} if config else {}), ())
    whole = read([(P + "Echo", json.dumps(config).encode())], P)
    assert whole.overrides == {"Echo": config}
