"""Gathers what `doctor` judges: reads /proc and /sys, asks the kernel, tries things out. Changes nothing."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from agentkit.directory.locate import is_answering, node_files, run_root
from startup.cli.fitness import Facts
from startup.node.limits.bounds import foreseen
from startup.node.paths import Places

#: What must import; uvloop is among them. The names are those of modules.
MODULES: Final = (
    "zmq", "msgpack", "uvloop", "pydantic", "psutil", "prometheus_client", "structlog", "starlette", "uvicorn", "httptools",
    "setproctitle", "yaml",
)  # fmt: skip
_DISTRIBUTIONS: Final = {"zmq": "pyzmq", "yaml": "PyYAML", "prometheus_client": "prometheus-client"}

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Linux mounts it

# in a child: a broken binary may kill whoever imports it
_PROBE: Final = """
import importlib, importlib.metadata, json, sys
names, distributions = json.loads(sys.argv[1])
found = {"modules": {}, "libzmq": None, "curve": False}
for name in names:
    try:
        importlib.import_module(name)
        found["modules"][name] = importlib.metadata.version(distributions.get(name, name))
    except Exception:
        found["modules"][name] = ""
if found["modules"].get("zmq"):
    import zmq
    found["libzmq"], found["curve"] = list(zmq.zmq_version_info()), bool(zmq.has("curve"))
print(json.dumps(found))
"""


def gather(
    cluster: str, machine: str, *, agents: int, ports: Iterable[int] = (), environ: Mapping[str, str] = os.environ
) -> Facts:
    """The facts of this machine for a fleet of `agents` agents here. Takes about as long as importing what agentkit imports."""
    places = Places.of(cluster, machine, environ)
    probed = _probe_modules()
    files_soft, files_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit, now = _tasks()
    owner, mode = _owner_and_mode(places.run)
    memory = _meminfo()
    limits, why = foreseen(environ)
    return Facts(
        agents=agents,
        ports=frozenset(ports),
        python=sys.version_info[:3],
        modules=probed["modules"],
        libzmq=tuple(probed["libzmq"]) if probed["libzmq"] else None,
        has_curve=probed["curve"],
        kernel=platform.release(),
        has_pidfd=_has_pidfd(),
        has_close_range=hasattr(ctypes.CDLL(None), "close_range"),
        somaxconn=_number("/proc/sys/net/core/somaxconn"),
        files_soft=files_soft,
        files_hard=files_hard,
        tasks_limit=limit,
        tasks_now=now,
        memory_available_mb=_least(memory.get("MemAvailable", 0) // 1024, _cgroup_memory_left_mb()),
        swap_used_mb=(memory.get("SwapTotal", 0) - memory.get("SwapFree", 0)) // 1024,
        overcommit=_number("/proc/sys/vm/overcommit_memory"),
        shm_free_mb=_free_mb(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None,
        limits=limits,
        limits_why=why,
        run_dir=str(places.run),
        run_dir_owner=owner,
        run_dir_mode=mode,
        run_dir_writable=_can_be_made(places.run),
        state_dir=str(places.state),
        state_dir_writable=_can_be_made(places.state),
        state_free_mb=_free_mb(_existing(places.state)),
        uid=os.getuid(),
        ephemeral_ports=_port_range(),
        reserved_ports=frozenset(_ranges(_text("/proc/sys/net/ipv4/ip_local_reserved_ports"))),
        datagram_queue=_number("/proc/sys/net/unix/max_dgram_qlen"),
        clock_synchronized=_clock_synchronized(),
        clock_resolution_s=time.clock_getres(time.CLOCK_MONOTONIC),
        hostname=socket.gethostname(),
        resolve_s={name: _resolve_s(name) for name in ("localhost", socket.gethostname())},
        open_key_files=tuple(_open_keys(Path("~/.config/agentkit/keys").expanduser())),
        stale=tuple(_stale(environ)),
    )


def _probe_modules() -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps([MODULES, _DISTRIBUTIONS])],
        capture_output=True,
        timeout=60,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(child.stdout)
    except ValueError:  # it died on one of them; which one is for the reader of its output to find
        found = {"modules": dict.fromkeys(MODULES, ""), "libzmq": None, "curve": False}
    return found


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _tasks() -> tuple[int | None, int]:
    """The lowest limit of processes and threads that holds for us, and how many count against it now."""
    candidates: list[tuple[int, int]] = []
    of_user = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if of_user >= 0 and os.getuid() != 0:  # root is not held to it
        candidates.append((of_user, _tasks_of_user()))
    of_cgroup = _cgroup_files("pids.max", "pids.current")
    if of_cgroup is not None:
        candidates.append(of_cgroup)
    of_kernel = _number("/proc/sys/kernel/threads-max")
    if of_kernel is not None:
        running = _text("/proc/loadavg").split()
        candidates.append((of_kernel, int(running[3].partition("/")[2]) if len(running) > 3 else 0))
    if not candidates:
        return None, 0
    return min(candidates, key=lambda pair: pair[0] - pair[1])


def _tasks_of_user() -> int:
    number = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == os.getuid():
                    number += sum(1 for _ in Path(f"/proc/{entry.name}/task").iterdir())
            except OSError:  # it has ended
                continue
    return number


def _meminfo() -> dict[str, int]:
    """In kB."""
    lines = (line.partition(":") for line in _text("/proc/meminfo").splitlines())
    return {key: int(value.split()[0]) for key, _, value in lines if value.split()}


def _cgroup_files(limit: str, used: str) -> tuple[int, int] | None:
    """Of our own cgroup (version 2); None when it has no limit or there is none."""
    own = _text("/proc/self/cgroup").strip().rpartition("::")[2]
    folder = Path("/sys/fs/cgroup") / own.lstrip("/")
    most, now = _number(folder / limit), _number(folder / used)
    return None if most is None or now is None else (most, now)


def _cgroup_memory_left_mb() -> int | None:
    found = _cgroup_files("memory.max", "memory.current")
    return None if found is None else max(0, found[0] - found[1]) // 2**20


def _least(value: int, other: int | None) -> int:
    return value if other is None else min(value, other)


def _owner_and_mode(path: Path) -> tuple[int | None, int | None]:
    """Of the folder, or of the nearest of its parents within the run root that exists."""
    for folder in (path, path.parent, path.parent.parent):
        try:
            found = folder.lstat()
        except OSError:
            continue
        return found.st_uid, stat.S_IMODE(found.st_mode)
    return None, None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _can_be_made(path: Path) -> bool:
    return os.access(_existing(path), os.W_OK | os.X_OK)


def _free_mb(path: Path) -> int:
    return shutil.disk_usage(path).free // 2**20


def _port_range() -> tuple[int, int] | None:
    parts = _text("/proc/sys/net/ipv4/ip_local_port_range").split()
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 else None


def _ranges(text: str) -> Iterator[int]:
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            yield from range(int(low), int(high or low) + 1)


def _clock_synchronized() -> bool | None:
    """What the kernel's NTP discipline says; None when it can't be asked."""
    buffer = ctypes.create_string_buffer(512)  # struct timex: modes = 0, we only read
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    return None if state < 0 else state != 5  # TIME_ERROR: not synchronised


def _resolve_s(name: str) -> float | None:
    """Seconds that it took, at most 5: a resolver may hang for much longer."""
    took: list[float] = []

    def look_up() -> None:
        began_s = time.monotonic()
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            return
        took.append(time.monotonic() - began_s)

    asking = threading.Thread(target=look_up, name=f"resolve {name}", daemon=True)
    asking.start()
    asking.join(5.0)
    return took[0] if took else None if not asking.is_alive() else 5.0


def _open_keys(folder: Path) -> Iterator[str]:
    """Private keys that somebody else may read."""
    for path in sorted(folder.glob("*secret*")) if folder.is_dir() else ():
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield str(path)


def _stale(environ: Mapping[str, str]) -> Iterator[str]:
    """Clusters and machines whose node left its files behind: it was killed, and no zygote is there to start it again."""
    # a zygote takes whoever connects for its node: it is looked up instead
    listening = {fields[7] for line in _text("/proc/net/unix").splitlines() if len(fields := line.split()) > 7}
    for info in node_files(run_root(environ)):
        zygote = Places.of(info.cluster, info.machine, environ).zygote
        if str(zygote) not in listening and not is_answering(info.control):
            yield f"{info.cluster}/{info.machine}"


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""


def _number(path: str | Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
