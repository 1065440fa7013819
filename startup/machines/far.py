"""What runs on another machine while a command brings its node up or down: one program for one SSH session.

    python -m startup.machines.far up|find|down CLUSTER MACHINE

It speaks lines of JSON, each behind MARK, because a login shell may print what it likes. `up`: it begins to boot at once, tells what
it found, is told which files the fleet has and answers with their digests here, then is ordered to start the node, or its
input ends and it leaves nothing. `find`: it tells what it found. `down`: it ends whatever is left.

Errors are told as {"error"}.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from agentkit._version import VERSION
from agentkit.directory.locate import NodeInfo, is_answering
from agentkit.errors import AgentkitError, ConfigError
from startup.errors import NodeRuns
from startup.machines.local import Boot
from startup.node.paths import Lock, Places

MARK: Final = "agentkit "
#: A node writes revisions, logs and errors: with less than this, it would come up only to fail.
MIN_FREE_MB: Final = 32

Answer = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """0: what was asked for was done. 1: it was not, and an `error` was told."""
    action, cluster, machine = sys.argv[1:] if argv is None else argv
    places = Places.of(cluster, machine)
    actions: Mapping[str, Callable[[Places], None]] = {"up": _up, "find": _find, "down": _down}
    try:
        actions[action](places)
    except (AgentkitError, OSError) as exc:
        _tell({"error": str(exc)})
        return 1
    return 0


def _up(places: Places) -> None:
    with ExitStack() as stack:
        info = _answering(places)
        boot = None if info else stack.enter_context(Boot())
        _tell(_found(places, info))
        asked = _hear()
        if asked is None:
            return
        if asked.get("wait"):
            _wait_for_down(places)
            info = None
        _tell(_compared(asked))
        order = _hear()
        if order is None:
            return
        if info is None:
            _check_disk(places)
            places.prepare()
            boot = boot or stack.enter_context(Boot())
            boot.order(places.cluster, [places.machine], file=order["file"], preload=order["preload"])
            boot.finish()
        from startup.machines.waits import connect_when_listening

        with connect_when_listening(places) as connection:
            _tell({"control": str(places.control), "hello": connection.ask("hello")})


def _find(places: Places) -> None:
    _tell(_found(places, _answering(places)))


def _down(places: Places) -> None:
    """Whatever a node that was told to stop has left, or one that could not be told."""
    from startup.machines import orphans

    killed = orphans.end(places)
    orphans.forget(places)
    _tell({"killed": killed})


def _answering(places: Places) -> NodeInfo | None:
    info = NodeInfo.read(places.node)
    return info if info is not None and is_answering(places.control) else None


def _found(places: Places, info: NodeInfo | None) -> Answer:
    from startup.plan.revision import CONTROL_VERSION

    found: Answer = {
        "version": VERSION,
        "control_version": CONTROL_VERSION,
        "python": platform.python_version(),
        "is_kept": _is_kept(places.run),
        "control": str(places.control),
        "node": None,
    }
    if info is not None:
        from startup.control import NodeConnection

        with NodeConnection.connect(places.control) as connection:
            found["node"] = connection.ask("hello")
    elif holder := _holder(places):
        found["held_by"] = holder
    return found


def _holder(places: Places) -> str:
    """Who has this machine although no node answers: one that just starts, or hangs."""
    if not places.lock.exists():
        return ""
    try:
        Lock(places).release()
    except NodeRuns as exc:
        return str(exc)
    return ""


def _is_kept(run: Path) -> bool:
    """Whether the run directory outlives this session: logind removes a user's when the last one ends, unless he lingers."""
    if not run.is_relative_to("/run/user") or not Path("/run/systemd/system").is_dir():
        return True
    return os.getuid() == 0 or Path("/var/lib/systemd/linger", getpass.getuser()).exists()


def _compared(asked: Mapping[str, Any]) -> Answer:
    from startup.machines import content

    root = Path(asked["root"])
    if not root.is_dir():
        return {"root": str(root), "is_there": False, "digests": {}}
    return {"root": str(root), "is_there": True, "digests": content.digests(root, asked["files"])}


def _check_disk(places: Places) -> None:
    """Before anything is made: what a node says when it can't write is less clear."""
    for folder, variable in ((places.state, "AGENTKIT_STATE_DIR"), (places.run, "AGENTKIT_RUN_DIR")):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(
                at=str(folder),
                got=f"{there}, which can't be written",
                want="a folder of our own",
                fix=f"make it writable for this user, or set {variable} there",
            )
        free_mb = shutil.disk_usage(there).free // 2**20
        if free_mb < MIN_FREE_MB:
            raise ConfigError(
                at=str(folder),
                got=f"{free_mb} MB free on its disk",
                want=f"{MIN_FREE_MB} MB at least",
                fix=f"make room, or set {variable} there to a folder on another disk",
            )


def _wait_for_down(places: Places) -> None:
    from startup.machines.waits import wait_for_a_running_down

    wait_for_a_running_down(places.cluster, lambda words: _tell({"note": words}), machine=places.machine)


def _tell(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(MARK + json.dumps(answer, default=str) + "\n")
    sys.stdout.flush()


def _hear() -> Answer | None:
    """None: whoever asked has gone."""
    line = sys.stdin.readline()
    return json.loads(line) if line.endswith("\n") else None


if __name__ == "__main__":
    sys.exit(main())
