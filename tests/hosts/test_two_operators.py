"""Two operators of one cluster, each on their own machine: one wins, the other is told, and nothing stays halfway."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from startup.cli.cluster import Cluster
from startup.control import UnixDoor
from startup.errors import Conflict
from startup.plan.revision import Revision
from tests.hosts.conftest import Hosts
from tests.hosts.machines import PATIENCE_S
from tests.hosts.projects import install, numbers, typed
from tests.startup.plan.builders import aid

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_one_of_two_wins_the_other_is_told_and_a_command_that_was_killed_halfway_is_healed(hosts: Hosts) -> None:
    a, b, _ = hosts
    install(a, b, agents={"Near": a.name, "Far": b.name})
    assert typed(a, "up").code == 0
    doors = {it.name: UnixDoor(str(it.path(f"/run/user/0/agentkit/c/{it.name}/node.sock"))) for it in (a, b)}
    with Cluster("c", doors, {name: door.open() for name, door in doors.items()}, here=()) as cluster:
        before = cluster.numbers()
        revision = cluster.revision()
        assert revision is not None
        # an operator whose command dies after the first machine
        theirs = replace(revision, number=2, author="ops@pc2", stopped=frozenset([aid("main_pc/Near")]))
        cluster.connections["main_pc"].ask("propose", expected=1, revision=theirs.to_wire())
        # and one who had looked before that
        with pytest.raises(Conflict, match=r"^main_pc: conflict: revision 2 by ops@pc2 .* ago$"):
            cluster.propose(replace(revision, stopped=frozenset([aid("pc2/Far")])), before)
        assert cluster.numbers() == {"main_pc": 2, "pc2": 1}
        stored = Revision.from_wire(cluster.connections["pc2"].ask("revision"))
        assert not stored.stopped
    for machine in (a, b):
        told = typed(machine, "status").out
        assert (
            "machines are on different revisions (main_pc 2 by ops@pc2, pc2 1 by root@main_pc): `agentkit up`" in told
        )
    assert typed(b, "up").code == 0
    assert numbers(a) == numbers(b) == {"main_pc": 3, "pc2": 3}

    both = [it.start(sys.executable, "-m", "startup", "up", folder=it.home / "fleet") for it in (a, b)]
    ends = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in both]
    assert all(code == 0 or "conflict" in err or "overtaken" in err for (_, err), code in ends), ends
    assert any(code == 0 for _, code in ends), ends
    assert typed(a, "up").code == 0
    assert len(set(numbers(b).values())) == 1
    assert typed(a, "down").code == 0
