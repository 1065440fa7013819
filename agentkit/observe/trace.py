"""Which calls belong together: spans, and their identity on the wire (W3C Trace Context, https://www.w3.org/TR/trace-context/).

A span is one call as its caller saw it, or as its handler did. Whoever begins a trace decides whether it is sampled (head sampling);
what is not sampled has no span, no identity and no bytes on the wire. An agent keeps its last spans in memory, where
`agentkit trace` asks for them. No I/O."""

from __future__ import annotations

import re
from collections import deque
from random import Random
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from agentkit.clock import now_s, wall_s
from agentkit.errors import CallError

#: Where a request's metadata say which span it was sent from.
TRACEPARENT: Final = "traceparent"
#: Of the calls that begin a trace, the part that is sampled.
DEFAULT_SAMPLE: Final = 0.01
#: Name and help of the counter of `Tracer.bad`.
BAD_TRACEPARENTS: Final = ("agent_bad_traceparents_total", "Requests whose traceparent was none, and was ignored")
#: Spans that an agent keeps; each takes about 0.5 kB.
MAX_SPANS: Final = 1_000
#: What is kept of a span's name, in characters: callers may make method names up.
MAX_NAME: Final = 200

Kind = Literal["client", "server"]

_HEADER: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_SAMPLED: Final = 0x01


class TraceContext(NamedTuple):
    """What a traceparent says."""

    trace_id: str  #: 32 hexadecimal digits, not all 0
    span_id: str  #: 16, likewise; the sender's span
    is_sampled: bool


def parse(text: object) -> TraceContext | None:
    """What `text` says; None unless it is a traceparent. Of versions above 00 the part that is known is read, as the
    recommendation asks."""
    if not isinstance(text, str) or (match := _HEADER.fullmatch(text)) is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class Span:
    """One call, from its begin to its `end`."""

    __slots__ = ("_began_s", "_keep", "at_s", "code", "duration_s", "kind", "name", "parent_id", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, parent_id: str, name: str, kind: Kind, keep: deque[Span]) -> None:
        self.trace_id, self.span_id, self.parent_id = trace_id, span_id, parent_id  #: parent "": the trace begins here
        self.name, self.kind = name, kind
        self.at_s = wall_s()  #: when it began, in seconds since the epoch
        self.duration_s = 0.0
        self.code = ""  #: "ok" or an error's wire code; "" until it has ended
        self._began_s = now_s()
        self._keep = keep

    @property
    def traceparent(self) -> str:
        """What a request that is sent from this span says."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def end(self, code: str = "ok") -> None:
        """It is over, and kept; the first end counts. From any thread."""
        if not self.code:
            self.code = code
            self.duration_s = now_s() - self._began_s
            self._keep.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """What left the block is what it ended with: an error's code; anything else that is raised ends a call early."""
        self.end("ok" if exc is None else exc.code if isinstance(exc, CallError) else "cancelled")

    def to_wire(self) -> dict[str, Any]:
        """Times in seconds."""
        return {
            "trace_id": self.trace_id, "span_id": self.span_id, "parent_id": self.parent_id, "name": self.name,
            "kind": self.kind, "start_s": self.at_s, "duration_s": self.duration_s, "code": self.code,
        }  # fmt: skip


class Tracer:
    """One process's sampling, and its last spans. Safe from every thread."""

    def __init__(self, sample: float = DEFAULT_SAMPLE, *, random: Random | None = None) -> None:
        """`sample`: the part of the traces begun here that is kept; 0: none, 1: all. `random`: for tests that want to know."""
        self.sample = sample
        self.bad = 0  #: traceparents that were none, and were ignored
        self.spans: deque[Span] = deque(maxlen=MAX_SPANS)
        random = random or Random()
        self.draw = random.random  #: a trace begins where this is below `sample`
        self._bits = random.getrandbits

    def begin(self, name: str, kind: Kind, parent: Span | TraceContext | None = None) -> Span:
        """A span, of a new trace unless it has a parent."""
        trace_id = f"{self._bits(128) or 1:032x}" if parent is None else parent.trace_id
        parent_id = "" if parent is None else parent.span_id
        return Span(trace_id, f"{self._bits(64) or 1:016x}", parent_id, name[:MAX_NAME], kind, self.spans)

    def serve(self, traceparent: object, name: str) -> Span | None:
        """The span of a request that came with `traceparent`; None where its sender does not sample, or sends something else."""
        context = parse(traceparent)
        if context is None:
            self.bad += 1
            return None
        return self.begin(name, "server", context) if context.is_sampled else None

    def told(self, trace_id: str = "", limit: int = MAX_SPANS) -> list[dict[str, Any]]:
        """The last spans that are kept, oldest first: of the traces whose id begins so, or of all."""
        found = [span for span in tuple(self.spans) if span.trace_id.startswith(trace_id)]
        return [span.to_wire() for span in found[-limit:]] if limit > 0 else []
