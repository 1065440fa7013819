"""What keeps an agent's state: restores it before `on_start`, saves it when it has changed, and says how that went.

Packing happens on the loop, where nothing changes the state meanwhile; all that waits for disk or network in a thread of the keeper's
own, so that neither a slow disk nor an author's busy threads hold the other up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from agentkit.agent.hibernation.timer_throttle import aligned_sleep
from agentkit.agent.selfreport import SelfReports
from agentkit.clock import now_s, wall_s
from agentkit.errors import StartupError, StateDamaged, StateError, StateFenced, StateNotSaved, StateUnreachable
from agentkit.names import Incarnation
from agentkit.observe.log import get_logger
from agentkit.observe.metrics import AgentMetrics
from agentkit.state.model import AgentState, migrated, packed, unpacked
from agentkit.state.store import Snapshot, Store, digest

log = get_logger("agentkit.state")
T = TypeVar("T")

#: After a save that failed the next one comes so soon, in seconds.
RETRY_S: Final = 10.0
#: So long a start waits for a store that can't be reached, in seconds: after a reboot an agent may be up before its Redis.
PATIENCE_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.5


class StateKeeper:
    """Belongs to the running loop. `restore` first; `close` last."""

    def __init__(
        self,
        agent: Any,
        store: Store,
        *,
        incarnation: Incarnation,
        every_s: float,
        reports: SelfReports,
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """`every_s`: between two looks whether it has changed; 0: never by itself. `tell`: how it stands, for `status`."""
        self._agent = agent
        self._model: type[AgentState] = agent.State
        self._store = store
        self._incarnation = incarnation
        self._every_s = every_s
        self._reports = reports
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._lock = asyncio.Lock()
        self._saving: set[asyncio.Task[None]] = set()
        self._is_restored = self._is_closed = False
        self._is_alone = False  # no predecessor may still save
        self._is_claimed = False
        self._fence: StateFenced | None = None
        self._last: Snapshot | None = None  # the last good one, its data left out
        self._kept = b""  # digest of what is kept
        self._bytes = 0
        self._trouble = ""  # why the last save failed
        self._fallback = ""  # why it did not begin with the newest snapshot
        self._saves = self._failures = 0
        self._took_s = 0.0

    # -- beginning ----------------------------------------------------------------------------------------------------

    async def begin(self, *, is_alone: bool) -> None:
        """`restore`, told as a start that failed: StartupError."""
        try:
            await self.restore(is_alone=is_alone)
        except StateError as exc:
            self._reports.life_failed("the state's restoring", exc)
            raise StartupError(f"the state can't be restored: {exc}") from exc

    async def restore(self, *, is_alone: bool) -> None:
        """Set the agent's `state`: what was saved last, or its defaults in its first life. StateError says why that can't be.

        `is_alone`: no predecessor is there that may still save; else `claim` is called when it has gone."""
        found = await self._patiently(lambda: self._found(claim=is_alone))
        if is_alone:
            self._is_alone = self._is_claimed = True
        whole = next((snapshot for snapshot in found.snapshots if snapshot.is_whole), None)
        damaged = [f"snapshot {it.number} does not fit its checksum" for it in found.snapshots if not it.is_whole]
        damaged += found.unreadable
        if whole is None and damaged:
            raise StateDamaged(
                f"{self._store.where}: {'; '.join(damaged)}; nothing older is left: {self._store.remedy}"
            )
        if whole is not None and any(not it.is_whole and it.number < whole.number for it in found.snapshots):
            log.warning("state.older_snapshot_damaged", store=self._store.where, why="; ".join(damaged))
        elif whole is not None and damaged:
            self._fallback = f"{'; '.join(damaged)}: began with the one before, {_age(whole)} old"
            log.error("state.fell_back", store=self._store.where, why=self._fallback, number=whole.number)
            self._reports.state_trouble(
                "fallback", f"the newest state is damaged: {self._fallback}", severity="critical"
            )
        self._agent.state = self._read(whole) if whole is not None else self._model()
        if whole is not None:
            is_as_kept = whole.version == self._model.version and not self._fallback
            self._note(whole, digest(whole.data) if is_as_kept else b"")
        self._is_restored = True
        self._tell_status()

    async def claim(self) -> None:
        """The predecessor has gone: the state is ours. What goes wrong is reported, and tried again with the next save."""
        self._is_alone = True
        if not self._is_restored:
            return  # whatever is saved first claims it
        try:
            async with self._lock:
                await self._claim_now()
        except StateError as exc:
            self._failed(exc)

    async def _claim_now(self) -> None:
        if self._is_claimed:
            return
        before = self._last.number if self._last is not None else 0
        found = await self._in_thread(lambda: self._found(claim=True))
        self._is_claimed = True
        newest = next((snapshot for snapshot in found.snapshots if snapshot.is_whole), None)
        if newest is not None and newest.number > before:
            self._note(newest, b"")
            message = "the process before this one saved its state after this one had begun with the one before: that is replaced"
            log.warning("state.overtaken", store=self._store.where, why=message)
            self._reports.state_trouble("overtaken", message, severity="warning")

    def _found(self, *, claim: bool) -> Any:
        if claim:
            self._store.claim(self._incarnation)
        return self._store.load()

    async def _patiently(self, function: Callable[[], T]) -> T:
        ends_s = now_s() + PATIENCE_S
        while True:
            try:
                return await self._in_thread(function)
            except StateUnreachable as exc:
                if now_s() + _LOOK_AGAIN_S > ends_s:
                    raise
                log.warning("state.unreachable", why=str(exc))
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _read(self, snapshot: Snapshot) -> AgentState:
        """StateDamaged: it is whole, and the author's classes make nothing of it."""
        where = f"{self._store.where}: snapshot {snapshot.number} of version {snapshot.version}"
        try:
            if snapshot.version == self._model.version:
                return unpacked(self._model, snapshot.data)
            data = self._agent.migrate_state(snapshot.version, json.loads(snapshot.data))
            return migrated(self._model, data)
        except StateError as exc:
            raise StateDamaged(f"{where}: {exc}") from exc
        except Exception as exc:
            raise StateDamaged(f"{where}: migrate_state raised {type(exc).__name__}: {exc}") from exc

    # -- saving -------------------------------------------------------------------------------------------------------

    async def save(self) -> None:
        """Returns when the state as it is now is kept. StateNotSaved says why it is not; then it is reported already.

        Whoever is cancelled while it waits does not keep the save from being made."""
        task = self._loop.create_task(self._save(), name=f"{self._agent.name}:save")
        self._saving.add(task)
        task.add_done_callback(self._saved)
        await asyncio.shield(task)

    async def keep_saving(self) -> None:
        """Again and again when it has changed; sooner after a failure. Ends when another incarnation has the state."""
        while self._every_s and self._fence is None:
            await aligned_sleep(min(RETRY_S, self._every_s) if self._trouble else self._every_s)
            if self._is_alone:
                await self._save_quietly()

    async def finish(self, limit_s: float, *, saves: bool) -> None:
        """The last save, and `close`. Nothing raises; what takes longer than `limit_s` is left alone."""
        if saves and self._is_alone and self._fence is None:
            ending = self._loop.create_task(self._save_quietly(), name=f"{self._agent.name}:last save")
            _, late = await asyncio.wait((ending,), timeout=limit_s)
            if late:
                self._failed(StateNotSaved(f"{self._store.where}: not done within {limit_s:.1f} s"))
                ending.cancel()
        await self.close()

    async def close(self) -> None:
        """Harmless when repeated."""
        if self._is_closed:
            return
        self._is_closed = True
        closing = self._loop.run_in_executor(self._thread, self._store.close) if not self._saving else None
        if closing is not None:
            await asyncio.wait((closing,), timeout=1.0)
        self._thread.shutdown(wait=False)

    async def _save_quietly(self) -> None:
        try:
            await self.save()
        except StateNotSaved:
            return  # it is reported where it happened

    async def _save(self) -> None:
        try:
            async with self._lock:
                await self._save_now()
        except StateNotSaved as exc:
            self._failed(exc)
            raise

    async def _save_now(self) -> None:
        if self._fence is not None:
            raise self._fence
        if not self._is_restored:
            raise StateNotSaved("the state is not restored yet")
        if not self._is_alone:
            raise StateNotSaved(f"{self._store.where}: the process before this one has the state until it has ended")
        try:
            await self._claim_now()
        except (StateUnreachable, StateDamaged) as exc:
            raise StateNotSaved(str(exc)) from exc
        began_s = now_s()
        data = packed(self._agent.state, self._model)
        known = digest(data)
        if known == self._kept:
            self._trouble = ""
            return
        number = self._last.number + 1 if self._last is not None else 1
        snapshot = Snapshot.of(number, self._model.version, self._incarnation, wall_s(), data)
        await self._in_thread(lambda: self._store.save(snapshot))
        if self._trouble:
            log.info("state.saved_again", store=self._store.where, after=self._trouble)
        self._trouble = self._fallback = ""
        self._saves += 1
        self._took_s = now_s() - began_s
        self._note(snapshot, known)
        self._tell_status()

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may have

    def _failed(self, exc: StateError) -> None:
        self._failures += 1
        if isinstance(exc, StateFenced):
            if self._fence is not None:
                return
            self._fence = exc
        severity = "critical" if isinstance(exc, StateFenced) else "error"
        if str(exc) != self._trouble:
            log.error("state.not_saved", why=str(exc))
        self._trouble = str(exc)
        self._reports.state_trouble("not saved", f"the state is not saved: {exc}", severity=severity, exc=exc)
        self._tell_status()

    def _note(self, snapshot: Snapshot, known: bytes) -> None:
        self._bytes = len(snapshot.data)
        self._last = Snapshot.of(
            snapshot.number, snapshot.version, snapshot.incarnation, snapshot.saved_s, b""
        )  # not its data: what is 16 MiB once need not be there twice
        self._kept = known

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, function)

    # -- telling ------------------------------------------------------------------------------------------------------

    def told(self) -> dict[str, Any]:
        """For `status`: times in seconds since the epoch."""
        told: dict[str, Any] = {"store": self._store.kind, "bytes": self._bytes}
        if self._last is not None:
            told |= {"saved_s": round(self._last.saved_s, 3), "number": self._last.number}
        return told | {k: v[:300] for k, v in (("fallback", self._fallback), ("trouble", self._trouble)) if v}

    def show(self, book: AgentMetrics) -> None:
        book.counter("agent_state_saves_total", "Times that the state was saved", lambda: self._saves)
        book.counter("agent_state_save_failures_total", "Times that it could not be saved", lambda: self._failures)
        book.gauge("agent_state_save_seconds", "How long the last save took", lambda: self._took_s)
        book.gauge("agent_state_bytes", "Size of the state as it was last saved", lambda: self._bytes)

    def _tell_status(self) -> None:
        self._tell(self.told())


def _age(snapshot: Snapshot) -> str:
    return f"{max(0.0, wall_s() - snapshot.saved_s):.0f} s"
