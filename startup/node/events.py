"""The events of one machine: its relay, which runs from the first use on, and what its agents tell of theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.errors import BadRequest, CallError
from agentkit.events.delivery import MAX_EVENT_BYTES
from agentkit.events.probing import FAR, PROBE
from agentkit.events.topics import END
from agentkit.names import AgentId, is_loopback
from agentkit.observe.log import get_logger
from agentkit.transport.relay import Relay
from startup.errors import Refused
from startup.node.keys import NodeKeys
from startup.node.mesh.mesh import Mesh
from startup.node.paths import Places
from startup.node.store import Revisions

log = get_logger("node.events")

#: A rate is that between the last two things that an agent told; after so long without one it publishes nothing, in seconds.
STALE_S: Final = 3.0
#: Topics and patterns taken of one agent.
MAX_TOLD: Final = 100

_NONCE: Final = re.compile(rf"{re.escape(PROBE)}[0-9a-f]{{16}}")


@dataclass(slots=True)
class _Told:
    """What one agent has told last, and the time before."""

    at_s: float
    summary: Mapping[str, Any]
    before_s: float | None = None
    before: Mapping[str, int] = field(default_factory=dict)

    def per_second(self, topic: str, count: int, now: float) -> float | None:
        """None: it has told only once."""
        if now - self.at_s > STALE_S:
            return 0.0
        if self.before_s is None or self.at_s <= self.before_s:
            return None
        return max(0, count - self.before.get(topic, 0)) / (self.at_s - self.before_s)


class NodeEvents:
    """A node without events has neither thread nor socket for them."""

    def __init__(self, places: Places, mesh: Mesh, revisions: Revisions, keys: NodeKeys | None = None) -> None:
        self._keys = keys or NodeKeys(places.machine)
        self._revoked = 0  # keys, when the relay's connections were last looked at
        self._places = places
        self._mesh = mesh
        self._revisions = revisions
        self._relay: Relay | None = None
        self._others: dict[str, str] = {}  # machine -> its relay's OUT
        self._told: dict[AgentId, _Told] = {}
        mesh.on_events = self.hear

    # -- the relay

    def ensure(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Operation `events`: the relay runs from now on. With `probe`: it sends that once, for who wants to know that it is heard;
        `everywhere`: also where the other machines' events come from."""
        if self._relay is None:
            self._start()
        assert self._relay is not None
        probe = arguments.get("probe")
        if probe is not None:
            if not isinstance(probe, str) or _NONCE.fullmatch(probe) is None:
                raise BadRequest(f"probe: {probe!r} is not {PROBE} and 16 hexadecimal digits")
            self._relay.probe(probe.encode() + END)
            if arguments.get("everywhere"):
                self._relay.probe_far(probe.encode() + END + FAR)
        return {}

    def hear(self, machine: str, out: str | None) -> None:
        """Another machine's relay is there, is another one, or is gone (None)."""
        if out is None:
            self._others.pop(machine, None)
        else:
            self._others[machine] = out
        self._connect(machine)

    def rekeyed(self) -> None:
        """Keys came or went: other machines are heard under those that they have now, and who has none is not told anything."""
        for machine in tuple(self._others):
            self._connect(machine)
        revoked = len(self._keys.revoked())
        if self._relay is not None and revoked > self._revoked:
            self._relay.cut()
        self._revoked = revoked

    def renew(self) -> None:
        """The relay, if there is one, begins anew: under the key that this node has now."""
        if self._relay is not None:
            self._relay.close()
            self._relay = None
            self._start()

    def _connect(self, machine: str) -> None:
        if self._relay is None:
            return
        out, dial = self._others.get(machine), None
        if out is not None:
            try:
                dial = self._keys.dial(machine, out)
            except CallError as error:
                log.warning("events.not_heard", machine=machine, why=str(error))
                out = None
        self._relay.hear(machine, out, dial)

    def close(self) -> None:
        if self._relay is not None:
            self._relay.close()
            self._relay = None

    def _start(self) -> None:
        assert self._mesh.endpoint is not None
        host = self._mesh.endpoint.removeprefix("tcp://").rpartition(":")[0]
        current = self._revisions.current
        is_encrypted = self._keys.encrypts(host)
        if not is_loopback(host) and not is_encrypted and (current is None or current.fleet.security != "none"):
            raise Refused(
                "security",
                f"the event relay would listen on {host} without encryption, which needs CURVE keys; "
                "give a loopback address, or write `security: none` if everybody there may connect",
            )
        try:
            keys = self._keys.ring if is_encrypted else None
            self._relay = Relay(self._places.run, host, max_frame_bytes=MAX_EVENT_BYTES, keys=keys)
        except OSError as exc:
            raise Refused("events", str(exc)) from exc
        log.info("events.relay", out=self._relay.out, others=len(self._others))
        self._revoked = len(self._keys.revoked())
        for machine in self._others:
            self._connect(machine)
        self._mesh.tell_events(self._relay.out)

    # -- what is seen of them

    def told(self, id: AgentId, text: str) -> None:
        """What an agent of this machine has published and received so far (agent.events.summary)."""
        try:
            summary = _checked(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            log.warning("events.bad_summary", agent=str(id))
            return
        last = self._told.get(id)
        told = self._told[id] = _Told(now_s(), summary)
        if last is not None:
            told.before_s, told.before = last.at_s, last.summary["published"]

    def seen(self, known: Callable[[AgentId], bool]) -> dict[str, Any]:
        """Operation `events_seen`: for every agent of this machine that is `known`, topics with counts and rates."""
        now = now_s()
        self._told = {id: told for id, told in self._told.items() if known(id)}
        return {
            "relay": None if self._relay is None else self._relay.out,
            "agents": [
                {
                    "id": str(id),
                    "age_s": round(now - told.at_s, 1),
                    **told.summary,
                    "published": {
                        topic: {"count": count, "per_s": told.per_second(topic, count, now)}
                        for topic, count in told.summary["published"].items()
                    },
                }
                for id, told in sorted(self._told.items())
            ],
        }


def _checked(summary: Any) -> dict[str, Any]:
    published = {str(topic)[:200]: int(count) for topic, count in list(summary["published"].items())[:MAX_TOLD]}
    numbers = {name: int(summary[name]) for name in ("dropped", "received", "lost", "failed")}
    return {"published": published, "patterns": [str(p)[:200] for p in summary["patterns"][:MAX_TOLD]], **numbers}
