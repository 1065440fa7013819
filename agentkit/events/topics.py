"""What events are called, and which of them a subscriber means. Pure.

task.created      a topic: words of letters, digits, _ and -, with dots between them
task.*            a pattern: `*` is one word
task.>            `>` is the rest, one word or more, and stands at the end
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from agentkit.errors import ConfigError

#: Longest topic or pattern, in bytes.
MAX_TOPIC_BYTES: Final = 200
#: Ends the topic in a frame, so that a subscription to `task.made` does not bring `task.made_up`.
END: Final = b" "

_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9_\-]*"
_TOPIC: Final = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_PATTERN: Final = re.compile(rf"(?:{_WORD}|\*)(?:\.(?:{_WORD}|\*))*(?:\.>)?|>")


def is_topic(text: str) -> bool:
    """Whether `text` may name events."""
    return len(text) <= MAX_TOPIC_BYTES and _TOPIC.fullmatch(text) is not None


def check_topic(text: str, *, at: str) -> str:
    """`text` itself; ConfigError, with `at` as its place, when it names no topic."""
    if not is_topic(text):
        raise ConfigError(
            at=at, got=text, want="words of letters, digits, _ or - with dots between them", fix="such as task.created"
        )
    return text


class Pattern:
    """The topics that a subscriber means. ConfigError, with `at` as its place, when the text is no pattern."""

    __slots__ = ("_words", "prefix", "text")

    def __init__(self, text: str, *, at: str = "pattern") -> None:
        if len(text) > MAX_TOPIC_BYTES or _PATTERN.fullmatch(text) is None:
            raise ConfigError(
                at=at, got=text, want="a topic in which * stands for one word and > at the end for the rest",
                fix="such as task.created, task.* or task.>",
            )  # fmt: skip
        self.text = text
        self._words = text.split(".")
        literal = []
        for word in self._words:
            if word in ("*", ">"):
                break
            literal.append(word)
        #: What every frame of such a topic begins with: the most that a ZeroMQ socket can choose by.
        self.prefix: bytes = ".".join(literal).encode()
        if len(literal) == len(self._words):
            self.prefix += END
        elif literal:
            self.prefix += b"."

    def matches(self, topic: str) -> bool:
        """Whether `topic` is one of them."""
        words, own = topic.split("."), self._words
        if own[-1] == ">":
            if len(words) < len(own):
                return False
        elif len(words) != len(own):
            return False
        return all(mine in ("*", ">") or mine == theirs for mine, theirs in zip(own, words, strict=False))

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


@lru_cache(maxsize=4096)
def topic_bytes(topic: str) -> bytes:
    """How a topic stands at the beginning of a frame."""
    return topic.encode() + END
