"""Control with keys and without SSH: nodes that somebody else starts, an operator on one machine, none on the other."""

from __future__ import annotations

import sys

import pytest

from tests.hosts.conftest import Hosts
from tests.hosts.machines import PATIENCE_S
from tests.hosts.projects import agents, install, numbers, typed

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_nodes_that_run_already_are_controlled_with_the_operators_key_and_by_nobody_else(hosts: Hosts) -> None:
    a, b, link = hosts
    file = install(
        a, b, agents={"Near": a.name, "Far": b.name}, ssh=False, security={"keys": "~/.config/agentkit/keys"}
    )
    assert typed(a, "keys", "init").code == 0
    assert typed(a, "keys", "export", "pc2", str(b.home / "pc2.tar")).code == 0
    taken = typed(b, "keys", "import", str(b.home / "pc2.tar"))
    assert taken.code == 0, taken.err

    alone = typed(a, "up", "--json")  # pc2's node does not run: its machine is named, the other comes up
    assert alone.code == 1
    assert "pc2" in alone.err
    assert "agentkit node run --cluster c --machine pc2" in alone.err
    node = b.start(
        sys.executable, "-m", "startup", "node", "run", "--cluster", "c", "--machine", "pc2", folder=file.parent
    )
    assert node.stdout is not None
    both = typed(a, "up", "--json")
    while both.code == 1 and node.poll() is None:  # it is on its way
        both = typed(a, "up", "--json")
    assert both.code == 0, both.err
    assert {id: it["phase"] for id, it in agents(a).items()} == {"main_pc/Near": "ready", "pc2/Far": "ready"}

    before = agents(b)["pc2/Far"]["pid"]
    assert typed(a, "restart", "Far").code == 0
    assert agents(a)["pc2/Far"]["pid"] != before
    assert typed(a, "stop", "Far").code == 0
    assert typed(a, "start", "Far").code == 0
    called = typed(a, "call", "Far", "echo", "text=by key")
    assert (called.code, called.out) == (0, "by key\n"), called.err
    looked_into = typed(a, "debug", "Far", "stacks", "--json")
    assert (looked_into.code, looked_into.json["agent"]) == (0, "pc2/Far"), looked_into.err
    assert typed(b, "debug", "Near", "stacks").code == 4  # with its machine's key only

    refused = typed(b, "stop", "Near", "--json")  # with its machine's key only
    assert refused.code == 1
    assert refused.json["unreached"][0]["machine"] == "main_pc"
    assert "holds no operator's key, but that of pc2 (agent)" in refused.err
    assert agents(a)["main_pc/Near"]["phase"] == "ready"
    assert len(set(numbers(b).values())) == 1  # nothing that it could stop: no machine got another revision

    link.cut()
    cut_off = typed(a, "restart", "Far", "--json")
    assert cut_off.code == 1
    assert cut_off.json["restarted"] == []
    assert "192.0.2.2:10001: " in cut_off.err
    link.heal()
    assert typed(a, "down").code == 0
    node.communicate(timeout=PATIENCE_S)
    assert node.returncode == 0
