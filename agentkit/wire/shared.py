"""Memory that processes of one machine share: `Shared(array)`.

A sealed memfd. The receiver opens it by /proc/<pid>/fd/<n> of its owner and maps it; what travels is a descriptor of 100 bytes. The kernel
frees it when nobody has it open or mapped, so whoever dies leaves nothing behind. multiprocessing.shared_memory was rejected: it
starts a resource tracker (a process of 6.7 MB beside every agent), which unlinks a segment when any process that attached it ends,
and without it a killed process leaves its segments in /dev/shm for ever."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from agentkit.wire.flat import Buffer, flatten, shaped
from agentkit.wire.values import Undecodable

#: Begins a frame that is a descriptor instead of data.
_MAGIC: Final = b"\x00AK1 shared\x00"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
#: Taken from one file in one `write`, in bytes: the kernel's own limit is 2 GiB.
_WRITE_BYTES: Final = 1 << 30


class Shared:
    """A copy of `value` (a numpy array, bytes, or a memoryview) that other processes of this machine read without copying it.

    As an argument or a result: a receiver on this machine gets a read-only array (memoryview, for bytes bytes) on the shared memory, any
    other gets the data as if they were sent plainly. May be sent again and to many. The memory is freed when this object and all
    that receivers made of it are gone, or their processes. Making it copies once: 64 MB take about 30 ms, so do it in a thread
    (`asyncio.to_thread(Shared, array)`) where the loop must not wait. TypeError: such a value does not travel."""

    def __init__(self, value: Any) -> None:
        flat, self.form, self.rest = flatten(value)
        self.size_bytes = len(flat)
        self._token = secrets.token_hex(16)
        self._fd = os.memfd_create(f"agentkit-{self._token}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            written = 0
            while written < self.size_bytes:
                written += os.write(self._fd, flat[written : written + _WRITE_BYTES])
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self._fd)
            raise
        self._owner_pid = os.getpid()

    def __del__(self) -> None:
        if hasattr(self, "_owner_pid"):  # else __init__ has closed it
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<Shared {self.size_bytes:,} bytes>"

    @property
    def value(self) -> Any:
        """What it holds, as a receiver on this machine sees it."""
        return shaped(self.memory(), self.form, [self.rest[0], list(self.rest[1]), *self.rest[2:]] if self.rest else [])

    def memory(self) -> memoryview:
        """Its bytes, read-only."""
        return _mapped(self._fd, self.size_bytes)

    def descriptor(self) -> bytes:
        """What another process needs to find it."""
        return _MAGIC + msgpack.packb((os.getpid(), self._fd, self._token, self.size_bytes))  # type: ignore[no-any-return]


class SharedFrame(NamedTuple):
    """One attachment of a Shared. As a descriptor in the first frame and nothing in the others, or as data."""

    owner: Shared
    start: int
    size: int

    def data(self) -> memoryview:
        return self.owner.memory()[self.start : self.start + self.size]

    def descriptor(self) -> bytes:
        return b"" if self.start else self.owner.descriptor()


def frames_for(attachments: Sequence[Buffer | SharedFrame], *, may_share: bool) -> Sequence[Buffer]:
    """The attachments as frames for a peer that can map this process's memory, or that can't."""
    if not any(type(frame) is SharedFrame for frame in attachments):
        return attachments  # type: ignore[return-value]
    return [
        (frame.descriptor() if may_share else frame.data()) if isinstance(frame, SharedFrame) else frame
        for frame in attachments
    ]


def is_descriptor(frame: Buffer) -> bool:
    return len(frame) < 256 and bytes(frame[: len(_MAGIC)]) == _MAGIC


def mapped(frame: Buffer) -> memoryview:
    """The memory that a descriptor names; Undecodable when it is not there, or no Shared.

    Only a memfd whose name holds the token is taken: nobody makes us open a file by its number who was not given it."""
    try:
        pid, fd, token, size = msgpack.unpackb(bytes(frame[len(_MAGIC) :]))
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise Undecodable(f"a descriptor that can't be read: {type(exc).__name__}") from exc
    if type(pid) is not int or type(fd) is not int or type(token) is not str or type(size) is not int or size < 1:
        raise Undecodable("a descriptor with wrong fields")
    path, name = f"/proc/{pid}/fd/{fd}", f"/memfd:agentkit-{token} (deleted)"
    try:
        if (
            str(Path(path).readlink()) != name
        ):  # looked at before it is opened: opening a device or a pipe may do things
            raise Undecodable("shared memory that is gone")
        own = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            is_it = (
                str(Path(f"/proc/self/fd/{own}").readlink()) == name
                and fcntl.fcntl(own, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            )
            if not is_it or os.fstat(own).st_size != size:
                raise Undecodable("shared memory that is not what was said")
            return _mapped(own, size)
        finally:
            os.close(own)
    except (OSError, ValueError, OverflowError) as exc:
        raise Undecodable(f"shared memory of process {pid}: {exc}") from exc


def _mapped(fd: int, size: int) -> memoryview:
    if not size:
        return memoryview(b"")
    return memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ))


def capability() -> tuple[str, ...]:
    """The word that processes have in common which can map each other's memory, for HELLO and WELCOME; nothing where it can't be done."""
    return _capability(os.geteuid())


@functools.lru_cache(maxsize=1)
def _capability(uid: int) -> tuple[str, ...]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = [Path(f"/proc/self/ns/{kind}").stat().st_ino for kind in ("pid", "user")]
        if Path("/proc/self").stat().st_uid != uid:  # others may not look into a process that has changed its user
            return ()
    except OSError:
        return ()
    return (f"memory-{hashlib.sha256(f'{boot} {spaces} {uid}'.encode()).hexdigest()[:16]}",)


def may_share(capabilities: Sequence[str]) -> bool:
    """Whether a peer with these words maps our memory, and we its."""
    return bool(capability()) and capability()[0] in capabilities
