"""What a node must not forget: the revision it acts on, the incarnations it gave out, what its processes were doing.

Everything is one user's (0600). Revisions and counters are replaced atomically and are on disk before anybody is told of them;
what the processes were doing outlives the node, not the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import msgpack

from agentkit.names import Incarnation
from startup.errors import Conflict, Refused
from startup.node.memory import after_boot
from startup.node.paths import Places, write_atomically
from startup.plan.revision import CONTROL_VERSION, Revision
from startup.plan.words import in_words

#: Incarnations taken from the file at a time: one fsync (1-20 ms) serves so many forks, and a crash wastes at most these.
INCARNATIONS_PER_BLOCK: Final = 1000
#: Revisions kept for `rollback`.
REVISIONS_KEPT: Final = 20

#: Changes of processes are written behind the snapshot up to this length; then there is a new snapshot.
MAX_CHANGES_BYTES: Final = 1024 * 1024

#: memory.facts_of
Facts: TypeAlias = dict[str, Any]

_SNAPSHOT: Final = "processes.msgpack"
_CHANGES: Final = "processes.changes"
_CHANGES_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Unreadable(Exception):
    """A file of ours can't be read; says which, and what to do."""


class Revisions:
    """The current revision and the last few before it."""

    def __init__(self, places: Places, wall_s: Callable[[], float] = time.time) -> None:
        self._file = places.state / "revision.msgpack"
        self._folder = places.state / "revisions"
        self._wall_s = wall_s
        self.current = self._load(self._file)
        self._taken_s = (
            self._file.stat().st_mtime if self.current else 0.0
        )  # the clock of its author may differ by hours
        self._summary: tuple[Revision, dict[str, Any]] | None = None

    @property
    def number(self) -> int:
        """0: there is none."""
        return self.current.number if self.current else 0

    def summary(self) -> dict[str, Any] | None:
        """What `hello` and `status` tell of the current one; its digest is worked out once."""
        if self.current is None:
            return None
        if self._summary is None or self._summary[0] is not self.current:
            self._summary = (self.current, self.current.summary())
        return self._summary[1]

    def propose(self, expected: int, revision: Revision, wire: object = None) -> None:
        """Make `revision` the current one, on disk. Conflict when another came first, Refused when it can't be ours.

        `wire`: what it was read from, to be stored as it came."""
        if expected != self.number:
            raise Conflict(self._conflict(), {"number": self.number})
        if revision.number <= self.number:
            raise Refused("bad_revision", f"revision {revision.number} does not follow {self.number}")
        if revision.control_version != CONTROL_VERSION:
            raise Refused(
                "control_version",
                f"this node speaks control version {CONTROL_VERSION}, the revision is of version {revision.control_version}; "
                "install the same agentkit on both sides, `agentkit down`, then `up`",
            )
        data = msgpack.packb(wire or revision.to_wire())
        write_atomically(self._file, data)
        kept = self._folder / f"{revision.number:08d}.msgpack"
        kept.unlink(missing_ok=True)
        os.link(self._file, kept)
        for old in sorted(self._folder.glob("*.msgpack"))[:-REVISIONS_KEPT]:
            old.unlink(missing_ok=True)
        self.current = revision
        self._taken_s = self._wall_s()

    def earlier(self, number: int) -> Revision | None:
        """One of the revisions that are kept."""
        return self._load(self._folder / f"{number:08d}.msgpack")

    def kept(self) -> list[int]:
        """The numbers of all revisions that are kept, the current one's included."""
        return sorted(int(path.stem) for path in self._folder.glob("*.msgpack") if path.stem.isdigit())

    def stored(self, number: int) -> dict[str, Any] | None:
        """One of them as it was stored; None: it is not kept. Unreadable."""
        path = self._folder / f"{number:08d}.msgpack"
        try:
            return dict(msgpack.unpackb(path.read_bytes(), strict_map_key=False))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as exc:
            raise Unreadable(f"{path} is no revision ({exc}); move it away") from exc

    def _conflict(self) -> str:
        if self.current is None:
            return "conflict: this node has no revision"
        ago = in_words(max(0.0, self._wall_s() - self._taken_s))
        return f"conflict: revision {self.current.number} by {self.current.author} {ago} ago"

    def _load(self, path: Path) -> Revision | None:
        try:
            return Revision.from_wire(msgpack.unpackb(path.read_bytes(), strict_map_key=False))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise Unreadable(
                f"{path} is no revision of this version ({exc}); move it away, then `agentkit up` again"
            ) from exc


class Incarnations:
    """Numbers that are never given twice, whatever crashes in between. While the state directory can't be written (its disk is full)
    they are noted in the run directory."""

    def __init__(self, places: Places, wall_s: Callable[[], float] = time.time) -> None:
        self._file = places.state / "counters"
        self._stand_in = places.run / "counters"
        try:
            self._next = int(self._file.read_text())
        except FileNotFoundError:
            # Above all that this machine's agents may have had before its state directory was lost, as what is kept elsewhere
            # (states in Redis) knows the last: no node takes blocks faster than one a second for long
            self._next = max(1, int(wall_s() * INCARNATIONS_PER_BLOCK))
        except ValueError as exc:
            raise Unreadable(
                f"{self._file} holds no number; write one into it that is above every incarnation in the logs"
            ) from exc
        with suppress(OSError, ValueError):
            self._next = max(self._next, int(self._stand_in.read_text()))
        self._reserved = self._next

    def take(self) -> Incarnation:
        """The next one."""
        if self._next >= self._reserved:
            self._reserved = self._next + INCARNATIONS_PER_BLOCK
            noted = b"%d\n" % self._reserved
            try:
                write_atomically(self._file, noted)
            except OSError:
                write_atomically(self._stand_in, noted, durable=False)
        taken = self._next
        self._next += 1
        return Incarnation(taken)


class Remembered:
    """What the processes were doing, by agent id (as text): a snapshot, and behind it what has changed since.

    A change costs one write to the page cache (10 us), so that whoever kills a node in any instant finds what it knew. Nothing
    is durable: after a power cut there are no processes to be remembered. While the state directory can't be written (its disk is
    full) all of it is in the run directory; each `begin` tries the state directory first."""

    def __init__(self, places: Places) -> None:
        self.trouble = ""  #: why the state directory can't be written
        self._state = places.state
        self._stand_in = places.run
        self._file: IO[bytes] | None = None

    def load(self) -> dict[str, Facts]:
        """Empty when there is nothing readable. Of what is from before the machine booted only who slept: pids and times mean nothing
        now."""
        for folder in (self._stand_in, self._state):
            try:
                kept = msgpack.unpackb((folder / _SNAPSHOT).read_bytes(), strict_map_key=False)
                is_of_this_boot = kept["boot"] == _boot_id()
                facts = dict(kept["processes"])
            except (OSError, ValueError, TypeError, KeyError):
                continue
            facts.update(_read_changes(folder / _CHANGES))
            if not is_of_this_boot:
                facts = {id: found and after_boot(found) for id, found in facts.items()}
            return {id: found for id, found in facts.items() if found is not None}
        return {}

    def begin(self, facts: Mapping[str, Facts]) -> None:
        """A new snapshot; changes follow it from here on. OSError: it can be written nowhere."""
        self.close()
        data = msgpack.packb({"boot": _boot_id(), "processes": facts})
        try:
            self._begin_in(self._state, data)
        except OSError as exc:
            self.trouble = f"{self._state} can't be written: {exc.strerror or exc}"
            self._begin_in(self._stand_in, data)
        else:
            self.trouble = ""
            (self._stand_in / _SNAPSHOT).unlink(missing_ok=True)

    def change(self, facts: Mapping[str, Facts | None]) -> bool:
        """Note what these are doing now; None: the slot is gone. True when it is time to `begin` again."""
        data = b"".join(msgpack.packb(change) for change in facts.items())
        try:
            if self._file is None or self._file.write(data) != len(data):
                return True
        except OSError:
            return True
        return self._file.tell() > MAX_CHANGES_BYTES

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin_in(self, folder: Path, data: bytes) -> None:
        # first emptied: what follows an older snapshot must never be read behind a newer one
        file = os.fdopen(os.open(folder / _CHANGES, _CHANGES_FLAGS, 0o600), "wb", buffering=0)
        try:
            write_atomically(folder / _SNAPSHOT, data, durable=False)
        except OSError:
            file.close()
            raise
        self._file = file


def _read_changes(path: Path) -> Iterator[tuple[str, Facts | None]]:
    try:
        with open(path, "rb") as file:
            for id, facts in msgpack.Unpacker(file, strict_map_key=False):
                yield str(id), facts
    except (OSError, ValueError, TypeError):
        return  # the last one may have been cut off in the middle


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
