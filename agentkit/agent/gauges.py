"""What a running agent tells Prometheus of itself beside its calls: read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agentkit.agent.dispatch import Dispatcher
from agentkit.agent.hibernation.lifecycle import Hibernation
from agentkit.clock import now_s
from agentkit.observe.lag import LoopLag
from agentkit.observe.metrics import AgentMetrics
from agentkit.resilience.admission import Gate
from agentkit.transport.inbox import Inbox

if TYPE_CHECKING:
    from agentkit.resources.pool import ResourcePool


def show(
    book: AgentMetrics,
    dispatcher: Dispatcher,
    lag: LoopLag,
    inbox: Callable[[], Inbox | None],
    safety_hits: Callable[[], int],
) -> None:
    """`inbox`: None before it is open."""
    book.gauge("agent_requests_in_flight", "Requests running or waiting", lambda: dispatcher.in_flight)
    book.gauge("agent_requests_waiting", "Requests waiting for their turn", lambda: dispatcher.waiting)
    book.gauge("agent_threads_stuck", "Threads whose call's deadline has passed", lambda: dispatcher.threads_stuck)
    book.gauge("agent_loop_lag_seconds", "How late the event loop was, at worst, lately", lambda: lag.worst_s(now_s()))
    book.counter(
        "agent_bad_frames_total",
        "Frames on the inbox that were no AK1",
        lambda: found.bad_frames if (found := inbox()) else 0,
    )
    book.counter(
        "agent_connections_cut_total",
        "Connections ended because garbage came over them",
        lambda: found.connections_cut if (found := inbox()) else 0,
    )
    book.counter(
        "agent_unauthenticated_total",
        "Connections turned away: no key, or one that is not known",
        lambda: found.turned_away if (found := inbox()) else 0,
    )
    book.counter(
        "agent_peers_lost_total",
        "Callers that went without BYE",
        lambda: found.lost_peers if (found := inbox()) else 0,
    )
    for name, help_, read in (
        ("agent_admission_limit", "How many may run at once", _limit),
        ("agent_admission_running", "How many run", _running),
        ("agent_admission_room", "How many may wait for a turn", _room),
        ("agent_admission_waiting", "How many wait for a turn", _waiting),
    ):
        book.gauges(name, help_, "gate", partial(_of_gates, dispatcher.gates, read))
    book.counter("agent_reader_safety_hits_total", "Messages found by the safety tick only", safety_hits)
    for name, help_, counts in (
        ("agent_cache_hits_total", "Requests answered by @rpc(cache=) without a run", dispatcher.sharing.hits),
        ("agent_cache_misses_total", "Requests to methods with @rpc(cache=) that ran", dispatcher.sharing.misses),
        ("agent_repeats_total", "Requests whose idempotency key had come before", dispatcher.sharing.repeats),
    ):
        book.counters(name, help_, "method", lambda counts=counts: counts)  # type: ignore[misc]


def show_sleep(book: AgentMetrics, hibernation: Hibernation) -> None:
    """Whether it sleeps, and what waking costs."""
    book.gauge("agent_asleep", "1 while the agent sleeps", lambda: hibernation.asleep is not None)
    book.counter("agent_wakes_total", "Times that it was woken", lambda: hibernation.wakes)
    book.gauge("agent_wake_seconds", "How long waking took the last time", lambda: hibernation.wake_s or 0.0)
    book.gauge(
        "agent_memory_given_back_bytes",
        "Memory that the last sleep gave back",
        lambda: hibernation.given_back_mb * 1024 * 1024,
    )


def show_resources(book: AgentMetrics, pool: ResourcePool) -> None:
    """What `self.resources` holds and does."""
    for name, help_, read in (
        ("agent_resources_bytes", "Memory of loaded resources", lambda: pool.statistics().used_bytes),
        ("agent_resources_limit_bytes", "What they may use together; 0: no limit", lambda: pool.statistics().limit_bytes or 0),
        ("agent_resources_loaded", "Resources that are loaded", lambda: len(pool.statistics().loaded)),
        ("agent_resources_pinned", "Resources in use", lambda: pool.pinned),
    ):  # fmt: skip
        book.gauge(name, help_, read)
    for name, help_, read in (
        ("agent_resource_hits_total", "Uses of resources that were loaded", lambda: pool.statistics().hits_total),
        ("agent_resource_loads_total", "Loads", lambda: pool.statistics().loads_total),
        ("agent_resource_failures_total", "Loads that raised", lambda: pool.statistics().failures_total),
        ("agent_resource_evictions_total", "Unloaded to make room", lambda: pool.statistics().evictions_total),
        ("agent_resource_releases_total", "Unloaded for sleep", lambda: pool.statistics().releases_total),
    ):
        book.counter(name, help_, read)


def _of_gates(gates: Mapping[str, Gate[Any]], read: Callable[[Gate[Any]], int]) -> Mapping[str, float]:
    return {name: float(read(gate)) for name, gate in gates.items()}


def _limit(gate: Gate[Any]) -> int:
    return gate.limit


def _running(gate: Gate[Any]) -> int:
    return gate.inside


def _room(gate: Gate[Any]) -> int:
    return gate.room


def _waiting(gate: Gate[Any]) -> int:
    return len(gate.line) + len(gate.urgent)
