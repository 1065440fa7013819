"""Finds the nodes of this machine: each writes a node.json into its run directory. Standard library only: the CLI must be quick."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentkit.errors import NoNode

RUN_DIR_VARIABLE: Final = "AGENTKIT_RUN_DIR"
#: Where a fleet is looked for when none is named, below the current folder; its `cluster:` is the default one.
DEFAULT_FILES: Final = ("configs/startup_config.yaml", "startup_config.yaml")

_CLUSTER_LINE: Final = re.compile(r"^cluster:\s*[\"']?([A-Za-z_][A-Za-z0-9_.\-]*)[\"']?\s*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What a node tells of itself in node.json, for those who look for one."""

    cluster: str
    machine: str
    pid: int
    control: str  #: path of its control socket
    mesh: str | None  #: where other nodes connect, "tcp://host:port"
    file: str | None  #: the fleet's file, once there is a revision
    project_root: str | None
    started_s: float  #: seconds since the epoch

    @classmethod
    def read(cls, path: Path) -> NodeInfo | None:
        """None: no such file, or not one of this version."""
        try:
            facts: dict[str, Any] = json.loads(path.read_bytes())
            return cls(**facts)
        except (OSError, ValueError, TypeError):
            return None


def run_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of all clusters' run directories, as this user has it."""
    if chosen := environ.get(RUN_DIR_VARIABLE):
        return Path(chosen).expanduser().absolute()
    # whatever the environment says: su, cron and systemd units have no XDG_RUNTIME_DIR, and must find the same nodes
    of_user = Path(f"/run/user/{os.getuid()}")
    return of_user / "agentkit" if of_user.is_dir() else Path(f"/tmp/agentkit-{os.getuid()}")  # noqa: S108 - owner is checked


def node_files(root: Path, cluster: str | None = None) -> Iterator[NodeInfo]:
    """What nodes have written of themselves below `root`, by name; they may be gone."""
    for path in sorted(root.glob(f"{cluster or '*'}/*/node.json")):
        if info := NodeInfo.read(path):
            yield info


def running_nodes(cluster: str | None = None, environ: Mapping[str, str] = os.environ) -> tuple[NodeInfo, ...]:
    """The nodes of this user that answer on this machine, by cluster and machine name."""
    return tuple(info for info in node_files(run_root(environ), cluster) if is_answering(info.control))


def is_answering(path: str | os.PathLike[str]) -> bool:
    """Whether somebody listens at a node's control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(os.fspath(path))
        except OSError:
            return False
        return True


def find_node(
    cluster: str | None = None, environ: Mapping[str, str] = os.environ, folder: Path | None = None
) -> NodeInfo:
    """The node to talk to: of `cluster`, else the one that AGENTKIT_NODE names, else of the cluster that the default file in
    `folder` (here) names if it runs, else of the only running cluster. NoNode lists what was found."""
    if cluster is None and (path := environ.get("AGENTKIT_NODE")):
        return _at(Path(path))
    found = running_nodes(environ=environ)
    default = default_cluster(folder or Path.cwd())
    clusters = {info.cluster for info in found}
    only = next(iter(clusters)) if len(clusters) == 1 else None
    chosen = cluster or (default if default in clusters else only)
    for info in found:
        if info.cluster == chosen:
            return info
    names = ", ".join(sorted(clusters)) or "none"
    if cluster is not None:
        raise NoNode(f"no node of cluster {cluster!r} runs here (running: {names}); `agentkit up` starts one")
    if not clusters:
        raise NoNode(f"no node runs here (looked below {run_root(environ)}); `agentkit up` starts one")
    raise NoNode(f"several clusters run here ({names}); choose one with --cluster NAME")


def default_file(folder: Path) -> Path | None:
    """The fleet file that a command in `folder` means that names none: the first that exists."""
    return next((folder / name for name in DEFAULT_FILES if (folder / name).is_file()), None)


def default_cluster(folder: Path) -> str | None:
    """The `cluster:` of the default file in `folder`."""
    file = default_file(folder)
    return None if file is None else cluster_of(file)


def cluster_of(file: Path) -> str | None:
    """The `cluster:` that a file names plainly; None when it names none, or builds it from variables.

    Read by line: YAML would take longer than the whole command."""
    try:
        found = _CLUSTER_LINE.search(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.group(1) if found else None


def _at(path: Path) -> NodeInfo:
    info = NodeInfo.read(path.parent / "node.json")
    if info is None or not is_answering(path):
        raise NoNode(f"AGENTKIT_NODE says {path}, but no node answers there; unset it, or start that node")
    return info
