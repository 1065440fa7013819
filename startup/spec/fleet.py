"""The resolved fleet: what `load` makes of a file, what a revision keeps, and what plan/ and node/ act on.

Plain frozen values, every duration in seconds, every size in bytes, every default filled in, every name resolved to
AgentIds, replicas expanded to slots. Nothing here knows the file's syntax (model.py does) or does I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Final, Literal

import msgpack

from agentkit.names import AgentId, AgentName, MachineName, is_loopback

#: Keys of an agent that its process does not know of: when one changes, the process goes on.
FOLLOWED: Final = frozenset(
    {"source", "dependencies", "required", "enabled", "group", "restart", "problem", "on_error", "roll"}
)

Condition = Literal["healthy", "started", "completed"]
RestartMode = Literal["on-failure", "always", "never"]
RestartStrategy = Literal["one", "rest-for-one", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTarget:
    """A BaseAgent: `module:cls` importable from project_root, or a file that defines it (`cls` may then be None: the only one)."""

    module: str | None = None
    script: str | None = None  #: path from the project's root where it lies below it, else absolute
    cls: str | None = None
    type: Literal["agent"] = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTarget:
    """Any other program. `argv[0]` is looked up in PATH; a python script has `script` set and is forked, run as __main__."""

    argv: tuple[str, ...] = ()
    script: str | None = None  #: as AgentTarget's
    type: Literal["program"] = "program"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """One edge. Exactly one of `agents` (any one of them fulfils it) and `external` is set."""

    name: str  #: as written in the file
    agents: tuple[AgentId, ...] = ()
    external: str | None = None
    required: bool = True
    condition: Condition = "healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyWhen:
    """How a process shows that it is ready: a notification, or one probe."""

    notify: bool = False
    tcp_port: int | None = None
    http_url: str | None = None  #: path on the health port, or a whole URL
    log_regex: str | None = None
    after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """The first failure after a stable period restarts at once; `delay_s` applies from the second on."""

    policy: RestartMode = "on-failure"
    delay_s: float = 1.0
    factor: float = 2.0
    max_delay_s: float = 30.0
    jitter: float = 0.1
    max_attempts: int = 3
    window_s: float = 300.0
    stable_after_s: float = 60.0
    retry_failed_after_s: float = 300.0  #: 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckPolicy:
    interval_s: float = 10.0
    timeout_s: float = 2.0
    retries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HibernatePolicy:
    """When it sleeps: idle for `after_s`; and how deep."""

    after_s: float = 300.0
    depth: Literal["light", "deep", "never"] = "light"
    events: Literal["wake", "count"] = "wake"  #: wake: what it subscribed to wakes it; count: does not
    wake_dependencies: bool = False  #: who wakes it from deep sleep wakes those that it depends on, on its machine


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """What the node does when an agent reports `after` errors of this severity or worse `within_s`; then it rests as long."""

    do: Literal["restart", "quarantine", "webhook"]
    severity: Literal["info", "warning", "error", "critical"] = "critical"
    after: int = 1
    within_s: float = 60.0
    url: str | None = None  #: of a webhook; may hold a token, so it is shown nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    memory_limit_bytes: int | None = None
    memory_request_bytes: int | None = None
    cpu_limit: float | None = None  #: cores
    pids_limit: int | None = None  #: processes and threads
    cpu_affinity: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Where a secret is found at fork, on the agent's machine. The value never stands in spec, state or revision."""

    file: str | None = None
    env: str | None = None
    as_env: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePolicy:
    """Where what an agent remembers is kept. `url` or `secret`, which holds one, is of a Redis."""

    store: Literal["sqlite", "redis"] = "sqlite"
    url: str | None = None
    secret: SecretRef | None = None
    every_s: float = 300.0  #: 0: never by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """Everything that a node needs to run one slot of one agent."""

    id: AgentId
    group: str
    klass: str
    target: AgentTarget | ProgramTarget
    port: int
    health_port: int | None = None  #: None: programs that have none
    dependencies: tuple[Dependency, ...] = ()
    required: bool = True
    enabled: bool = True
    kind: Literal["service", "task"] = "service"
    sockets: Literal["adopt", "self"] = "adopt"
    ready: ReadyWhen = field(default_factory=lambda: ReadyWhen(notify=True))
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    user: str = ""  #: `name` or `name:group` that it runs as; "": whoever the node is
    start_timeout_s: float = 60.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    health_check: HealthCheckPolicy = field(default_factory=HealthCheckPolicy)
    watchdog_s: float = 30.0  #: 0: none
    shutdown_grace_s: float = 10.0
    trace_sample: float = 0.01
    roll: Literal["overlap", "handover"] | None = None  #: None: as its class says
    state: StatePolicy = field(default_factory=StatePolicy)
    hibernate: HibernatePolicy = field(default_factory=HibernatePolicy)
    resource_memory_bytes: int | None = None  #: for `self.resources`; None: no limit
    policy: Mapping[str, Any] = field(
        default_factory=dict
    )  #: what the file says under `serve` and `calls` (policies.py)
    on_error: tuple[ErrorRule, ...] = ()
    source: str = ""  #: "file:line" of its entry, for messages
    problem: str = ""  #: why an optional agent is skipped although it is enabled (its script does not compile, ...)

    @property
    def name(self) -> AgentName:
        return self.id.name

    @property
    def machine(self) -> MachineName:
        return self.id.machine

    @property
    def ports(self) -> tuple[int, ...]:
        """Those that its processes have."""
        return tuple(port for port in (self.port, self.health_port) if port)

    def digest(self) -> str:
        """Changes exactly when a running process would have to be restarted to follow the spec (dependencies do not count)."""
        return _digest({found.name: getattr(self, found.name) for found in fields(self) if found.name not in FOLLOWED})

    def base_digest(self) -> str:
        """The same without the config."""
        left_out = FOLLOWED | {"config"}
        return _digest({found.name: getattr(self, found.name) for found in fields(self) if found.name not in left_out})


@dataclass(frozen=True, slots=True, kw_only=True)
class SshAccess:
    user: str | None = None
    port: int = 22
    key: str | None = None
    known_hosts: str | None = None
    jump: str | None = None  #: user@host:port to go through


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """One machine: its address for others and how its node is reached."""

    name: MachineName
    host: str = "127.0.0.1"
    node_port: int | None = None  #: None: the kernel chooses (local machines)
    ssh: SshAccess | None = None
    python: str | None = None
    workdir: str | None = None
    root: str | None = None  #: where the project lies there, when that is not `project_root`
    memory_budget_bytes: int | None = None  #: of its agents together; above, idle ones are sent to sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What the agents of one class may request together on one machine."""

    klass: str
    machine: MachineName
    memory_bytes: int | None = None  #: None: as much as they like
    reserve_bytes: int = 0  #: of that, never given out


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSpec:
    """How long nodes wait for each other."""

    suspect_s: float = 3.0
    unreachable_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """How `apply` replaces agents that change."""

    max_unavailable: str = "1"  #: a number, or a part such as "25%"
    rollback: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """Something that we do not start but that agents depend on: exactly one probe."""

    name: str
    tcp: str | None = None  #: "host:port"
    http: str | None = None  #: URL


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulAccess:
    """How each machine's node reaches Consul. Paths and variables are the machine's own."""

    address: str = "127.0.0.1:8500"
    token: SecretRef | None = None
    datacenter: str | None = None
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    ready_check_s: float = 0.0  #: 0: none
    config_prefix: str = ""  #: of keys that say something over agents' config (plan/overrides.py); "": none are read
    leader_ttl_s: float = 15.0  #: of the session that holds the locks of leaders (node/leadership/lockkeeper.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A whole cluster, resolved. `agents` is in file order; plan/ sorts."""

    cluster: str
    project_root: str  #: absolute; first on sys.path of agents
    file: str  #: absolute path of the file it came from
    machines: tuple[MachineSpec, ...]
    agents: tuple[AgentSpec, ...]
    externals: tuple[External, ...] = ()
    registry: Literal["mesh", "consul"] = "mesh"
    consul: ConsulAccess | None = None  #: set exactly when `registry` is consul
    security: Literal["loopback", "none", "curve"] = "loopback"
    keys: str = ""  #: folder of keys on each machine, as written (`~` is that of who runs the node); "": the usual one
    encrypts_loopback: bool = False
    preload: tuple[str, ...] = ()
    mesh: MeshSpec = field(default_factory=MeshSpec)
    pools: tuple[PoolSpec, ...] = ()
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    port_ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)  #: class -> first and last port
    forbidden_ports: tuple[int, ...] = ()
    phases: tuple[tuple[str, ...], ...] = ()  #: barriers between groups (by group name), in order
    restart_strategies: Mapping[str, RestartStrategy] = field(default_factory=dict)  #: by group; left out: `one`

    @property
    def needs_keys(self) -> bool:
        """Whether anything of it is encrypted."""
        return self.security == "curve" and (
            self.encrypts_loopback or any(not is_loopback(machine.host) for machine in self.machines)
        )

    def agent(self, id: AgentId) -> AgentSpec:
        """KeyError when there is none."""
        for spec in self.agents:
            if spec.id == id:
                return spec
        raise KeyError(str(id))

    def ids(self) -> tuple[AgentId, ...]:
        return tuple(spec.id for spec in self.agents)

    def on(self, machine: str) -> tuple[AgentSpec, ...]:
        """The agents of one machine."""
        return tuple(spec for spec in self.agents if spec.machine == machine)

    def memory_budget_of(self, machine: str) -> int | None:
        """What the agents of that machine may have together; None: as much as they like."""
        return next((it.memory_budget_bytes for it in self.machines if it.name == machine), None)

    def root_on(self, machine: str) -> str:
        """Where the project lies on that machine."""
        return next((it.root for it in self.machines if it.name == machine and it.root), self.project_root)

    def to_wire(self) -> dict[str, Any]:
        """Only what msgpack and JSON know. `startup.spec.wire.fleet_from_wire` reads it again."""
        return asdict(self)

    def digest(self) -> str:
        return _digest(self)


def _digest(facts: object) -> str:
    # dataclasses are taken apart on the way: asdict would copy everything first (0.25 ms for an agent against 0.04)
    return hashlib.blake2b(msgpack.packb(facts, default=_taken_apart), digest_size=8).hexdigest()


def _taken_apart(value: Any) -> Any:
    return {found.name: getattr(value, found.name) for found in fields(value)} if is_dataclass(value) else str(value)
