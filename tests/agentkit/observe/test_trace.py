from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import NotFound
from agentkit.observe.trace import MAX_SPANS, TraceContext, Tracer, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def ids(digits: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


@given(ids(32), ids(16), st.integers(0, 255))
def test_whatever_the_recommendation_allows_is_read(trace_id: str, span_id: str, flags: int) -> None:
    assert parse(f"00-{trace_id}-{span_id}-{flags:02x}") == TraceContext(trace_id, span_id, flags % 2 == 1)


@given(st.integers(1, 254), st.text())
def test_of_a_later_version_the_known_part_is_read(version: int, more: str) -> None:
    known = f"{version:02x}-{TRACE}-{SPAN}-01"
    assert parse(known) == parse(f"{known}-{more}") == TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "text",
    [
        "", "00", GOOD.upper(), f" {GOOD}", f"{GOOD}\n", f"{GOOD}-more", f"ff{GOOD[2:]}", f"cc{GOOD[2:]}x",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{SPAN}-01", f"00-{TRACE}-{SPAN}x-01",
        f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-0g", GOOD.replace("-", "_"),
        f"00-{TRACE[:-1]}\N{ARABIC-INDIC DIGIT ONE}-{SPAN}-01", 7, None, GOOD.encode(), [GOOD],
    ],
)  # fmt: skip
def test_anything_else_is_none(text: object) -> None:
    assert parse(text) is None


@given(st.text(alphabet="0123456789abcdefABCDEF-", min_size=50, max_size=60) | st.text())
def test_no_text_raises_and_what_is_read_can_be_said_again(text: str) -> None:
    found = parse(text)
    if found is not None:
        assert text[:55] == f"{text[:2]}-{found.trace_id}-{found.span_id}-{text[53:55]}"


def test_a_bad_traceparent_is_ignored_and_counted() -> None:
    tracer = Tracer(1)
    assert tracer.serve("nonsense", "m") is None
    assert tracer.serve(GOOD[:-1] + "0", "m") is None  # its sender does not sample: that is no mistake
    assert tracer.bad == 1


def test_a_span_continues_the_trace_of_its_parent() -> None:
    tracer = Tracer(1, random=Random(1))
    served = tracer.serve(GOOD, "m")
    assert served is not None
    inner = tracer.begin("X.n", "client", served)
    assert (served.trace_id, served.parent_id, inner.trace_id, inner.parent_id) == (TRACE, SPAN, TRACE, served.span_id)
    assert parse(inner.traceparent) == TraceContext(TRACE, inner.span_id, True)


def test_spans_are_kept_when_they_end_with_what_they_end_with() -> None:
    tracer = Tracer(1)
    for error in (None, NotFound("no"), KeyError("x")):
        span = tracer.begin("X.m", "client")
        if error is None:
            with span:
                assert not tracer.spans
        else:
            with pytest.raises(type(error)), span:
                raise error
        span.end("again")  # the first end counts
    assert [span["code"] for span in tracer.told()] == ["ok", "not_found", "cancelled"]
    assert all(span["duration_s"] >= 0 for span in tracer.told())


def test_only_the_last_spans_are_kept_and_told_as_asked() -> None:
    tracer = Tracer(1)
    for n in range(MAX_SPANS + 5):
        tracer.begin(f"X.m{n}", "client").end()
    assert len(tracer.told()) == MAX_SPANS
    assert [span["name"] for span in tracer.told(limit=2)] == [f"X.m{MAX_SPANS + 3}", f"X.m{MAX_SPANS + 4}"]
    one = tracer.spans[7]
    assert [span["span_id"] for span in tracer.told(one.trace_id[:20])] == [one.span_id]
    assert tracer.told(limit=0) == []
    assert len(tracer.begin("x" * 10_000, "client").name) == 200


@pytest.mark.parametrize(
    ("sample", "least", "most"), [(0, 0, 0), (0.01, 70, 130), (0.5, 4_800, 5_200), (1, 10_000, 10_000)]
)
def test_as_many_traces_begin_as_the_sample_says(sample: float, least: int, most: int) -> None:
    tracer = Tracer(sample, random=Random(5))
    assert least <= sum(tracer.draw() < tracer.sample for _ in range(10_000)) <= most
