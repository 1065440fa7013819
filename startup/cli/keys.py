"""The keys of a cluster: who may come in from another machine, and as whom.

agentkit keys init                        make the keys of the fleet's machines and of an operator
agentkit keys init --machine a --machine b
agentkit keys add laptop --role operator  one more, for a machine or a person
agentkit keys list                        whose keys are known here
agentkit keys export pc2 pc2.tar          what machine pc2 needs: everybody's public keys, its own secret one
agentkit keys import pc2.tar              take that, on pc2
agentkit keys revoke laptop               a name or a fingerprint: nobody from now on, connected or not
agentkit keys rotate                      new keys for all machines and the operator, without a stop

Keys are files of mode 0600 in a folder of mode 0700: --dir, else $AGENTKIT_KEYS, else `security.keys` of the fleet's file in this
folder, else ~/.config/agentkit/keys. docs/security.md says what they protect, and what not.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentkit.directory.locate import default_file, find_node
from agentkit.errors import AgentkitError, ConfigError, NoNode
from startup.cli import exits
from startup.cli.common import note, say, say_json, width_of

if TYPE_CHECKING:
    from agentkit.security.folder import KeyFolder
    from agentkit.security.keys import Key
    from startup.spec.fleet import Fleet

ACTIONS: Final = ("init", "add", "list", "export", "import", "revoke", "rotate")
#: The name of the operator that `init` makes.
FIRST_OPERATOR: Final = "operator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("words", nargs="*", metavar="NAME", help="names, fingerprints or files, by action")
    parser.add_argument("--dir", metavar="FOLDER", help="the folder of keys")
    parser.add_argument(
        "--machine", action="append", default=[], metavar="NAME", help="init: machines, instead of the fleet's"
    )
    parser.add_argument("--role", metavar="ROLE", help="add: operator, agent (default), or a role of your methods")


def run(arguments: argparse.Namespace) -> int:
    """By action. 1 where not every node has heard of it."""
    from agentkit.security.folder import KeyFolder, folder_of

    fleet = None if arguments.dir else _fleet(arguments)
    folder = KeyFolder(Path(arguments.dir).expanduser() if arguments.dir else folder_of(fleet.keys if fleet else ""))
    match arguments.action:
        case "init":
            return _init(folder, arguments, fleet or _fleet(arguments))
        case "add":
            return _add(folder, arguments)
        case "list":
            return _list(folder, arguments)
        case "export":
            return _export(folder, arguments)
        case "import":
            return _import(folder, arguments)
        case "revoke":
            return _revoke(folder, arguments)
        case _:
            from startup.cli.rotation import rotate

            return rotate(folder, arguments)


def _fleet(arguments: argparse.Namespace) -> Fleet | None:
    """The fleet of the default file here, as far as it can be read."""
    if default_file(Path()) is None:
        return None
    from startup.spec.load import load

    return load(default_file(Path()), environ=os.environ, cluster=arguments.cluster, inspect=False).fleet


def _init(folder: KeyFolder, arguments: argparse.Namespace, fleet: Fleet | None) -> int:
    from agentkit.security.keys import new_key
    from agentkit.security.roles import AGENT, OPERATOR

    machines = arguments.machine or [str(machine.name) for machine in (fleet.machines if fleet else ())]
    if not machines:
        raise ConfigError(
            at="keys init",
            got="no machines",
            want="a fleet file in this folder",
            fix="or name them: --machine NAME, repeated"
            if default_file(Path()) is None
            else f"`agentkit validate` says what is wrong with {default_file(Path())}",
        )
    if folder.exists() and folder.load().keys:
        raise ConfigError(
            at=str(folder.path),
            got="a folder with keys",
            want="none yet",
            fix="`agentkit keys add NAME` makes one more, `agentkit keys rotate` new ones",
        )
    folder.add([new_key(FIRST_OPERATOR, OPERATOR), *(new_key(machine, AGENT) for machine in dict.fromkeys(machines))])
    if arguments.json:
        return _list(folder, arguments)
    _list(folder, arguments)
    note(["", f"Next, for each machine but this one (here: {machines[0]}?):"])
    note(
        [
            f"  agentkit keys export {name} {name}.tar     and there: agentkit keys import {name}.tar"
            for name in machines[1:2]
        ]
    )
    note(f"and in the fleet's file: security: {{keys: {_short(folder.path)}}}")
    return exits.DONE


def _add(folder: KeyFolder, arguments: argparse.Namespace) -> int:
    from agentkit.security.keys import new_key
    from agentkit.security.roles import AGENT

    if len(arguments.words) != 1:
        raise ConfigError(at="keys add", got=" ".join(arguments.words) or "nothing", want="one name")
    [name] = arguments.words
    known = folder.load()
    if known.of(name):
        raise ConfigError(
            at="keys add",
            got=name,
            want="a name that has no key yet",
            fix=f"`agentkit keys rotate {name}` gives it a new one",
        )
    key = new_key(name, arguments.role or AGENT)
    folder.add([key])
    told, missing = tell_nodes(arguments.cluster, "keys_add", keys=[key.to_wire()])
    if arguments.json:
        say_json({"key": _facts(key), "told": told, "missing": missing})
    else:
        say(f"{key.name} ({key.role}) {key.fingerprint}")
        _say_told(told, missing, "know it")
        note(f"what it needs: agentkit keys export {name} {name}.tar")
    return exits.FAILED if missing else exits.DONE


def _list(folder: KeyFolder, arguments: argparse.Namespace) -> int:
    from startup.view.words import columns, duration

    known = folder.load()
    if arguments.json:
        say_json(
            {"folder": str(folder.path), "keys": [_facts(key) for key in known.keys], "revoked": dict(known.revoked)}
        )
        return exits.DONE
    table = [("NAME", "ROLE", "FINGERPRINT", "AGE", "SECRET")]
    for key in known.keys:
        age = duration(max(0.0, time.time() - key.created_s))
        table.append((key.name, key.role, key.fingerprint, age, "here" if key.secret else ""))
    import sys

    say(columns(table, right=(3,), width=width_of(sys.stdout)))
    if known.revoked:
        note(f"{len(known.revoked)} revoked: {', '.join(sorted(set(known.revoked.values())))}")
    return exits.DONE


def _export(folder: KeyFolder, arguments: argparse.Namespace) -> int:
    from startup.cli.keyfile import write_part

    if len(arguments.words) != 2:
        raise ConfigError(at="keys export", got=" ".join(arguments.words) or "nothing", want="NAME FILE.tar")
    name, file = arguments.words
    part = folder.part_for(name)
    write_part(Path(file), part)
    if arguments.json:
        say_json({"file": file, "files": sorted(part)})
    else:
        say(f"{file}: {sum(name.endswith('.key') for name in part)} public keys, and the secret one of {name}")
        note("carry it by a way that nobody else reads (scp), and remove it on both sides afterwards")
    return exits.DONE


def _import(folder: KeyFolder, arguments: argparse.Namespace) -> int:
    from startup.cli.keyfile import read_part

    if len(arguments.words) != 1:
        raise ConfigError(at="keys import", got=" ".join(arguments.words) or "nothing", want="FILE.tar")
    known = folder.take_part(read_part(Path(arguments.words[0])))
    ours = [key.name for key in known.keys if key.secret]
    told, missing = tell_nodes(arguments.cluster, "keys_reload", everywhere=False)
    if arguments.json:
        say_json(
            {"folder": str(folder.path), "keys": [_facts(key) for key in known.keys], "told": told, "missing": missing}
        )
    else:
        say(f"{folder.path}: {len(known.keys)} keys, secret ones of {', '.join(sorted(set(ours))) or 'nobody'}")
    return exits.DONE


def _revoke(folder: KeyFolder, arguments: argparse.Namespace) -> int:
    known = folder.load()
    keys: dict[str, Key] = {}
    for word in arguments.words:
        found = known.find(word)
        if not found and word not in known.revoked and word not in known.revoked.values():
            raise ConfigError(
                at="keys revoke", got=word, want="a name or fingerprint", fix="`agentkit keys list` shows them"
            )
        keys |= {key.fingerprint: key for key in found}
    revoked = {fingerprint: key.name for fingerprint, key in keys.items()}
    revoked |= {
        fingerprint: name
        for fingerprint, name in known.revoked.items()
        if fingerprint in arguments.words or name in arguments.words
    }  # again, for nodes that were away
    if not revoked:
        raise ConfigError(at="keys revoke", got="nothing", want="names or fingerprints")
    operators = {key.fingerprint for key in known.keys if key.role == "operator" and key.secret}
    if operators and operators <= revoked.keys():
        raise ConfigError(
            at="keys revoke",
            got="the only operator's key here",
            want="another operator's left, to command the nodes with",
            fix="`agentkit keys add NAME --role operator` first, or `agentkit keys rotate`",
        )
    told, missing = tell_nodes(arguments.cluster, "keys_revoke", but=set(revoked.values()), keys=revoked)
    folder.revoke(revoked)
    if arguments.json:
        say_json({"revoked": revoked, "told": told, "missing": missing})
    else:
        say([f"{name} {fingerprint} is nobody from now on" for fingerprint, name in revoked.items()])
        _say_told(told, missing, "let it in no more, and have cut its connections")
    return exits.FAILED if missing else exits.DONE


def tell_nodes(
    cluster: str | None, operation: str, *, but: Collection[str] = (), everywhere: bool = True, **arguments: Any
) -> tuple[list[str], dict[str, str]]:
    """(machines whose nodes did it, machine -> why not); `everywhere`: on all machines, else on this one. Nothing where no cluster
    runs: its nodes read the folder when they start."""
    from startup.cli.cluster import Cluster

    try:
        found = Cluster.reach(cluster) if everywhere else Cluster.of(find_node(cluster).cluster)
    except NoNode:
        return [], {}
    told: list[str] = []
    with found:
        missing = dict(found.missing)
        for machine, connection in found.connections.items():
            if machine in but:
                continue
            try:
                connection.ask(operation, **arguments)
                told.append(machine)
            except (AgentkitError, TimeoutError) as exc:
                missing[machine] = str(exc)
    return told, {machine: why for machine, why in missing.items() if machine not in but}


def _say_told(told: list[str], missing: Mapping[str, str], what: str) -> None:
    if told:
        note(f"nodes that {what}: {', '.join(told)}")
    note([f"not told: {machine}: {why}" for machine, why in missing.items()])


def _facts(key: Key) -> dict[str, Any]:
    return {**key.to_wire(), "fingerprint": key.fingerprint, "has_secret": bool(key.secret)}


def _short(path: Path) -> str:
    home = str(Path.home())
    return f"~{str(path)[len(home) :]}" if str(path).startswith(f"{home}/") else str(path)
