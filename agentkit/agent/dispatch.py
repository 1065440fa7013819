"""From a request to its answer: let it wait for its turn, run, answer exactly once. What is run is found by intake.py.

On the event loop only; what may block runs on worker threads. Knows nothing of sockets beyond the Inbox that it answers."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from agentkit.agent.admission import Admission
from agentkit.agent.call_options import IDEMPOTENCY_KEY
from agentkit.agent.context import Serving, current_call
from agentkit.agent.error_replies import as_told, explained
from agentkit.agent.handlers import Method
from agentkit.agent.hibernation.pending_requests import PendingRequests
from agentkit.agent.intake import Intake
from agentkit.agent.sharing import Outcome, Sharing
from agentkit.agent.workers import Handler, Workers
from agentkit.clock import now_s
from agentkit.errors import CallCancelled, CallError, DeadlineExceeded, HandlerError, InternalError
from agentkit.observe.log import get_logger
from agentkit.observe.trace import Tracer
from agentkit.resilience.admission import Gate
from agentkit.resilience.deadline import DeadlineQueue
from agentkit.resilience.policy import USUAL_SERVICE, ServePolicy
from agentkit.transport.peer import Inbound, Peer
from agentkit.wire import values

if TYPE_CHECKING:
    from agentkit.security.roles import Holder

log = get_logger("agentkit.dispatch")


class Answers(Protocol):
    """Where answers go (transport.inbox.Inbox)."""

    def answer(self, inbound: Inbound, value: object) -> None: ...
    async def write(self, inbound: Inbound, value: object) -> None: ...
    def refuse(self, inbound: Inbound, error: CallError) -> None: ...
    def identity(self, peer: Peer) -> Holder | None: ...


class Meter(Protocol):
    """Who counts (observe.metrics.AgentMetrics)."""

    def finished(self, method: str, seconds: float, outcome: str) -> None: ...
    def waited(self, seconds: float) -> None: ...


class Dispatcher:
    """Runs the methods of one object. Implements transport.inbox.Receiver."""

    def __init__(
        self,
        owner: object,
        methods: Mapping[str, Method],
        meter: Meter,
        *,
        fallback: Method | None = None,
        plain_health: Callable[[], dict[str, Any]] = dict,
        policy: ServePolicy = USUAL_SERVICE,
        tracer: Tracer | None = None,
    ) -> None:
        self.answers: Answers | None = None  #: set as soon as the inbox exists
        self.methods = methods
        self.on_counted: Callable[[], None] = lambda: None  #: a request was answered or refused
        self.on_failed: Callable[[str, BaseException], bool] = lambda *_: True  #: a handler raised; whether to log it
        self.last_progress_s: float | None = None  #: when it last answered somebody: `describe` and spans do not count
        every = (*methods.values(), fallback) if fallback else methods.values()
        self._bound: dict[str, Handler] = {m.name: functools.partial(m.function, owner) for m in every}
        self._admission = Admission(policy, every, start=self._start, refuse=self._drop, waited=meter.waited)
        self._admit: Callable[[Serving], None] = (
            self._admission.admit
        )  #: while the agent sleeps: where requests wait until it is awake
        self._pending = PendingRequests(policy.running + policy.queue, self._admission.admit, self._drop)
        self.sharing = Sharing(policy, methods, settle=self._settle, admit=lambda work: self._admit(work))
        intake = Intake(methods, fallback, tracer or Tracer(0), self._identity)
        self._prepare, self._span = intake.prepare, intake.span
        self._meter = meter
        self._plain_health = plain_health
        self._loop = asyncio.get_running_loop()
        self._deadlines = DeadlineQueue(self._loop, self._on_deadline)
        self._works: dict[int, Serving] = {}
        self._workers = Workers(self._admission.threads)
        self._shows_tracebacks = bool(os.environ.get("AGENTKIT_DEBUG"))

    # -- Receiver -----------------------------------------------------------------------------------------------------

    def request(self, inbound: Inbound) -> None:
        """Take a request: it is answered here at once when it can't run, later when it can."""
        try:
            work = self._prepare(inbound)
            if work is None:
                assert self.answers is not None
                self.answers.answer(inbound, self._plain_health())
                return
        except CallError as error:
            self._refuse(inbound, error)
            return
        except Exception as exc:
            # an annotation that can't be resolved, a type without a schema: the caller must hear of it, and others be served
            log.error("request.failed", method=inbound.method[:100], exc_info=exc)
            self._refuse(inbound, InternalError(f"{type(exc).__name__}: {exc}"))
            return
        inbound.work = work
        self._works[work.key] = work
        self._deadlines.add(work.key, work.at_s)
        if inbound.meta or inbound.plain is not None:
            work.span = self._span(inbound, work.method)
        if (inbound.meta and IDEMPOTENCY_KEY in inbound.meta) or work.method.options.cache_s is not None:
            try:
                if self.sharing.takes(work):
                    return
            except CallError as error:
                self._drop(work, error)
                return
        self._admit(work)

    def abandon(self, inbound: Inbound) -> None:
        """Its caller has gone: cancel it."""
        work: Serving | None = inbound.work
        if work is None or (work.leads and work.share.key):
            return  # whoever repeats its key is to have the answer: only its deadline ends it
        self._cancel(work, CallCancelled("the caller has gone"))

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._admission.waiting

    @property
    def gates(self) -> Mapping[str, Gate[Serving]]:
        """What requests pass before they run: `handlers`, `threads`, and those of methods with a limit of their own."""
        return self._admission.all

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return len(self._works)

    def tasks(self) -> dict[asyncio.Task[Any], tuple[float, str]]:
        """Those of handlers: since when they run, and for whom."""
        return {
            work.task: (work.started_s, f"{work.method.name} of {work}")
            for work in self._works.values()
            if work.task is not None
        }

    @property
    def threads_stuck(self) -> int:
        """Worker threads whose call's deadline has passed."""
        return self._workers.stuck

    def cancel_all(self, why: str) -> None:
        """The agent stops: what still runs is cancelled and its callers are told."""
        for work in tuple(self._works.values()):
            self._cancel(work, CallCancelled(why))

    async def idle(self, limit_s: float) -> bool:
        """Wait until every handler has returned, those of callers that have gone included; whether they did. Threads that are
        past their deadline are not waited for."""
        tasks = [work.task for work in self._works.values() if work.task is not None]
        if not tasks:
            return True
        _, left = await asyncio.wait(tasks, timeout=limit_s)
        return not left

    def hold(self, wake: Callable[[str], None]) -> None:
        """The agent falls asleep: requests wait from now on, each within its own deadline, and call `wake` with what they are."""
        self._admit = self._pending.opened(wake)

    def resume(self) -> None:
        """It is awake: who waits gets a turn."""
        self._admit = self._admission.admit
        for work in self._pending.leave():
            if work.key in self._works:
                self._admission.admit(work)

    def refuse_held(self, error: Callable[[], CallError]) -> None:
        """It could not be woken: who waits for that hears of it."""
        for work in self._pending.leave():
            if work.key in self._works:
                self._drop(work, error())

    def release(self) -> None:
        """Give back what an idle agent does not need: worker threads, answers of `@rpc(cache=)`, keys whose time is over."""
        self.sharing.release()
        self._workers.close()

    def close(self) -> None:
        """Forget timers and threads."""
        self._deadlines.close()
        self._admission.close()
        self._workers.close()

    # -- running ------------------------------------------------------------------------------------------------------

    def _start(self, work: Serving) -> None:
        work.started_s = now_s()
        # A task for each, which is 1.1 us of 8. The handlers of one turn that never suspend could share one, each in a context of its
        # own (0.55 us), and the others take it with them; but libraries keep things by `asyncio.current_task()`, and would find another
        # call's. Without any task there is no `asyncio.timeout`, and Python 3.11 can't make one when it turns out to be needed.
        work.task = self._loop.create_task(self._run(work))

    async def _run(self, work: Serving) -> None:
        inbound, method = work.inbound, work.method
        work.has_begun = True
        current_call.set(work)
        outcome, was_cut = "ok", False
        end: object = None
        try:
            assert self.answers is not None
            if method.is_stream:
                async with aclosing(self._bound[method.name](**work.arguments)) as results:
                    async for value in results:
                        await self.answers.write(inbound, method.plain_result(value))
                self.answers.answer(inbound, None)
            elif method.is_async:
                result = await self._bound[method.name](**work.arguments)
                end = method.plain_result(result)
                self.answers.answer(inbound, end)
            else:
                result = await self._workers.run(work, self._bound[method.name])
                end = method.plain_result(result)
                self.answers.answer(inbound, end)
        except asyncio.CancelledError:
            end, was_cut = work.why_cancelled or CallCancelled("cancelled inside the handler"), True
            outcome = end.code
            self._send_refusal(inbound, end)
        except CallError as error:
            end = as_told(error)
            outcome = end.code
            self._send_refusal(inbound, end)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever an author's code raises is the caller's answer
            end = self._explain(method, exc)
            outcome = end.code
            self._send_refusal(inbound, end)
        finally:
            self._done(work, outcome)
            if work.leads:
                self.sharing.ended(work, end, was_cut=was_cut)
            end = None  # an error holds its traceback, and that this frame

    def _explain(self, method: Method, exc: BaseException) -> CallError:
        if isinstance(exc, values.Unsendable):
            return HandlerError(f"{method.name} returned what can't be sent: {exc}", details={"type": "Unsendable"})
        if self.on_failed(method.name, exc):
            log.error("handler.failed", method=method.name, exc_info=exc)
        return explained(exc, shows_traceback=self._shows_tracebacks)

    # -- after it ran -------------------------------------------------------------------------------------------------

    def _done(self, work: Serving, outcome: str) -> None:
        now = now_s()
        took_s = now - work.started_s
        method = work.method
        if not method.is_control:
            self.last_progress_s = now
        self._meter.finished(method.name, took_s, outcome)
        self.on_counted()
        if work.span is not None:
            work.span.end(outcome)
        self._forget(work)
        if work.thread is None or work.thread.done():
            self._leave(work, took_s)
        else:
            work.thread.add_done_callback(lambda _: self._leave(work, now_s() - work.started_s))

    def _leave(self, work: Serving, took_s: float) -> None:
        work.is_over = True
        self._admission.leave(work, took_s)

    def _forget(self, work: Serving) -> None:
        if self._works.pop(work.key, None) is not None:
            self._deadlines.remove(work.key)
            # Request, task and the task's context point at each other. Left so, each call waits for the garbage collector, which
            # took a fifth of the callee's CPU time.
            work.inbound.work = work.task = None
            # A timer that was set in its context may keep the request for a second: not the memory of what came with it
            work.arguments, work.inbound.attachments = {}, ()

    def _on_deadline(self, key: int) -> None:
        work = self._works.get(key)
        if work is not None:
            self._cancel(work, DeadlineExceeded(f"{work.method.name}: time is up", retry_safe=not work.has_begun))

    def _cancel(self, work: Serving, why: CallError) -> None:
        if work.key not in self._works:
            return
        if work.has_begun:
            assert work.task is not None
            if work.why_cancelled is None:  # a second time would interrupt the handler's cleaning up
                work.why_cancelled = why
                work.task.cancel()
        elif work.task is not None:
            # A task that is cancelled before its first step never runs, not even its `finally`
            work.task.cancel()
            self._send_refusal(work.inbound, why)
            self._done(work, why.code)
            if work.leads:
                self.sharing.left(work, why)
        else:
            self._admission.withdraw(work)
            self._drop(work, why)

    def _drop(self, work: Serving, why: CallError) -> None:
        """It waited, and will not run."""
        inbound = work.inbound
        if work.span is not None:
            work.span.end(why.code)
        self._forget(work)
        self._refuse(inbound, why)
        if work.share is not None:
            self.sharing.left(work, why)

    def _settle(self, work: Serving, outcome: Outcome) -> None:
        """Another's run answers it."""
        inbound = work.inbound
        if work.span is not None:
            work.span.end(outcome.code if isinstance(outcome, CallError) else "ok")
        self._forget(work)
        if isinstance(outcome, CallError):
            self._refuse(
                inbound, type(outcome)(outcome.message, retry_safe=outcome.retry_safe, details=outcome.details)
            )
            return
        self.last_progress_s = now_s()
        self._meter.finished(work.method.name, 0.0, "ok")
        self.on_counted()
        assert self.answers is not None
        self.answers.answer(inbound, outcome.thaw())

    def _refuse(self, inbound: Inbound, error: CallError) -> None:
        """It did not run."""
        self._meter.finished(inbound.method, 0.0, error.code)
        self.on_counted()
        self._send_refusal(inbound, error)

    def _identity(self, peer: Peer) -> Holder | None:
        assert self.answers is not None
        return self.answers.identity(peer)

    def _send_refusal(self, inbound: Inbound, error: CallError) -> None:
        assert self.answers is not None
        self.answers.refuse(inbound, error)
