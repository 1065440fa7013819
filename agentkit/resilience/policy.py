"""What may be set about an agent's calls: those that it makes, and those that it serves. The defaults need no thought.

A policy knows which of its values were said and which are defaults, so that several can be laid over each other: the class's
and the fleet file's (docs/calls.md, "What goes before what")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

from agentkit.errors import ConfigError

#: Who of several instances gets a call; what each means stands in directory/balance.py.
Balance = Literal["two_choices", "least_in_flight", "round_robin", "hash"]
BALANCES: Final = ("two_choices", "least_in_flight", "round_robin", "hash")

#: `control` is for agentkit's own methods: they wait for nobody.
Priority = Literal["normal", "high", "control"]
#: What may be said of others.
PRIORITIES: Final = ("normal", "high")


class Policy:
    """Base of all: frozen values; ConfigError names the one that is wrong.

    Not pydantic's: building its validators took 9 ms of every process that makes calls."""

    _said: frozenset[str]

    def __new__(cls, **said: Any) -> Self:
        policy = super().__new__(cls)
        object.__setattr__(policy, "_said", frozenset(said))  # before a dataclass's __init__ fills in its defaults
        return policy

    def over(self, weaker: Self) -> Self:
        """What `weaker` says, but where this one says something itself."""
        return type(self)(**{**weaker.said(), **self.said()}) if self._said else weaker

    def said(self) -> dict[str, Any]:
        """What is set here, defaults that were written out included."""
        return {name: getattr(self, name) for name in sorted(self._said)}


@dataclass(frozen=True, kw_only=True)
class CallPolicy(Policy):
    """How an agent calls others: `call_policy` of its class for all of them, `call_policies["Name"]` or
    `call_policies["Name.method"]` for some; `calls:` of the fleet file. What one call says itself (`attempts=`, `balance=`) goes
    before all. Breaker and retry budget are those of a peer, not of one of its methods."""

    timeout_s: float | None = None  #: None: what the method says that is called, else 5 s
    attempts: int = 3  #: tries of one call, the first included; 1: never again
    retry_wait_s: float = 1.0  #: before the second try, when it has to go to the same instance
    retry_factor: float = 2.0  #: the wait grows so from try to try
    retry_jitter: float = 0.2  #: each wait is up to so much of itself shorter or longer
    retry_budget: float = 0.1  #: retries per call of one peer, over time: the most that retries add to its load
    retry_reserve: int = 10  #: retries that may be made at once before the budget counts
    breaker_failures: int = 5  #: failures in a row that open the breaker of an instance; 0: never
    breaker_rest_s: float = 30.0  #: how long it stays open before one call may probe
    balance: Balance = "two_choices"
    key: str = ""  #: the argument whose value chooses the instance (`hash`); "": what the method says that is called

    def __post_init__(self) -> None:
        _at_least(self, 1, "attempts", "retry_factor")
        _at_least(self, 0, "retry_wait_s", "retry_jitter", "retry_budget", "retry_reserve")
        _at_least(self, 0, "breaker_failures", "breaker_rest_s")
        if self.timeout_s is not None:
            _at_least(self, 0.001, "timeout_s")
        if self.retry_jitter > 1:
            raise ConfigError(at="CallPolicy(retry_jitter=)", got=self.retry_jitter, want="0 to 1")
        checked_balance(self.balance, at="CallPolicy(balance=)")


@dataclass(frozen=True, kw_only=True)
class ServePolicy(Policy):
    """What an agent lets in: `serve_policy` of its class, `serve:` of the fleet file. What is said of a method goes before it."""

    running: int = 64  #: async handlers that run at once
    threads: int = 8  #: plain `def` handlers that run at once: each has a thread
    queue: int = 1024  #: requests that may wait for a turn, at each limit
    queue_wait_s: float = 0.05  #: how long; or as long as the handler itself takes, should that be longer
    idempotency_window_s: float = 300.0  #: how long an answer is kept for whoever repeats its key
    idempotency_entries: int = 10_000
    idempotency_bytes: int = 16 * 1024 * 1024
    cache_entries: int = 1_000  #: of each method with `cache=`
    cache_bytes: int = 16 * 1024 * 1024  #: of each method with `cache=`

    def __post_init__(self) -> None:
        _at_least(self, 1, "running", "threads")
        _at_least(self, 0, "queue", "queue_wait_s", "idempotency_window_s", "idempotency_entries")
        _at_least(self, 0, "idempotency_bytes", "cache_entries", "cache_bytes")


class FilePolicy(NamedTuple):
    """All that the fleet file says of one agent."""

    serve: ServePolicy
    methods: Mapping[str, Mapping[str, Any]]  #: that it serves: options of agent.decorators.Rpc
    calls: CallPolicy
    to: Mapping[str, CallPolicy]  #: "Name" or "Name.method" that it calls

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """A field of a pydantic model takes it as it is: a schema of all that it holds would cost each process 5 ms."""
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)

    @classmethod
    def read(cls, table: Mapping[str, Any], *, at: str = "policy") -> FilePolicy:
        """From plain data: a map of each. ConfigError, naming `at`, for what is none."""
        if not table:
            return NOTHING_SAID  # most agents: ten functions less at each start
        try:
            return cls(
                serve=ServePolicy(**table.get("serve", {})),
                methods={name: dict(said) for name, said in table.get("methods", {}).items()},
                calls=CallPolicy(**table.get("calls", {})),
                to={name: CallPolicy(**said) for name, said in table.get("to", {}).items()},
            )
        except (TypeError, ValueError, AttributeError) as exc:
            if isinstance(exc, ConfigError):
                raise
            want = "an object with `serve`, `methods`, `calls` and `to`, objects all"
            raise ConfigError(at=at, got=dict(table), want=want, fix=str(exc)) from exc


class CallPolicies:
    """Which policy a call has, from what an agent's class and the fleet file say: what is said of a method goes before what is
    said of a peer, that before what is said of all; and each time the file before the class."""

    def __init__(
        self,
        own: CallPolicy | None = None,
        named: Mapping[str, CallPolicy] | None = None,
        *,
        file: FilePolicy | None = None,
    ) -> None:
        """`own`, `named`: of the class, for all and for "Name" or "Name.method"."""
        file = file or NOTHING_SAID
        self.usual = file.calls.over(own or USUAL_CALLS)
        self._named = (named or {}, file.to)  # the later goes before

    def of_peer(self, peer: str) -> CallPolicy:
        """For calls to the agent that `peer` names, with machine and slot or without."""
        return self._over(self.usual, *_names(peer))

    def of_method(self, peer: str, method: str) -> CallPolicy | None:
        """What is said of this one method, and nothing else; None: nothing is."""
        said = self._over(USUAL_CALLS, *(f"{name}.{method}" for name in _names(peer)))
        return None if said is USUAL_CALLS else said

    def names(self) -> list[str]:
        """Of what something is said: "Name" and "Name.method"."""
        return sorted({name for named in self._named for name in named})

    def said_of(self, name: str) -> dict[str, Any]:
        """What is said of a "Name" or "Name.method"."""
        return self._over(USUAL_CALLS, name).said()

    def _over(self, weaker: CallPolicy, *names: str) -> CallPolicy:
        for named in self._named:
            for name in names:
                if name in named:
                    weaker = named[name].over(weaker)
        return weaker


def _names(peer: str) -> tuple[str, ...]:
    """What a peer may be called in a policy, the less exact first: `Name`, `machine/Name`, `machine/Name#slot`."""
    without_slot = peer.partition("#")[0]
    return tuple(dict.fromkeys((without_slot.rpartition("/")[2], without_slot, peer)))


def checked_balance(balance: str, *, at: str) -> None:
    """ConfigError, naming `at`, for a word that is no way to balance."""
    if balance not in BALANCES:
        raise ConfigError(at=at, got=balance, want=f"one of {', '.join(BALANCES)}")


def _at_least(policy: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(policy, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
            at = f"{type(policy).__name__}({name}=)"
            raise ConfigError(at=at, got=value, want=f"a number, {least:g} or more")


#: What an agent has that sets nothing.
USUAL_CALLS: Final = CallPolicy()
USUAL_SERVICE: Final = ServePolicy()
NOTHING_SAID: Final = FilePolicy(serve=USUAL_SERVICE, methods={}, calls=USUAL_CALLS, to={})
#: What scripts have: whoever asks by hand, or again and again until somebody is there, wants the truth each time.
SCRIPT_CALLS: Final = CallPolicies(CallPolicy(breaker_failures=0))
