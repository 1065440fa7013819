"""`agentkit node upgrade`: nodes take up the code that is installed now, one machine after another. Agents are not touched."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

from agentkit.errors import AgentkitError, ConfigError, NoNode
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import note, say, say_json
from startup.control import Door
from startup.errors import NodeLost, Refused
from startup.view.words import duration

#: How long a node may take, in seconds, unless `--within` says otherwise.
WITHIN_S: Final = 30.0
#: ... and how much longer the one before may take to be there again.
_BACK_WITHIN_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.05


def run(arguments: argparse.Namespace) -> int:
    """0: all that were meant run the new code; 1: one does not, and those after it were not asked."""
    with Cluster.reach(arguments.cluster) as cluster:
        machines = _meant(arguments, cluster)
        told: list[dict[str, Any]] = []
        for machine in machines:
            began_s = time.monotonic()
            try:
                before, after = upgraded(cluster.doors[machine], arguments.within or WITHIN_S)
            except (AgentkitError, TimeoutError) as exc:
                told.append({"machine": machine, "error": str(exc)})
                note(f"agentkit: {machine}: {exc}")
                break
            took_s = time.monotonic() - began_s
            versions = {"from": before["version"], "to": after["version"]}
            told.append({"machine": machine, "pid": after["pid"], **versions, "elapsed_s": round(took_s, 3)})
            if not arguments.json:
                was, is_now = (f"node {it['pid']} ({it['version']})" for it in (before, after))
                say(f"{machine}: {was} is {is_now} now, after {duration(took_s)}")
        failed = any("error" in it for it in told)
        left = machines[len(told) :]
        if arguments.json:
            say_json({"cluster": cluster.name, "machines": told, "left": left})
        elif left:
            note(f"agentkit: not asked any more: {', '.join(left)}")
        return exits.FAILED if failed else exits.DONE


def upgraded(door: Door, within_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the node said of itself before and afterwards. Refused: it runs the code that it had, and why."""
    talk = door.open(timeout_s=within_s + 5.0)
    try:
        before = talk.ask("hello")
        heir = int(talk.ask("upgrade", within_s=within_s)["pid"])
    finally:
        talk.close()
    ends_s = time.monotonic() + within_s + _BACK_WITHIN_S
    while True:
        now = _hello(door)
        if now is not None and now["pid"] == heir:
            return before, now
        if now is not None and now["upgrade_error"]:
            raise Refused("upgrade", f"the node goes on with the code that it had: {now['upgrade_error']}")
        if time.monotonic() > ends_s:
            raise TimeoutError(f"no node answers {within_s + _BACK_WITHIN_S:g} s after the upgrade began")
        time.sleep(_LOOK_EVERY_S)


def _hello(door: Door) -> dict[str, Any] | None:
    try:
        talk = door.open()
    except NoNode:
        return None
    try:
        told: dict[str, Any] = talk.ask("hello")
        return told
    except NodeLost:
        return None
    finally:
        talk.close()


def _meant(arguments: argparse.Namespace, cluster: Cluster) -> list[str]:
    known = list(cluster.connections)
    if arguments.all:
        if cluster.missing:
            note(f"agentkit: not reached: {', '.join(sorted(cluster.missing))}; upgrade them when they are")
        return known
    if arguments.machine in known:
        return [arguments.machine]
    if arguments.machine is None and len(known) == 1:
        return known
    got = arguments.machine or "no machine"
    raise ConfigError(
        at="--machine", got=got, want=f"one of {', '.join(known)}", fix="--all upgrades one after another"
    )
