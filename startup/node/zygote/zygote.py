"""The fork server beside a node: one thread, no event loop, no ZeroMQ context, and the whole fleet as its children.

It forks what the node orders, reaps it, tells the exits, keeps a dup of every listening socket, and starts the next node when
the node goes without saying so. The conversation is in wire.py. It may replace its own image (renew, a module that left
a thread): it execs, so its children stay its children, and hands its state to the new image in a memfd.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import setproctitle

from startup.node import linux, targets
from startup.node.options import NodeOptions
from startup.node.zygote import child, wire
from startup.node.zygote.peer import Peer
from startup.node.zygote.preload import Preloaded
from startup.node.zygote.respawn import Respawn
from startup.node.zygote.state import State, path_id

#: Descriptors that are free for each agent, and for everything else; what the soft limit is raised to is counted with them.
_FDS_PER_AGENT: Final = 4
_FDS_SPARE: Final = 64

_CREDENTIALS: Final = struct.Struct("3i")


class Zygote:
    def __init__(
        self,
        options: NodeOptions,
        listener: socket.socket,
        loaded: Preloaded,
        *,
        state: State,
        start_node: Callable[[], int],
        renew: Callable[[State, Sequence[str]], NoReturn],
        starter_pid: int,
    ) -> None:
        """`start_node` is what a fork becomes when the node is gone; `renew` execs a fresh image (both from boot.py).

        `starter_pid` is the process that started us; when it ends before any node connected, so do we."""
        self._options = options
        self._listener = listener
        self._loaded = loaded
        self._state = state
        self._start_node = start_node
        self._renew = renew
        self._strangers: dict[int, Peer] = {}  # connected, no hello yet
        self._node: Peer | None = None
        self._respawn = Respawn()
        self._starter_fd = -1 if state.had_node else _watch(starter_pid)
        self._poll = select.poll()
        self._forked: Counter[tuple[str, str | None]] = Counter()

    def run(self) -> int:
        """Serve until nothing is left to do; the exit code."""
        places = self._options.places
        setproctitle.setproctitle(f"agentkit: zygote {places.cluster}/{places.machine}")
        linux.become_subreaper()
        self._state.path_id = self._state.path_id if any(self._state.path_id) else path_id(self._options.places.zygote)
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._listener.setblocking(False)
        for fd in (woken, self._listener.fileno(), self._starter_fd):
            if fd >= 0:
                self._poll.register(fd, select.POLLIN)
        if self._state.node_fd >= 0:
            self._resume_node()
        self._reap()  # whoever ended while the image changed
        while not self._is_done():
            for fd, events in self._poll.poll(self._respawn.patience_ms(time.monotonic())):
                if fd == woken:
                    os.read(woken, 4096)
                    self._reap()
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd == self._starter_fd:
                    self._starter_gone()
                else:
                    self._serve(fd, events)
            if self._respawn.is_due(time.monotonic()):
                self._fork_node()
        return 0

    # -- when to end, when to start a node --------------------------------------------------------------------------------

    def _is_done(self) -> bool:
        if self._state.children:
            return False
        if self._state.stopping:
            return self._node is None or self._node.is_flushed
        if self._node is not None:
            return False
        if not self._state.had_node:
            return self._starter_fd == -1 and self._respawn.due_s is None
        return not self._owns_path() or self._respawn.has_given_up

    def _owns_path(self) -> bool:
        """Whether a node would still find us: the run directory is there, and no other zygote took our place in it."""
        return any(self._state.path_id) and path_id(self._options.places.zygote) == self._state.path_id

    def _starter_gone(self) -> None:
        """Whoever started us ended before a node connected: nobody wants us, unless a node says otherwise later."""
        self._poll.unregister(self._starter_fd)
        os.close(self._starter_fd)
        self._starter_fd = -1

    def _node_lost(self, peer: Peer) -> None:
        self._node = None
        self._state.node_fd = -1
        self._respawn.lost(time.monotonic() - peer.since_s)
        if not self._state.stopping:
            self._plan_node("the node is gone")

    def _plan_node(self, why: str) -> None:
        if self._options.supervised:
            _say(f"{why}; its supervisor starts the next one")
            return
        delay_s = self._respawn.plan(time.monotonic())
        _say(f"{why}; starting the next one in {delay_s:.1f} s")

    def _fork_node(self) -> None:
        self._respawn.cancel()
        if self._node is not None or self._state.node_pid or not self._owns_path():
            return
        self._respawn.began()
        targets.flush()
        pid = os.fork()
        if pid:
            self._state.node_pid = pid
            return
        code = 1
        try:
            code = self._start_node()
        except BaseException as exc:  # noqa: BLE001 - nothing may unwind into the zygote's loop
            sys.excepthook(type(exc), exc, exc.__traceback__)
        finally:
            targets.flush()
            os._exit(code)

    # -- children ----------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._state.node_pid:
                self._state.node_pid = 0
                if self._node is None and self._respawn.due_s is None and not self._state.stopping:
                    self._plan_node(f"the node ended ({os.waitstatus_to_exitcode(status)}) before it connected")
                continue
            key, incarnation = self._state.children.pop(pid, ("", 0))
            if not key:
                continue  # somebody's orphan
            exit_ = {
                "key": key, "incarnation": incarnation, "pid": pid, "status": status,
                "maxrss_bytes": usage.ru_maxrss * 1024, "cpu_s": usage.ru_utime + usage.ru_stime,
            }  # fmt: skip
            self._state.remember(exit_)
            if self._node is not None:
                self._node.send(["exit", exit_])

    def _fork(self, peer: Peer, number: int, order: Mapping[str, Any], names: Sequence[str], fds: list[int]) -> None:
        key, incarnation = str(order["key"]), int(order["incarnation"])
        if len(names) != len(fds):
            wire.close_all(fds)
            peer.send(["failed", number, f"{len(fds)} descriptors arrived for {len(names)} names"])
            return
        self._expect(order["target"])
        targets.flush()
        try:
            pid = os.fork()
        except OSError as exc:
            wire.close_all(fds)
            hint = (
                "; too many processes for this user or cgroup, see `ulimit -u` and pids.max" if exc.errno == 11 else ""
            )
            peer.send(["failed", number, f"fork: {os.strerror(exc.errno or 0)}{hint}"])
            return
        if not pid:
            child.become(order, names, fds, nofile=self._options.nofile)
        self._state.children[pid] = (key, incarnation)
        listeners = sum(name not in wire.PRIVATE for name in names)
        wire.close_all(fds[listeners:])
        self._keep(key, names[:listeners], fds[:listeners])
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:  # out of descriptors: the node opens it by pid, which nobody can reuse before we reap
            _say(f"pidfd of {key}: {exc}")
            peer.send(["forked", number, pid])
        else:
            peer.send(["forked", number, pid], [pidfd])

    def _expect(self, target: Mapping[str, Any]) -> None:
        """From the second agent of one class on, what each would make of it is made here, once: 3 ms a method with models."""
        if target["type"] == "agent" and target["module"]:
            name = target["module"], target["cls"]
            self._forked[name] += 1
            if self._forked[name] == 2:
                targets.prepare(target)
                gc.freeze()

    def _keep(self, key: str, names: Sequence[str], fds: Sequence[int]) -> None:
        old = self._state.kept.pop(key, {})
        wire.close_all(list(old.values()))
        if fds:
            self._state.kept[key] = dict(zip(names, fds, strict=True))

    # -- the conversation --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as exc:
            _say(f"a node can't connect: {exc}")
            return
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            sock.close()
            return
        self._strangers[sock.fileno()] = Peer(sock, self._poll, time.monotonic())

    def _serve(self, fd: int, events: int) -> None:
        peer = self._node if self._node is not None and self._node.sock.fileno() == fd else self._strangers.get(fd)
        if peer is None:
            return
        if events & select.POLLOUT:
            peer.flush()
        if events & ~select.POLLOUT:
            self._hear(peer)

    def _hear(self, peer: Peer) -> bool:
        """Take one message of a connection; whether there may be more."""
        try:
            received = wire.receive(peer.sock)
        except BlockingIOError:
            return False
        except (OSError, wire.Garbled) as exc:
            _say(f"the node's connection broke: {exc}")
            received = None
        if received is None:
            self._drop(peer)
            return False
        try:
            self._obey(peer, received)
        except (LookupError, ValueError, TypeError) as exc:
            _say(f"a message from the node can't be read: {exc!r}")
            self._drop(peer)
            return False
        return True

    def _obey(self, peer: Peer, received: wire.Received) -> None:
        verb, *rest = received.message or ["?"]
        if verb == "hello":
            self._welcome(peer)
        elif verb == "fork" and not received.complete:
            peer.send(["failed", rest[0], self._too_few_fds()])
        elif verb == "fork":
            self._fork(peer, rest[0], rest[1], rest[2], received.fds)
        elif verb == "keep":
            self._keep(rest[0], rest[1], received.fds)
        elif verb == "forget":
            self._keep(rest[0], (), ())
        elif verb == "renew":
            self._change_image(rest[0])
        elif verb == "stop":
            self._state.stopping = True
            self._respawn.cancel()
        else:
            raise ValueError(f"unknown verb {verb!r}")

    def _welcome(self, peer: Peer) -> None:
        before = self._node
        if before is not None and before is not peer:
            while self._hear(before):  # the last words of a node that has just gone
                pass
            if self._node is before:
                _say("a second node connected; the first one's connection is cut")
                self._drop(before, replaced=True)
        self._strangers.pop(peer.sock.fileno(), None)
        peer.is_node = True
        self._node = peer
        self._respawn.connected()
        self._state.had_node = True
        self._state.stopping = False
        self._state.node_fd = peer.sock.fileno()
        if self._starter_fd >= 0:
            self._starter_gone()
        self._send_facts(peer)
        for exit_ in self._state.exits:
            peer.send(["exit", exit_])
        for entries, fds, more in self._state.inventory():
            peer.send(["inventory", entries, more], fds)

    def _send_facts(self, peer: Peer) -> None:
        peer.send(["facts", {
            "pid": os.getpid(), "preload": self._loaded.modules, "refused": self._loaded.refused, "files": self._loaded.files,
        }])  # fmt: skip

    def _change_image(self, modules: Sequence[str]) -> NoReturn:
        assert self._node is not None
        self._node.flush_all()
        self._state.refused = {}  # found out again: its file may be why we are renewed
        self._renew(self._state, modules)

    def _resume_node(self) -> None:
        """The connection that the image before this one had."""
        self._node = Peer(socket.socket(fileno=self._state.node_fd), self._poll, time.monotonic(), is_node=True)
        self._send_facts(self._node)

    def _drop(self, peer: Peer, *, replaced: bool = False) -> None:
        self._strangers.pop(peer.sock.fileno(), None)
        peer.close()
        if peer is self._node and not replaced:
            self._node_lost(peer)

    def _too_few_fds(self) -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        need = (len(self._state.kept) + 1) * _FDS_PER_AGENT + _FDS_SPARE
        return (
            f"the zygote is out of file descriptors: it may have {soft:,} (hard limit {hard:,}) and needs about {need:,} for "
            f"{len(self._state.kept) + 1} agents; raise the hard limit (`ulimit -Hn`, LimitNOFILE=) and start the node again"
        )


def _watch(pid: int) -> int:
    """A descriptor that is readable when `pid` ends; -1 when it has."""
    if pid != os.getppid():
        return -1
    return os.pidfd_open(pid)


def _say(message: str) -> None:
    """One line to the node's log, in the shape of its other lines."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    line = {"timestamp": f"{now}Z", "level": "warning", "service": "zygote", "message": message}
    print(json.dumps(line), file=sys.stderr, flush=True)
