"""Watching Consul for agents of other machines: one blocking query for the whole node, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final, NamedTuple

from agentkit.clock import now_s
from agentkit.directory.entries import Entry, entries_of, service_name
from agentkit.directory.pacing import QUERY_GAP_S, Backoff, next_index
from agentkit.names import AgentId
from agentkit.observe.log import get_logger

log = get_logger("node.lookout")

#: How long one query waits for a change, in seconds; and while what it said is in doubt.
WAIT_S: Final = 60.0
WAIT_IN_DOUBT_S: Final = 5.0
#: An answer that was not waited for and took longer than this is trouble, in seconds.
SLOW_S: Final = 2.0


class Seen(NamedTuple):
    """One answer."""

    passing: Mapping[AgentId, Entry]
    strangers: int  #: entries under our name that somebody else registered
    is_troubled: bool  #: Consul was away, slow or reset just before


class Lookout:
    """`on_seen` is called on the thread for every answer that may be news; `on_trouble` when there is none, or a late one."""

    def __init__(
        self,
        client: Any,  # agentkit.directory.consul.ConsulClient
        cluster: str,
        *,
        on_seen: Callable[[Seen], None],
        on_trouble: Callable[[], None] = lambda: None,
        random: Random | None = None,
    ) -> None:
        self.is_in_doubt = False  #: set by who judges the answers: then it is asked more often
        self.known: frozenset[AgentId] = frozenset()  #: set by the same: who would be missed
        self.problem = ""
        self._client = client
        self._cluster = cluster
        self._on_seen = on_seen
        self._on_trouble = on_trouble
        self._random = random or Random()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._live, name="consul:lookout", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """From any thread; the query that waits is cut off."""
        self._closing.set()
        self._client.abort()

    def join(self, limit_s: float) -> None:
        self._thread.join(limit_s)

    def _live(self) -> None:
        from agentkit.directory.consul_http import RegistryError

        backoff = Backoff(self._random.random)
        index, is_troubled = 0, False
        while not self._closing.is_set():
            began_s = now_s()
            try:
                index = self._look(index, is_troubled)
            except RegistryError as exc:
                self._note(str(exc))
            except Exception as exc:
                log.exception("consul.failed")
                self._note(repr(exc))
            else:
                self._note("")
                is_troubled = False
                backoff.succeeded()
                gap_s = QUERY_GAP_S * (1.0 + 0.1 * self._random.random())
                self._closing.wait(max(0.0, began_s + gap_s - now_s()))
                continue
            index, is_troubled = 0, True
            self._on_trouble()
            self._closing.wait(backoff.failed())
        self._client.close()

    def _look(self, index: int, is_troubled: bool) -> int:
        """One query, told if it may be news; the index for the next one."""
        service = service_name(self._cluster)
        began_s = now_s()
        found = self._client.passing(service, index, self._wait_s())
        told = next_index(index, found.index)
        is_troubled |= told.was_reset or (index == 0 and now_s() - began_s > SLOW_S)
        if told.index == index != 0 and not self.is_in_doubt:
            return index
        passing, strangers = entries_of(found.services, self._cluster)
        if self.known - passing.keys():
            # Nobody is taken for gone on a stale read's word, nor on that of a Consul too slow to be fed in time
            began_s = now_s()
            passing, strangers = entries_of(self._client.passing(service, stale=False).services, self._cluster)
            is_troubled |= now_s() - began_s > SLOW_S
        if is_troubled:
            self._on_trouble()
        self._on_seen(Seen(passing, strangers, is_troubled))
        return told.index

    def _wait_s(self) -> float:
        return WAIT_IN_DOUBT_S if self.is_in_doubt else WAIT_S

    def _note(self, problem: str) -> None:
        if problem != self.problem and not self._closing.is_set():
            if problem:
                log.warning("consul.not_watched", error=problem)
            else:
                log.info("consul.watched")
        self.problem = problem
