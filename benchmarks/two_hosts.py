"""fleet84 on two hosts, started over SSH from nothing, beside the same fleet on one: namespaces, a cable, a real sshd (tests/hosts)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from common import ROOT, Table, median, say, stopwatch

sys.path.insert(0, str(ROOT))

from tests.hosts.machines import SSH_PORT, Machine, refusal, two_machines

FLEET84: Final = ROOT / "configs" / "fleet84.yaml"
#: What two hosts may take longer than one, in seconds.
WANTED_S: Final = 1.5
_ONE: Final = "one host"
_NEW: Final = "two hosts, a new cluster"
_AGAIN: Final = "two hosts, a cluster that ran before"


def two_hosts(repetitions: int) -> list[Table]:
    """`agentkit up` from no process at all to all 84 ready."""
    table = Table(
        "84 agents on two hosts, until all are ready",
        ("what", "median s", "best s", "worst s", "more than one host, s", "wanted, s"),
        notes=[
            "both hosts are namespaces of this machine and share its cores; cold: no node, no zygote, no connection"
        ],
    )
    if reason := refusal():
        table.notes.append(f"not measured: {reason}")
        return [table]
    seconds: dict[str, list[float]] = {_ONE: [], _NEW: [], _AGAIN: []}
    with (
        tempfile.TemporaryDirectory(prefix="akb", ignore_cleanup_errors=True) as name,
        two_machines(Path(name), ("mainpc", "pc2")) as (a, b, _),
    ):
        one, two = _files(Path(name), a, b)
        for repetition in range(repetitions):
            say(f"repetition {repetition + 1} of {repetitions}")
            for what, file in ((_ONE, one), (_NEW, two), (_AGAIN, two)):
                if what is not _AGAIN:
                    a.run("rm", "-rf", str(a.home / ".local/state/agentkit"))
                seconds[what].append(_start(a, file))
                say(f"{what}: {seconds[what][-1]:.2f} s")
    for what, values in seconds.items():
        more = None if what is _ONE else median(values) - median(seconds[_ONE])
        table.add(what, median(values), min(values), max(values), more, None if more is None else WANTED_S)
    return [table]


def _files(folder: Path, a: Machine, b: Machine) -> tuple[Path, Path]:
    """The fleet on one host, and over both; the checkout serves as the project of both."""
    text = FLEET84.read_text().replace("project_root: ..", f"project_root: {ROOT}")
    (local,) = [line for line in text.splitlines() if line.strip().startswith("mainpc: {")]
    (other,) = [line for line in text.splitlines() if line.strip().startswith("pc2: {")]
    far = f"{{host: {b.address}, node_port: 10001, workdir: {ROOT}, ssh: {{user: root, port: {SSH_PORT}}}}}"
    crossing = text.replace(local, f"  mainpc: {{host: {a.address}, node_port: 10001}}").replace(other, f"  pc2: {far}")
    one, two = folder / "one.yaml", folder / "two.yaml"
    one.write_text(text)
    two.write_text("security: none\n" + crossing)
    return one, two


def _start(a: Machine, file: Path) -> float:
    with stopwatch() as passed_s:
        up = a.agentkit("up", str(file), "--json")
        took_s = passed_s()
    _check(up)
    _check(a.agentkit("down", "--cluster", "fleet84"))
    return took_s


def _check(result: Any) -> None:
    if result.code:
        raise RuntimeError(f"exit {result.code}: {(result.err or result.out)[-2000:]}")
