"""startup_config.yaml in its own words: what a file may say, before anything is resolved (resolve.py does that).

The JSON Schema that `agentkit schema` prints is made from these models, so each key is described here and nowhere else.
A default that stands here is the one of configuration.md; what is None is worked out by resolve.py.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import WithJsonSchema

from agentkit.names import NAME_PATTERN, is_name
from startup.spec.cluster_model import ConsulModel, ExternalModel, KeysModel, MachineModel, MeshModel, RolloutModel
from startup.spec.fields import Duration, Model, Port, SecretModel, Size
from startup.spec.policies import CallsModel, ServeModel
from startup.spec.resources_model import PoolModel, ResourcesModel
from startup.spec.states import StateModel
from startup.spec.units import is_web_address, port_range, refuse

#: Used when a file has no `port_ranges`.
DEFAULT_PORT_RANGES: Final = {
    "infrastructure": "10000-10099",
    "core": "10100-10199",
    "standard": "10200-10399",
    "monitoring": "10400-10499",
    "debug": "10500-10599",
}
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}(:[A-Za-z_][A-Za-z0-9_.-]{0,31})?")
#: Ports that strangers expect a web server on; only class `gateway` may have them.
DEFAULT_FORBIDDEN_PORTS: Final = (80, 443, 3000, 5000, 8000, 8080)


def _name(value: str) -> str:
    if not is_name(value):
        raise refuse("a name: letters, digits, `_`, `.` and `-`, starting with a letter or `_`, at most 100 characters")
    return value


def _target(value: str) -> str:
    module, colon, cls = value.partition(":")
    if not (colon and cls.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise refuse("module:Class, such as agents.task_manager:TaskManager")
    return value


def _user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise refuse("a user of the machine: `name` or `name:group`")
    return value


def _text(value: object) -> object:
    """`env` values are text; YAML reads 5 and true as something else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"})]
EnvText = Annotated[str, BeforeValidator(_text)]


class StartModel(Model):
    timeout: Duration = Field(60.0, description="From fork to ready at most; then the start has failed.")


class RestartModel(Model):
    policy: Literal["on-failure", "always", "never"] = Field(
        "on-failure", description="What is started again: processes that failed, all that ended, none."
    )
    delay: Duration = Field(
        1.0, description="Before the second attempt; the first failure after a stable period restarts at once."
    )
    factor: float = Field(2.0, ge=1.0, le=100.0, description="Each delay is this times the one before it.")
    max_delay: Duration = Field(30.0, description="No delay is longer.")
    jitter: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="Part of each delay that is drawn by lot, so that a fleet does not restart in step.",
    )
    max_attempts: int = Field(3, ge=0, description="Restarts within `window`; more, and the agent is `failed`.")
    window: Duration = Field(300.0, description="Attempts older than this are forgotten.")
    stable_after: Duration = Field(60.0, description="Ready for this long: the next failure counts as the first.")
    retry_failed_after: Duration = Field(300.0, description="A failed agent is tried again after this; 0: never.")


class HealthCheckModel(Model):
    interval: Duration = Field(
        10.0, description="Between two runs of an agent's checks, and of probes of programs that can't notify."
    )
    timeout: Duration = Field(2.0, description="A check that takes longer has failed.")
    retries: int = Field(3, ge=1, description="Failures in a row before the verdict changes.")


class TraceModel(Model):
    sample: float = Field(
        0.01, ge=0.0, le=1.0, description="Of the calls that it begins, the part that is traced; 0: none, 1: all."
    )


class ShutdownModel(Model):
    grace: Duration = Field(10.0, description="From SIGTERM to SIGKILL.")


class HibernateModel(Model):
    after: Duration = Field(300.0, gt=0, description="Without a call, an event or running work for this long: sleep.")
    depth: Literal["light", "deep", "never"] = Field(
        "light",
        description="light: connections, caches and resources are released; deep: the process exits, its port is kept; never.",
    )
    events: Literal["wake", "count"] = Field(
        "wake",
        description="Of an agent with @subscribe: wake: events wake it, its node keeps them meanwhile; count: it sleeps on, and what it missed is counted.",  # noqa: E501
    )
    wake_dependencies: bool = Field(
        False, description="Who wakes it from deep sleep wakes those that it depends on, too, on its own machine."
    )


class OnErrorModel(Model):
    do: Literal["restart", "quarantine", "webhook"] = Field(
        description="restart it, within its restart budget; quarantine: stop it until `agentkit start`; webhook: POST to `url`."
    )
    severity: Literal["info", "warning", "error", "critical"] = Field(
        "critical", description="Of its errors, those that are this or worse."
    )
    after: int = Field(1, ge=1, le=1_000_000, description="So many of them within `within`.")
    within: Duration = Field(
        60.0, gt=0, description="What is older does not count; and the rule rests so long once it acted."
    )
    url: str | None = Field(
        None, max_length=2000, description="http:// or https:// address that a webhook is sent to, as JSON."
    )

    @model_validator(mode="after")
    def _url_of_webhooks(self) -> OnErrorModel:
        if (self.do == "webhook") != (self.url is not None):
            raise refuse("`url` with `do: webhook`, and only there")
        if self.url is not None and not is_web_address(self.url):
            raise refuse("a `url` such as https://host/path", "write http:// or https://, a host, and no spaces")
        return self


class DependencyModel(Model):
    name: str = Field(description="An agent (`name`, `machine/name`) or a name of `external`.")
    required: bool = Field(True, description="false: its failure does not keep this agent from starting.")
    condition: Literal["healthy", "started", "completed"] = Field(
        "healthy", description="What has to be true of it first: its checks passed, it has a process, it exited with 0."
    )


class ReadyModel(Model):
    tcp: Port | None = Field(None, description="Something listens on this port.")
    http: str | None = Field(None, description="A path on the health port, or a whole URL, answers with 2xx.")
    log: str | None = Field(None, description="This regular expression is found in a line of its log.")
    after: Duration | None = Field(None, description="This long after the fork.")

    @model_validator(mode="after")
    def _one_probe(self) -> ReadyModel:
        if sum(value is not None for value in (self.tcp, self.http, self.log, self.after)) != 1:
            raise refuse("`notify`, or exactly one of {tcp: PORT} {http: PATH} {log: REGEX} {after: 1s}")
        return self


def _text_or_mapping(value: object) -> str:
    return "text" if isinstance(value, str) else "mapping"


DependencyEntry = Annotated[
    Annotated[str, Tag("text")] | Annotated[DependencyModel, Tag("mapping")], Discriminator(_text_or_mapping)
]
ReadyEntry = Annotated[
    Annotated[Literal["notify"], Tag("text")] | Annotated[ReadyModel, Tag("mapping")], Discriminator(_text_or_mapping)
]


def _mapping_or_list(value: object) -> str:
    return "list" if isinstance(value, list) else "mapping"


OnErrorEntry = Annotated[
    Annotated[OnErrorModel, Tag("mapping")] | Annotated[list[OnErrorModel], Tag("list")],
    Discriminator(_mapping_or_list),
]


def rules_of(entry: OnErrorModel | list[OnErrorModel]) -> list[OnErrorModel]:
    """`on_error` may be one rule or a list."""
    return entry if isinstance(entry, list) else [entry]


class AgentSettings(Model):
    """Every key of an agent; `defaults` takes the same."""

    agent: Annotated[str, AfterValidator(_target)] | None = Field(
        None, description="module:Class of a BaseAgent, importable from project_root."
    )
    script_path: str | None = Field(
        None,
        description="A Python file, or file.py:Class, relative to project_root; without a BaseAgent: an ordinary program.",
    )
    command: list[EnvText] | None = Field(
        None, min_length=1, description="Any other program with its arguments; no shell reads it."
    )
    machine: Name | None = Field(None, description="Where it runs; may be left out when there is one machine.")
    class_: Name | None = Field(
        None,
        alias="class",
        description="Decides its ports' range; default: the group's class, else the group's name if a range has it, else standard.",
    )
    port: Port | None = Field(
        None, description="Service port; left out: the lowest free one of the class's range, kept from start to start."
    )
    health_check_port: Port | None = Field(
        None, description="Port of /live, /ready, /health, /metrics; left out: likewise."
    )
    dependencies: list[DependencyEntry] = Field(
        default_factory=list,
        description="What has to be there before it starts: names, or {name, required, condition}.",
    )
    required: bool = Field(True, description="The fleet is not up until it is ready; false: its failure only degrades.")
    enabled: bool = Field(True, description="false: never started.")
    kind: Literal["service", "task"] = Field("service", description="task: exit code 0 completes it.")
    replicas: int = Field(1, ge=1, le=1000, description="Slot 0 takes `port`, the others the next free ones.")
    sockets: Literal["adopt", "self"] | None = Field(
        None,
        description="Who binds its ports: the node, which hands them down (default for agents), or the program itself.",
    )
    ready: ReadyEntry | None = Field(
        None,
        description="How it shows that it is ready: notify (default for agents), or one probe; programs: tcp on `port`.",
    )
    env: dict[str, EnvText] = Field(default_factory=dict, description="Environment variables, as text.")
    pass_env: list[str] = Field(
        default_factory=list, description="Names of variables passed on from the node's environment."
    )
    secrets: dict[str, SecretModel] = Field(
        default_factory=dict, description="`self.secrets[NAME]`; only references stand here."
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Checked by the agent's own Config model before anything starts."
    )
    user: Annotated[str, AfterValidator(_user)] | None = Field(
        None, description="`name` or `name:group` of the machine, for nodes that are root; default: the node's own."
    )
    resource_memory: Size | None = Field(
        None, ge=1, description="Memory for what `self.resources` loads, together; default: no limit."
    )
    resources: ResourcesModel = Field(default_factory=lambda: ResourcesModel(), description="Limits, needs, CPUs.")
    start: StartModel = Field(default_factory=lambda: StartModel(), description="How long a start may take.")
    restart: RestartModel = Field(
        default_factory=lambda: RestartModel(), description="When and how often it is started again."
    )
    health_check: HealthCheckModel = Field(
        default_factory=lambda: HealthCheckModel(), description="How often its checks run."
    )
    watchdog: Duration = Field(
        30.0,
        description="A request loop that is stuck for this long gets its stacks logged and is restarted; 0: never.",
    )
    trace: TraceModel = Field(default_factory=lambda: TraceModel(), description="Which of its calls are traced.")
    roll: Literal["overlap", "handover"] | None = Field(
        None,
        description="How a restart replaces it: beside it until the new one is ready, or after it, imported and waiting; default: what its class says, else overlap.",  # noqa: E501
    )
    shutdown: ShutdownModel = Field(default_factory=lambda: ShutdownModel(), description="How it is stopped.")
    state: StateModel = Field(
        default_factory=lambda: StateModel(), description="Where what it remembers is kept, and how often."
    )
    hibernate: HibernateModel = Field(default_factory=lambda: HibernateModel(), description="When it sleeps.")
    serve: ServeModel = Field(
        default_factory=lambda: ServeModel(),
        description="What it lets in: limits, queues, kept answers; and of its methods.",
    )
    calls: CallsModel = Field(
        default_factory=lambda: CallsModel(),
        description="How it calls others: retries, breakers, balancing; and some of them.",
    )
    on_error: OnErrorEntry = Field(
        default_factory=list,
        description="What is done about its errors: one rule, or a list; [] for none of the defaults'.",
    )


def _without_methods(value: AgentSettings) -> AgentSettings:
    if value.serve.methods:
        raise refuse("`serve.methods` below the agents that have these methods", "move it there")
    return value


class FileModel(Model):
    """A fleet: its machines, its agents, and how they are run."""

    version: Literal[1] = Field(description="Version of this format.")
    cluster: Name = Field(description="Names the run directory; `--cluster` overrides it.")
    project_root: str = Field(".", description="First on sys.path for agents' modules; relative to this file.")
    include: list[str] = Field(
        default_factory=list,
        description="Files merged into this one, in order; the same key in two of them is an error.",
    )
    registry: Literal["mesh", "consul"] = Field(
        "mesh", description="Where agents are looked up: the nodes themselves, or Consul."
    )
    consul: ConsulModel | None = Field(None, description="How Consul is reached, with `registry: consul`.")
    security: Literal["none"] | KeysModel | None = Field(
        None,
        union_mode="left_to_right",
        description="Needed as soon as anything binds beyond loopback: {keys: FOLDER}, or `none` written out.",
    )
    port_ranges: dict[Name, Annotated[Any, AfterValidator(port_range), WithJsonSchema({"type": "string"})]] = Field(
        DEFAULT_PORT_RANGES, validate_default=True, description="Class -> range such as 10100-10199."
    )
    forbidden_ports: list[Port] = Field(
        list(DEFAULT_FORBIDDEN_PORTS), description="Ports that only class `gateway` may use."
    )
    machines: dict[Name, MachineModel] = Field(
        default_factory=lambda: {"local": MachineModel()},
        description="Name -> address; left out: one, `local`, which is this one.",
    )
    pools: dict[Name, PoolModel] = Field(
        default_factory=dict, description="Class -> memory and CPUs of its agents, on each machine."
    )
    memory_budget: Size | None = Field(
        None,
        gt=0,
        description="When the agents of a machine have more memory together, idle ones are sent to sleep; left out: as much as they like.",
    )
    mesh: MeshModel = Field(default_factory=lambda: MeshModel(), description="How long nodes wait for each other.")
    rollout: RolloutModel = Field(
        default_factory=lambda: RolloutModel(), description="How `agentkit apply` replaces agents that change."
    )
    preload: list[str] = Field(
        default_factory=list, description="Modules imported once by every zygote, so that agents start with them."
    )
    phases: list[list[Name]] = Field(
        default_factory=list,
        description="Groups in the order in which they come up; each is ready before the next starts.",
    )
    restart_strategies: dict[Name, Literal["one", "rest-for-one", "all"]] = Field(
        default_factory=dict,
        description="Group -> who is restarted with one of it that failed: one (nobody else), rest-for-one (those of the group that"
        " depend on it) or all (of the group).",
    )
    external: dict[Name, ExternalModel] = Field(
        default_factory=dict, description="Things that agents depend on but that are not started here."
    )
    defaults: Annotated[AgentSettings, AfterValidator(_without_methods)] = Field(
        default_factory=lambda: AgentSettings(), description="Keys of all agents that they do not have themselves."
    )
    agent_groups: dict[Name, dict[str, AgentSettings | Name]] = Field(
        description="Group -> agent name -> its keys. `class: NAME` inside a group is the class of its agents."
    )
