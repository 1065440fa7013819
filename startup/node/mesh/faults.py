"""Nodes that an operator has cut off from this one for a while, or made slow: what the mesh then does not hear, or hears late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Hold:
    by_s: float | None  #: None: nothing passes
    timer: asyncio.TimerHandle


class MeshFaults:
    """What holds for each machine. Everything ends by a timer of ours, so it ends with this process at the latest."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        """`on_change`: a machine was cut off, or is not any more."""
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._holds: dict[str, _Hold] = {}

    def hold(self, machine: str, by_s: float | None, for_s: float) -> None:
        """Nothing of `machine` is heard for `for_s`, or everything `by_s` late. The last word counts."""
        self._drop(machine)
        self._holds[machine] = _Hold(by_s, self._loop.call_later(for_s, self.heal, machine))
        self._on_change(machine)

    def heal(self, machine: str | None = None) -> None:
        """Of one, or of all."""
        for name in tuple(self._holds) if machine is None else (machine,):
            self._drop(name)
            self._on_change(name)

    def close(self) -> None:
        for machine in tuple(self._holds):
            self._drop(machine)

    def is_cut(self, machine: str) -> bool:
        hold = self._holds.get(machine)
        return hold is not None and hold.by_s is None

    def delay_s(self, machine: str) -> float:
        """0: none."""
        hold = self._holds.get(machine)
        return (hold.by_s or 0.0) if hold is not None else 0.0

    def _drop(self, machine: str) -> None:
        if hold := self._holds.pop(machine, None):
            hold.timer.cancel()
