"""What Prometheus is told about the calls that an agent makes: retries, moves, breakers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from agentkit.agent.blocking import BlockingCaller
from agentkit.agent.caller import Caller
from agentkit.observe.metrics import AgentMetrics

#: Metric -> (the Board's counter, its label, help)
_COUNTERS: Final = {
    "agent_call_retries_total": ("retries", "peer", "Calls made again after they had failed"),
    "agent_call_retries_refused_total": ("refused_retries", "peer", "Retries that the budget did not allow"),
    "agent_call_moves_total": ("moves", "peer", "Calls that a draining peer sent elsewhere"),
    "agent_calls_failed_total": (
        "failures",
        "code",
        "Calls to others that ended by an error, fallbacks' answers included",
    ),
    "agent_breaker_openings_total": ("openings", "instance", "Breakers that opened"),
}


def observe_calls(book: AgentMetrics, *callers: Caller | BlockingCaller) -> None:
    """Show the sums of `callers` (the loop's, and the threads') at each scrape."""
    boards = [caller.board for caller in callers]

    def fallbacks() -> Mapping[str, float]:
        return {name: float(n) for name, n in sum((caller.fallbacks.used for caller in callers), Counter()).items()}

    def total(counter: str) -> Mapping[str, float]:
        summed: Counter[str] = Counter()
        for board in boards:
            summed.update(getattr(board, counter).copy())
        return {peer: float(count) for peer, count in summed.items()}

    def breakers() -> Mapping[str, float]:
        found: dict[str, float] = {}
        for board in boards:
            for instance, state in board.open_breakers().items():
                found[instance] = max(state, found.get(instance, 0.0))
        return found

    def budgets() -> Mapping[str, float]:
        left: dict[str, float] = {}
        for board in boards:
            for peer, tokens in board.budgets().items():
                left[peer] = min(tokens, left.get(peer, tokens))
        return left

    for name, (counter, label, help_) in _COUNTERS.items():
        book.counters(name, help_, label, lambda counter=counter: total(counter))  # type: ignore[misc]
    book.counters("agent_call_fallbacks_total", "Calls that a fallback answered", "peer", fallbacks)
    book.gauges("agent_call_retry_budget", "Retries that may be made now", "peer", budgets)
    book.gauges(
        "agent_breaker_open", "1: gets no calls now; 0: its last calls failed; absent: all is well", "instance", breakers
    )  # fmt: skip
