"""Starting other processes of the launcher: the boot process (by the CLI), another zygote (by a node). Only the standard library."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from startup.node.options import BootOptions, NodeOptions

#: Connections that may wait for a zygote: one node, and whoever looks whether it lives.
_ZYGOTE_BACKLOG: Final = 16

#: Where a launched zygote finds its listening socket: any number that is not 0, 1, 2.
_HANDED_DOWN: Final = 3

_ROOT: Final = str(Path(__file__).resolve().parents[2])


def boot_command(options: BootOptions) -> list[str]:
    """The command line of `startup.node.boot` with `options`, in the same Python; to be used with `boot_environment()`."""
    return [sys.executable, "-m", "startup.node.boot", *options.to_argv()]


def boot_environment() -> dict[str, str]:
    """Ours, with the place of this package on PYTHONPATH when Python would not find it from another folder."""
    found = dict(os.environ)
    if not _ROOT.endswith("site-packages"):
        # absolute: the node's folder is /, and its zygote may start afresh from there
        given = (str(Path(path).absolute()) for path in found.get("PYTHONPATH", "").split(os.pathsep) if path)
        others = [path for path in given if path != _ROOT]
        found["PYTHONPATH"] = os.pathsep.join([_ROOT, *others])
    return found


def settle_path() -> None:
    """Make sys.path independent of the folder that we were started in, and take out what `python -m` put there: that folder."""
    if sys.path[:1] == [str(Path.cwd())] and sys.path[0] != _ROOT:
        del sys.path[0]
    sys.path[:] = [str(Path(path).absolute()) for path in sys.path if path]


def launch_zygote(options: NodeOptions, preload: Sequence[str] = ()) -> int:
    """Start another zygote as a child of this node; returns its pid. It can be connected to at once. OSError: it can't be started."""
    listener = bind_zygote(options.places.zygote)
    try:
        return os.posix_spawn(
            sys.executable,
            boot_command(options.zygote(tuple(preload), listener_fd=_HANDED_DOWN)),
            boot_environment(),
            file_actions=[(os.POSIX_SPAWN_DUP2, listener.fileno(), _HANDED_DOWN)],
            setsid=True,
        )
    finally:
        listener.close()


def bind_zygote(path: Path) -> socket.socket:
    """The zygote's listening socket, in place of any that stands there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(_ZYGOTE_BACKLOG)
    return listener


def zygote_answers(path: Path) -> bool:
    """Whether a zygote listens there; a connection without a hello means nothing to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
