"""What a caller knows of those it calls: instances and terms of each name (`Route`), breakers, budgets and counts (`Board`). No I/O."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agentkit.directory.base import AgentRecord
from agentkit.errors import CallError
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.breaker import Breaker
from agentkit.resilience.policy import BALANCES, Balance, CallPolicies, CallPolicy
from agentkit.resilience.retry import RetryBudget


class Terms(NamedTuple):
    """How one method of one name is called: what its instances tell of it, and what the caller's policies say."""

    timeout_s: float | None
    is_idempotent: bool
    balance: Balance
    key: str  #: the argument whose value chooses the instance; "": none
    policy: CallPolicy


#: Methods of one name whose terms are kept; looking for them anew took 2 us of a call.
MAX_TERMS: Final = 1_000


class Route:
    """The instances of one name as the directory tells them now."""

    __slots__ = ("_plain", "_policies", "_terms", "budget", "name", "only", "records")

    def __init__(
        self, name: str, records: tuple[AgentRecord, ...], budget: RetryBudget, policies: CallPolicies
    ) -> None:
        self.name = name
        self.records = records
        self.budget = budget
        #: where there is nothing to choose: the one instance, ready
        self.only = records[0] if len(records) == 1 and records[0].phase == "ready" else None
        self._policies = policies
        policy = policies.of_peer(name)
        self._plain = Terms(policy.timeout_s, False, "hash" if policy.key else policy.balance, policy.key, policy)
        self._terms: dict[str, Terms] = {}

    def terms(self, method: str) -> Terms:
        """Those of `method`. Replicas of two versions may tell different ones while a roll goes on: the first one's count."""
        found = self._terms.get(method)
        if found is not None:
            return found
        timeout_s = next((r.timeouts_s[method] for r in self.records if method in r.timeouts_s), None)
        traits = next((r.traits[method] for r in self.records if method in r.traits), None)
        said = self._policies.of_method(self.name, method)
        if timeout_s is None and traits is None and said is None:
            if len(self._terms) < MAX_TERMS:  # callers may make names up
                self._terms[method] = self._plain
            return self._plain
        traits, usual = traits or {}, self._plain.policy
        # what is said here of this method, else what the method says of itself, else what is said here of its agent
        told = {"balance": traits.get("balance"), "key": str(traits.get("key") or ""), "timeout_s": timeout_s}
        known = {name: value for name, value in told.items() if value and (name != "balance" or value in BALANCES)}
        own = said.said() if said is not None else {}
        policy = CallPolicy(**{**usual.said(), **known, **own})
        has_way = "balance" in known or "balance" in own
        balance: Balance = "hash" if policy.key and not has_way else policy.balance
        key = policy.key if balance == "hash" else ""
        terms = Terms(policy.timeout_s, bool(traits.get("idempotent")), balance, key, policy)
        self._terms[method] = terms
        return terms


class Board:
    """What a caller knows of those it calls: who fails, how much may be retried; and its counts. Not thread-safe."""

    def __init__(
        self,
        in_flight: Callable[[AgentId], int],
        policies: CallPolicies | None = None,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`in_flight`: calls under way to an instance."""
        self.in_flight = in_flight
        self.draw = draw
        self.turn = 0
        self.breakers: dict[AgentId, tuple[Incarnation, Breaker]] = {}  #: of those whose last call failed
        self.retries: Counter[str] = Counter()  #: by the name that was called
        self.moves: Counter[str] = Counter()
        self.refused_retries: Counter[str] = Counter()  #: the budget was spent
        self.openings: Counter[str] = Counter()  #: of breakers, by instance
        self.failures: Counter[str] = Counter()  #: calls that ended by an error, by its code
        #: a breaker opened: of which instance, the last failure, how many there were in a row
        self.on_open: Callable[[str, str, int], None] = lambda *_: None
        self._policies = policies or CallPolicies()
        self._budgets: dict[str, RetryBudget] = {}

    def route(self, name: str, records: tuple[AgentRecord, ...]) -> Route:
        """What is known of `name`, whose instances are `records`. Retries that were earned outlive changes of the directory."""
        budget = self._budgets.get(name)
        if budget is None:
            policy = self._policies.of_peer(name)
            budget = self._budgets[name] = RetryBudget(policy.retry_budget, policy.retry_reserve)
        return Route(name, records, budget, self._policies)

    def breaker(self, record: AgentRecord) -> Breaker | None:
        """That of an instance whose last call failed; the next life of an instance begins anew."""
        found = self.breakers.get(record.id)
        if found is None:
            return None
        if found[0] != record.incarnation:
            del self.breakers[record.id]
            return None
        return found[1]

    def usable(self, records: Sequence[AgentRecord], now_s: float) -> list[AgentRecord]:
        """Those whose breaker lets a call through."""
        return [r for r in records if (breaker := self.breaker(r)) is None or breaker.allows(now_s)]

    def count_failure(self, record: AgentRecord, error: CallError, now_s: float, event: object) -> None:
        """A call to this instance failed, by its own fault."""
        breaker = self.breaker(record)
        if breaker is None:
            policy = self._policies.of_peer(str(record.id))
            if not policy.breaker_failures:
                return
            breaker = Breaker(policy.breaker_failures, policy.breaker_rest_s)
            self.breakers[record.id] = (record.incarnation, breaker)
        if breaker.failed(now_s, event):
            self.openings[str(record.id)] += 1
            self.on_open(str(record.id), f"{error.code}: {error.message}", breaker.failures)

    def budgets(self) -> dict[str, float]:
        """For metrics: retries that each peer may be burdened with now."""
        return {name: budget.tokens for name, budget in tuple(self._budgets.items())}

    def open_breakers(self) -> dict[str, float]:
        """For metrics: 1 for each instance that gets no calls now; 0 for one whose last calls failed."""
        return {str(id): float(breaker.is_open) for id, (_, breaker) in tuple(self.breakers.items())}
