"""Holding agents to their limits, and finding what is left of them: cgroups where this machine lets us, else rlimits and a look at PSS.

Every process that is forked gets a cage of its own before the fork, and joins it before anything else (child.py), so that nothing it
starts escapes, whatever it does to its environment and session. Who is over its limit is told, with the figures, when it has
ended, or when it is looked at: at most every LOOK_EVERY_S, and only while there is an agent that has limits."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.node.limits import cgroups, rlimits
from startup.node.limits.cgroup1 import Cgroup1
from startup.node.limits.cgroup2 import Cgroup2
from startup.node.limits.cgroups import PREFIX, Cage, Cgroups, Unavailable
from startup.node.paths import Places, write_atomically
from startup.node.zygote.link import Admission
from startup.plan.limits import Limits, Usage, limits_of, over, refused
from startup.spec.fleet import AgentSpec

log = get_logger("node.bounds")

#: `rlimits`: do not use cgroups, whatever the machine has.
VARIABLE: Final = "AGENTKIT_LIMITS"
#: Agents with limits are looked at so often, in seconds, together and with what else comes in whole multiples of it.
LOOK_EVERY_S: Final = 5.0
#: A cage whose last processes are just ending is removed again after so long, in seconds, and so many times.
_REMOVE_AFTER_S: Final = 0.05
_REMOVE_TIMES: Final = 40
_FALLBACK: Final = "rlimits"


@dataclass(slots=True)
class Held:
    """One process with what it starts."""

    id: AgentId
    limits: Limits
    cage: Cage | None
    pid: int | None = None
    is_told: bool = False  #: that it is over its limit
    refused: int = 0  #: forks, as told


class Bounds:
    """One for a node, on its loop."""

    def __init__(self, places: Places, environ: Mapping[str, str] = os.environ) -> None:
        self.on_over: Callable[[AgentId, Incarnation, str], None] = lambda *_: None
        self.on_refused: Callable[[AgentId, Incarnation, str], None] = lambda *_: None
        self._loop = asyncio.get_running_loop()
        self._places = places
        # two clusters of one name may run on a machine, with run directories of their own
        mark = hashlib.blake2b(os.fsencode(places.control), digest_size=4).hexdigest()
        self._is_closed = False
        self._said: set[str] = set()  #: what need not be said again
        self._cgroups, self._why = choose(f"{PREFIX}{places.cluster}.{places.machine}.{mark}", environ)
        self._held: dict[Incarnation, Held] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if self._cgroups is not None:
            self._remember(self._cgroups.bases())

    def facts(self) -> dict[str, Any]:
        """For `status` and `doctor`."""
        if self._cgroups is None:
            return {"backend": _FALLBACK, "holds": ["memory"], "why": self._why}
        return {"backend": self._cgroups.kind, "holds": [*self._cgroups.holds, "stray processes"], "why": self._why}

    # -- one process

    def prepare(self, spec: AgentSpec, incarnation: Incarnation) -> Admission:
        """Before its fork. OSError: the kernel does not take these limits."""
        limits = limits_of(spec)
        cage = self._cage(f"{spec.id.instance}.{incarnation}", limits)
        self._held[incarnation] = Held(spec.id, limits, cage)
        holds = self._cgroups.holds if cage is not None and self._cgroups is not None else ()
        if limits.cpu is not None and "cpu" not in holds:
            self._say_once("cpu", "limits.not_held", what="cpu", agent=str(spec.id), why=self._why)
        return Admission(
            cgroups=tuple(str(folder / "cgroup.procs") for folder in (cage or {}).values()),
            rlimits=tuple(rlimits.told(limits, but=holds).items()),
        )

    def _cage(self, name: str, limits: Limits) -> Cage | None:
        if self._cgroups is None:
            return None
        try:
            return self._cgroups.make(name, limits)
        except OSError as exc:
            if limits.any:
                raise
            self._say_once("cage", "bounds.no_cage", name=name, error=str(exc))  # it can do without
            return None

    def began(self, incarnation: Incarnation, pid: int) -> None:
        """It was forked."""
        held = self._held[incarnation]
        held.pid = pid
        if held.limits.any and self._timer is None:
            self._look_later()

    def adopt(self, spec: AgentSpec, incarnation: Incarnation, pid: int) -> None:
        """It was forked by an earlier node."""
        cage = self._cgroups.find(pid) if self._cgroups is not None else None
        self._held[incarnation] = Held(spec.id, limits_of(spec), cage)
        self.began(incarnation, pid)

    def members(self, incarnation: Incarnation) -> list[int]:
        """Pids of all that is alive in its cage; [] without one."""
        held = self._held.get(incarnation)
        if held is None or held.cage is None:
            return []
        return cgroups.members(next(iter(held.cage.values())))

    def is_empty(self, incarnation: Incarnation) -> bool:
        """Whether it has a cage, and nothing is alive in it."""
        held = self._held.get(incarnation)
        return held is not None and held.cage is not None and not cgroups.members(next(iter(held.cage.values())))

    def forbid_forks(self, incarnation: Incarnation) -> None:
        """It is being killed, and shall not multiply faster than that."""
        held = self._held.get(incarnation)
        if held is not None and held.cage is not None and self._cgroups is not None:
            with suppress(OSError):
                self._cgroups.forbid_forks(held.cage)

    def ended(self, incarnation: Incarnation) -> str:
        """Nothing of it is left: its cage goes. Why its limits were the end of it, or ""."""
        held = self._held.pop(incarnation, None)
        if held is None or held.cage is None:
            return ""
        assert self._cgroups is not None
        why = over(held.limits, self._cgroups.usage(held.cage)) if held.limits.any else ""
        if not cgroups.remove(held.cage):
            self._spawn(self._remove_later([held.cage]))
        return why

    # -- all of them

    def clear(self) -> None:
        """Ends what dead nodes of this machine left in cages that belong to nobody; after everything was adopted."""
        kept = {folder for held in self._held.values() for folder in (held.cage or {}).values()}
        cages: list[Cage] = []
        for base in self._bases():
            folders = [folder for folder in cgroups.folders_in(base) if folder not in kept]
            for folder in folders:
                if left := cgroups.members(folder):
                    log.warning("bounds.leftovers", cage=folder.name, pids=left[:20], number=len(left))
                    cgroups.kill_all(left)
            cages += [{"": folder} for folder in folders]
        if cages:
            self._spawn(self._remove_later(cages))

    def close(self) -> None:
        """The node ends; what still runs stays in its cage."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for base in self._bases():
            for folder in cgroups.folders_in(base):
                cgroups.remove({"": folder})
            cgroups.remove({"": base})

    def _look_later(self) -> None:
        if self._is_closed or not any(held.limits.any for held in self._held.values()):
            self._timer = None
            return
        now_s = self._loop.time()
        self._timer = self._loop.call_later(LOOK_EVERY_S - now_s % LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        measured, holds = {}, self._cgroups.holds if self._cgroups is not None else ()
        for incarnation, held in list(self._held.items()):
            if not held.limits.any or held.pid is None:
                continue
            if held.cage is not None and self._cgroups is not None:
                self._judge(incarnation, held, self._cgroups.usage(held.cage))
            if held.cage is None or (held.limits.memory_bytes is not None and "memory" not in holds):
                measured[incarnation] = held
        if measured:
            self._spawn(self._measure(measured))
        else:
            self._look_later()

    async def _measure(self, watched: Mapping[Incarnation, Held]) -> None:
        pids = {incarnation: held.pid for incarnation, held in watched.items() if held.pid is not None}
        try:
            found = await asyncio.to_thread(lambda: {key: rlimits.usage(pid) for key, pid in pids.items()})
            for incarnation, usage in found.items():
                if self._held.get(incarnation) is watched[incarnation]:
                    self._judge(incarnation, watched[incarnation], usage)
        finally:
            self._look_later()

    def _judge(self, incarnation: Incarnation, held: Held, usage: Usage) -> None:
        if (why := over(held.limits, usage)) and not held.is_told:
            held.is_told = True
            self.on_over(held.id, incarnation, why)
        elif why := refused(held.limits, usage, held.refused):
            held.refused = usage.forks_refused
            self.on_refused(held.id, incarnation, why)

    async def _remove_later(self, cages: Iterable[Cage]) -> None:
        left = list(cages)
        for _ in range(_REMOVE_TIMES):
            left = [cage for cage in left if not cgroups.remove(cage)]
            if not left:
                return
            await asyncio.sleep(_REMOVE_AFTER_S)
        log.warning("bounds.not_removed", cages=[str(folder) for cage in left for folder in cage.values()])

    def _say_once(self, key: str, message: str, **facts: Any) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning(message, **facts)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work, name="bounds")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- where cages are: another node of this machine may have been started from elsewhere, and has them there

    def _remember(self, bases: Iterable[Path]) -> None:
        known = {str(base) for base in (*cgroups.bases_of(self._places.run), *bases)}
        try:
            write_atomically(self._places.run / cgroups.BASES, "\n".join(sorted(known)).encode(), durable=False)
        except (
            OSError
        ) as exc:  # a full disk: what this node leaves, the next finds only if it starts from the same cgroup
            log.warning("bounds.not_remembered", error=str(exc))

    def _bases(self) -> set[Path]:
        own = self._cgroups.bases() if self._cgroups is not None else ()
        return {*cgroups.bases_of(self._places.run), *own}


def choose(name: str, environ: Mapping[str, str] = os.environ) -> tuple[Cgroups | None, str]:
    """The cgroups that this machine lets us use, and why these, or why none. `name`: of our folder in them."""
    if environ.get(VARIABLE) == _FALLBACK:
        return None, f"{VARIABLE}={_FALLBACK}"
    refusals: list[str] = []
    versions: tuple[Callable[[str], Cgroups], ...] = (Cgroup1.open, Cgroup2.open)
    for open_ in versions:
        try:
            return open_(name), ""
        except Unavailable as exc:
            refusals.append(str(exc))
    return None, "; ".join(refusals)


def foreseen(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """What `choose` would choose for a node of ours, and why not better. Changes nothing."""
    if environ.get(VARIABLE) == _FALLBACK:
        return _FALLBACK, f"{VARIABLE}={_FALLBACK}"
    refusals: list[str] = []
    looks: tuple[tuple[str, Callable[[], object]], ...] = (
        (Cgroup1.kind, Cgroup1.foreseen),
        (Cgroup2.kind, Cgroup2.foreseen),
    )
    for kind, look in looks:
        try:
            look()
        except Unavailable as exc:
            refusals.append(str(exc))
        else:
            return kind, ""
    return _FALLBACK, "; ".join(refusals)
