"""What a node, its zygote and the process that boots them are told on their command line."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agentkit.directory.locate import run_root
from startup.node.paths import Lock, Places, state_root

#: How the boot process ends when a node runs already for a machine (sysexits.h: try again later).
EXIT_ALREADY_RUNS: Final = 75
#: ... and when a machine's folders can't be used.
EXIT_UNFIT: Final = 2


class NodeOptions(NamedTuple):
    """One machine's node. Handed to `startup.node.daemon.run`; the zygote keeps it to start the next node."""

    places: Places
    file: str = ""  #: the configuration that the cluster came from; "" if not known yet
    supervised: bool = False  #: somebody else (systemd) starts the node again, the zygote does not
    foreground: bool = False  #: logs go to the terminal that started it
    nofile: int = 1024  #: soft limit on descriptors of the processes that are forked: ours is raised, theirs is not
    host: str = ""  #: this machine's address for other nodes, until a revision says it; "": loopback
    node_port: int = 0  #: likewise; 0: the kernel chooses
    control_fd: int = -1  #: listening socket of the control conversation, of the node before; -1: a new one
    channel: socket.socket | None = None  #: to the node that this one takes over from (heirs.py)
    upgrade_error: str = ""  #: why the last heir did not come up
    lock: Lock | None = None  #: the machine's, taken by whoever booted the node; it is the node's from then on

    @property
    def node_log(self) -> str:
        return str(self.places.logs / "node.log")

    def heir(self) -> BootOptions:
        """The command line for a node that takes over from this one."""
        return self.zygote((), listener_fd=-1)._replace(zygote_only=False, heir=True)

    def zygote(self, preload: tuple[str, ...], *, listener_fd: int, resume_fd: int = -1) -> BootOptions:
        """The command line for another zygote of this machine."""
        return BootOptions(
            cluster=self.places.cluster,
            machines=(self.places.machine,),
            run_root=str(self.places.run.parent.parent),
            state_root=str(self.places.state.parent.parent),
            file=self.file,
            preload=preload,
            supervised=self.supervised,
            foreground=self.foreground,
            nofile=self.nofile,
            host=self.host,
            node_port=self.node_port,
            zygote_only=True,
            zygote_fd=listener_fd,
            resume_fd=resume_fd,
        )


class BootOptions(NamedTuple):
    """The whole command line of `startup.node.boot`."""

    cluster: str = ""
    machines: tuple[str, ...] = ()
    run_root: str = ""  #: <run_root>/<cluster>/<machine> is a machine's run directory
    state_root: str = ""
    file: str = ""
    preload: tuple[str, ...] = ()
    supervised: bool = False
    foreground: bool = False
    nofile: int = 0  #: soft limit on descriptors of the processes that are forked; 0: what boot itself was started with
    host: str = ""  #: address and port for other nodes, of a machine that has no revision yet
    node_port: int = 0
    zygote_only: bool = False
    zygote_fd: int = -1  #: the zygote's listening socket, handed down by who started it
    resume_fd: int = -1  #: what a zygote left for its own next image
    from_stdin: bool = False
    heir: bool = False  #: takes over from a node; what it gets: heirs.py

    def node(self, machine: str) -> NodeOptions:
        return NodeOptions(
            places=Places(
                self.cluster,
                machine,
                Path(self.run_root, self.cluster, machine),
                Path(self.state_root, self.cluster, machine),
            ),
            file=self.file,
            supervised=self.supervised,
            foreground=self.foreground,
            nofile=self.nofile,
            host=self.host,
            node_port=self.node_port,
        )

    def to_argv(self) -> list[str]:
        """Arguments that `parse` reads back to an equal value."""
        argv = ["--cluster", self.cluster, "--run-dir", self.run_root, "--state-dir", self.state_root]
        for machine in self.machines:
            argv += ["--machine", machine]
        if self.file:
            argv += ["--file", self.file]
        if self.preload:
            argv += ["--preload", ",".join(self.preload)]
        if self.nofile:
            argv += ["--nofile", str(self.nofile)]
        if self.host:
            argv += ["--host", self.host]
        if self.node_port:
            argv += ["--node-port", str(self.node_port)]
        if self.zygote_fd >= 0:
            argv += ["--zygote-fd", str(self.zygote_fd)]
        if self.resume_fd >= 0:
            argv += ["--resume-fd", str(self.resume_fd)]
        for name in ("supervised", "foreground", "zygote_only", "from_stdin", "heir"):
            if getattr(self, name):
                argv.append("--" + name.replace("_", "-"))
        return argv


def parse(argv: Sequence[str]) -> BootOptions:
    """The command line; SystemExit(2) with usage when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m startup.node.boot", description="Boots the node of one or more machines."
    )
    parser.add_argument("--cluster", default="")
    parser.add_argument(
        "--machine", dest="machines", action="append", default=[], help="may be given several times: one import for all"
    )
    parser.add_argument(
        "--run-dir", dest="run_root", default=str(run_root()), help="root: a machine's own is ROOT/CLUSTER/MACHINE"
    )
    parser.add_argument("--state-dir", dest="state_root", default=str(state_root()), help="root, likewise")
    parser.add_argument("--file", default="", help="the configuration, for `hello` and `status`")
    parser.add_argument(
        "--preload", type=_names, default=(), help="modules that the zygote imports too, separated by commas"
    )
    parser.add_argument("--supervised", action="store_true", help="somebody else starts the node again when it dies")
    parser.add_argument("--foreground", action="store_true", help="this process becomes the node (one machine only)")
    parser.add_argument(
        "--from-stdin", action="store_true", help="cluster, machines, file, preload come as one JSON object"
    )
    parser.add_argument(
        "--nofile", type=int, default=0, help="soft limit on descriptors of the processes that are forked"
    )
    parser.add_argument("--host", default="", help="listen here for other nodes, until a revision says where")
    parser.add_argument("--node-port", type=int, default=0, help="... on this port; 0: any")
    parser.add_argument("--zygote-only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--heir", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--zygote-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--resume-fd", type=int, default=-1, help=argparse.SUPPRESS)
    found = vars(parser.parse_args(argv))
    options = BootOptions(**found | {"machines": tuple(found["machines"])})
    if not options.from_stdin and not (options.cluster and options.machines):
        parser.error("--cluster and --machine are needed, or --from-stdin")
    if (options.foreground or options.zygote_only) and len(options.machines) != 1:
        parser.error("--foreground and --zygote-only take exactly one --machine")
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
