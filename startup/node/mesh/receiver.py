"""What is said to this node: the inbox where other nodes and operators ask, and what each word of a node changes (mesh.py lists them)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.errors import BadRequest, CallError, InternalError, UnknownMethod, Unreachable
from agentkit.observe.log import get_logger
from agentkit.transport.inbox import Inbox
from agentkit.transport.peer import Identity, Inbound
from agentkit.wire import values
from startup.node.keys import NodeKeys
from startup.node.mesh import words
from startup.node.mesh.callbacks import MeshCallbacks
from startup.node.mesh.circle import Circle
from startup.node.mesh.faults import MeshFaults
from startup.node.mesh.links import Links
from startup.node.mesh.peer import Peer
from startup.node.remote_control import CONTROL, RemoteControl
from startup.plan.row import AgentRow

log = get_logger("node.mesh")

#: An address that was let go of can be listened on again within this, in seconds.
REBIND_WITHIN_S: Final = 3.0


class MeshReceiver:
    """One for a mesh. Implements transport.inbox.Receiver."""

    def __init__(
        self,
        me: Identity,
        circle: Circle,
        links: Links,
        callbacks: MeshCallbacks,
        faults: MeshFaults,
        *,
        keys: Callable[[], NodeKeys],
        on_events: Callable[[str, str | None], None],
        on_heard: Callable[[], None],
        look_soon: Callable[[], None],
    ) -> None:
        """`on_events`: a machine's event relay is there (its endpoint), or gone. `on_heard`: a word may have changed who is alive.
        `look_soon`: it is time to ask the others."""
        self.endpoint: str | None = None  #: where others find this node
        self.control = RemoteControl(_no_handler)  #: operators on other machines; the node puts its own here
        self._me = me
        self._machine = str(me.id.machine)
        self._circle = circle
        self._members = circle.members
        self._links = links
        self._callbacks = callbacks
        self._faults = faults
        self._keys = keys
        self._on_events = on_events
        self._on_heard = on_heard
        self._look_soon = look_soon
        self._loop = asyncio.get_running_loop()
        self._inbox: Inbox | None = None
        self._bound: tuple[str, int | None] | None = None

    # -- where it listens

    def start(self, host: str, port: int | None) -> str:
        """Listen for the others; returns the endpoint. OSError: the port is taken, or the address is not this machine's."""
        self._inbox = Inbox(self._me, self)
        return self.listen(host, port)

    def listen(self, host: str, port: int | None) -> str:
        """Listen there (too): what others are told from now on. Nothing is unbound, which would cut who is connected."""
        assert self._inbox is not None
        if self._bound != (host, port):
            is_encrypted = self._keys().encrypts(host)
            if (ring := self._keys().ring) is not None:
                self._inbox.guard(ring)
            bound = self._inbox.bind(f"tcp://{host}:{port or '*'}", encrypted=is_encrypted)
            self._bound = (host, port)
            # told as asked for: libzmq tells an IPv6 form
            self.endpoint = f"tcp://{host}:{bound.rpartition(':')[2]}"
        assert self.endpoint is not None
        return self.endpoint

    async def listen_anew(self) -> bool:
        """The same address under the key that we have now, where one is used; whether everybody's connection ended. OSError: in vain."""
        if self._inbox is None or self._bound is None or not self._keys().encrypts(self._bound[0]):
            return False
        host, _ = self._bound
        endpoint = f"tcp://{host}:{str(self.endpoint).rpartition(':')[2]}"
        self._inbox.unbind(endpoint)
        async with asyncio.timeout(REBIND_WITHIN_S):
            while True:
                try:
                    self._inbox.bind(endpoint, encrypted=True)
                except OSError:  # libzmq lets go of it in its own time
                    await asyncio.sleep(0.01)
                else:
                    break
        return True

    async def close(self) -> None:
        """Nobody is heard any more."""
        await self.control.close()
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.close()

    # -- Receiver

    def request(self, inbound: Inbound, *, is_late: bool = False) -> None:
        """A word of another node. `is_late`: it was held back, as asked for."""
        assert self._inbox is not None
        if inbound.method == CONTROL:
            self.control.request(self._inbox, inbound)
            return
        try:
            said = values.unpack(inbound.body)
            if error := self._keys().may_speak_for(self._inbox.identity(inbound.peer), str(said["machine"])):
                raise error
            if self._is_held(inbound, str(said["machine"]), is_late=is_late):
                return
            peer = self._word(inbound.method, said)
            if find := self._callbacks.answers().get(inbound.method):
                self._links.spawn(self._answer(inbound, find(said)), inbound.method)
                return
            answer = self._hear(peer, inbound.method, said) if peer is not None else None
        except CallError as error:
            self._inbox.refuse(inbound, error)
        except (KeyError, TypeError, ValueError) as exc:
            log.warning("mesh.bad_word", method=inbound.method, error=str(exc))
            self._inbox.refuse(inbound, BadRequest(f"{inbound.method}: {exc}"))
        else:
            self._inbox.answer(inbound, answer)
        self._on_heard()

    def _is_held(self, inbound: Inbound, machine: str, *, is_late: bool) -> bool:
        """Whether it comes later. CallError: it is not heard at all."""
        if self._faults.is_cut(machine):
            raise Unreachable(f"{self._machine} is cut off from {machine} because an operator wants it")
        delay_s = 0.0 if is_late else self._faults.delay_s(machine)
        if delay_s:
            self._loop.call_later(delay_s, partial(self._late, inbound))
        return delay_s > 0

    def _late(self, inbound: Inbound) -> None:
        if self._inbox is not None:
            self.request(inbound, is_late=True)

    def abandon(self, inbound: Inbound) -> None:
        """Only operators' questions can be given up: what nodes ask is over in an instant."""
        if inbound.method == CONTROL:
            self.control.abandon(inbound)

    async def _answer(self, inbound: Inbound, finding: Awaitable[Any]) -> None:
        assert self._inbox is not None
        try:
            self._inbox.answer(inbound, await finding)
        except CallError as error:
            self._inbox.refuse(inbound, error)
        except Exception as exc:
            log.exception("mesh.answer_failed", method=inbound.method)
            self._inbox.refuse(inbound, InternalError(f"{inbound.method}: {type(exc).__name__}: {exc}"))

    # -- what nodes say

    def _word(self, method: str, said: Mapping[str, Any]) -> Peer | None:
        """Note what every word says of its sender; None when it is of a life that is over, or was its last."""
        machine, at, number, digest = (
            str(said["machine"]),
            words.reading(said["at"]),
            int(said["number"]),
            str(said["digest"]),
        )
        echo = None if said["heard"] is None else words.reading(said["heard"])
        if machine == self._machine:
            log.error("mesh.same_machine", machine=machine, endpoint=said.get("endpoint"))
            raise BadRequest(f"there are two nodes for machine {machine}: {self.endpoint}, and whoever asks")
        self._circle.check_new(machine)
        now = now_s()
        if method == "mesh.hello" and not self._members.greeted(machine, at[0], now):
            return None
        if not self._members.word(machine, at, echo, now):
            return None
        peer = self._circle.peer(machine)
        self.learn_revision(peer, number, digest)
        return peer

    def learn_revision(self, peer: Peer, number: int, digest: str, *, anew: bool = False) -> None:
        """Which revision it acts on. `anew`: told even when it is the same."""
        if anew or (number, digest) != (peer.number, peer.digest):
            peer.number, peer.digest = number, digest[:100]
            self._callbacks.on_revision(peer.machine, number, peer.digest)

    def _hear(self, peer: Peer, method: str, said: Mapping[str, Any]) -> Any:
        machine = peer.machine
        match method:
            case "mesh.hello":
                peer.told = words.endpoint(said["endpoint"])
                if not self._circle.is_sound(peer):
                    peer.pause_s = 0.0
                    self._links.dial(peer)
                self._on_events(machine, words.endpoint(said["events"]))
                self._look_soon()
                number, digest = self._callbacks.own_revision()
                return {"knows": self._copy(machine), "number": number, "digest": digest}
            case "mesh.beat":
                pass
            case "mesh.events":
                self._on_events(machine, words.endpoint(said["endpoint"]))
                return None
            case "mesh.sync" | "mesh.rows":
                self._take(machine, said, is_all=method == "mesh.sync")
            case "mesh.bye":
                self._take(machine, said, is_all=False)
                self._members.left(machine, words.reading(said["at"])[0], now_s())
                self._on_events(machine, None)
                return None
            case _:
                raise UnknownMethod(f"no method {method!r} between nodes")
        return {"knows": self._copy(machine)}

    def _copy(self, machine: str) -> str | None:
        """The digest of what we know of its rows."""
        return self._callbacks.rows_digest(machine, self._members[machine].generation)

    def _take(self, machine: str, said: Mapping[str, Any], *, is_all: bool) -> None:
        rows = [AgentRow.from_wire(row) for row in said["rows"]]
        generation = self._members[machine].generation
        self._callbacks.on_rows(machine, rows, generation=generation, upto=int(said["upto"]), is_all=is_all)


def _no_handler(_: object, __: int, operation: str, ___: Mapping[str, Any]) -> None:
    raise UnknownMethod(f"{operation}: this node is not controlled from here")
