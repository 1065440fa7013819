"""`agentkit keys rotate`: every machine and the operator get a new key while the fleet serves.

    new keys are made, each machine's own on that machine -> everybody knows them -> nodes take theirs -> agents are rolled
    -> when nothing serves with an old one any more, the old ones are revoked

Until the last step old and new count alike, so it may be broken off anywhere and begun again."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentkit.errors import AgentkitError, ConfigError
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import note, say, say_json
from startup.plan.phase import ALIVE

if TYPE_CHECKING:
    from agentkit.security.folder import KeyFolder
    from agentkit.security.keys import Key
    from startup.plan.row import AgentRow

#: How long nodes may take to meet again under their new keys, and how often that is looked at, in seconds.
MEET_WITHIN_S: Final = 30.0
LOOK_EVERY_S: Final = 0.2
#: Every agent is restarted once, one after another where they depend on each other.
ROLLED_WITHIN_S: Final = 1_800.0
_ALIVE: Final = "alive"


def rotate(folder: KeyFolder, arguments: argparse.Namespace) -> int:
    """0 when nothing is left of the old keys; 1 where a machine was not reached, or an agent did not change."""
    with Cluster.reach(arguments.cluster) as cluster:
        if cluster.missing:
            for machine, why in cluster.missing.items():
                note(f"agentkit: {machine}: {why}")
            raise ConfigError(
                at="keys rotate",
                got=f"no answer of {', '.join(cluster.missing)}",
                want="every machine",
                fix="nothing was changed",
            )
        old = _old_keys(folder, list(cluster.connections))
        new = _make(folder, cluster)
        note(f"made and told to everybody: {', '.join(f'{key.name} {key.fingerprint}' for key in new)}")
        for connection in cluster.connections.values():
            connection.ask("keys_use")
    _meet(arguments.cluster, len(new) - 1)
    with Cluster.reach(arguments.cluster) as cluster:
        left = _roll(cluster, {key.name: key.fingerprint for key in new})
        if left:
            note([f"still with an old key: {row.id} ({row.reason or row.phase.value})" for row in left])
            note("old keys stay valid; `agentkit keys rotate` again finishes it")
            return exits.FAILED
        revoked = {key.fingerprint: key.name for key in old}
        for connection in cluster.connections.values():
            connection.ask("keys_revoke", keys=revoked)
        folder.revoke(revoked)
    if arguments.json:
        say_json({"new": [key.to_wire() | {"fingerprint": key.fingerprint} for key in new], "revoked": revoked})
    else:
        say([f"{key.name} ({key.role}) {key.fingerprint}" for key in new])
        note(f"{len(old)} old keys are nobody's any more")
    return exits.DONE


def _old_keys(folder: KeyFolder, machines: list[str]) -> list[Key]:
    """The keys that are to go: those in use by machines and by the operator whose secret is here."""
    known = folder.load()
    ours = {key.name for key in known.keys if key.secret and key.role == "operator"}
    return [key for key in known.keys if key.name in machines or key.name in ours]


def _make(folder: KeyFolder, cluster: Cluster) -> list[Key]:
    """New keys of all machines, made there, and of the operator, made here; known to everybody when this returns."""
    from agentkit.security.keys import key_from_wire, new_key
    from agentkit.security.roles import OPERATOR

    new = [key_from_wire(connection.ask("keys_renew")["key"]) for connection in cluster.connections.values()]
    known = folder.load()
    mine = next(key for key in known.keys if key.secret and key.role == OPERATOR)
    operator = new_key(mine.name, OPERATOR, known.next_serial(mine.name))
    told = [key.to_wire() for key in (*new, operator)]
    for connection in cluster.connections.values():
        connection.ask("keys_add", keys=told)
    held = {key.public for key in folder.load().keys}
    folder.add([operator, *(key for key in new if key.public not in held)])
    return [*new, operator]


def _meet(cluster: str | None, machines: int) -> None:
    """Wait until every node answers under its new key and hears the others again. TimeoutError: in vain."""
    ends_s = time.monotonic() + MEET_WITHIN_S
    time.sleep(1.0)  # nodes answer the last question before they open their addresses anew
    why: Mapping[str, Any] = {}
    while time.monotonic() < ends_s:
        try:
            with Cluster.reach(cluster) as found:
                answers = found.ask_each("status")
                states = [state for answer in answers.values() for state in answer["peers"].values()]
                why = found.missing
                if len(answers) == machines and all(state == _ALIVE for state in states):
                    return
        except AgentkitError as exc:
            why = {"cluster": str(exc)}
        time.sleep(LOOK_EVERY_S)
    raise TimeoutError(f"nodes do not meet under their new keys: {dict(why)}; old keys stay valid, try again")


def _roll(cluster: Cluster, wanted: Mapping[str, str]) -> list[AgentRow]:
    """Restart every agent that serves with another key; those that still do when nothing changes any more."""
    _, rows = cluster.status()
    for machine, connection in cluster.connections.items():
        if ids := [str(row.id) for row in rows if row.id.machine == machine and _is_old(row, wanted)]:
            connection.ask("restart", agents=ids)
    ends_s = time.monotonic() + ROLLED_WITHIN_S
    left = [row for row in rows if _is_old(row, wanted)]
    while left and time.monotonic() < ends_s:
        time.sleep(LOOK_EVERY_S)
        _, rows = cluster.status()
        left = [row for row in rows if _is_old(row, wanted)]
    return left


def _is_old(row: AgentRow, wanted: Mapping[str, str]) -> bool:
    """Whether a process of it serves with another key than its machine's new one."""
    new = wanted.get(str(row.id.machine))
    return row.phase in ALIVE and any(key != new for key in row.keys.values())
