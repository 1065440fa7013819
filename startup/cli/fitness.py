"""Is this machine fit to run a fleet? One pure function per question, over facts that were gathered once (facts.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from startup.node.paths import MAX_SOCKET_PATH_BYTES

#: The longest name of a socket in a run directory.
LONGEST_SOCKET: Final = "zygote.sock"
#: Backlog of agents' listeners: with 128, 500 callers of a sleeper waited 1,012 ms (p95), with 4096 74 ms.
BACKLOG: Final = 4096
#: Per agent, in the process that has most: listeners (2 inboxes, http), pidfd, log, and what a mesh connection and its dup take.
FDS_PER_AGENT: Final = 8
#: Threads and processes per agent: the process, two of libzmq, up to 8 of handlers.
TASKS_PER_AGENT: Final = 11
#: PSS of an idle agent, and of node and zygote together; both with room.
AGENT_MB: Final = 6
NODE_MB: Final = 100

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found on this machine. None: the kernel does not tell (or the thing does not exist here)."""

    agents: int  #: that the fleet has here
    ports: frozenset[int] = frozenset()  #: that the fleet's file wants
    python: tuple[int, int, int]
    modules: Mapping[str, str]  #: name -> version; "" when it can't be imported
    libzmq: tuple[int, int, int] | None
    has_curve: bool
    kernel: str
    has_pidfd: bool
    has_close_range: bool
    somaxconn: int | None
    files_soft: int
    files_hard: int
    tasks_limit: int | None
    tasks_now: int
    memory_available_mb: int
    swap_used_mb: int
    overcommit: int | None  #: vm.overcommit_memory
    shm_free_mb: int | None  #: /dev/shm
    limits: str  #: what a node started here would hold its agents with
    limits_why: str = ""  #: that nothing better is there
    run_dir: str  #: of one machine of the fleet: the longest path
    run_dir_owner: int | None = None  #: uid; None: it does not exist yet
    run_dir_mode: int | None = None
    run_dir_writable: bool = True
    state_dir: str
    state_dir_writable: bool = True
    state_free_mb: int
    uid: int
    ephemeral_ports: tuple[int, int] | None
    reserved_ports: frozenset[int] = frozenset()  #: taken out of the ephemeral range
    datagram_queue: int | None  #: net.unix.max_dgram_qlen
    clock_synchronized: bool | None
    clock_resolution_s: float
    hostname: str
    resolve_s: Mapping[str, float | None] = field(default_factory=dict)  #: name -> seconds it took; None: it failed
    open_key_files: tuple[str, ...] = ()  #: private keys that others may read
    stale: tuple[str, ...] = ()  #: run directories whose node and zygote are both dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    name: str
    verdict: Verdict
    value: str
    need: str
    fix: str = ""  #: empty when there is nothing to fix


Check = Callable[[Facts], Finding]


def _found(name: str, good: bool, value: object, need: str, fix: str, *, otherwise: Verdict = "fail") -> Finding:
    return Finding(name=name, verdict="ok" if good else otherwise, value=str(value), need=need, fix="" if good else fix)


def python_version(facts: Facts) -> Finding:
    fix = "install Python 3.11 or newer and make .venv with it"
    return _found("python", facts.python >= (3, 11, 0), _dotted(facts.python), ">= 3.11", fix)


def modules(facts: Facts) -> Finding:
    missing = sorted(name for name, version in facts.modules.items() if not version)
    value = f"missing: {', '.join(missing)}" if missing else f"{len(facts.modules)} import"
    return _found(
        "modules", not missing, value, "all of agentkit's import", "pip install --force-reinstall " + " ".join(missing)
    )


def uvloop(facts: Facts) -> Finding:
    version = facts.modules.get("uvloop", "")
    return _found(
        "uvloop", bool(version), version or "does not import", "imports", "pip install --force-reinstall uvloop"
    )


def libzmq_version(facts: Facts) -> Finding:
    good = facts.libzmq is not None and facts.libzmq >= (4, 3, 4)
    value = _dotted(facts.libzmq) if facts.libzmq else "pyzmq does not import"
    return _found(
        "libzmq", good, value, ">= 4.3.4 (ZMQ_USE_FD)", "pip install --upgrade pyzmq: its wheels bring libzmq 4.3.5"
    )


def curve(facts: Facts) -> Finding:
    value = "built in" if facts.has_curve else "missing"
    fix = "pip install --force-reinstall --only-binary :all: pyzmq"
    return _found("curve", facts.has_curve, value, "built in, for anything beyond loopback", fix)


def kernel(facts: Facts) -> Finding:
    missing = [
        name
        for name, has in (("pidfd_open (5.3)", facts.has_pidfd), ("close_range (5.9)", facts.has_close_range))
        if not has
    ]
    value = facts.kernel + (f" without {', '.join(missing)}" if missing else "")
    fix = "run Linux 5.9 or newer; in a container, allow these calls in its seccomp profile"
    # close_range has a slow stand-in, pidfds have none
    return _found(
        "kernel", not missing, value, "pidfd_open and close_range", fix, otherwise="warn" if facts.has_pidfd else "fail"
    )


def backlog(facts: Facts) -> Finding:
    good = facts.somaxconn is None or facts.somaxconn >= BACKLOG
    value = "unknown" if facts.somaxconn is None else facts.somaxconn
    return _found("somaxconn", good, value, f">= {BACKLOG}", f"sysctl -w net.core.somaxconn={BACKLOG}")


def open_files(facts: Facts) -> Finding:
    need = 256 + FDS_PER_AGENT * facts.agents
    value = f"soft {_limit(facts.files_soft)}, hard {_limit(facts.files_hard)}"
    good = facts.files_hard < 0 or facts.files_hard >= need  # nodes raise the soft limit to the hard one
    fix = f"ulimit -Hn {need}, or LimitNOFILE={need} in the unit"
    return _found("open files", good, value, f"hard >= {need} for {facts.agents} agents", fix)


def tasks(facts: Facts) -> Finding:
    need = TASKS_PER_AGENT * facts.agents + 16
    left = None if facts.tasks_limit is None else facts.tasks_limit - facts.tasks_now
    value = "unlimited" if left is None else f"{left} left of {facts.tasks_limit}"
    fix = f"raise it by {need - (left or 0)}: ulimit -u, TasksMax= of the unit, or pids.max of the container"
    return _found("processes", left is None or left >= need, value, f"{need} processes and threads more", fix)


def memory(facts: Facts) -> Finding:
    need = NODE_MB + AGENT_MB * facts.agents
    fix = "stop what is not needed, or move agents to another machine"
    return _found(
        "memory", facts.memory_available_mb >= need, f"{facts.memory_available_mb} MB available", f">= {need} MB", fix
    )


def swap(facts: Facts) -> Finding:
    fix = "agents that are swapped out miss their watchdog: free memory, or sysctl -w vm.swappiness=10"
    return _found(
        "swap", facts.swap_used_mb < 512, f"{facts.swap_used_mb} MB used", "< 512 MB used", fix, otherwise="warn"
    )


def overcommit(facts: Facts) -> Finding:
    value = "unknown" if facts.overcommit is None else facts.overcommit
    fix = "with 2 every fork reserves the zygote's whole memory again: sysctl -w vm.overcommit_memory=0"
    return _found("overcommit", facts.overcommit != 2, value, "0 or 1", fix)


def shared_memory(facts: Facts) -> Finding:
    value = "none" if facts.shm_free_mb is None else f"{facts.shm_free_mb} MB free"
    good = facts.shm_free_mb is not None and facts.shm_free_mb >= 16
    fix = "mount a tmpfs at /dev/shm (docker: --shm-size=256m)"
    return _found("shared memory", good, value, ">= 16 MB free", fix, otherwise="warn")


def limits(facts: Facts) -> Finding:
    value = f"{facts.limits} ({facts.limits_why})" if facts.limits_why else facts.limits
    need = "a cgroup of the node's own: limits of CPU, exact ones of memory, and of processes that hide"
    fix = (
        "start the node as a unit (`agentkit node unit`), with `systemd-run --user --scope -p Delegate=yes`, or as root"
    )
    return _found("limits", facts.limits.startswith("cgroup"), value, need, fix, otherwise="warn")


def run_dir_path(facts: Facts) -> Finding:
    size = len(f"{facts.run_dir}/{LONGEST_SOCKET}".encode())
    need = f"<= {MAX_SOCKET_PATH_BYTES} bytes with a socket's name"
    fix = "set AGENTKIT_RUN_DIR to a shorter path, or shorten the names of cluster and machine"
    return _found("run directory path", size <= MAX_SOCKET_PATH_BYTES, f"{size} bytes: {facts.run_dir}", need, fix)


def run_dir_owner(facts: Facts) -> Finding:
    need = f"owned by uid {facts.uid}, mode 0700"
    if facts.run_dir_owner is None or facts.run_dir_mode is None:
        fix = f"make its parent writable for uid {facts.uid}, or set AGENTKIT_RUN_DIR"
        return _found("run directory", facts.run_dir_writable, "not there yet", "can be made", fix)
    value = f"owned by uid {facts.run_dir_owner}, mode {facts.run_dir_mode:04o}"
    good = (
        facts.run_dir_owner == facts.uid and facts.run_dir_mode & 0o066 == 0
    )  # to pass through: agents of other users
    return _found(
        "run directory", good, value, need, f"chmod 700 it if it is yours, else set AGENTKIT_RUN_DIR: {facts.run_dir}"
    )


def state_dir(facts: Facts) -> Finding:
    value = f"{'writable' if facts.state_dir_writable else 'not writable'}: {facts.state_dir}"
    return _found(
        "state directory", facts.state_dir_writable, value, "writable", "fix its permissions, or set AGENTKIT_STATE_DIR"
    )


def disk(facts: Facts) -> Finding:
    need = 256 + 50 * facts.agents  # five logs of 10 MB each
    fix = f"logs may take {need} MB: free disk space, or set AGENTKIT_STATE_DIR to a larger disk"
    # it works until the logs are full; only then are lines dropped
    otherwise: Verdict = "fail" if facts.state_free_mb < 256 else "warn"
    return _found(
        "disk", facts.state_free_mb >= need, f"{facts.state_free_mb} MB free", f">= {need} MB", fix, otherwise=otherwise
    )


def ports(facts: Facts) -> Finding:
    if facts.ephemeral_ports is None:
        return _found("ephemeral ports", True, "unknown", "apart from the fleet's ports", "")
    low, high = facts.ephemeral_ports
    inside = sorted(port for port in facts.ports - facts.reserved_ports if low <= port <= high)
    value = f"{low}-{high}" + (f": {len(inside)} of the fleet's ports are in it, from {inside[0]} on" if inside else "")
    fix = f"any outgoing connection may take them first: sysctl -w net.ipv4.ip_local_reserved_ports={_ranges(inside)}"
    return _found("ephemeral ports", not inside, value, "apart from the fleet's ports", fix)


def datagrams(facts: Facts) -> Finding:
    value = "unknown" if facts.datagram_queue is None else facts.datagram_queue
    good = facts.datagram_queue is None or facts.datagram_queue >= 10
    return _found("datagram queue", good, value, ">= 10 messages", "sysctl -w net.unix.max_dgram_qlen=512")


def clock(facts: Facts) -> Finding:
    value = {True: "synchronised", False: "not synchronised", None: "unknown"}[facts.clock_synchronized]
    fix = "run chrony or systemd-timesyncd: stamps of two machines are compared in the timeline and in logs"
    return _found("clock", facts.clock_synchronized is not False, value, "synchronised (NTP)", fix, otherwise="warn")


def timer(facts: Facts) -> Finding:
    value = f"{facts.clock_resolution_s * 1e9:.0f} ns"
    fix = "enable high resolution timers (highres=on), or choose a better clock source"
    return _found("timer", facts.clock_resolution_s <= 1e-3, value, "<= 1 ms", fix)


def names(facts: Facts) -> Finding:
    slow = {name: took for name, took in facts.resolve_s.items() if took is None or took > 1.0}
    bad = [f"{name} {'fails' if took is None else f'takes {took:.1f} s'}" for name, took in slow.items()]
    value = ", ".join(bad) or f"{len(facts.resolve_s)} resolve at once"
    return _found(
        "host names", not bad, value, "localhost and this host resolve within 1 s", "add a line for each to /etc/hosts"
    )


def keys(facts: Facts) -> Finding:
    value = f"others may read {', '.join(facts.open_key_files[:3])}" if facts.open_key_files else "private"
    return _found(
        "keys",
        not facts.open_key_files,
        value,
        "readable by the owner only",
        "chmod 600 " + " ".join(facts.open_key_files),
    )


def leftovers(facts: Facts) -> Finding:
    value = f"{len(facts.stale)} of dead nodes: {', '.join(facts.stale[:3])}" if facts.stale else "none"
    fix = "agents of a killed node may still run: `agentkit up` takes them over, `agentkit down` ends them"
    return _found("leftovers", not facts.stale, value, "no run directory of a dead node", fix, otherwise="warn")


def user(facts: Facts) -> Finding:
    return _found(
        "user", facts.uid != 0, f"uid {facts.uid}", "not root", "run the fleet as a user of its own", otherwise="warn"
    )


CHECKS: Final[tuple[Check, ...]] = (
    python_version, modules, uvloop, libzmq_version, curve, kernel, backlog, datagrams, open_files, tasks, memory, swap, overcommit,
    shared_memory, limits, run_dir_path, run_dir_owner, state_dir, disk, ports, names, clock, timer, keys, user, leftovers,
)  # fmt: skip


def examine(facts: Facts) -> list[Finding]:
    """Every check, in the order in which they are shown."""
    return [check(facts) for check in CHECKS]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else str(value)


def _ranges(numbers: list[int]) -> str:
    """`7200-7202,7210`: as the kernel reads it."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
