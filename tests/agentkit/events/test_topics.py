from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.events.topics import MAX_TOPIC_BYTES, Pattern, check_topic, is_topic, topic_bytes

WORDS = st.sampled_from(["a", "b", "ab", "task", "task2", "made", "made_up", "x-1"])
TOPICS = st.lists(WORDS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda words, rest: ".".join([*words, *rest]),
    st.lists(st.one_of(WORDS, st.just("*")), min_size=1, max_size=5),
    st.sampled_from([[], [">"]]),
) | st.just(">")


def meant(pattern: str, topic: str) -> bool:
    """The same by a regular expression."""
    words = {"*": r"[^.]+", ">": r".+"}
    return re.fullmatch(r"\.".join(words.get(word, re.escape(word)) for word in pattern.split(".")), topic) is not None


@given(PATTERNS, TOPICS)
def test_a_pattern_means_what_the_same_regular_expression_means(pattern: str, topic: str) -> None:
    assert Pattern(pattern).matches(topic) == meant(pattern, topic)


@given(PATTERNS, TOPICS)
def test_the_socket_lets_through_whatever_the_pattern_means(pattern: str, topic: str) -> None:
    known = Pattern(pattern)
    if known.matches(topic):
        assert topic_bytes(topic).startswith(known.prefix)


@given(TOPICS)
def test_a_topic_without_wildcards_means_itself_alone_even_at_the_socket(topic: str) -> None:
    assert Pattern(topic).matches(topic)
    assert Pattern(topic).prefix == topic_bytes(topic)
    assert not topic_bytes(topic + "x").startswith(Pattern(topic).prefix)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", "a.>.b", ">.a", "a>", "a*", "a.*b", "ä", "_probe.x", "a\n", "a" * 201]
)
def test_what_is_no_pattern_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"@subscribe\(\)"):
        Pattern(text, at="@subscribe()")


@pytest.mark.parametrize("text", ["task.*", "task.>", "", "task created", "a" * (MAX_TOPIC_BYTES + 1), "a.b\n"])
def test_what_is_no_topic_is_refused(text: str) -> None:
    assert not is_topic(text)
    with pytest.raises(ConfigError, match="topic of X"):
        check_topic(text, at="topic of X")
