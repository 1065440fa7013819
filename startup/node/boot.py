"""The process that starts a machine's node and zygote: `python -m startup.node.boot --cluster C --machine M`.

It imports everything once, with one thread; then, for each machine, forks the process that becomes the node, which has forked the
zygote before its event loop exists. So the node is the zygote's parent, and 84 agents share one set of imports. Several machines
on one host (with one Python) share one boot process; each gets a node and a zygote in sessions of their own.

With `--from-stdin` it imports while whoever started it still finds out what to order: one JSON object
`{"cluster", "machines", "file", "preload"}` on standard input, or nothing to end it. It exits with 0 as soon as each machine has
its node's process and its zygote; why there is none goes to standard error (75: one runs already, 2: its folders are unfit).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import setproctitle

from agentkit.errors import ConfigError
from startup.errors import NodeRuns
from startup.node import heirs, launch, linux
from startup.node.options import EXIT_ALREADY_RUNS, EXIT_UNFIT, BootOptions, NodeOptions, parse
from startup.node.paths import Lock
from startup.node.zygote import child
from startup.node.zygote.preload import OWN_MODULES, cap_threads, preload, settle, thread_count
from startup.node.zygote.state import State
from startup.node.zygote.zygote import Zygote

#: Descriptors that node and zygote may have open: a thousand agents of four each, and as many again.
NOFILE: Final = 8192

#: What the process that becomes a node tells the one that booted it.
_BOOTED: Final = b"\0"

NodeMain = Callable[[NodeOptions], int]


def main(
    argv: Sequence[str] | None = None, *, node_main: NodeMain | None = None, modules: Sequence[str] = OWN_MODULES
) -> int:
    """Returns the exit code. Tests give their own `node_main` instead of the daemon, and the `modules` that it needs."""
    gc.disable()  # until settle
    setproctitle.getproctitle()  # finds its place by the environment's first variable, which may move later
    cap_threads(os.environ)
    options = parse(sys.argv[1:] if argv is None else argv)
    soft_limit = linux.raise_nofile(NOFILE)  # for node and zygote: sockets of every agent are open in both
    options = options._replace(nofile=options.nofile or soft_limit)
    launch.settle_path()
    for name in modules:
        importlib.import_module(name)
    threads = thread_count()
    if threads > 1:
        raise RuntimeError(
            f"importing {', '.join(modules)} left {threads - 1} threads behind: nothing can be forked from here"
        )
    node_main = node_main or _daemon
    if left := settle():
        raise RuntimeError(f"rehearsing an agent's life left {left} threads behind: nothing can be forked from here")
    if options.heir:
        return _inherit(options, node_main)
    if options.zygote_only:
        return _only_zygote(options, node_main)
    if options.from_stdin:
        ordered = _read_order(options)
        if ordered is None:
            return 0
        options = ordered
    if options.foreground:
        return _boot(options.node(options.machines[0]), options.preload, node_main, booted=lambda: None)
    return _boot_each(options, node_main)


def _daemon(options: NodeOptions) -> int:
    from startup.node import daemon  # imported long ago, as one of OWN_MODULES

    return daemon.run(options)


def _read_order(options: BootOptions) -> BootOptions | None:
    text = sys.stdin.buffer.read()
    if not text.strip():
        return None
    order = json.loads(text)
    return options._replace(
        cluster=order["cluster"],
        machines=tuple(order["machines"]),
        file=order.get("file", ""),
        preload=tuple(order.get("preload", ())),
        from_stdin=False,
    )


def _boot_each(options: BootOptions, node_main: NodeMain) -> int:
    """Fork what becomes each machine's node; 0 when all got as far as being it, else the worst of their exit codes."""
    forked = []
    for machine in options.machines:
        node = options.node(machine)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _in_fork(lambda: _boot_apart(node, options.preload, node_main, writing))  # noqa: B023 - it runs now or never
        os.close(writing)
        forked.append((pid, reading))
    codes = []
    for pid, reading in forked:
        told = os.read(reading, 1)
        os.close(reading)
        codes.append(0 if told == _BOOTED else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return max(codes, key=abs)


def _boot_apart(node: NodeOptions, modules: Sequence[str], node_main: NodeMain, tell: int) -> int:
    """Become a node in a session of its own; `tell` gets one byte when it is, and just ends when it can't."""
    child.shed(keep=[tell])
    os.chdir("/")

    def booted() -> None:
        child.redirect(node.node_log)  # not before: why a node can't be booted goes to whoever asked for it
        os.write(child.FIRST_FD, _BOOTED)
        os.close(child.FIRST_FD)

    return _boot(node, modules, node_main, booted=booted)


def _boot(node: NodeOptions, modules: Sequence[str], node_main: NodeMain, *, booted: Callable[[], None]) -> int:
    """Take the machine, fork its zygote if there is none yet, then be its node."""
    try:
        node.places.prepare()
        lock = Lock(node.places)
    except (ConfigError, NodeRuns) as exc:
        print(exc, file=sys.stderr)
        return EXIT_ALREADY_RUNS if isinstance(exc, NodeRuns) else EXIT_UNFIT
    if not launch.zygote_answers(node.places.zygote):
        _fork_zygote(node, modules, node_main)
    linux.become_subreaper()
    booted()
    return node_main(node._replace(lock=lock))


def _fork_zygote(node: NodeOptions, modules: Sequence[str], node_main: NodeMain) -> None:
    listener_fd = launch.bind_zygote(node.places.zygote).detach()
    starter = os.getpid()
    if not os.fork():

        def zygote() -> int:
            child.shed(keep=[listener_fd])
            if not node.foreground:
                child.redirect(node.node_log)
            return _serve_zygote(node, child.FIRST_FD, modules, node_main, starter_pid=starter, state=State())

        _in_fork(zygote)
    os.close(listener_fd)


def _inherit(options: BootOptions, node_main: NodeMain) -> int:
    """Be the node after the one that began us, once it says so; gone with it if it does not."""
    for fd in (heirs.CHANNEL_FD, heirs.LOCK_FD, heirs.CONTROL_FD, heirs.LOG_FD):
        os.set_inheritable(fd, False)
    channel = socket.socket(fileno=heirs.CHANNEL_FD)
    channel.send(heirs.PREPARED)
    if channel.recv(len(heirs.GO)) != heirs.GO:
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    for fd in (1, 2):
        os.dup2(heirs.LOG_FD, fd)
    os.close(heirs.LOG_FD)
    linux.become_subreaper()
    node = options.node(options.machines[0])
    lock = Lock.inherited(heirs.LOCK_FD)
    return node_main(node._replace(lock=lock, control_fd=heirs.CONTROL_FD, channel=channel))


def _only_zygote(options: BootOptions, node_main: NodeMain) -> int:
    node = options.node(options.machines[0])
    state = State()
    if options.resume_fd >= 0:
        with open(options.resume_fd, "rb") as file:
            state = State.unpack(file.read())
    return _serve_zygote(node, options.zygote_fd, options.preload, node_main, starter_pid=os.getppid(), state=state)


def _serve_zygote(
    node: NodeOptions, listener_fd: int, modules: Sequence[str], node_main: NodeMain, *, starter_pid: int, state: State
) -> int:
    for fd in (listener_fd, *state.fds()):
        os.set_inheritable(fd, False)
    loaded = preload(modules, state.refused)
    state.refused = dict(loaded.refused)

    def renew(state: State, modules: Sequence[str]) -> NoReturn:
        state_fd = os.memfd_create("agentkit-zygote", 0)
        os.write(state_fd, state.pack())
        os.lseek(state_fd, 0, os.SEEK_SET)
        for fd in (listener_fd, *state.fds()):
            os.set_inheritable(fd, True)
        again = node.zygote(tuple(modules), listener_fd=listener_fd, resume_fd=state_fd)
        os.execve(sys.executable, launch.boot_command(again), launch.boot_environment())  # noqa: S606 - no shell is wanted

    def start_node() -> int:
        child.shed()
        if not node.foreground:
            child.redirect(node.node_log)
        try:
            lock = Lock(node.places)
        except NodeRuns:
            return EXIT_ALREADY_RUNS
        linux.become_subreaper()
        return node_main(node._replace(lock=lock))

    if loaded.tainted:
        renew(state, modules)
    listener = socket.socket(fileno=listener_fd)
    zygote = Zygote(node, listener, loaded, state=state, start_node=start_node, renew=renew, starter_pid=starter_pid)
    return zygote.run()


def _in_fork(run: Callable[[], int]) -> NoReturn:
    """Run what a fork was made for; it never comes back to the code that forked."""
    code = 1
    try:
        code = run()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException as exc:  # noqa: BLE001
        sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
