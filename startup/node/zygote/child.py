"""What a forked process does before it is the agent or program that was ordered, and after: it never returns into the zygote.

It starts as an exact copy of the zygote and sheds it: session, signals, descriptors, environment, working directory, limits,
affinity, title, seeds. Whatever goes wrong is written to the process's own log and told on the notify socket, because the
node's view of a process begins with its messages and ends with its exit.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import setproctitle

from startup.node import linux, targets
from startup.node.limits import rlimits
from startup.node.zygote import dropping
from startup.node.zygote.wire import PRIVATE

#: The first descriptor that is handed down (sd_listen_fds(3)).
FIRST_FD: Final = 3

#: Exit codes of a process that never came to run what was ordered.
EXIT_FAILED: Final = 1
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127


def become(order: Mapping[str, Any], names: Sequence[str], fds: Sequence[int], *, nofile: int) -> NoReturn:
    """Turn this fresh fork into the process of `order`. `nofile` is the soft limit on descriptors if the order has none."""
    code = EXIT_FAILED
    try:
        shed(keep=fds)
        redirect(order["log_path"])
        code = _run(order, names, nofile)
    except BaseException as exc:  # noqa: BLE001 - nothing may unwind into the zygote's loop
        code = targets.failed("could not be set up", exc)
    finally:
        targets.flush()
        os._exit(code)


def become_here(order: Mapping[str, Any], names: Sequence[str], fds: Sequence[int], *, nofile: int) -> int:
    """Turn this process, which an operator started, into that of `order`; the exit code. Terminal, session and group stay its own."""
    _place(fds)
    linux.close_from(FIRST_FD + len(fds))
    try:
        return _run(order, names, nofile, from_scratch=True)
    finally:
        targets.flush()


def shed(*, keep: Sequence[int] = ()) -> None:
    """Stop being the process that forked us: a session of our own, default signals, nothing open but 0, 1, 2 and `keep` (as 3, 4, ...)."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in linux.handled_signals():
        if number not in (signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as every Python process has it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _place(keep)
    linux.close_from(FIRST_FD + len(keep))


def _place(fds: Sequence[int]) -> None:
    """Give `fds` the numbers from 3 on, in order, whatever numbers they have now."""
    above = FIRST_FD + len(fds)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    for i, fd in enumerate(high):
        os.dup2(fd, FIRST_FD + i, inheritable=False)


def redirect(log_path: str) -> None:
    """Standard input from /dev/null, standard output and error appended to `log_path`."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # a full disk, a folder that was taken away: the process runs on without a log
        log = os.dup(nowhere)
    os.dup2(nowhere, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nowhere)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        # not again in the fork of a process that has done so: each time makes an encoder, and with it 20 pages
        if hasattr(stream, "reconfigure") and not (stream.line_buffering and stream.errors == "backslashreplace"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def _run(order: Mapping[str, Any], names: Sequence[str], nofile: int, *, from_scratch: bool = False) -> int:
    """Take on everything that the order says, then run its target; returns the exit code.

    `from_scratch`: this process's environment still lies where exec put it, and `_mark` overwrites that place."""
    _join(order["cgroups"])
    target = order["target"]
    environment = dict(order["env"])
    outside = dict(os.environ) if "AGENTKIT_SECRETS" in environment else {}
    handed_down = [name for name in names if name not in PRIVATE]
    listeners = len(handed_down)
    if listeners:
        told = {"LISTEN_PID": os.getpid(), "LISTEN_FDS": listeners, "LISTEN_FDNAMES": ":".join(handed_down)}
        environment |= {name: str(value) for name, value in told.items()}
    # not among LISTEN_FDS: a program that adopts those would take them for sockets
    environment |= {f"AGENTKIT_{name.upper()}": str(FIRST_FD + names.index(name)) for name in names[listeners:]}
    if from_scratch:
        os.environ.clear()
    _replace_environment(environment)
    time.tzset()
    os.umask(order["umask"])
    setproctitle.setproctitle(order["title"])
    _mark(environment)
    _limit(order["nofile"] or nofile)
    if order["cpu_affinity"]:
        _pin(order["cpu_affinity"])
    if order["user"]:
        dropping.take_along_secrets(environment, outside.get("HOME", "/"))
        dropping.drop(*order["user"])
    if order["rlimits"]:
        rlimits.take_on(dict(order["rlimits"]))
    os.chdir(order["cwd"])
    _reseed()
    gc.enable()
    sys.path[:] = [*order["sys_path"], *(path for path in sys.path if path not in order["sys_path"])]
    _resolve_secrets(os.environ, outside, is_agent=target["type"] == "agent")
    if target["type"] == "agent":
        return targets.run_agent(target)
    if target["script"]:
        for fd in range(FIRST_FD, FIRST_FD + listeners):
            os.set_inheritable(fd, True)
        return targets.run_script(target)
    return _exec(target["argv"], listeners)


def _join(cgroups: Sequence[str]) -> None:
    """Whatever comes of this process from here on is held by these. 0 means whoever writes it."""
    for path in cgroups:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        except OSError as exc:
            raise OSError(exc.errno, f"the cgroup {path} does not take it: {exc.strerror}") from None
        finally:
            os.close(fd)


def _replace_environment(environment: Mapping[str, str]) -> None:
    """What is the same already stays: most of it is, in a child of the zygote, and clearing 40 variables took 0.2 ms."""
    for name in [
        name for name in os.environ if name not in environment
    ]:  # views would need nine functions of abstract classes
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _mark(environment: Mapping[str, str]) -> None:
    """Make this process, and what it forks, findable by what it inherits (termination.py looks for it)."""
    marks = (
        f"{name}={environment[name]}\0" for name in ("AGENTKIT_INCARNATION", "AGENTKIT_NODE") if name in environment
    )
    linux.mark_environment("".join(marks).encode())


def _limit(nofile: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile if hard == resource.RLIM_INFINITY else min(nofile, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _pin(cpus: Sequence[int]) -> None:
    """To these CPUs, and what it starts, too."""
    there = os.sched_getaffinity(0)
    if missing := set(cpus) - there:
        have = ", ".join(map(str, sorted(there)))
        raise ValueError(
            f"cpu_affinity: CPU {', '.join(map(str, sorted(missing)))}; there are {have}; change it in the file"
        )
    os.sched_setaffinity(0, cpus)


def _reseed() -> None:
    """Forks of one process would draw the same numbers. `random` sees to that itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _resolve_secrets(environment: Mapping[str, str], outside: Mapping[str, str], *, is_agent: bool) -> None:
    """Put secrets marked `as_env` into the environment; `{env: NAME}` means a variable of the environment that the node has.

    The others an agent's runtime reads itself, and for that finds NAME as it was; a program never sees them."""
    for name, ref in json.loads(environment.get("AGENTKIT_SECRETS") or "{}").items():
        if ref.get("as_env"):
            os.environ[name] = _secret(name, ref, outside)
        elif is_agent and ref.get("env") in outside:
            os.environ.setdefault(ref["env"], outside[ref["env"]])


def _secret(name: str, ref: Mapping[str, Any], outside: Mapping[str, str]) -> str:
    if ref.get("file"):
        with open(Path(ref["file"]).expanduser(), encoding="utf-8") as file:
            return file.read().rstrip("\n")
    try:
        return outside[ref["env"]]
    except KeyError:
        raise LookupError(f"secret {name}: the node's environment has no {ref['env']}; set it before `up`") from None


def _exec(argv: Sequence[str], listeners: int) -> int:
    """Become another program; only returns when that can't be done."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for fd in range(FIRST_FD, FIRST_FD + listeners):
        os.set_inheritable(fd, True)
    targets.flush()
    try:
        os.execvpe(argv[0], list(argv), os.environ)  # noqa: S606 - no shell is wanted
    except OSError as exc:
        where = f" in PATH {os.environ.get('PATH', '')}" if "/" not in argv[0] else ""
        reason = f"command {argv[0]!r}{where} can't be run: {os.strerror(exc.errno or 0)}"
        targets.report(reason)
        return EXIT_NOT_FOUND if isinstance(exc, FileNotFoundError) else EXIT_NOT_EXECUTABLE
