"""What a call returns where no answer came: what the call itself says, else what the agent declares with `@fallback`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Final, TypeVar

from agentkit.agent.decorators import mark, marked
from agentkit.clock import now_s
from agentkit.errors import CallError, ConfigError
from agentkit.resilience.kept import Freezer, Frozen, Kept
from agentkit.wire.attachments import Unsent
from agentkit.wire.shared import frames_for
from agentkit.wire.values import Unsendable

F = TypeVar("F", bound=Callable[..., Any])

#: Codes that mean that nobody answered. What a handler says, "no" included, is an answer.
NO_ANSWER: Final = frozenset(
    {"no_such_agent", "unreachable", "overloaded", "draining", "deadline_exceeded", "peer_lost", "internal"}
)
#: Last answers that are kept for `fallback=LAST_ANSWER`: so many, so large together, for so long (in seconds).
_KEPT: Final = {"entries": 1_000, "max_bytes": 16 * 1024 * 1024, "ttl_s": 24 * 3600.0}


class LastAnswer:
    """The type of LAST_ANSWER."""

    def __repr__(self) -> str:
        return "LAST_ANSWER"


#: `fallback=LAST_ANSWER`: what the same call with the same arguments returned the last time.
LAST_ANSWER: Final = LastAnswer()
#: No `fallback=`: a value may be None.
NOTHING: Final = LastAnswer()

Declared = Mapping[tuple[str, str], Callable[..., Any]]


class Fallbacks:
    """Of one caller. From any thread."""

    def __init__(self, declared: Declared | None = None) -> None:
        self.declared = declared or {}  #: (target, method) -> what answers, called with the same arguments
        self.used: Counter[str] = Counter()  #: by the name that was called
        self._lock = threading.Lock()
        self._freezer = Freezer()
        self._last: Kept[Frozen] = Kept(**_KEPT)  # type: ignore[arg-type]

    def remember(self, target: str, method: str, asked: Unsent, result: object) -> None:
        """The answer to a call with `fallback=LAST_ANSWER`."""
        with self._lock:
            try:
                frozen = self._freezer.freeze(result)
            except Unsendable:  # it came over the wire, but in a form that has no way back
                return
            self._last.put(_question(target, method, asked), frozen, frozen.size + len(asked[0]), now_s())

    def answer(
        self,
        given: object,
        target: str,
        method: str,
        asked: Unsent | None,
        arguments: Mapping[str, Any],
        error: CallError,
    ) -> Any:
        """The answer in place of `error`, or something to await; `error` itself is raised where there is none."""
        if error.code not in NO_ANSWER:
            raise error
        if given is LAST_ANSWER:
            with self._lock:
                found = self._last.get(_question(target, method, asked), now_s()) if asked is not None else None
            if found is not None:
                self.used[target] += 1
                return found.thaw()
        elif given is not NOTHING:
            self.used[target] += 1
            return given(**arguments) if callable(given) else given
        declared = self.declared.get((target, method))
        if declared is None:
            raise error
        self.used[target] += 1
        return declared(**arguments)


def _question(target: str, method: str, asked: Unsent) -> tuple[str, str, bytes, bytes]:
    body, attachments = asked
    digest = blake2b(digest_size=16)
    for buffer in frames_for(attachments, may_share=False):
        digest.update(buffer)
    return target, method, body, digest.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Options of `@fallback`."""

    target: str
    method: str


def fallback(target: str, method: str) -> Callable[[F], F]:
    """A method that answers in place of `target`'s `method` where no answer came: unreachable, lost, too late, overloaded.

    It gets the same arguments and returns what the caller is to get; `async def`, or a plain `def` that must not block. What it
    raises is what the call ends with. `fallback=` of a call goes before it."""
    for name, value in (("target", target), ("method", method)):
        if not isinstance(value, str) or not value:
            raise ConfigError(
                at=f"@fallback({name}=)", got=value, want='a name, as in @fallback("Summarizer", "summarize")'
            )
    return mark(Fallback(target=target, method=method))


def fallbacks_of(owner: object) -> dict[tuple[str, str], Callable[..., Any]]:
    """(target, method) -> what answers in its place, of an agent's `@fallback` methods."""
    return {
        (options.target, options.method): partial(function, owner)
        for _, function, options in marked(type(owner), Fallback)
    }
