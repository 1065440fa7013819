"""One agent, wired: sockets, health, calls, timers, and the order in which they begin and end.

The order stands in BaseAgent's docstring and, as code, in `start` and `stop`. The process around it is main.py's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentkit.agent import gauges
from agentkit.agent.agent_keys import AgentKeys
from agentkit.agent.attachment import Attachment
from agentkit.agent.base import BaseAgent
from agentkit.agent.blocking import BlockingCaller
from agentkit.agent.builtin import BUILTIN_METHODS, handle_request_of
from agentkit.agent.caller import Caller
from agentkit.agent.configuring import Configuring
from agentkit.agent.counters import Counters
from agentkit.agent.dispatch import Dispatcher
from agentkit.agent.error_exporter import ErrorExporter
from agentkit.agent.event_client import route_by
from agentkit.agent.events import AgentEvents
from agentkit.agent.exclusive import Exclusive
from agentkit.agent.fallbacks import fallbacks_of
from agentkit.agent.health_checks import Checks
from agentkit.agent.hibernation import checkpoint
from agentkit.agent.hibernation.deep_sleep_entry import DeepSleepEntry
from agentkit.agent.hibernation.lifecycle import Hibernation
from agentkit.agent.hibernation.suspension import Suspension
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.agent.introspection import Introspection
from agentkit.agent.leading import Leading
from agentkit.agent.listening import Listening
from agentkit.agent.periodic import resumed
from agentkit.agent.policies import calling_of, serving_of
from agentkit.agent.resources import Resources
from agentkit.agent.selfreport import SelfReports
from agentkit.agent.state_choice import keeper_of
from agentkit.agent.stop_hook import run_on_stop
from agentkit.agent.tasks import Tasks
from agentkit.agent.telling import Teller
from agentkit.agent.thread_bridge import ThreadBridge
from agentkit.agent.tick import Tick
from agentkit.clock import wall_s
from agentkit.directory.base import Directory
from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import StartupError
from agentkit.health import http
from agentkit.observe import log as logs
from agentkit.observe.metrics import AgentMetrics
from agentkit.observe.trace import Tracer
from agentkit.resilience.deadline import Deadline
from agentkit.settings import AgentSettings, HibernateSettings
from agentkit.transport.gate import Gate
from agentkit.transport.inbox import Inbox
from agentkit.transport.notify import Notifier
from agentkit.transport.peer import Identity
from agentkit.transport.pool import SocketPool
from agentkit.wire.plain import HEALTH_VERBS

if TYPE_CHECKING:
    from agentkit.resources.pool import ResourcePool
    from agentkit.state.store import Store

log = logs.get_logger("agentkit.runtime")

#: What of the grace period is kept for `on_stop` and closing, in seconds (at most a quarter of it).
RESERVE_S: Final = 2.0


class AgentRuntime:
    """One agent, wired. `start`, then `until_stopped`, then `stop`; all on one running loop."""

    def __init__(
        self,
        agent: BaseAgent,
        settings: AgentSettings,
        *,
        listeners: Mapping[str, socket.socket] | None = None,
        notifier: Notifier | None = None,
        directory: Directory | None = None,
        gate: Gate | None = None,
        store: Store | None = None,
    ) -> None:
        """`store`: where its state is kept, if not where the settings say. `gate`: a predecessor serves beside us. Its health port
        is ours when we are ready, its `run`, `@every` and events when it is gone."""
        self.agent = agent
        self.settings = settings
        self.running = False
        self.start_time = wall_s()
        self.loop = asyncio.get_running_loop()
        self.phase = "starting"
        self.listening = Listening(listeners or {})
        #: Names of listeners that came from a service manager: who takes sd_notify messages, too
        self.handed_down = frozenset(self.listening.sockets if notifier is not None and notifier.address else ())
        self._is_succeeded = False
        self.deep_sleep = DeepSleepEntry(self)
        self.introspection = Introspection(self)
        self._teller = Teller(notifier or Notifier(None), settings)
        self._me = Identity(settings.id, settings.incarnation)
        self.reports = SelfReports(agent._error_bus, retries=settings.checks.retries)
        self._tasks = Tasks(settings.id.name)
        self._timers = TimerThrottle()
        self._tick = Tick(settings.watchdog_s, self._teller, self._timers, self._safety_check)
        self._checks = Checks(agent, settings.checks, self._tell_health, self.reports.check_failed, self._timers)
        methods = {**agent.methods, **BUILTIN_METHODS}
        fallback = handle_request_of(type(agent))
        self.metrics_book = AgentMetrics(
            settings.id.name, [*methods, *HEALTH_VERBS, *(["handle_request"] if fallback else [])]
        )
        self._counters = Counters(self.metrics_book, self._teller)
        self.tracer = Tracer(settings.trace_sample)
        self._dispatcher = Dispatcher(
            agent,
            methods,
            self.metrics_book,
            fallback=fallback,
            plain_health=self.introspection.plain_health,
            policy=serving_of(agent),
            tracer=self.tracer,
        )
        self._inbox: Inbox | None = None
        self._http: http.HttpServer | None = None
        self._keys = AgentKeys(settings, lambda: self.caller.on_keys())
        self._has_http = False
        self._attachment = Attachment(self)
        self._directory: Directory = directory or self._attachment.directory()
        node = self._directory if isinstance(self._directory, MeshDirectory) else None
        self._error_exporter = ErrorExporter(agent._error_bus, settings.sender, node.ask if node else None)
        self.leading = Leading(settings.sender, node)
        self._configuring = Configuring(agent, settings, node, self._tasks.spawn)
        self._teller.takes_config = self._configuring.is_wanted
        policies, fallbacks = calling_of(agent), fallbacks_of(agent)
        self.caller = Caller(
            self._me,
            self._directory,
            policies=policies,
            fallbacks=fallbacks,
            tracer=self.tracer,
            dialer=self._keys.dialer(),
        )
        self.events = AgentEvents(
            agent,
            str(settings.id),
            settings.incarnation,
            route_by(self._directory),
            on_failed=self.reports.subscriber_failed,
            tell=self._teller.events,
        )
        self.sockets = SocketPool(loop=self.loop)
        threads = ThreadBridge(self.loop, self._directory)
        self.blocking_caller = BlockingCaller(
            self._me,
            threads.lookup,
            refuse=threads.refuse_on_loop,
            publish=self.events.publish_from_thread,
            policies=policies,
            fallbacks=fallbacks,
            awaited=threads.result_of,
            tracer=self.tracer,
            dialer=self._keys.dialer(for_threads=True),
        )
        self._exclusive = Exclusive(
            agent,
            self.events,
            self.reports,
            self.leading,
            is_task=settings.kind == "task",
            spawn=self._tasks.spawn,
            end=self.request_stop,
            alone=self._alone,
            gate=gate,
            timers=self._timers,
        )
        self._resources = Resources(
            agent,
            limit_bytes=settings.resource_memory_bytes,
            on_load=lambda: self.hibernation.used(),
            on_failed=self.reports.resource_failed,
            on_made=lambda pool: gauges.show_resources(self.metrics_book, pool),
        )
        self.hibernation = Hibernation(
            agent,
            settings.hibernate if settings.kind == "service" else HibernateSettings(depth="never"),
            Suspension(
                self._dispatcher,
                self.events,
                self.caller,
                self.blocking_caller,
                self.sockets,
                self._resources,
                self._timers,
            ),
            on_failed=self.reports.sleep_failed,
            tell=self._teller.sleep,
            save=self.save_state,
            deepen=self.deep_sleep.deepen,
        )
        self._keeper = keeper_of(agent, settings, self.reports, self._teller.state, store)
        self._ended = self.loop.create_future()  # of the reason why it has to stop: "" or a failure
        self._was_ready = False
        self._dispatcher.on_counted = self._counters.note
        self._dispatcher.on_failed = self.reports.handler_failed
        for board in (self.caller.board, self.blocking_caller.board):
            board.on_open = self.reports.breaker_opened
        self.introspection.observe()

    # -- what the agent sees (agent.base.Wiring) ----------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self.listening.port

    @property
    def resources(self) -> ResourcePool:
        return self._resources.pool

    @property
    def health_port(self) -> int | None:
        return self.listening.health_port

    # -- a life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Up to READY. StartupError, with the author's exception as its cause; then `stop` is still to be called."""
        self.settings.check_binding(self.listening.hosts)
        self.listening.open(self.settings)
        self.listening.encrypted = self._keys.needed_for(self.listening.sockets)
        self.agent._wiring = self
        self._exclusive.watch_gate()
        if not self._exclusive.is_beside:
            await self._serve_http()
        self.settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._keeper is not None:
            await self._keeper.begin(is_alone=not self._exclusive.is_beside)
        try:
            await self.agent.on_start()
        except (Exception, SystemExit) as exc:
            self.reports.life_failed("on_start", exc)
            raise StartupError(f"on_start raised {type(exc).__name__}: {exc}") from exc
        await self._checks.once()
        if not self._checks.board.all_passed_once:
            raise StartupError(f"not healthy: {self._checks.board.verdict.reason}")
        left = checkpoint.take(self.settings.data_dir)
        self._exclusive.last_s.update(resumed(self.agent, left.ran_s))
        self.events.seen(left.streams, self._attachment.kept_events if left.has_kept else None)
        await self._exclusive.before_ready()
        self._open_inbox()
        self.phase = "ready"
        self.running = self._was_ready = True
        await self._serve_http()
        self._teller.ready(self.agent.methods, self._checks.board.verdict)
        self._begin_upkeep()

    def request_stop(self, reason: str = "") -> None:
        """End `until_stopped`; a non-empty reason is a failure. Thread-unsafe, harmless when repeated."""
        if not self._ended.done():
            self._ended.set_result(reason)

    def succeeded(self) -> None:
        """End `until_stopped`: a successor serves already, and answers for us on the health port from now on."""
        self._is_succeeded = True
        if self._http is not None:
            self._http.accept_no_more()
        self.handed_over()

    def handed_over(self) -> None:
        """End `until_stopped`: a successor takes whoever connects from now on."""
        from agentkit.transport.lookaway import look_away  # few processes ever need it, and it needs ctypes

        for listener, _ in self.listening.inboxes:
            look_away(listener)
        self.request_stop()

    async def until_stopped(self) -> str:
        """Serve until somebody asks it to stop or `run` raises; the failure's reason, or ""."""
        return str(await asyncio.shield(self._ended))

    async def stop(self) -> None:
        """Send callers elsewhere, finish what runs, `on_stop`, close everything. Within the grace period."""
        began = Deadline.after(self.settings.grace_s)
        reserve_s = min(RESERVE_S, self.settings.grace_s / 4)
        self._exclusive.close()
        self.hibernation.close()
        self.running = False
        # Who asked before our successor took the health port over asks about the agent, and that is there
        self.phase = "ready" if self._is_succeeded or self.deep_sleep.is_asleep else "stopping"
        self._teller.stopping()
        if self._inbox is not None and not self.deep_sleep.is_asleep:
            self._inbox.goaway()
            if not await self._inbox.drained(Deadline.after(max(0.0, began.left_s() - reserve_s))):
                log.warning("agent.grace_over", in_flight=self._dispatcher.in_flight, peers=len(self._inbox.peers))
                self._dispatcher.cancel_all("the agent is stopping and its grace period is over")
        # Handlers whose caller gave up may still be busy cleaning up: `on_stop` runs when nothing else does
        await self._dispatcher.idle(max(reserve_s / 4, began.left_s() - reserve_s))
        await self.events.finish(max(reserve_s / 4, began.left_s() - reserve_s))
        await self.hibernation.finish(max(reserve_s / 4, began.left_s() - reserve_s))
        await self._tasks.cancel(max(reserve_s / 4, began.left_s() - reserve_s))
        await run_on_stop(self.agent, max(reserve_s / 2, began.left_s() - reserve_s / 2), self.reports)
        await self._resources.close()
        if (
            self._keeper is not None
        ):  # a life that never was ready has nothing new to say, and may be in the middle of `on_start`
            await self._keeper.finish(max(reserve_s / 4, began.left_s()), saves=self._was_ready)
        await self._close()

    async def save_state(self) -> None:
        """Before the agent sleeps, and whenever its author wants: returns when its state, if it has one, is kept.

        StateNotSaved: it is not, and that is reported."""
        if self._keeper is not None:
            await self._keeper.save()

    # -- starting -----------------------------------------------------------------------------------------------------

    async def _serve_http(self) -> None:
        listener = self.listening.http
        if listener is not None and not self._has_http:
            self._has_http = True
            self._http = await http.serve(http.application(self.introspection), listener)

    def _open_inbox(self) -> None:
        """Only now: whoever called before waits in the kernel's backlog, and is served first."""
        self._inbox = Inbox(self._me, self._dispatcher, keys=self._keys.ring)
        self._dispatcher.answers = self._inbox
        for listener, is_encrypted in self.listening.inboxes:
            self._inbox.adopt(listener, encrypted=is_encrypted)

    def _begin_upkeep(self) -> None:
        self._tasks.spawn("tick", self._tick.forever)
        for check in self._checks.forever():
            self._tasks.spawn("checks", check)
        self._exclusive.begin()
        self.hibernation.begin()
        if self._keeper is not None:
            self._tasks.spawn("state", self._keeper.keep_saving)
        self._attachment.begin()

    def _alone(self) -> None:
        """The predecessor is gone."""
        self._tasks.spawn("http", self._serve_http)
        if self._keeper is not None:
            self._tasks.spawn("state claim", self._keeper.claim)

    def _safety_check(self) -> int:
        return 0 if self._inbox is None else self._inbox.safety_check() + self.events.safety_check()

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        self.phase = "stopped"
        self.leading.close()
        self._error_exporter.close()
        self._counters.close()
        self._attachment.close()
        self.caller.close()
        self.blocking_caller.close()
        self.sockets.close()
        self.events.close()
        await self._directory.close()
        if self._inbox is not None:
            self._inbox.close()
        self._dispatcher.close()
        self._teller.close()
        if self._http is not None:
            await self._http.close()
        self.listening.close()

    # -- telling ------------------------------------------------------------------------------------------------------

    def report_error(self, severity: str, message: str) -> None:
        self._teller.error(severity, message)

    def _tell_health(self) -> None:
        if self._was_ready:
            self._teller.health(self._checks.board.verdict)

    def on_asked(self, question: dict[str, Any]) -> None:
        """The node wants to know something for an operator."""
        from agentkit.debug.answer import told  # seldom, and then by few

        directory = self._directory
        assert isinstance(directory, MeshDirectory)
        self._tasks.spawn(
            "debug",
            lambda: told(
                directory, question, dispatcher=self._dispatcher, metrics=self.metrics_book, own=self._tasks.since
            ),
        )
