"""The course of one call: which instance is tried next, after how long, or that this was the end. No I/O, no clock.

Both callers, on the loop (caller.py) and in threads (blocking.py), ask the same: `choose` an instance, try it, then say what came
of it: `answered`, `failed` (which says how to go on), or `dropped`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentkit.agent.routes import Board, Route, Terms
from agentkit.directory.balance import TAKES_CALLS, candidates, choose
from agentkit.directory.base import AgentRecord
from agentkit.errors import CallError, DeadlineExceeded, PeerLost, Unreachable
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.breaker import is_failure
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S, usable_seconds
from agentkit.resilience.policy import Balance, checked_balance
from agentkit.resilience.retry import may_retry, wait_s

#: Pause before a call is moved to the same instance again, in seconds: first, and at most. Doubled with each move, jittered.
MOVE_PAUSE_S: Final = (0.001, 0.05)
#: A deadline that the peer found passed is its failure only when it is passed here too, up to so many seconds; else it is what
#: became of a call that the handler made.
ROUGHLY_S: Final = 0.05


class Course:
    """One call. Belongs to one task or thread."""

    __slots__ = (
        "_attempts", "_avoided", "_balance", "_board", "_key", "_method", "_outer_at_s", "_pause_s", "_record", "_route",
        "_shunned", "_target", "_terms", "_timeout", "_tried_s", "_tries", "_wanted_s", "_woke",
        "at_s",
    )  # fmt: skip

    def __init__(
        self,
        board: Board,
        target: str,
        method: str,
        now_s: float,
        *,
        timeout: float | None = None,
        outer_at_s: float | None = None,
        attempts: int | None = None,
        balance: Balance | None = None,
        key: object = None,
    ) -> None:
        """`outer_at_s`: the deadline of the handler that calls. The others as in `Caller.call`; ConfigError for a wrong one."""
        self._board, self._target, self._method, self._timeout = board, target, method, timeout
        self._attempts, self._balance, self._key = attempts, balance, key
        self._outer_at_s = outer_at_s
        self._tries = 0
        self._terms: Terms | None = None
        self._record: AgentRecord | None = None
        self._route: Route | None = None
        self._avoided: set[AgentId] | None = None
        self._shunned: Incarnation | None = None
        self._pause_s = MOVE_PAUSE_S[0]
        self._woke = False  # it met a sleeper, which was to be forked for it
        if balance is not None:
            checked_balance(balance, at="balance=")
        self._limit(now_s, DEFAULT_TIMEOUT_S if timeout is None else usable_seconds(timeout))

    def choose(self, route: Route, arguments: Mapping[str, Any], now_s: float) -> AgentRecord:
        """The instance to try next. Unreachable when none can be: all beyond help, or their breakers open."""
        if self._terms is None:
            terms = self._terms = route.terms(self._method)
            route.budget.earn()
            if self._timeout is None and terms.timeout_s is not None:
                self._limit(now_s, terms.timeout_s)  # once: moving must not prolong it
        self._route = route
        self._tried_s = now_s
        self._tries += 1
        if route.only is not None and not self._board.breakers:
            record = route.only
        else:
            try:
                record = self._balanced(route, arguments, now_s)
            except Unreachable as error:
                if not self._woke:
                    raise
                raise self._not_woken(error) from error
            self._woke = self._woke or record.phase == "hibernated"
        self._record = record
        return record

    @property
    def expected(self) -> Incarnation:
        """The life of the chosen instance to ask for. The directory may lag behind a restart: who sent us away is not asked
        for by number again."""
        assert self._record is not None
        incarnation = self._record.incarnation
        # a sleeper has none: whoever is forked for this call is meant
        return Incarnation(0) if incarnation == self._shunned or self._record.phase == "hibernated" else incarnation

    def answered(self) -> None:
        """The instance answered."""
        if self._board.breakers and self._record is not None:
            self._board.breakers.pop(self._record.id, None)

    def lost(self, error: CallError) -> None:
        """That is what the whole call ends with, unless a fallback answers."""
        self._board.failures[error.code] += 1

    def dropped(self) -> None:
        """It ended without a word about the instance: nobody waits for it any more."""
        board = self._board
        if board.breakers and self._record is not None and (breaker := board.breaker(self._record)) is not None:
            breaker.released()

    def failed(self, error: CallError, now_s: float, event: object = None) -> float | None:
        """The try ended by `error`: seconds to wait before the next, or None when `error` is what the call ends with.

        `event`: the connection that it was made over. DeadlineExceeded when the call is on the move and time is up."""
        if self._record is None or self._route is None or self._terms is None:
            return None  # there was nobody to try
        left_s = self.at_s - now_s
        if error.code == "draining" and error.retry_safe:
            self.dropped()
            return self._moved(self._record, self._route, error, left_s, now_s)
        if is_failure(error) and self._is_its_own(error, left_s):
            # a connection that goes takes all its calls along; a deadline is each call's own
            self._board.count_failure(self._record, error, now_s, None if error.code == "deadline_exceeded" else event)
        elif error.from_peer:
            self.answered()
        else:
            self.dropped()
        if self._terms.is_idempotent and error.code in ("peer_lost", "deadline_exceeded"):
            error.retry_safe = True
        pause_s = self._retried(self._record, self._route, self._terms, error, left_s, now_s)
        if pause_s is None and self._woke and error.code == "unreachable":
            raise self._not_woken(error) from error
        return pause_s

    def _not_woken(self, error: CallError) -> PeerLost:
        """What it means that nobody is there: who slept and did not come up was lost with the call, which never began."""
        return PeerLost(f"{self._target} slept, and did not come up: {error.message}", retry_safe=True)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _limit(self, now_s: float, timeout_s: float) -> None:
        outer_at_s = self._outer_at_s
        at_s = now_s + timeout_s
        self._wanted_s = timeout_s
        self.at_s = at_s if outer_at_s is None or at_s < outer_at_s else outer_at_s

    def _balanced(self, route: Route, arguments: Mapping[str, Any], now_s: float) -> AgentRecord:
        board, terms = self._board, self._terms
        assert terms is not None
        ready = candidates(self._target, route.records)
        eligible = board.usable(ready, now_s) if board.breakers else ready
        if not eligible:
            raise self._all_open(ready, now_s)
        if self._avoided:
            eligible = [record for record in eligible if record.id not in self._avoided] or eligible
        key = self._key
        if key is None and terms.key:
            key = arguments.get(terms.key)
        balance = self._balance or ("hash" if key is not None else terms.balance)
        if balance == "hash" and key is None:
            balance = "two_choices"  # nothing to go by
        board.turn += 1
        record = choose(
            eligible,
            balance,
            in_flight=board.in_flight,
            turn=board.turn,
            draw=board.draw,
            key="" if key is None else str(key),
        )
        if board.breakers and (breaker := board.breaker(record)) is not None:
            breaker.begins(now_s)
        return record

    def _all_open(self, shut: Sequence[AgentRecord], now_s: float) -> Unreachable:
        left_s = min(breaker.left_s(now_s) for record in shut if (breaker := self._board.breaker(record)) is not None)
        return Unreachable(
            f"{self._target}: not called, its last calls failed; tried again in {max(left_s, 0.0):.1f} s",
            details={"breaker": "open", "retry_after_ms": int(left_s * 1000)},
        )

    # -- after a try --------------------------------------------------------------------------------------------------

    def _is_its_own(self, error: CallError, left_s: float) -> bool:
        """Whether a deadline that passed speaks against the instance: it does not when the try had only a rest of the time that
        the call is worth, nor when the handler told of a deadline of its own."""
        if error.code != "deadline_exceeded":
            return True
        return self.at_s - self._tried_s >= self._wanted_s / 2 and (not error.from_peer or left_s <= ROUGHLY_S)

    def _moved(self, record: AgentRecord, route: Route, error: CallError, left_s: float, now_s: float) -> float:
        """Sent away, certainly unrun: at once to another, else to the same name after a moment. No retry, and not paid for."""
        self._tries -= 1
        self._shunned = record.incarnation
        self._board.moves[self._target] += 1
        self._avoid(record)
        if left_s > 0 and self._has_other(route, now_s):
            return 0.0
        pause_s = self._pause_s
        if left_s <= pause_s:
            raise DeadlineExceeded(
                f"{self._target}.{self._method}: {error.message}, and time is up", retry_safe=True
            ) from error
        self._pause_s = min(pause_s * 2, MOVE_PAUSE_S[1])
        return pause_s * (0.5 + self._board.draw() / 2)

    def _retried(
        self, record: AgentRecord, route: Route, terms: Terms, error: CallError, left_s: float, now_s: float
    ) -> float | None:
        attempts = terms.policy.attempts if self._attempts is None else self._attempts
        if self._tries >= attempts or not may_retry(error, idempotent=terms.is_idempotent):
            return None
        self._avoid(record)
        board = self._board
        has_other = self._has_other(route, now_s)
        breaker = board.breaker(record)
        if not has_other and breaker is not None and not breaker.allows(now_s):
            return None  # it would only be told so
        # whoever is gone is not waited for when somebody else is there; whoever is overloaded is: so may the others be
        at_once = has_other and error.code in ("unreachable", "peer_lost")
        pause_s = 0.0 if at_once else wait_s(terms.policy, self._tries, error, board.draw())
        if pause_s >= left_s:
            return None
        if not route.budget.spend():
            board.refused_retries[self._target] += 1
            return None
        board.retries[self._target] += 1
        return pause_s

    def _avoid(self, record: AgentRecord) -> None:
        if self._avoided is None:
            self._avoided = set()
        self._avoided.add(record.id)

    def _has_other(self, route: Route, now_s: float) -> bool:
        """Whether there is an instance that was not tried yet and is ready."""
        others = [r for r in route.records if r.phase in TAKES_CALLS and r.id not in (self._avoided or ())]
        return bool(self._board.usable(others, now_s))
