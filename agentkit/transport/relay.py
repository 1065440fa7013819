"""One machine's event relay. Never a loop: an event passes at most two relays, its publisher's and its subscriber's.

    publishers ──PUSH──► IN ──┬──► LOCAL ──► subscribers of this machine
                              └──► OUT ────► every other machine's MESH
    every other machine's OUT ──► MESH ──► REMOTE ──► subscribers of this machine

What comes by MESH goes to REMOTE only, so nothing that came from elsewhere leaves again. (Two proxies linked both ways turned one
message into 4,348 in half a second.) Subscribers connect to LOCAL and REMOTE; what they subscribe to at REMOTE travels over MESH to
the others' OUT, which therefore send only what somebody here wants.

Both ways are ZeroMQ's own proxies, each on a thread of its own that does not hold Python's lock: 6.5 us of CPU for an event with 50
subscribers, against 8.5 for the same loop in Python, and the node's event loop takes no part. They have a context, and so an IO
thread, of their own: a storm of events does not delay what nodes tell each other. Without events both sleep.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zmq

from agentkit.observe.log import get_logger
from agentkit.transport.dealer import Dial
from agentkit.transport.pubsub import SUBSCRIBER_QUEUE, Endpoints, reconnect

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring

log = get_logger("agentkit.relay")

#: How long `close` waits for each thread, in seconds.
JOIN_S: Final = 2.0
#: Pause before another machine's relay is tried again, in ms, at most.
RECONNECT_MAX_MS: Final = 5_000

#: An address that was let go of is free within this many tries with such a pause, in seconds.
REBIND_TRIES: Final = 100
REBIND_S: Final = 0.01
#: Between two signs of life to other machines' relays, in ms; a connection that is silent for twice as long is given up.
HEARTBEAT_MS: Final = 5_000

_FAR_PROBE: Final = "inproc://events-far-probe"
_STOP: Final = b"TERMINATE"  # what zmq_proxy_steerable returns at; its sockets stay open


class Relay:
    """Runs from its making until `close`. Its methods are for one thread. OSError: an address can't be bound."""

    def __init__(self, folder: str | Path, host: str, *, max_frame_bytes: int, keys: Keyring | None = None) -> None:
        """Local sockets go into `folder`; other machines connect to `out`, on `host`. `keys`: those that are known, by encrypted
        connections only; then it belongs to the running loop."""
        self._keys = keys
        self._domain = ""
        self._context: zmq.Context[Any] = zmq.Context()
        self._max_frame_bytes = max_frame_bytes
        self._peers: dict[str, tuple[str, Dial | None]] = {}  # machine -> its OUT
        self._endpoints = endpoints = Endpoints.below(folder)
        try:
            taken = self._socket(zmq.PULL)
            taken.bind(endpoints.publish)
            local = self._socket(zmq.PUB)
            local.bind(endpoints.local)
            out = self._out = self._socket(zmq.PUB)
            self._watch_link(out, host)
            if keys is not None:
                from agentkit.transport.curve import Doorkeeper

                self._domain = Doorkeeper.let_in(self._context, keys)
            with self._guarded():
                out.bind(f"tcp://{host}:*")
            self._bound = bytes(out.last_endpoint).decode().rstrip("\0")  # type: ignore[arg-type]
            mesh = self._socket(zmq.XSUB)
            self._watch_link(mesh, host)
            # only this process writes here, and only probes: what proves that REMOTE has taken a subscription
            self._far_probe = self._socket(zmq.PUB)
            self._far_probe.bind(_FAR_PROBE)
            mesh.connect(_FAR_PROBE)
            remote = self._socket(zmq.XPUB)
            remote.bind(endpoints.remote)
            self._probe = self._socket(zmq.PUSH)
            self._probe.connect(endpoints.publish)
            self._local = _Way(self._context, "events-local", taken, local, out)
            self._remote = _Way(self._context, "events-mesh", mesh, remote)
        except zmq.ZMQError as exc:
            self._end_questions()
            self._context.destroy(linger=0)
            raise OSError(exc.errno, f"the event relay can't listen: {exc.strerror}") from exc
        #: Where other machines' relays connect; as it was asked for, libzmq tells an IPv6 form
        self.out = f"tcp://{host}:{self._bound.rpartition(':')[2]}"

    def hear(self, machine: str, out: str | None, dial: Dial | None = None) -> None:
        """Connect to the relay of another machine, which may be another one than before; None: it has none any more. `dial`: the
        keys of an encrypted connection."""
        old = self._peers.pop(machine, None)
        new = None if out is None else (out, dial)
        if new is not None:
            self._peers[machine] = new
        if old == new:
            return

        def change(mesh: zmq.Socket[Any]) -> None:
            if old is not None:
                with suppress(zmq.ZMQError):  # an address that could not be connected to
                    mesh.disconnect(old[0])
            if new is not None:
                if dial is not None:
                    from agentkit.transport import curve

                    curve.calling(mesh, *dial)
                mesh.connect(new[0])

        self._remote.change(change)

    def cut(self) -> None:
        """End every connection of other machines here: those that are known come back within a moment, with a gap in their numbers,
        which they count. For when somebody is not known any more."""

        def change(_: zmq.Socket[Any]) -> None:  # OUT is of the same thread
            with suppress(zmq.ZMQError):
                self._out.unbind(self._bound)
            for left in reversed(range(REBIND_TRIES)):
                try:
                    with self._guarded():
                        self._out.bind(self._bound)
                except zmq.ZMQError:  # libzmq closes the old one in its own time
                    if not left:
                        raise
                    time.sleep(REBIND_S)
                else:
                    return

        self._local.change(change)

    def probe(self, frame: bytes) -> None:
        """Send a frame as a publisher would: who gets it knows that what it subscribed to before is in force here."""
        self._probe.send(frame, zmq.NOBLOCK)

    def probe_far(self, frame: bytes) -> None:
        """The same as if it came from another machine."""
        self._far_probe.send(frame, zmq.NOBLOCK)

    def close(self) -> None:
        """Returns when the threads have ended and the addresses are free."""
        ended = [way.close() for way in (self._local, self._remote)]
        self._probe.close(linger=0)
        self._far_probe.close(linger=0)
        self._end_questions()
        if all(ended):
            self._context.destroy(linger=0)
        for endpoint in self._endpoints:
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)  # libzmq leaves them

    def _guarded(self) -> AbstractContextManager[None]:
        if self._keys is None:
            return nullcontext()
        from agentkit.transport import curve

        return curve.serving(self._out, self._keys.own, self._domain)

    def _end_questions(self) -> None:
        if self._domain:
            from agentkit.transport.curve import Doorkeeper

            Doorkeeper.end(self._context, self._domain)
            self._domain = ""

    @staticmethod
    def _watch_link(sock: zmq.Socket[Any], host: str) -> None:
        """Off loopback a link that was cut is noticed, and made anew: TCP would wait for minutes, or for ever where nothing is sent."""
        if not host.startswith(("127.", "localhost")):
            sock.heartbeat_ivl, sock.heartbeat_timeout = HEARTBEAT_MS, 2 * HEARTBEAT_MS

    def _socket(self, kind: int) -> zmq.Socket[Any]:
        sock: zmq.Socket[Any] = self._context.socket(kind)
        sock.linger = 0
        sock.sndhwm = sock.rcvhwm = SUBSCRIBER_QUEUE
        sock.maxmsgsize = self._max_frame_bytes
        sock.ipv6 = True
        reconnect(sock)
        sock.reconnect_ivl_max = RECONNECT_MAX_MS
        return sock


class _Way:
    """One proxy on a thread. The sockets belong to the thread until `close` has returned."""

    def __init__(
        self,
        context: zmq.Context[Any],
        name: str,
        front: zmq.Socket[Any],
        back: zmq.Socket[Any],
        copies: zmq.Socket[Any] | None = None,
    ) -> None:
        self._front, self._back, self._copies = front, back, copies
        self._ordered = context.socket(zmq.PAIR)
        self._ordered.bind(f"inproc://{name}")
        self._orders = context.socket(zmq.PAIR)
        self._orders.linger = 0
        self._orders.connect(f"inproc://{name}")
        self._changes: list[Callable[[zmq.Socket[Any]], None]] = []
        self._lock = threading.Lock()
        self._is_closing = False
        # daemon: a node that fails must not be kept from ending by it
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def change(self, change: Callable[[zmq.Socket[Any]], None]) -> None:
        """Do something to the front socket, on its thread; connections are kept."""
        with self._lock:
            self._changes.append(change)
        self._orders.send(_STOP)

    def close(self) -> bool:
        """Whether the thread has ended."""
        self._is_closing = True
        self._orders.send(_STOP)
        self._thread.join(JOIN_S)
        self._orders.close()
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._is_closing:
                zmq.proxy_steerable(self._front, self._back, self._copies, self._ordered)
                with self._lock:
                    changes, self._changes = self._changes, []
                for change in changes:
                    try:
                        change(self._front)
                    except zmq.ZMQError as exc:
                        log.error("relay.not_connected", error=exc.strerror)
        except zmq.ZMQError as exc:
            log.error("relay.failed", way=self._thread.name, error=exc.strerror)
        finally:
            for sock in (self._front, self._back, self._copies, self._ordered):
                if sock is not None:
                    sock.close(linger=0)
