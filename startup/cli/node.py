"""Look after the node of one machine.

agentkit node run --machine pc2          be its node, in this terminal or under systemd
agentkit node status                     the nodes that run here
agentkit node stop --machine pc2         stop its agents, its zygote and itself
agentkit node upgrade --all              take up the code that is installed now, without touching agents
agentkit node unit --machine pc2         print the systemd unit that brings the fleet back after a reboot
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentkit.directory.locate import RUN_DIR_VARIABLE, NodeInfo, default_cluster, run_root, running_nodes
from agentkit.errors import ConfigError, NoNode
from startup.cli import exits
from startup.cli.common import duration_s, note, say, say_json, width_of
from startup.control import NodeConnection
from startup.errors import NodeLost
from startup.machines import orphans
from startup.node.paths import STATE_DIR_VARIABLE, state_root
from startup.view.words import columns, duration

#: How long `stop` waits for node and zygote.
STOPS_WITHIN_S: Final = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("run", "status", "stop", "unit", "upgrade"))
    parser.add_argument("--machine", metavar="NAME", help="which machine's node; default: the only one")
    parser.add_argument(
        "--supervised", action="store_true", help="run: somebody else starts the node again when it dies"
    )
    parser.add_argument(
        "--host", default="", metavar="ADDRESS", help="run, unit: where other nodes find it before its first `up`; "
        "default: what the file in this folder says",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="upgrade: all machines, one after another")
    parser.add_argument(
        "--within", type=duration_s, metavar="TIME", help="upgrade: a node that is not up by then is given up (30s)"
    )
    parser.add_argument("--node-port", type=int, default=0, metavar="PORT", help="run, unit: likewise")


def run(arguments: argparse.Namespace) -> int:
    """By action."""
    actions = {"run": _run, "status": _status, "stop": _stop, "unit": _unit, "upgrade": _upgrade}
    return actions[arguments.action](arguments)


def _run(arguments: argparse.Namespace) -> int:
    """Becomes the boot process in the foreground: its exit code is the command's."""
    from startup.node.launch import boot_command, boot_environment
    from startup.node.options import BootOptions

    cluster, machine = _place(arguments)
    host, port = _address(arguments, cluster, machine)
    options = BootOptions(
        cluster=cluster,
        machines=(machine,),
        run_root=str(run_root()),
        state_root=str(state_root()),
        supervised=arguments.supervised,
        foreground=True,
        host=host,
        node_port=port,
    )
    command = boot_command(options)
    os.execve(command[0], command, boot_environment())  # noqa: S606 - no shell is wanted


def _status(arguments: argparse.Namespace) -> int:
    told = []
    for info in _meant(arguments):
        try:
            with NodeConnection.connect(info.control) as connection:
                told.append(connection.ask("status", memory=False) | {"cluster": info.cluster})
        except (NoNode, NodeLost):
            continue
    if not told:
        raise NoNode("no node runs here; `agentkit up` starts one, and so does `agentkit node run --machine NAME`")
    nodes = [{key: value for key, value in answer.items() if key != "agents"} for answer in told]
    if arguments.json:
        say_json({"nodes": nodes})
        return exits.DONE
    table: list[tuple[str, ...]] = [("CLUSTER", "MACHINE", "PID", "UP", "MB", "REVISION", "LIMITS", "PEERS")]
    for node in nodes:
        facts = node["node"]
        memory = facts.get("memory_mb")
        table.append(
            (
                node["cluster"],
                node["machine"],
                str(facts["pid"]),
                duration(facts["uptime_s"]),
                f"{memory:.0f}" if memory is not None else "-",
                str(node["revision"]["number"]) if node["revision"] else "none",
                facts.get("limits", {}).get("backend", "-"),
                ", ".join(f"{peer} {state}" for peer, state in sorted(node["peers"].items())) or "-",
            )
        )
    say(columns(table, right={2, 3, 4, 5}, width=width_of(sys.stdout)))
    for why in sorted({node["node"].get("limits", {}).get("why", "") for node in nodes} - {""}):
        note(f"limits: {why}")
    for node in nodes:
        if unheld := (node["node"].get("found") or {}).get("unheld"):
            say(
                f"{node['cluster']}/{node['machine']}: node and zygote had both gone; nobody held the ports of "
                f"{', '.join(unheld)} until this node bound them again, and callers were refused meanwhile"
            )
    return exits.DONE


def _stop(arguments: argparse.Namespace) -> int:
    found = _meant(arguments)
    if len(found) != 1:
        names = ", ".join(f"{info.cluster}/{info.machine}" for info in running_nodes(None)) or "none"
        raise NoNode(f"which node? running: {names}; choose one with --cluster and --machine")
    (info,) = found
    began_s = time.monotonic()
    pids = {info.pid}
    with NodeConnection.connect(info.control) as connection:
        facts = connection.ask("status", memory=False)["node"]
        pids |= {int(facts[key]) for key in ("pid", "zygote_pid") if facts.get(key)}
        connection.ask("stop_node")
    left = orphans.wait_gone(pids, STOPS_WITHIN_S)
    if left:
        note(f"agentkit: still there after {STOPS_WITHIN_S:g} s: {', '.join(map(str, sorted(left)))}")
        return exits.TIMED_OUT
    elapsed_s = time.monotonic() - began_s
    if arguments.json:
        say_json({"cluster": info.cluster, "machine": info.machine, "elapsed_s": round(elapsed_s, 3)})
    else:
        say(f"the node of {info.cluster}/{info.machine} stopped in {duration(elapsed_s)}")
    return exits.DONE


def _upgrade(arguments: argparse.Namespace) -> int:
    from startup.cli import upgrade

    return upgrade.run(arguments)


def _unit(arguments: argparse.Namespace) -> int:
    cluster, machine = _place(arguments)
    text = unit(
        cluster,
        machine,
        *_address(arguments, cluster, machine),
        python=sys.executable,
        environ=os.environ,
        run=run_root(),
        state=state_root(),
        folder=Path.cwd(),
    )
    if arguments.json:
        say_json({"name": f"agentkit-{cluster}-{machine}.service", "unit": text})
    else:
        say(text.rstrip("\n"))
    return exits.DONE


def unit(
    cluster: str,
    machine: str,
    host: str = "",
    port: int = 0,
    *,
    python: str,
    environ: Mapping[str, str],
    run: Path,
    state: Path,
    folder: Path,
) -> str:
    """A systemd unit (user or system) for one machine's node. NotifyAccess=all: the node is told READY by the process that it
    boots in; KillMode=process: agents outlive their node, and the next one takes them over."""
    from agentkit.security.folder import FOLDER_VARIABLE  # it imports ZeroMQ

    variables = {
        "PATH": environ.get("PATH", "/usr/bin:/bin"),
        RUN_DIR_VARIABLE: str(run),
        STATE_DIR_VARIABLE: str(state),
    }
    package = Path(__file__).resolve().parents[2]
    if not str(package).endswith("site-packages"):
        variables["PYTHONPATH"] = str(package)
    if keys := environ.get(FOLDER_VARIABLE):
        variables[FOLDER_VARIABLE] = keys
    command = f"{_quoted(python)} -m startup node run --supervised --cluster {cluster} --machine {machine}"
    command += (f" --host {_quoted(host)}" if host else "") + (f" --node-port {port}" if port else "")
    lines = [f"Environment={_quoted(f'{name}={value}')}" for name, value in variables.items()]
    stop = f"{_quoted(python)} -m startup node stop --cluster {cluster} --machine {machine}"
    return "\n".join(
        [
            "[Unit]",
            f"Description=agentkit node {cluster}/{machine}",
            "After=network-online.target time-sync.target",
            "Wants=network-online.target",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=notify",
            "NotifyAccess=all",
            f"ExecStart={command}",
            f"ExecStop={stop}",
            f"WorkingDirectory={_quoted(str(folder))}",
            *lines,
            "KillMode=process",
            "Restart=on-failure",
            "RestartSec=1",
            "TimeoutStopSec=150",
            "LimitNOFILE=65536",
            "TasksMax=infinity",
            "Delegate=yes",  # limits of agents are cgroups below ours; their names in cgroup2.py
            "DelegateSubgroup=agentkit.nodes",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def _quoted(text: str) -> str:
    """As systemd reads one word: percent signs and backslashes mean something to it."""
    text = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(letter in text for letter in " \t'\"") else text


def _place(arguments: argparse.Namespace) -> tuple[str, str]:
    """Cluster and machine; ConfigError when they are not said and can't be told from the files that are here."""
    cluster = arguments.cluster or default_cluster(Path.cwd())
    machine = arguments.machine
    if cluster and not machine:
        known = sorted(path.name for path in (state_root() / cluster).glob("*") if path.is_dir())
        machine = known[0] if len(known) == 1 else None
    for name, value in (("--cluster", cluster), ("--machine", machine)):
        if not value:
            raise ConfigError(
                at=name,
                got="nothing",
                want="a name of the fleet's file",
                fix="for example --cluster reference --machine main_pc",
            )
    return str(cluster), str(machine)


def _address(arguments: argparse.Namespace, cluster: str, machine: str) -> tuple[str, int]:
    """Where a node listens for others that has no revision yet: as the command line says, else the newest revision or the file."""
    if arguments.host or arguments.node_port:
        return arguments.host, arguments.node_port
    from startup.cli.elsewhere import known_machines

    for known in known_machines(cluster):
        if known.name == machine:
            return known.host, known.node_port or 0
    return "", 0


def _meant(arguments: argparse.Namespace) -> list[NodeInfo]:
    cluster: Any = arguments.cluster
    return [info for info in running_nodes(cluster) if arguments.machine in (None, info.machine)]
