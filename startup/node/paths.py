"""Where a node keeps its files: the run directory (sockets, lock, pid) and the state directory (revisions, logs, data).

Both are the owner's alone. Only the standard library is imported: the CLI finds nodes with this and starts in under 100 ms.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from agentkit.directory.locate import RUN_DIR_VARIABLE, NodeInfo, run_root
from agentkit.errors import ConfigError
from startup.errors import NodeRuns

STATE_DIR_VARIABLE: Final = "AGENTKIT_STATE_DIR"

#: Bytes of a unix socket's path that the kernel takes, the final NUL not counted (unix(7): sun_path is 108).
MAX_SOCKET_PATH_BYTES: Final = 107
#: Below the run root and the state root; no cluster has a name that begins with a dot.
OTHER_USERS: Final = ".users"
_LONGEST_SOCKET_NAME: Final = "zygote.sock"


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of all clusters' state directories."""
    if chosen := environ.get(STATE_DIR_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(environ.get("HOME") or Path.home()) / ".local" / "state" / "agentkit"


@dataclass(frozen=True, slots=True)
class Places:
    """The two directories of one machine's node, and the files in them that others know."""

    cluster: str
    machine: str
    run: Path
    state: Path

    @classmethod
    def of(cls, cluster: str, machine: str, environ: Mapping[str, str] = os.environ) -> Places:
        return cls(cluster, machine, run_root(environ) / cluster / machine, state_root(environ) / cluster / machine)

    def announce(self, info: NodeInfo) -> None:
        """Write node.json: from now on the node is found (agentkit.directory.locate)."""
        write_atomically(self.node, json.dumps(asdict(info)).encode(), durable=False)

    @property
    def control(self) -> Path:
        return self.run / "node.sock"

    @property
    def notify(self) -> Path:
        return self.run / "notify.sock"

    @property
    def doors(self) -> Path:
        """For agents of other users (doors.py): this folder lies beside what is closed to them."""
        return self.run.parent.parent / OTHER_USERS / self.cluster / self.machine

    @property
    def zygote(self) -> Path:
        return self.run / _LONGEST_SOCKET_NAME

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def node(self) -> Path:
        return self.run / "node.json"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def log(self, instance: str) -> Path:
        return self.logs / f"{instance}.log"

    def data(self, instance: str) -> Path:
        """An agent's own folder; made when the agent is first forked."""
        return self.state / "data" / instance

    def prepare(self) -> None:
        """Make what is missing, 0700. ConfigError when a path is too long for a socket, or belongs to somebody else."""
        socket = os.fsencode(self.run / _LONGEST_SOCKET_NAME)
        if len(socket) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                at=f"run directory {self.run}",
                got=f"socket paths of {len(socket)} bytes",
                want=f"at most {MAX_SOCKET_PATH_BYTES}, the kernel's limit",
                fix=f"set {RUN_DIR_VARIABLE} to a shorter folder, or choose a shorter cluster name",
            )
        for leaf, variable in ((self.run, RUN_DIR_VARIABLE), (self.state, STATE_DIR_VARIABLE)):
            leaf.parent.parent.parent.mkdir(parents=True, exist_ok=True)
            for folder in (leaf.parent.parent, leaf.parent, leaf):
                own_folder(folder, variable)
        for folder in (self.logs, self.state / "data", self.state / "revisions"):
            own_folder(folder, STATE_DIR_VARIABLE)


def own_folder(folder: Path, variable: str = STATE_DIR_VARIABLE) -> None:
    """A folder that only its owner can enter; ConfigError when it is no folder of ours. `variable` moves it."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        what = f"a folder of uid {found.st_uid}" if stat.S_ISDIR(found.st_mode) else "no folder"
        raise ConfigError(
            at=str(folder),
            got=what,
            want=f"a folder of uid {os.getuid()}",
            fix=f"remove it, or set {variable} to a folder of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o066:  # to pass through is for doors.py to give
        folder.chmod(0o700)


def write_atomically(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Replace `path` by `data`: readers see the old or the new whole. `durable`: it survives a power cut, too. `mode`: as far as
    the umask lets it."""
    # not tempfile, which would cost every command 12 ms: one process writes each of these files, whoever has the lock
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Lock:
    """One node per cluster and machine: held by its process, and by nobody as soon as that is gone, however it went."""

    def __init__(self, places: Places) -> None:
        """Takes the lock; NodeRuns when another process has it."""
        self._file = open(os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._file.read().strip()
            self._file.close()
            raise NodeRuns(f"{places.cluster}/{places.machine}", int(holder) if holder.isdigit() else None) from None
        self.renew()

    @classmethod
    def inherited(cls, descriptor: int) -> Self:
        """Held together with the node that hands it down, and by this process alone when that ends."""
        lock = cls.__new__(cls)
        lock._file = open(descriptor, "r+")  # noqa: SIM115
        lock.renew()
        return lock

    def renew(self) -> None:
        """This process is the one that holds it."""
        self._file.seek(0)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def release(self) -> None:
        self._file.close()
