"""What the kernel offers and Python 3.11 does not wrap. Each function does one system call, or writes one known place in memory."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

# Looked up here: each fork would do it again. None: a libc without it (musl, glibc before 2.34)
_close_range: Final = getattr(_libc, "close_range", None)
if _close_range is not None:
    _close_range.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_int]

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
#: All but the two that the C library keeps for its threads.
_SIGNALS: Final = (*range(1, 32), *range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
_ALL: Final = 0xFFFFFFFF


def become_subreaper() -> None:
    """Orphans among our descendants become our children instead of init's. Kept over exec, not inherited by fork."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0):
        raise _failed("prctl(PR_SET_CHILD_SUBREAPER)")


def forbid_new_privileges() -> None:
    """From now on no exec gives this process, or one that it starts, more rights than it has (setuid programs, file capabilities)."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0):
        raise _failed("prctl(PR_SET_NO_NEW_PRIVS)")


def close_from(lowest: int) -> None:
    """Close every descriptor from `lowest` on, however high the limit is."""
    if _close_range is None or _close_range(lowest, _ALL, 0):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, as numbers
            if int(name) >= lowest:
                try:
                    os.close(int(name))
                except OSError as exc:  # the listing's own descriptor is gone by now
                    if exc.errno != errno.EBADF:
                        raise


def collapse(fd: int, length: int) -> bool:
    """Cut the first `length` bytes off a file while others append to it; False where the file system can't (tmpfs, btrfs)."""
    return bool(_libc.fallocate(fd, _FALLOC_FL_COLLAPSE_RANGE, 0, length) == 0)


def mark_environment(marks: bytes) -> bool:
    """Show `marks` (NAME=value, each ending in NUL) in our /proc/PID/environ, and in that of every process forked from us.

    That file shows the memory where exec left the environment, so in a forked process it shows the parent's, whatever
    os.environ says. The end of that memory is overwritten: call it after os.environ was replaced (so that nothing points there
    any more) and after the first setproctitle (which uses the memory from its beginning). False when it is too small."""
    marks = b"\0" + marks  # whatever stands before them ends there
    fields = _read("/proc/self/stat").rpartition(b")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    if not start or end - start < len(marks):
        return False
    ctypes.memmove(end - len(marks), marks, len(marks))
    return True


def handled_signals() -> list[int]:
    """The signals that this process ignores or has a handler for. Python's own way asks for 64, with an enumeration's member for each."""
    status = _read("/proc/self/status")
    masks = (int(status.partition(name)[2].split(None, 1)[0], 16) for name in (b"\nSigIgn:", b"\nSigCgt:"))
    handled = next(masks) | next(masks)
    return [number for number in _SIGNALS if handled >> (number - 1) & 1]


def raise_nofile(wanted: int) -> int:
    """Raise our soft limit on descriptors to `wanted`, or as far as the hard one allows; returns what it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return soft


def _read(path: str) -> bytes:
    """A short file of /proc in one read: a file object is 30 pages that a fork would copy."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 8192)
    finally:
        os.close(fd)


def _failed(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
