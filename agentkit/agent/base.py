"""BaseAgent: what authors subclass. Attributes, hooks and calls; how it is run is runtime.py's."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Protocol, Unpack

from agentkit.agent.blocking import BlockingCaller
from agentkit.agent.call_options import CallOptions
from agentkit.agent.caller import Caller, PeerProxy
from agentkit.agent.configuring import first_config
from agentkit.agent.context import serving
from agentkit.agent.events import AgentEvents
from agentkit.agent.handlers import Method, methods_of
from agentkit.agent.hibernation.lifecycle import Hibernation
from agentkit.agent.hibernation.wake_locks import WakeLock
from agentkit.agent.leading import Leader, Leading
from agentkit.agent.overridable import Overridable
from agentkit.agent.policies import methods_under
from agentkit.agent.streaming import Results
from agentkit.agent.subscriptions import check_subscribers
from agentkit.errorbus import ErrorBus
from agentkit.errors import ConfigError, NotRunning, StateDamaged, StateNotSaved
from agentkit.observe.log import Logger, get_logger
from agentkit.observe.reports import Severity
from agentkit.observe.trace import Tracer
from agentkit.resilience.deadline import Deadline
from agentkit.resilience.policy import NOTHING_SAID, USUAL_CALLS, USUAL_SERVICE, CallPolicy, FilePolicy, ServePolicy
from agentkit.settings import AgentConfig, AgentSettings, Depth
from agentkit.transport.gate import WAYS
from agentkit.transport.pool import SocketPool

if TYPE_CHECKING:
    from agentkit.resources.pool import ResourcePool
    from agentkit.state.model import AgentState


class Wiring(Protocol):
    """What the runtime gives a running agent."""

    caller: Caller
    blocking_caller: BlockingCaller
    sockets: SocketPool
    events: AgentEvents
    leading: Leading
    hibernation: Hibernation
    tracer: Tracer
    loop: asyncio.AbstractEventLoop
    running: bool
    start_time: float

    @property
    def port(self) -> int: ...
    @property
    def health_port(self) -> int | None: ...
    @property
    def resources(self) -> ResourcePool: ...
    def report_error(self, severity: str, message: str) -> None: ...
    async def save_state(self) -> None: ...


class BaseAgent:
    """One agent: one process, one inbox, one health port.

        class Greeter(BaseAgent):
            @rpc
            async def greet(self, name: str) -> str:
                return f"hello {name}"

    The order of a life: `__init__`, the state is restored, `on_start`, every `@health_check` once, ready (calls arrive from here
    on), `run` and `@every` beside the calls, then on SIGTERM or SIGINT: new calls are sent elsewhere, running ones finish, `run`
    and `@every` are cancelled, `on_stop`, the state is saved. One that takes over from a predecessor (`roll`) begins `run`,
    `@every` and `@subscribe` when that is gone."""

    #: The agent's own settings: a subclass of AgentConfig inside the agent. Validated before the fleet starts.
    Config: ClassVar[type[AgentConfig]] = AgentConfig

    #: What it remembers from one life to the next: a subclass of AgentState inside the agent (docs/state.md). `self.state` is
    #: an instance of it from `on_start` on.
    State: ClassVar[type[AgentState] | None] = None
    #: Whether it has one; filled in for every subclass.
    keeps_state: ClassVar[bool] = False

    #: How it calls others, and how it calls some of them: {"Name": CallPolicy(...), "Name.method": CallPolicy(...)}.
    call_policy: CallPolicy = USUAL_CALLS
    call_policies: Mapping[str, CallPolicy] = {}
    #: How much it lets in.
    serve_policy: ServePolicy = USUAL_SERVICE

    #: How a restart replaces a running one; the fleet file's `roll:` goes before it. "overlap": the new process serves beside the
    #: old one until that has drained. "handover": it is imported and waits, and starts (`__init__`, `on_start`) once nothing of the
    #: old one is left: for agents of which no two may be started at a time, and the usual way of those with a State. None: see
    #: `agentkit.transport.gate.way_of`.
    roll: ClassVar[Literal["overlap", "handover"] | None] = None

    #: Whether the class defines `on_config`.
    _takes_configs: ClassVar[bool] = False

    #: `@rpc` methods by name; filled in for every subclass, and for an agent whose fleet file says something of them.
    methods: Mapping[str, Method] = {}

    name: str  #: as in the fleet file
    machine: str
    instance: str  #: `name#slot`, just the name for slot 0
    config: Any  #: an instance of the agent's Config
    state: Any  #: an instance of the agent's State, if it has one
    logger: Logger  #: thread-safe; used like the standard library's
    data_dir: Path  #: for files of its own; exists once `on_start` runs
    secrets: Mapping[str, str]  #: name -> value, from files or environment, never from the fleet file
    _wiring: Wiring | None = None
    _errors: ErrorBus | None = None
    _file_policy: FilePolicy = NOTHING_SAID

    def __init__(self) -> None:
        """Runs after the fork and before the event loop, in the main thread; the attributes above are set already.

        May be overridden, with or without calling this one. No time limit but the start's. Raising fails the agent."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.methods = methods_of(cls)
        cls._takes_configs = cls.on_config is not BaseAgent.on_config
        check_subscribers(cls)
        if "State" in vars(cls):
            from agentkit.state.model import is_state  # only those that have one pay for it

            cls.keeps_state = is_state(cls.__name__, cls.State)
        if cls.roll not in (None, *WAYS):
            raise ConfigError(at=f"{cls.__name__}.roll", got=cls.roll, want=" or ".join(WAYS))

    # -- hooks for authors --------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Prepare to take calls: open, load, connect. On the event loop, before READY, within the start's time limit.

        Calls to dependencies work. Raising fails the agent: traceback in its log, reason in `status`."""

    async def on_hibernate(self) -> None:
        """It is about to sleep: release what can be had again (models, connections, caches). On the event loop, while calls and events
        wait; within 60 s.

        Comes when the agent was idle for `hibernate.after` (docs/hibernation.md says what that means), or an operator asked for it.
        What the runtime itself gives back needs nothing here: pooled sockets, connections to peers, cached answers, resources of
        `self.resources`. Raising is reported; the agent sleeps all the same, but only lightly."""

    async def on_wake(self) -> None:
        """The reverse of `on_hibernate`: somebody needs the agent. On the event loop; the calls and events that came meanwhile wait
        for it, each within its own deadline; within 60 s.

        Raising is reported, ends the calls that wait (InternalError, nothing ran), and the next call tries again."""

    async def on_stop(self) -> None:
        """Close what `on_start` opened. On the event loop, when no call runs any more, within the grace period.

        Also runs when `on_start` raised, and while the agent sleeps (`self.asleep`), without
        `on_wake`. Raising is logged and does not keep the agent from stopping."""

    @classmethod
    def migrate_state(cls, version: int, data: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG003 - what authors get
        """What the agent's State of today is made of, from `data`, the JSON that its State of `version` was saved as.

        Called before `on_start` when what was saved is of another version than `State.version`; older as a rule, newer after a
        roll back to an older program. On the event loop. Raising fails the agent, and what was saved stays as it is; so does
        this method as it stands here."""
        raise StateDamaged(
            f"{cls.__name__} has no migrate_state that turns it into version {cls.State and cls.State.version}"
        )

    async def on_config(self, config: Any) -> None:
        """Another config is wanted while the agent runs: `config` is an instance of its Config, checked already; `self.config` is still the
        old one, and is replaced when this returns.

        On the event loop, beside calls and `run`, one at a time, within 10 s. Raising, or taking longer, keeps the old config and is
        reported; what the fleet file wanted comes about by a restart then, what Consul's KV store wanted does not. Where a class does not
        define it, a changed `config:` means a restart, and Consul's values count from the next start on (docs/configuration.md)."""

    # `async def run(self)`: defined by authors who need a main task. Started after READY; returning ends it (and, where the
    # fleet says `kind: task`, completes the agent), raising fails the agent; cancelled before `on_stop`.

    # -- for authors to use -------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where the inbox listens."""
        return self._wired.port

    @property
    def health_port(self) -> int | None:
        """Where health and metrics are served; None: nowhere."""
        return self._wired.health_port

    @property
    def running(self) -> bool:
        """Whether it takes calls: true from READY until it is told to stop. Threads may watch it."""
        return self._wiring is not None and self._wiring.running

    @property
    def start_time(self) -> float:
        """When this process began to start the agent, in seconds since the epoch."""
        return self._wired.start_time

    @property
    def deadline(self) -> Deadline | None:
        """Of the call being handled, on the loop and in the thread of a plain `def`; None outside of handlers."""
        call = serving()
        return call.deadline if call is not None else None

    async def call(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Any:
        """Call another agent and return its plain result; see Caller.call. From any thread that has an event loop."""
        wired = self._wired
        if asyncio.get_running_loop() is wired.loop:
            return await wired.caller.call(target, method, arguments, **options)
        call = wired.caller.call(target, method, arguments, **options)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, wired.loop))

    def stream(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Results:
        """The results of another agent's method that yields, one after another: `async for result in self.stream(...)`; see
        Caller.stream. On the event loop."""
        return self._wired.caller.stream(target, method, arguments, **options)

    def peer(self, target: str, **options: Unpack[CallOptions]) -> PeerProxy:
        """Another agent's methods as methods: `await self.peer("Summarizer").summarize(text=...)`, or, for one that yields,
        `async for word in self.peer("Writer").words(n=3)`. On the event loop.

        `options`: those of `call`, for each of its calls."""
        return self._wired.caller.peer(target, **options)

    async def publish(self, topic: str, event: object) -> None:
        """Tell whoever subscribed to `topic`: an instance of the class of events that has it, or a map of its fields.

        Returns when the event is on its way: at most once to each subscriber, in order for each topic; what a subscriber
        misses it counts. Waits for no subscriber, and for at most 0.1 s when it is faster than the relay; while the node is
        away 1,024 events are kept for it, then new ones are dropped and counted. From any thread that has an event loop; plain
        `def` handlers use `self.blocking.publish`. Raises BadRequest (no class has this topic, or the event does not fit it:
        each wrong field is named) and TooLarge (32 KiB)."""
        wired = self._wired
        published = wired.events.publish(topic, event)
        if asyncio.get_running_loop() is wired.loop:
            await published
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(published, wired.loop))

    def leader(self, name: str) -> Leader:
        """One leader among all agents that ask for `name`: `async with self.leader("indexer") as term:`, `.lead(work)`, `.is_leader`.

        Of the agents of this machine; with `registry: consul`, of the whole cluster (docs/leadership.md). Waits for nothing by itself."""
        return self._wired.leading.leader(name)

    async def save(self) -> None:
        """Keep `self.state` as it is now; by itself that happens every 5 minutes and when the agent stops. From any thread that has
        an event loop.

        Returns when it outlives a power cut, at once if nothing has changed. Raises StateNotSaved (too large, a full disk, ...:
        what was saved before is still there) and StateFenced (another process of the agent has it)."""
        if not self.keeps_state:
            raise StateNotSaved(f"{type(self).__name__} has no `class State(AgentState)`")
        wired = self._wired
        if asyncio.get_running_loop() is wired.loop:
            await wired.save_state()
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wired.save_state(), wired.loop))

    @property
    def sockets(self) -> SocketPool:
        """Raw ZeroMQ sockets for peers that are no agents, from any thread: `with self.sockets.lease(zmq.REQ, endpoint) as s:`."""
        return self._wired.sockets

    @Overridable
    def resources(self) -> ResourcePool:
        """What is dear to load and shared by calls (models, indices, mapped files), by name: `await self.resources.get("model-x")`, or
        `async with self.resources.use("model-x") as model:`; without `await` and `async` in plain `def` handlers.

        Loaded when first used, by `@resource` methods and what `self.resources.define` says; within `resource_memory`; released
        when the agent sleeps. From on_start on, from any thread (docs/resources.md)."""
        return self._wired.resources

    @property
    def blocking(self) -> BlockingCaller:
        """The same calls for threads and plain `def` handlers: `self.blocking.peer("X").method(...)`, `.call(...)`, `.publish(...)`."""
        return self._wired.blocking_caller

    @Overridable
    def asleep(self) -> Depth | None:
        """ "light" while it sleeps: what runs by itself then (`@every`, checks, `run`) finds what `on_hibernate` has left."""
        return self._wiring.hibernation.asleep if self._wiring is not None else None

    def keeps_awake(self, name: str = "a block") -> WakeLock:
        """The agent does not fall asleep within this block, and is woken first where it sleeps: `async with self.keeps_awake("train"):`,
        or `with` in a thread. (A plain `with` on the event loop can't wait until it is awake.) `name`: for `status`.

        For work that nobody called for; handlers of calls and events, open streams and calls without an answer keep it awake by
        themselves. From any thread. Waking it may raise InternalError: `on_wake` did."""
        return self._wired.hibernation.block(name)

    def stay_awake(self, seconds: float) -> None:
        """Not asleep for so long from now on; an agent that sleeps begins to wake. From any thread; never shortens what was said."""
        self._wired.hibernation.stay_awake(seconds)

    def report_error(self, severity: Severity, message: str, **context: Any) -> None:
        """Tell operators that something went wrong: a log line with `context`, the last error that `status` shows, and a place in
        `agentkit errors`, where what is alike is counted together (by the exception being handled or `exc_info=`, else by the
        message without its numbers).

        From any thread, also when the agent has stopped. Never raises and never blocks. Of a storm few get a line of their own,
        and all are counted."""
        with contextlib.suppress(Exception):  # whatever the author's objects, log handlers and threads do
            self._report_error(severity, message, context)

    @classmethod
    def main(cls) -> NoReturn:
        """Run this agent from its own file: `python agents/x.py --help`."""
        from agentkit.main import main

        sys.exit(main(cls))

    # -- for the runtime ----------------------------------------------------------------------------------------------

    @classmethod
    def _from_settings(cls, settings: AgentSettings, secrets: Mapping[str, str]) -> BaseAgent:
        """An instance whose attributes are set before its `__init__` runs. ConfigError when its config is wrong."""
        agent = cls.__new__(cls)
        agent.name = settings.id.name
        agent.machine = settings.id.machine
        agent.instance = settings.id.instance
        agent.config, refused = first_config(cls.Config, settings)
        agent.logger = get_logger(settings.id.name)
        agent.data_dir = settings.data_dir
        agent.secrets = dict(secrets)
        agent._errors = ErrorBus(hide=secrets.values())
        if refused:
            agent.report_error("error", f"what Consul says is not used: {refused}")
        agent._file_policy = settings.policy
        agent.methods = methods_under(cls.methods, settings.policy.methods)
        agent.__init__()  # type: ignore[misc]
        return agent

    @property
    def _error_bus(self) -> ErrorBus:
        """Where its errors are counted; there is one before it runs, and after."""
        if self._errors is None:
            self._errors = ErrorBus()
        return self._errors

    def _report_error(self, severity: str, message: object, context: dict[str, Any]) -> None:
        exc_info = context.pop("exc_info", None)
        exc = _exception_of(exc_info, message)
        telling = self._error_bus.report(severity, message, context, exc=exc)
        if telling is None:
            return
        fields = {"severity": telling.severity, **telling.context}
        if telling.untold:
            fields["suppressed"] = telling.untold
        logger = getattr(self, "logger", None) or get_logger(type(self).__name__)
        getattr(logger, telling.severity)("%s", telling.message, extra=fields, exc_info=exc if exc_info else None)
        if self._wiring is not None:
            self._wiring.report_error(telling.severity, telling.message)

    @property
    def _wired(self) -> Wiring:
        if self._wiring is None:
            raise NotRunning(
                f"{type(self).__name__} is not running: calls and ports are there from on_start until on_stop"
            )
        return self._wiring

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'machine', '?')}/{getattr(self, 'instance', '?')}>"


def _exception_of(exc_info: object, message: object) -> BaseException | None:
    """The exception that a report is about: the one given, else the one that is being handled where it is made."""
    for given in (exc_info, message):
        if isinstance(given, BaseException):
            return given
    if isinstance(exc_info, tuple) and len(exc_info) == 3 and isinstance(exc_info[1], BaseException):
        return exc_info[1]
    return sys.exc_info()[1]
