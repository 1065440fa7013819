"""Network namespaces for tests that run beside each other: `python apart.py COMMAND...` runs a command in one of its own.

Nobody else listens there, so that tests may use any port, and a port that was found free stays free. Root has the right to make
one; another user gets it in a user namespace, in which he is who he was and has, once the command is exec'd, no rights more.
Only the standard library, because it runs before any of the project is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import socket
import struct
import subprocess
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("16sh22x")


def prefix() -> list[str]:
    """What stands before a command that shall run apart. Without `site`: nothing is imported or measured on the way."""
    return [sys.executable, "-I", "-S", str(Path(__file__))]


def refusal() -> str:
    """Why nothing can run apart here; empty when it can."""
    done = subprocess.run(
        [*prefix(), sys.executable, "-I", "-S", "-c", ""], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def worker() -> str:
    """One of pytest-xdist's workers, as `--tx` has it."""
    return f"popen//python={shlex.join([*prefix(), sys.executable])}"


def enter() -> None:
    """Leave for a namespace of our own, in which 127.0.0.1 works. For a process with one thread; OSError: not allowed here."""
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWNET if uid == 0 else _CLONE_NEWNET | _CLONE_NEWUSER)
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def _unshare(what: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(what):
        code = ctypes.get_errno()
        raise OSError(code, f"no network namespace of one's own: {os.strerror(code)}")


if __name__ == "__main__":
    enter()
    os.execvp(sys.argv[1], sys.argv[1:])
