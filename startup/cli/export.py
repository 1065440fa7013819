"""Print what a Prometheus server needs to scrape the agents of a fleet: a configuration file with one job.

    agentkit export prometheus                              the running fleet, its agents written out
    agentkit export prometheus fleet.yaml                   the fleet of a file, whether it runs or not
    agentkit export prometheus --targets agents.json        agents go into that file, which Prometheus watches
    agentkit export prometheus --targets agents.json --watch
                                                            and the file is kept current, until Ctrl-C

A fleet with `registry: consul` is found through Consul, where nothing has to be kept current; with --targets it is not.
Agents that are stopped on purpose are left out; those that should run and don't are in it, and Prometheus shows them as
down. docs/monitoring.md has the labels. --json: {"cluster", "scrape_configs", "targets", "left_out"}, with --watch one
such object per line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentkit.errors import ConfigError, NoNode
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import note, say, say_json, width_of
from startup.cli.files import add_file_arguments, counted, load_file, shown
from startup.cli.watch import Watch
from startup.errors import NodeLost
from startup.plan.phase import Phase

if TYPE_CHECKING:
    from startup.export.prometheus import Source
    from startup.export.targets import Target
    from startup.spec.fleet import Fleet

#: A fleet that starts or rolls changes many rows; the file is looked at so long after the first, in seconds.
SETTLE_S: Final = 0.5
#: Seconds between two looks for a node that went away.
LOOK_AGAIN_S: Final = 1.0
#: Prometheus often runs as a user of its own, and has to read the file.
READABLE: Final = 0o644


@dataclass(frozen=True)
class Found:
    """A fleet, and which of its agents are to be scraped now."""

    fleet: Fleet
    targets: list[Target]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=["prometheus"], metavar="prometheus", help="whose configuration")
    add_file_arguments(parser, none="the running fleet")
    parser.add_argument("--targets", metavar="FILE.json", help="write the agents into this file, for file_sd_configs")
    parser.add_argument("--watch", action="store_true", help="keep that file current, until Ctrl-C")
    parser.add_argument(
        "--token-file", metavar="FILE", help="Consul's token for Prometheus; default: what the fleet file names"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; ConfigError for what can't be combined, and for what Prometheus can't be told."""
    from startup.export.prometheus import checked_file

    path = None if arguments.targets is None else checked_file(Path(arguments.targets))
    has_file = bool(arguments.file or arguments.machine)
    if arguments.watch and (path is None or has_file):
        want = "--targets FILE.json, and no FILE" if has_file else "--targets FILE.json"
        fix = "it keeps the targets of a running fleet in a file; a configuration alone does not change"
        raise ConfigError(at="--watch", got="--watch", want=want, fix=fix)
    if arguments.watch and path is not None:
        _keep(arguments, path)
    if has_file:
        _show(arguments, _of_file(arguments), path)
        return exits.DONE
    with Cluster.find(arguments.cluster) as cluster:
        found = _running(cluster, {})
    _show(arguments, found, path)
    return exits.DONE


def _of_file(arguments: argparse.Namespace) -> Found:
    from startup.export.targets import targets

    loaded = load_file(arguments)
    if loaded.errors or loaded.fleet is None:
        note(shown(loaded.errors, width_of(sys.stderr)))
        what = os.fspath(arguments.file or "the files of --machine")
        raise ConfigError(at="FILE", got=what, want="a file without errors", fix=f"it has {counted(loaded.errors)}")
    return Found(loaded.fleet, targets(loaded.fleet))


def _running(cluster: Cluster, versions: dict[str, str]) -> Found:
    """What the nodes say. `versions` of machines that do not answer are those of before: a label that comes and goes would make
    other series of the same agent."""
    from startup.export.targets import targets

    revision = cluster.revision()
    if revision is None:
        raise ConfigError(
            at=f"cluster {cluster.name}", got="no fleet", want="a running fleet", fix="`agentkit up` brings one up"
        )
    answer = cluster.ask("status", others=True, but=[])
    told: Mapping[str, Any] = {answer["machine"]: answer, **answer["others"]}
    versions |= {machine: its["version"] for machine, its in told.items() if its and its.get("version")}
    _, rows = cluster.status()
    without = revision.stopped | {row.id for row in rows if row.phase is Phase.COMPLETED}
    if revision.down:
        without |= set(revision.fleet.ids())
    return Found(revision.fleet, targets(revision.fleet, without=without, versions=versions))


def _show(arguments: argparse.Namespace, found: Found, path: Path | None) -> None:
    """The configuration on stdout, and the targets into their file."""
    from startup.export.prometheus import scrape_config, text
    from startup.export.targets import left_out

    job = scrape_config(found.fleet.cluster, _source(arguments, found, path))
    if path is not None:
        _write(path, found.targets)
    others = left_out(found.fleet)
    if arguments.json:
        targets = [target.to_wire() for target in found.targets]
        why = {str(id): reason for reason, ids in others.items() for id in ids}
        cluster = found.fleet.cluster
        say_json({"cluster": cluster, "scrape_configs": [job], "targets": targets, "left_out": why})
        return
    head = f"agentkit's fleet {found.fleet.cluster}: a job for prometheus.yml, or a file for its `scrape_config_files`"
    say(text(job, [head]).rstrip("\n"))
    note(f"left out, {reason}: {', '.join(map(str, ids))}" for reason, ids in others.items())


def _source(arguments: argparse.Namespace, found: Found, path: Path | None) -> Source:
    from startup.export.prometheus import Asked, Watched, Written

    asks = found.fleet.registry == "consul" and path is None
    if arguments.token_file and not asks:
        got, fix = "a fleet that is not found through Consul", "leave it out"
        raise ConfigError(at="--token-file", got=got, want="`registry: consul`, without --targets", fix=fix)
    if path is not None:
        return Watched(path)
    return Asked(found.fleet, arguments.token_file and Path(arguments.token_file)) if asks else Written(found.targets)


def _write(path: Path, targets: list[Target]) -> None:
    from startup.export.prometheus import target_file
    from startup.node.paths import write_atomically

    try:
        write_atomically(path, target_file(targets), mode=READABLE)
    except OSError as exc:
        why = exc.strerror or str(exc)
        raise ConfigError(at="--targets", got=str(path), want="a file that can be written", fix=why) from exc


# -- --watch


def _keep(arguments: argparse.Namespace, path: Path) -> None:
    """The file follows the fleet. Ends with KeyboardInterrupt."""
    versions: dict[str, str] = {}
    with Cluster.find(arguments.cluster) as cluster, Watch(cluster.doors) as watch:
        found = _running(cluster, versions)
        _show(arguments, found, path)
        note(f"{path}: {len(found.targets)} targets")
        gist = _gist(watch)
        while True:
            while _gist(watch) == gist:
                watch.wait(LOOK_AGAIN_S if watch.lost else None)
                watch.revive()
            time.sleep(SETTLE_S)
            watch.wait(0)
            gist = _gist(watch)
            now = _looked_at(cluster, watch, found, versions)
            if now.targets != found.targets:
                found = now
                _write(path, found.targets)
                if arguments.json:
                    _show(arguments, found, path)
                note(f"{path}: {len(found.targets)} targets")


def _gist(watch: Watch) -> object:
    """Changes whenever the targets may."""
    return frozenset(watch.lost), frozenset((row.id, row.phase, row.group) for row in watch.rows.values())


def _looked_at(cluster: Cluster, watch: Watch, before: Found, versions: dict[str, str]) -> Found:
    """The fleet as it is now; while no node answers, as it was, until they were told to stop."""
    try:
        with Cluster.of(cluster.name, doors=cluster.doors) as again:
            return _running(again, versions)
    except (NoNode, NodeLost, TimeoutError, ConfigError):
        is_down = all(door.is_gone() for door in watch.doors.values())
        return Found(before.fleet, []) if is_down else before
