"""Takes error reports from this machine's agents, has them stored, and answers questions about them for the whole cluster.

The store is worked on by one thread; while it is busy what arrives waits and is stored together next, so the loop never waits and a
storm makes larger transactions rather than more. An agent has one batch under way and is answered when that is on disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import BadRequest, Overloaded
from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from agentkit.observe.reports import MAX_COUNT, ErrorGroup, severity_of
from startup.node.paths import Places

log = get_logger("node.errors")

#: Most kinds in one batch, and most that wait to be stored; an agent that comes later is told to come again.
MAX_BATCH: Final = 128
MAX_WAITING: Final = 8_192
#: Reports of the node itself that wait while the store can't be written.
MAX_OWN: Final = 256
#: How long an agent shall wait whose batch can't be stored now, in ms.
RETRY_AFTER_MS: Final = 5_000
#: Between two lines of the log about a store that can't be written, in seconds.
COMPLAIN_EVERY_S: Final = 60.0
#: How long other machines' answers are waited for, in seconds.
OTHERS_S: Final = 2.0
#: Shortest part of an id that is looked up.
MIN_ID: Final = 4

T = TypeVar("T")

#: Asks all other machines that answer: (method, arguments) -> machine -> answer, None where none came.
AskOthers = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True)
class _Waiting:
    """A batch, and who wants to know when it is stored."""

    batch: Any  #: error_store.Offered
    stored: asyncio.Future[None] | None = None


class ErrorDesk:
    """One for a node. `operations` are those of the control conversation, `answer` is for other nodes."""

    def __init__(self, places: Places, ask_others: AskOthers) -> None:
        #: Told a batch (error_store.Offered) that is new, and what came of it (error_store.Stored).
        self.on_stored: Callable[[Any, list[Any]], None] = lambda *_: None
        self.stored = self.repeated = 0  #: reports; batches that were there already
        self._places = places
        self._ask_others = ask_others
        self._loop = asyncio.get_running_loop()
        self._thread: ThreadPoolExecutor | None = None
        self._store: Any = None
        self._waiting: deque[_Waiting] = deque()
        self._groups = 0
        self._own = 0
        self._writing: asyncio.Task[None] | None = None
        self._complained_s = -COMPLAIN_EVERY_S
        self.operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "report": self._report,
            "errors": self._errors,
            "error": self._error,
            "resolve": self._resolve,
        }

    def add(self, id: AgentId, incarnation: int, group: ErrorGroup) -> None:
        """The node's own word about one of its agents. When too many wait, the oldest of them goes."""
        from startup.node.errors.store import Offered

        if self._own >= MAX_OWN:
            oldest = next(found for found in self._waiting if found.stored is None)
            self._waiting.remove(oldest)
            self._own -= 1
            log.warning("errors.dropped", agent=oldest.batch.agent, message=oldest.batch.groups[0].message)
        self._own += 1
        self._waiting.append(_Waiting(Offered(agent=str(id), incarnation=incarnation, groups=(group,))))
        self._write()

    async def answer(self, asked: Mapping[str, Any]) -> Any:
        """What another node asks: `what` is errors, error or resolve, the rest its arguments."""
        what, arguments = asked["what"], dict(asked["arguments"])
        if what not in ("errors", "error", "resolve"):
            raise BadRequest(f"no question {what!r} about errors")
        return await self._here(what, arguments)

    async def close(self) -> None:
        """What has arrived is stored, if that can be done."""
        while self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._thread is not None:
            if self._store is not None:
                await self._loop.run_in_executor(self._thread, self._store.close)
            self._thread.shutdown(wait=True)
            self._thread = None

    # -- taking

    async def _report(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Answered when it is on disk; Overloaded when that can't be done now."""
        from startup.node.errors.store import Offered

        groups = list(arguments["groups"])
        number, source, id = int(arguments["number"]), str(arguments["source"]), AgentId.parse(str(arguments["id"]))
        if not 1 <= len(groups) <= MAX_BATCH or not 0 < number < MAX_COUNT or not 8 <= len(source) <= 64:
            raise BadRequest(f"a batch of {len(groups)} kinds, number {number}; 1 to {MAX_BATCH} kinds are taken")
        if id.machine != self._places.machine:
            raise BadRequest(f"{id} is not of this machine, {self._places.machine}")
        if self._groups + len(groups) > MAX_WAITING:
            raise _later(f"{self._groups:,} kinds of error wait to be stored already")
        batch = Offered(
            agent=str(id),
            incarnation=int(arguments["incarnation"]),
            groups=tuple(ErrorGroup.from_wire(group) for group in groups),
            source=source,
            number=number,
        )
        stored: asyncio.Future[None] = self._loop.create_future()
        self._groups += len(groups)
        self._waiting.append(_Waiting(batch, stored))
        self._write()
        await stored
        return {"number": number}

    def _write(self) -> None:
        if self._writing is None:
            self._writing = self._loop.create_task(self._write_all(), name="errors:write")

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                together, self._waiting, self._groups, self._own = self._waiting, deque(), 0, 0
                try:
                    results = await self._on_thread("store", [waiting.batch for waiting in together])
                except OSError as exc:
                    self._keep_own(together, exc)
                    return
                self._tell(together, results)
        finally:
            self._writing = None

    def _tell(self, together: deque[_Waiting], results: list[Any]) -> None:
        for waiting, result in zip(together, results, strict=True):
            if waiting.stored is not None and not waiting.stored.done():
                waiting.stored.set_result(None)
            if result is None:
                self.repeated += 1
                continue
            self.stored += sum(found.group.count for found in result)
            try:
                self.on_stored(waiting.batch, result)
            except Exception:
                log.exception("errors.rules_failed", agent=waiting.batch.agent)

    def _keep_own(self, together: deque[_Waiting], exc: Exception) -> None:
        """Agents keep what they have and come again; the node's own words wait for the next batch."""
        now_s = SYSTEM_CLOCK.now_s()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            log.error("errors.not_stored", folder=str(self._places.state), error=str(exc))
        for waiting in together:
            if waiting.stored is None:
                self._waiting.append(waiting)
                self._own += 1
            elif not waiting.stored.done():
                waiting.stored.set_exception(_later(f"the node can't store errors now: {exc}"))

    async def _on_thread(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="errors")
        return await self._loop.run_in_executor(self._thread, partial(self._work, method, *arguments, **options))

    def _work(self, method: str, *arguments: Any, **options: Any) -> Any:
        if self._store is None:  # only now: a machine without errors needs neither the file nor SQLite
            from startup.node.errors.store import ErrorStore

            self._store = ErrorStore(self._places.state / "errors.db")
        return getattr(self._store, method)(*arguments, **options)

    # -- answering

    async def _errors(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`agent`, `severity`, `resolved`, `limit`, `after`: {machine: cursor}. Each machine's kinds; None where one is silent."""
        return {"machines": await self._everywhere("errors", arguments)}

    async def _error(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`id`: the beginning of one. Everything about the kinds that it may mean."""
        answers = await self._everywhere("error", arguments)
        found = [group for answer in answers.values() for group in answer or ()]
        return {"groups": found, "silent": sorted(machine for machine, answer in answers.items() if answer is None)}

    async def _resolve(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`id` in full, `by`: who says so."""
        answers = await self._everywhere("resolve", arguments)
        return {"group": next((group for group in answers.values() if group), None)}

    async def _everywhere(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            here = self._here(what, arguments)
            asked = self._ask_others("mesh.errors", {"what": what, "arguments": dict(arguments)})
            own, others = await asyncio.gather(here, asked)
        except OSError as exc:
            raise _later(f"the node can't read its errors now: {exc}") from exc
        return {self._places.machine: own, **others}

    async def _here(self, what: str, arguments: Mapping[str, Any]) -> Any:
        match what:
            case "errors":
                after = dict(arguments.get("after") or {}).get(self._places.machine, "")
                return await self._on_thread(
                    "listed",
                    agent=str(arguments.get("agent") or "")[:300],
                    severity=severity_of(arguments.get("severity") or "info")[0],
                    resolved=bool(arguments.get("resolved")),
                    limit=int(arguments.get("limit") or 100),
                    after=str(after),
                )
            case "error":
                return await self._on_thread("find", _id(arguments))
            case _:
                return await self._on_thread("resolve", _id(arguments), str(arguments.get("by") or ""))


def _id(arguments: Mapping[str, Any]) -> str:
    id = str(arguments["id"]).lower()
    if len(id) < MIN_ID or not set(id) <= set("0123456789abcdef"):
        raise BadRequest(
            f"{id[:40]!r} is no id of an error: {MIN_ID} to 16 hexadecimal digits, as `agentkit errors` shows them"
        )
    return id


def _later(why: str) -> Overloaded:
    return Overloaded(why, details={"retry_after_ms": RETRY_AFTER_MS})
