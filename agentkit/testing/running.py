"""`running(MyAgent)`: everything that a launched agent has (inbox, health port, checks, timers), without a process or a node."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

from agentkit.agent.base import BaseAgent
from agentkit.agent.call_options import CallOptions
from agentkit.agent.caller import Caller, PeerProxy
from agentkit.agent.handlers import traits_of
from agentkit.clock import wall_s
from agentkit.directory.base import INBOX_LOCAL, AgentRecord
from agentkit.directory.static import StaticDirectory
from agentkit.errors import ConfigError
from agentkit.health.checks import CheckPolicy
from agentkit.names import AgentId, AgentName, MachineName
from agentkit.resilience.policy import FilePolicy
from agentkit.runtime import AgentRuntime
from agentkit.settings import AgentSettings, HibernateSettings, SecretSource
from agentkit.state.memory import MemoryStore
from agentkit.state.model import AgentState, packed
from agentkit.state.store import Snapshot, Store
from agentkit.transport.peer import Identity

A = TypeVar("A", bound=BaseAgent)

#: The machine that agents under test are on.
MACHINE = MachineName("test")


@dataclass(frozen=True)
class Running(Generic[A]):
    """An agent that takes calls."""

    agent: A
    endpoint: str  #: of its inbox
    health_url: str
    caller: Caller

    async def call(
        self, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Any:
        """Call one of its methods over its real socket."""
        return await self.caller.call(self.agent.name, method, arguments, **options)

    async def fall_asleep(self) -> None:
        """Light sleep now (`on_hibernate` and what follows), however short the agent was idle. RuntimeError says what keeps it awake."""
        if why := await self.agent._wired.hibernation.sleep_now("light"):
            raise RuntimeError(f"{self.agent.name} does not sleep: {why}")

    async def wake(self) -> None:
        """Wake it, as a call would. Raises what such a call would get: InternalError when `on_wake` raised."""
        await self.agent._wired.hibernation.wake("the test")

    @property
    def peer(self) -> PeerProxy:
        """The same, as methods: `await running.peer.count(text="x")`."""
        return self.caller.peer(self.agent.name)


@asynccontextmanager
async def running(
    cls: type[A],
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    peers: Mapping[str, str] | None = None,
    secrets: Mapping[str, SecretSource] | None = None,
    data_dir: Path | None = None,
    grace_s: float = 5.0,
    checks: CheckPolicy | None = None,
    trace_sample: float = 0,
    state: AgentState | Mapping[str, Any] | Store | None = None,
    state_every_s: float = 300.0,
    hibernate: HibernateSettings | None = None,
) -> AsyncIterator[Running[A]]:
    """`cls`, started and ready, until the block ends. `peers`: name -> endpoint of the agents that it calls
    (another `running(...)`'s `endpoint`). StartupError when it does not come up.
    `policy`: agentkit.resilience.policy.FilePolicy, as a map: what a fleet file may say. `data_dir`: default a temporary one.
    `trace_sample`: the part of its own calls that is traced. `state`: what it remembers of an earlier life; or a MemoryStore, which
    may be given to the next one, too. Without it the state is kept in `data_dir`. `state_every_s`: how often it is saved by itself.
    `hibernate`: when it sleeps (default: never by itself; `fall_asleep` and `wake` do it by hand)."""
    with tempfile.TemporaryDirectory(prefix="agentkit-") as scratch:
        settings = AgentSettings(
            id=AgentId(MACHINE, AgentName(name or cls.__name__)),
            config=config or {},
            policy=FilePolicy.read(policy or {}, at="policy"),
            health_port=0,
            data_dir=data_dir or Path(scratch),
            secrets=secrets or {},
            grace_s=grace_s,
            watchdog_s=0,
            checks=checks or CheckPolicy(),
            trace_sample=trace_sample,
            state_every_s=state_every_s,
            hibernate=hibernate or HibernateSettings(depth="never"),
        )
        agent = cls._from_settings(settings, settings.read_secrets())
        assert isinstance(agent, cls)
        runtime = AgentRuntime(
            agent, settings, directory=StaticDirectory(peers, here=MACHINE), store=_remembering(cls, state)
        )
        try:
            await runtime.start()
            endpoint = f"tcp://127.0.0.1:{runtime.port}"
            record = AgentRecord(
                id=settings.id,
                incarnation=settings.incarnation,
                phase="ready",
                endpoints={INBOX_LOCAL: endpoint},
                timeouts_s={method: m.options.timeout_s for method, m in agent.methods.items()},
                traits=traits_of(agent.methods),
            )
            directory = StaticDirectory(here=MACHINE)
            directory.put(record)
            caller = Caller(Identity(AgentId(MACHINE, AgentName("test"))), directory)
            try:
                yield Running(agent, endpoint, f"http://127.0.0.1:{runtime.health_port}", caller)
            finally:
                caller.close()
        finally:
            await runtime.stop()


def _remembering(cls: type[BaseAgent], state: AgentState | Mapping[str, Any] | Store | None) -> Store | None:
    if not isinstance(state, AgentState | Mapping):
        return state
    if cls.State is None:
        raise ConfigError(at="running(state=)", got=state, want=f"a class State(AgentState) in {cls.__name__}")
    given = state if isinstance(state, AgentState) else cls.State.model_validate(dict(state))
    store = MemoryStore()
    store.save(Snapshot.of(1, cls.State.version, 0, wall_s(), packed(given, cls.State)))
    return store
