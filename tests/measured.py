"""Which processes coverage looks into. It costs each one 70 ms of processor time at its start, and as much again a file at its end:
tests that start hundreds of processes, or many fleets, whose lines others run too, go without."""

from __future__ import annotations

from collections.abc import Mapping


def unmeasured(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which coverage does not start by itself."""
    return {name: value for name, value in environ.items() if not name.startswith("COVERAGE_")}
