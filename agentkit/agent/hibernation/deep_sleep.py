"""How an agent goes to sleep for good: nothing of its process is left, and who holds its sockets (activators.py: its node, or
systemd) starts it again when somebody calls.

The order keeps every call (protocol.md, "Draining"):
1. Nothing runs, no plain client is connected, the state is saved, and who keeps the sockets agrees. Else it stays awake.
2. GOAWAY to all callers; they say BYE and close. Whoever says HELLO meanwhile is welcome, and the sleep is off: a caller that was sent
   away knows that what it asked was not run, and comes back over a new channel.
3. When nobody is left, libzmq is made to look away from the listeners: who connects from here on waits in the kernel's queue, for the next
   process. (Where that can't be done, GOAWAY sends them there.)
   From then on the node has its events, too: it listened since it agreed (agentkit.events.handover).
4. The agent stops as always and exits with EXIT_ASLEEP (0 under systemd). The listeners are watched once nothing of it is left.

Imported when somebody sleeps for the first time: an agent that never does pays nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from agentkit.agent.hibernation import checkpoint
from agentkit.agent.hibernation.activators import NotAllowed, StaysAwake, activator_of
from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import AgentkitError, CallError
from agentkit.observe.log import get_logger
from agentkit.resilience.deadline import Deadline
from agentkit.transport.lookaway import look_away, look_back

if TYPE_CHECKING:
    from agentkit.runtime import AgentRuntime
    from agentkit.settings import Depth

log = get_logger("agentkit.sleep")

#: Callers have so long to say BYE, in seconds; then the sleep is off.
LEAVE_S: Final = 5.0
#: Connections that are no channels have so long to become some, or to go, in seconds.
STRANGERS_S: Final = 0.25
#: Who was just being accepted when libzmq was made to look away is seen after so long, in seconds.
SETTLE_S: Final = 0.003
#: The text of the counters is left here, in the data directory.
COUNTERS_FILE: Final = "asleep.prom"
#: Gauges are about a process, and there is none: they are left out.
_FAMILY: Final = re.compile(rb"^# TYPE (\S+) (\S+)")


class DeepSleep:
    """Of one agent that sleeps lightly: what lifecycle.py calls to make it deep."""

    def __init__(self, runtime: AgentRuntime) -> None:
        self._runtime = runtime
        self._activator = activator_of(runtime.settings, runtime._directory, runtime.handed_down)
        self._is_asked = False  #: an operator wants it now
        self._said = ""  #: why it could not, as logged last

    async def deepen(self) -> bool:
        """True: nothing but the end of the process follows. False: it stays as it is, and `hibernation.why_light` says why."""
        try:
            await self._fall_asleep()
        except StaysAwake as exc:
            self._runtime.hibernation.why_light = str(exc)
            if str(exc) != self._said:  # it is tried again and again
                self._said = str(exc)
                log.info("agent.not_deep", why=self._said)
            return False
        return True

    async def obey(self, depth: Depth) -> None:
        """An operator's word; the node is told what came of it, unless that is the end of the process."""
        runtime = self._runtime
        self._is_asked = True
        try:
            why = await runtime.hibernation.sleep_now(depth)
        finally:
            self._is_asked = False
        if not runtime.deep_sleep.is_asleep and isinstance(runtime._directory, MeshDirectory):
            with contextlib.suppress(CallError):
                await runtime._directory.ask("awake" if why else "asleep", **runtime.settings.sender, why=why)

    async def _fall_asleep(self) -> None:
        activator = self._activator
        if activator is None:
            raise StaysAwake("neither a node nor systemd holds its sockets, so nobody would wake it")
        self._check_quiet()
        await self._check_strangers()
        await self._save()
        self._check_quiet()
        try:
            await activator.allow(self._wish())
            if self._kept_patterns and not await self._runtime.events.settled():
                raise StaysAwake("its node does not answer for its events")
            self._check_quiet()
            await self._let_go(lambda: self._leave_behind(with_counters=activator.shows_counters))
        except NotAllowed:
            raise
        except BaseException as exc:
            await activator.stays(str(exc) if isinstance(exc, StaysAwake) else "it is needed")
            raise
        self._runtime.deep_sleep.done(activator.exit_code)

    # -- before anybody is told

    def _check_quiet(self) -> None:
        runtime = self._runtime
        inbox = runtime._inbox
        if inbox is None or not runtime.running:
            raise StaysAwake("it is not ready")
        if why := runtime.hibernation.busy_with():
            raise StaysAwake(why)
        if names := runtime.leading.names:
            raise StaysAwake(f"it leads, or stands for, {', '.join(names)}")
        if (left_s := runtime.deep_sleep.promised_s()) > 0:
            raise StaysAwake(f"answers to idempotency keys are promised for another {left_s:.0f} s")

    async def _check_strangers(self) -> None:
        """Plain clients stay; who is only just coming or going is waited for."""
        inbox = self._runtime._inbox
        assert inbox is not None
        if not await inbox.without_strangers(Deadline.after(STRANGERS_S)):
            raise StaysAwake(_connected(inbox.strangers, inbox.last_plain))

    async def _save(self) -> None:
        try:
            await self._runtime.save_state()
        except AgentkitError as exc:
            raise StaysAwake(f"its state can't be saved: {exc}") from exc

    def _wish(self) -> dict[str, Any]:
        runtime = self._runtime
        return {
            "calls": runtime.metrics_book.requests,
            "memory_mb": round(runtime.introspection.report().memory_mb, 2),
            "wake_in_s": runtime.deep_sleep.due_in_s(),
            "asked": self._is_asked,
            "patterns": self._kept_patterns,
        }

    @property
    def _kept_patterns(self) -> tuple[str, ...]:
        """What its node has to listen to for it."""
        runtime = self._runtime
        return runtime.events.topics if runtime.settings.hibernate.events == "wake" else ()

    # -- callers

    async def _let_go(self, leave_behind: Callable[[], None]) -> None:
        """Every caller has gone, and who comes from now on waits for the next process; so does every event. `leave_behind`: called
        when nothing can keep it any more."""
        inbox = self._runtime._inbox
        assert inbox is not None
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_call() -> None:
            if not called.done():
                called.set_result(None)

        inbox.doze(on_call)
        try:
            await self._until_left(called)
            self._look(away=True)
            await asyncio.sleep(SETTLE_S)
            inbox.safety_check()
            self._runtime.events.safety_check()
            if inbox.strangers or called.done() or self._runtime.hibernation.busy_with():
                raise StaysAwake("somebody called, or an event came, in the last moment")
            leave_behind()
        except BaseException:
            self._look(away=False)
            inbox.rouse()
            raise
        inbox.doze_off()
        # what came since it was noted what has been seen is its node's to hand over
        self._runtime.events.stop_listening()

    async def _until_left(self, called: asyncio.Future[None]) -> None:
        inbox = self._runtime._inbox
        assert inbox is not None
        leaving = asyncio.ensure_future(inbox.left(Deadline.after(LEAVE_S)))
        try:
            await asyncio.wait((leaving, called), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if called.done():
            raise StaysAwake("a call came")
        if not leaving.done() or not leaving.result():
            if inbox.strangers:
                raise StaysAwake(_connected(inbox.strangers, inbox.last_plain))
            names = sorted({peer.instance for peer in inbox.peers if peer.says_bye})
            raise StaysAwake(f"callers did not say BYE: {', '.join(names[:5])}")

    def _look(self, *, away: bool) -> None:
        for listener, _ in self._runtime.listening.inboxes:
            (look_away if away else look_back)(listener)

    # -- what is left behind

    def _leave_behind(self, *, with_counters: bool) -> None:
        """For the node to show, and for the next life to go on with."""
        runtime = self._runtime
        folder = runtime.settings.data_dir
        try:
            if with_counters:
                (folder / COUNTERS_FILE).write_bytes(counters_of(runtime.introspection.metrics()))
            checkpoint.write(
                folder, runtime._exclusive.last_s, runtime.events.streams(), has_kept=bool(self._kept_patterns)
            )
        except OSError as exc:
            raise StaysAwake(f"{folder} can't be written to: {exc.strerror}") from exc


def counters_of(text: bytes) -> bytes:
    """Of a Prometheus exposition what only grows: counters and histograms, with their comments."""
    kept: list[bytes] = []
    help_line, is_kept = b"", False
    for line in text.splitlines(keepends=True):
        if line.startswith(b"# HELP"):
            help_line, is_kept = line, False
        elif (found := _FAMILY.match(line)) is not None:
            is_kept = found[2] in (b"counter", b"histogram") and not found[1].startswith(b"process_")
            kept += [help_line, line] if is_kept else []
        elif is_kept:
            kept.append(line)
    return b"".join(kept)


def _connected(count: int, name: str) -> str:
    many = "a client is" if count == 1 else f"{count} clients are"
    if not name:
        return f"{many} connected that never said HELLO: a plain socket, or a probe that stays"
    return f"{many} connected by a plain socket, the last of whom called itself {name}: it would connect again at once"
