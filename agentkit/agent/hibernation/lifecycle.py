"""An agent's sleep: when it falls asleep, who wakes it, and that nobody notices.

    awake --idle for `after`, or told to--> falling (`on_hibernate`) --> asleep (light) --somebody needs it--> waking (`on_wake`) --> awake
                                                                           |
                                                                           '--depth deep--> `deepen`, again and again until it can

Light sleep gives memory back and keeps the process and its sockets. From the moment in which it is decided until `on_wake` has returned,
calls and events wait, in their own deadlines; the decision and the waiting begin in one turn of the loop, so no call slips through.
When is idle_policy.py's, what is given back suspension.py's, what authors say wake_locks.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from agentkit.agent.hibernation import idle_policy
from agentkit.agent.hibernation.deep_sleep_retries import Deepen, DeepSleepRetries
from agentkit.agent.hibernation.idle_policy import IdleBackoff
from agentkit.agent.hibernation.suspension import Suspension
from agentkit.agent.hibernation.wake_locks import WakeLock
from agentkit.clock import now_s, wall_s
from agentkit.errors import AgentkitError, CallCancelled, CallError, Draining, InternalError
from agentkit.observe.log import get_logger
from agentkit.observe.memory import give_back
from agentkit.observe.process import pss_mb
from agentkit.resilience.deadline import Deadline
from agentkit.settings import Depth, HibernateSettings

log = get_logger("agentkit.hibernation")

#: How long `on_hibernate` and `on_wake` may take, in seconds: what a start may take where nobody says otherwise.
HOOK_LIMIT_S: Final = 60.0


class Hooks(Protocol):
    """What of an agent is called."""

    async def on_hibernate(self) -> None: ...
    async def on_wake(self) -> None: ...


class Hibernation:
    """Of one running agent; belongs to its loop but for `note`, `wait` and what wake_locks.py has."""

    def __init__(
        self,
        agent: Hooks,
        settings: HibernateSettings,
        suspension: Suspension,
        *,
        on_failed: Callable[[str, BaseException], None] = lambda *_: None,
        tell: Callable[[Mapping[str, Any]], None] = lambda _: None,
        save: Callable[[], Awaitable[None]] | None = None,
        deepen: Deepen | None = None,
    ) -> None:
        """`on_failed`: a hook raised. `tell` gets `summary` whenever it changes. `save` keeps the agent's state once `on_hibernate` is
        through; what it raises was reported already, and keeps the sleep light.

        `deepen`: called once the agent sleeps lightly and its depth is deep. True: the process is on its way out, and whoever still
        wants it is refused (Draining). False: it could not; the sleep stays light, and it is called again after a pause that
        doubles from 1 s to 10 min. Cancelled when somebody wakes the agent before it has returned: what must not be broken off
        it shields, and a call that comes after its GOAWAY never gets here (the inbox refuses it)."""
        self.deepen = deepen
        self.give_back = give_back
        self._save = save
        self.why_light = ""  #: for `deepen` to set: why it could not, for `status`
        self.asleep: Depth | None = None
        self.wakes = 0
        self.wake_s: float | None = None  #: how long the last wake took
        self.given_back_mb = 0.0  #: by the last sleep: proportional memory before and after it
        self.since_s: float | None = None  #: asleep since, in seconds since the epoch
        self._agent, self._settings, self._suspension = agent, settings, suspension
        self._on_failed, self._tell = on_failed, tell
        self._loop = asyncio.get_running_loop()
        self._backoff = IdleBackoff(settings.after_s)
        self._noted_s = now_s()  #: the last activity that leaves no trace elsewhere
        self._fell_s = 0.0
        self._why_awake = ""
        self._timer: asyncio.TimerHandle | None = None
        self._falling: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._retries: DeepSleepRetries | None = None
        self._is_closed = False
        self._has_failed = False  #: `on_hibernate` did: who knows what it released, so the sleep stays light

    # -- a life -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The agent is ready: it is idle from now on."""
        self._noted_s = now_s()
        if self._settings.depth != "never":
            self._look_again(self._noted_s + self._backoff.after_s)

    def close(self) -> None:
        """The agent stops: it does not fall asleep any more. Who waits until it is awake still gets there."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def finish(self, limit_s: float) -> None:
        """Nobody needs it any more; hooks that run may end, for so long."""
        if self._retries is not None:
            await self._retries.end()
        tasks = [task for task in (self._falling, self._waking) if task is not None and not task.done()]
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=limit_s)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=0.1)

    # -- falling asleep -----------------------------------------------------------------------------------------------

    async def sleep_now(self, depth: Depth | None = None) -> str:
        """An operator's word: sleep, however short it has been idle. `depth`: default the agent's own, light where that is never.

        Returns why it does not: the work that it is in the middle of; "" when it sleeps. Returns when it is as asleep as it will be."""
        depth = depth or ("deep" if self._settings.depth == "deep" else "light")
        if self._suspension.wake_locks.is_awake:
            if why := self._fall(depth):
                return why
        elif depth == "deep" and self.asleep is not None and self._waking is None:
            if self._retries is not None and self._retries.has_failed:  # what came of an earlier attempt does not count
                await self._retries.end()
                self._retries = None
            self._go_deep()
        if self._falling is not None:
            await asyncio.wait({self._falling})
        if self.asleep is None:
            return "it was needed again before it slept"
        if depth == "deep" and not (self._retries is not None and await self._retries.first()):
            return f"it sleeps lightly: {self.why_light or 'it can not sleep deep'}"
        return ""

    def _look_again(self, at_s: float) -> None:
        if not self._is_closed:
            self._timer = self._loop.call_later(max(0.0, at_s - now_s()), self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._suspension.wake_locks.is_awake:
            return
        now = now_s()
        verdict = idle_policy.decide(self._suspension.signs(self._noted_s), self._backoff.after_s, now)
        if verdict.may_sleep and not self._fall("deep" if self._settings.depth == "deep" else "light"):
            return
        self._look_again(verdict.look_again_s or now + self._backoff.after_s)
        self._say_why_awake(verdict.why)

    def _fall(self, depth: Depth) -> str:
        """Begin to fall asleep, now; or why not."""
        if self._is_closed:
            return "it stops"
        now = now_s()
        if why := idle_policy.keeps_awake(self._suspension.signs(self._noted_s), now):
            return why
        if not self._suspension.wake_locks.fall(now):
            return "a thread has just said that it keeps it awake"
        if self._timer is not None:
            self._timer.cancel()
        self._fell_s = now
        self.why_light = ""
        self._has_failed = False
        self._suspension.hold(self.nudge, self.wake)
        self._falling = self._loop.create_task(self._fall_asleep(depth), name="hibernation:fall")
        return ""

    async def _fall_asleep(self, depth: Depth) -> None:
        before_mb = pss_mb()
        try:
            await _limited(self._agent.on_hibernate(), "on_hibernate")
        except Exception as exc:
            self._has_failed, self.why_light = True, "on_hibernate failed"
            log.error("hibernation.on_hibernate_failed", exc_info=exc)
            self._on_failed("on_hibernate", exc)
        if self._save is not None and not self._has_failed:
            try:
                await self._save()
            except Exception:  # noqa: BLE001 - reported by who saves
                self._has_failed, self.why_light = True, "its state could not be saved"
        if self._waking is not None:
            return  # somebody needs it already
        self.asleep = "light"
        self.since_s = wall_s()
        self._suspension.timers.change(is_slow=True)
        await self._suspension.release()
        self.give_back()
        self.given_back_mb = max(0.0, before_mb - pss_mb())
        self._why_awake = ""
        self._tell(self.summary())
        log.info("agent.asleep", given_back_mb=round(self.given_back_mb, 1))
        if depth == "deep":
            self._go_deep()

    def _go_deep(self) -> None:
        if self.deepen is not None and self._retries is None and self._waking is None and not self._has_failed:
            self._retries = DeepSleepRetries(
                self.deepen,
                on_failed=lambda exc: self._on_failed("deep sleep", exc),
                on_refused=lambda: self._tell(self.summary()),
            )

    # -- waking -------------------------------------------------------------------------------------------------------

    def note(self) -> None:
        """Something was done that leaves no trace elsewhere. From any thread."""
        self._noted_s = now_s()

    def used(self) -> None:
        """Something that sleep releases is used by what runs by itself: that is work, and wakes. On the loop."""
        self.note()
        if self.asleep is not None:
            self.nudge("a resource is used")

    def nudge(self, reason: str) -> None:
        """Begin to wake, if it is not awake; on the loop."""
        if self._waking is None and not self._suspension.wake_locks.is_awake:
            self._waking = self._loop.create_task(self._wake_up(reason), name="hibernation:wake")
            self._waking.add_done_callback(_forget_outcome)

    async def wake(self, reason: str) -> None:
        """Wait until it is awake, which is at once where it is. Raises InternalError (nothing ran) when `on_wake` raised, Draining
        when the process is on its way into deep sleep."""
        self.nudge(reason)
        if self._waking is not None:
            await asyncio.shield(self._waking)

    def wait(self, reason: str) -> None:
        """The same for threads. On the loop, where nothing can be waited for, it only begins."""
        try:
            is_on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_on_loop = False
        if is_on_loop:
            self.nudge(reason)
        else:
            asyncio.run_coroutine_threadsafe(self.wake(reason), self._loop).result()

    def block(self, name: str) -> WakeLock:
        """See BaseAgent.keeps_awake."""
        return WakeLock(name, self._suspension.wake_locks, self.wake, self.wait, self.note)

    def stay_awake(self, seconds: float) -> None:
        """See BaseAgent.stay_awake. From any thread."""
        if not self._suspension.wake_locks.stay(now_s() + seconds):
            self._loop.call_soon_threadsafe(self.nudge, "stay_awake")

    async def _wake_up(self, reason: str) -> None:
        began_s = now_s()
        try:
            if self._falling is not None and not self._falling.done():
                await asyncio.wait({self._falling})
            if self._retries is not None:
                if await self._retries.end():
                    raise Draining("it falls into deep sleep")
                self._retries = None
            await _limited(self._agent.on_wake(), "on_wake")
        except CallError as error:
            self._not_woken(error)
            raise
        except Exception as exc:
            log.error("hibernation.on_wake_failed", exc_info=exc)
            self._on_failed("on_wake", exc)
            why = f"it could not be woken: on_wake raised {type(exc).__name__}: {exc}"
            failure = InternalError(why, retry_safe=True)
            self._not_woken(failure)
            raise failure from exc
        except asyncio.CancelledError:
            self._not_woken(CallCancelled("the agent stops"))
            raise
        self.wake_s = now_s() - began_s
        self.wakes += 1
        self._backoff.slept(began_s - self._fell_s)
        self.asleep = self.since_s = None
        self._noted_s = now_s()
        self._waking = self._falling = None
        self._suspension.wake_locks.is_awake = True
        self._suspension.timers.change(is_slow=False)
        self._suspension.resume()
        self._tell(self.summary())
        log.info("agent.awake", woken_by=reason, took_s=round(self.wake_s, 4))
        if self._settings.depth != "never":
            self._look_again(self._noted_s + self._backoff.after_s)

    def busy_with(self) -> str:
        """What forbids to sleep at this moment; "" when nothing does."""
        return idle_policy.keeps_awake(self._suspension.signs(self._noted_s), now_s())

    def _not_woken(self, error: CallError) -> None:
        """It sleeps on, and tries again when it is needed again."""
        self._waking = None
        if self.asleep is None:  # it was needed before it slept
            self.asleep, self.since_s = "light", wall_s()
        self._suspension.refuse(lambda: type(error)(error.message, retry_safe=error.retry_safe, details=error.details))

    # -- telling ------------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """For the node, and so for `status`."""
        return {
            "depth": self.asleep or "",
            "since_s": self.since_s,
            "given_back_mb": round(self.given_back_mb, 2),
            "wakes": self.wakes,
            "wake_s": self.wake_s,
            "kept_by": self._why_awake or (self.why_light if self.asleep else ""),
        }

    def retell(self) -> None:
        """The node may be another one: it is told, if there is anything to tell."""
        if self.asleep is not None or self.wakes or self._why_awake:
            self._tell(self.summary())

    def _say_why_awake(self, why: str) -> None:
        # what is only a matter of time is no news
        if why != self._why_awake and not (why and why.startswith("stays")):
            self._why_awake = why
            self._tell(self.summary())


async def _limited(hook: Awaitable[None], what: str) -> None:
    """Run an author's hook, so long at most. SystemExit would end the loop, and with it more than the hook."""
    try:
        async with Deadline.after(HOOK_LIMIT_S).scope(what):
            await hook
    except SystemExit as exc:
        raise RuntimeError(f"raised SystemExit: {exc}") from exc
    except AgentkitError as exc:
        raise HookFailed(f"{type(exc).__name__}: {exc}") from exc


class HookFailed(Exception):
    """An author's hook ended by an error of ours: a call of its own, or its time limit. Never told as the caller's own error."""


def _forget_outcome(task: asyncio.Task[None]) -> None:
    """Who waits has its own way to hear of it."""
    if not task.cancelled():
        task.exception()
