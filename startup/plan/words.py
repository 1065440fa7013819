"""Ends and durations in words, for rows and messages."""

from __future__ import annotations

import signal


def describe_exit(code: int | None) -> str:
    """`exit 1`, `signal SIGKILL`, or that nobody knows."""
    if code is None:
        return "exit unknown"
    if code >= 0:
        return f"exit {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def in_words(seconds: float) -> str:
    """A duration for people: `0.31 s`, `12 s`, `4 min`, `3 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def as_cause(reason: str) -> str:
    """`signal SIGKILL`, which describe_exit says, as what happened to somebody else: `killed by SIGKILL`."""
    return f"killed by {reason.removeprefix('signal ')}" if reason.startswith("signal ") else reason
