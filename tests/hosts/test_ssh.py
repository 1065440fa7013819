"""`agentkit up` on one machine brings up the nodes of both, over a real sshd; and says what is wrong where it can't."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import Hosts, demand
from tests.hosts.fleets import TwoHosts, processes, program
from tests.hosts.machines import SSH_PORT, make_key, public_key, refusal, two_machines

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: One agent on each machine, the first needing the second.
CROSSING: dict[str, dict[str, Any]] = {
    "Near": {"machine": "main_pc", "dependencies": ["Far"]},
    "Far": {"machine": "pc2"},
}
#: One on each, neither needing the other.
APART: dict[str, dict[str, Any]] = {"Near": {"machine": "main_pc"}, "Far": {"machine": "pc2"}}


@pytest.fixture
def two(hosts: Hosts) -> TwoHosts:
    return TwoHosts(hosts.a, hosts.b)


@pytest.fixture(scope="module")
def shared() -> Iterator[Hosts]:
    """For tests that leave both machines as they found them."""
    demand(refusal())
    with (
        tempfile.TemporaryDirectory(prefix="ak", ignore_cleanup_errors=True) as folder,
        two_machines(Path(folder)) as made,
    ):
        yield Hosts(*made)


def test_one_command_brings_up_both_machines_and_one_takes_them_down(two: TwoHosts) -> None:
    (two.b.home / ".bashrc").write_text("echo welcome to pc2\n")  # bash reads it for sshd, too
    two.write(CROSSING)
    two.copy()
    document = two.up()
    assert {(agent["machine"], agent["name"], agent["phase"]) for agent in document["agents"]} == {
        ("main_pc", "Near", "ready"),
        ("pc2", "Far", "ready"),
    }
    assert document["unreached"] == []
    assert two.agentkit("call", "Far", "echo", "text=hello").out == "hello\n"
    pids = {agent["name"]: agent["pid"] for agent in document["agents"]}

    again = two.up()  # nothing to do: the same processes
    assert {agent["name"]: agent["pid"] for agent in again["agents"]} == pids

    second = two.b.agentkit("node", "run", "--cluster", "two", "--machine", "pc2")
    assert second.code != 0
    assert re.search(r"a node of two/pc2 runs already \(pid \d+\)", second.err)

    two.end()


def test_a_node_that_its_operators_started_is_used_as_it_is(two: TwoHosts) -> None:
    two.write(CROSSING)
    two.copy()
    node = two.b.start(sys.executable, "-m", "startup", "node", "run", "--cluster", "two", "--machine", "pc2")
    assert two.b.run("sh", "-c", "until test -S /run/user/0/agentkit/two/pc2/node.sock; do sleep 0.05; done").code == 0
    two.up()
    assert processes(two.b).count("agentkit: node two/pc2") == 1
    assert node.poll() is None
    two.end()


def test_push_copies_code_and_configuration_and_nothing_else(two: TwoHosts) -> None:
    two.write(CROSSING)
    for name in ("table.sql", "model.bin", ".env", "logs/old.json", "agents/deep.py"):
        (two.here / name).parent.mkdir(exist_ok=True)
        (two.here / name).write_text("x = 1\n")
    two.there.mkdir()
    (two.there / "fleet_agents.py").write_text("another")

    refused = two.agentkit("up", "fleet.yaml", "--no-wait")
    assert refused.code == 1
    assert "pc2 (192.0.2.2): files: 4 of 4 in " in refused.err
    assert "differ: fleet_agents.py; are missing: agents/deep.py, fleet.yaml, table.sql" in refused.err
    assert "--push" in refused.err

    pushed = two.agentkit("up", "fleet.yaml", "--push")
    assert pushed.code == 0, pushed.err
    assert "pushed 4 of 4 files" in pushed.err
    there = two.b.run("find", ".", "-type", "f", "-not", "-path", "*/__pycache__/*", folder=two.there).out.split()
    assert sorted(there) == ["./agents/deep.py", "./fleet.yaml", "./fleet_agents.py", "./table.sql"]

    (two.here / "agents/deep.py").write_text("x = 2\n")
    assert "pushed 1 of 4 files" in two.agentkit("up", "fleet.yaml", "--push").err
    two.end()


def test_where_there_is_git_it_says_what_belongs_to_the_fleet(two: TwoHosts) -> None:
    two.write(APART)
    (two.here / "scratch.py").write_text("not known to git")
    two.a.run("sh", "-c", "git init -q; git add fleet.yaml fleet_agents.py", folder=two.here)
    two.there.mkdir()
    refused = two.agentkit("up", "fleet.yaml", "--no-wait")
    assert "2 of 2 in" in refused.err
    assert two.agentkit("up", "fleet.yaml", "--push").code == 0
    two.end()


def test_a_jump_host_is_gone_through(two: TwoHosts) -> None:
    two.write(CROSSING, {"ssh": {"jump": f"root@{two.a.address}:{SSH_PORT}"}})
    two.copy()
    two.up()
    assert "Accepted publickey" in (two.a.folder / "sshd.log").read_text()
    two.end()


def test_a_key_with_a_passphrase_is_used_from_the_agent_that_has_it(two: TwoHosts) -> None:
    key = two.a.folder / "locked_key"
    two.a.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key))
    with (two.b.ssh / "authorized_keys").open("a") as file:
        file.write(public_key(key) + "\n")
    two.write({"Far": {"machine": "pc2"}}, {"ssh": {"key": str(key)}})
    two.copy()
    say = program(two.a.folder / "say", "#!/bin/sh\necho secret\n")
    agentkit = f"{sys.executable} -m startup"
    script = f"ssh-add -q {key} </dev/null && {agentkit} up fleet.yaml && {agentkit} down"
    done = two.a.run("ssh-agent", "sh", "-c", script, folder=two.here, SSH_ASKPASS=say, SSH_ASKPASS_REQUIRE="force")
    assert done.code == 0, done.err
    assert "2 machines" in done.out
    assert processes(two.b) == ""


def test_a_stranger_with_the_same_cluster_name_is_left_alone(two: TwoHosts) -> None:
    two.write({"Near": {"machine": "main_pc"}}, cluster="two")
    other = two.b.folder / "elsewhere"
    other.mkdir()
    (other / "fleet_agents.py").write_bytes((two.here / "fleet_agents.py").read_bytes())
    (other / "fleet.yaml").write_text(
        "version: 1\ncluster: two\nmachines: {pc2: {}}\nagent_groups: {core: {Theirs: {agent: 'fleet_agents:Plain'}}}\n"
    )
    assert two.b.agentkit("up", "fleet.yaml", folder=other).code == 0
    two.write(APART)
    two.copy()
    result = two.agentkit("up", "fleet.yaml", "--no-wait")
    assert result.code == 1
    assert "its cluster: a cluster named two runs there already, from" in result.err
    assert "Theirs" in processes(two.b)
    assert two.b.agentkit("down").code == 0


def test_of_two_operators_at_once_one_wins_and_the_other_is_told(two: TwoHosts) -> None:
    two.write(APART)
    two.copy()
    begun = [
        machine.start(sys.executable, "-m", "startup", "up", "fleet.yaml", folder=folder)
        for machine, folder in ((two.a, two.here), (two.b, two.there))
    ]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in begun]
    codes = sorted(code for _, _, code in ended)
    assert codes[0] == 0, ended
    for _, err, code in ended:
        assert code == 0 or re.search(r"conflict: revision \d+ by root@|overtaken by revision \d+ of root@", err), err
    assert processes(two.a).count("agentkit: node") == 1
    assert processes(two.b).count("agentkit: node") == 1
    two.up()
    two.end()


def test_a_machine_that_vanishes_during_up_is_told_and_the_other_comes_up(hosts: Hosts, two: TwoHosts) -> None:
    two.write(APART)
    two.copy()
    slow = program(
        two.b.folder / "python", f'#!/bin/sh\ntouch "{two.there}/began"\nsleep 2\nexec {sys.executable} "$@"\n'
    )
    two.write(APART, {"python": slow})
    process = two.a.start(sys.executable, "-m", "startup", "up", "fleet.yaml", folder=two.here)
    two.b.run("sh", "-c", "until test -e began; do sleep 0.02; done", folder=two.there)
    hosts.link.cut()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "pc2 (192.0.2.2): agentkit: the connection was lost" in err
    assert "agent main_pc" not in processes(two.b)
    assert "agentkit: agent two/main_pc/Near" in processes(two.a)
    hosts.link.heal()
    assert processes(two.b) == "", "what was not ordered has ended"
    two.write(APART)
    two.copy()
    two.up()
    two.end()


def test_a_machine_that_is_away_during_down_is_told_and_is_taken_down_later(hosts: Hosts, two: TwoHosts) -> None:
    two.write(APART)
    two.copy()
    two.up()
    (two.a.ssh / "config").write_text("ConnectTimeout 3\n")
    hosts.link.cut()
    down = two.agentkit("down")
    assert down.code == 1
    told = (
        r"pc2 \(192.0.2.2\): SSH: connecting: 192.0.2.2:2222 does not answer: (it is silent|No route to host); is it on"
    )
    assert re.search(told, down.err)
    assert "what runs on pc2 may run on" in down.err
    assert processes(two.a) == ""
    assert "agentkit: agent two/pc2/Far" in processes(two.b)
    hosts.link.heal()
    two.end()


# -- every message

Break = Callable[[Hosts], dict[str, Any]]


def _without_key(hosts: Hosts) -> dict[str, Any]:
    key = hosts.a.folder / "other_key"
    if not key.exists():
        make_key(key)
    return {"ssh": {"key": str(key)}}


def _with_passphrase(hosts: Hosts) -> dict[str, Any]:
    key = hosts.a.folder / "locked_key"
    if not key.exists():
        hosts.a.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key))
    return {"ssh": {"key": str(key)}}


def _unknown_host(hosts: Hosts) -> dict[str, Any]:
    path = hosts.a.folder / "known_to_nobody"
    path.write_text("")
    return {"ssh": {"known_hosts": str(path)}}


def _changed_host(hosts: Hosts) -> dict[str, Any]:
    path = hosts.a.folder / "known_otherwise"
    key = (hosts.a.ssh / "id_ed25519.pub").read_text()
    path.write_text(f"[{hosts.b.address}]:{SSH_PORT} {key}")
    return {"ssh": {"known_hosts": str(path)}}


def _old_python(hosts: Hosts) -> dict[str, Any]:
    pretend = "import sys; sys.version_info = (3, 9, 2); sys.version = '3.9.2 (old)'; exec(sys.argv.pop(1))"
    return {"python": program(hosts.b.folder / "old", f'#!/bin/sh\nshift\nexec {sys.executable} -c "{pretend}" "$@"\n')}


def _bare_python(hosts: Hosts) -> dict[str, Any]:
    return {"python": program(hosts.b.folder / "bare", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')}


def _changed_by(hosts: Hosts, name: str, code: str) -> dict[str, Any]:
    folder = hosts.b.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    text = f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n'
    return {"python": program(hosts.b.folder / f"{name}.sh", text)}


def _no_folder(hosts: Hosts) -> dict[str, Any]:
    return {"workdir": str(hosts.b.folder / "nowhere")}


def _mounted(hosts: Hosts, options: str) -> dict[str, Any]:
    state = hosts.b.home / ".local/state"
    hosts.b.run("mkdir", "-p", str(state))
    hosts.b.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(state))
    return {}


REASONS: dict[str, tuple[Break, str, str]] = {
    "refused": (lambda _: {"ssh": {"port": 2223}}, "SSH: connecting: 192.0.2.2:2223 does not answer: Connection refused", "is it on"),
    "wrong key": (_without_key, "SSH: login: 192.0.2.2:2222 does not accept key", "ssh-copy-id"),
    "no such key": (lambda _: {"ssh": {"key": "/nowhere"}}, "SSH: key: /nowhere: No such file", "machines.pc2.ssh.key"),
    "passphrase": (_with_passphrase, "SSH: key: .* has a passphrase", "ssh-add"),
    "unknown host key": (_unknown_host, "SSH: host key: 192.0.2.2 is not in .*known_to_nobody", "log in once"),
    "changed host key": (_changed_host, "SSH: host key: it is not the one in .*known_otherwise", "ssh-keygen -f"),
    "no known_hosts": (lambda _: {"ssh": {"known_hosts": "/nowhere"}}, "known_hosts: there is no file /nowhere", "ssh-keyscan"),
    "jump host": (lambda _: {"ssh": {"jump": "root@192.0.2.1:2223"}}, "jump host: connecting: 192.0.2.1:2223", "is it on"),
    "no python": (lambda _: {"python": "/opt/none/python"}, "Python: /opt/none/python can't be run", "machines.pc2.python"),
    "old python": (_old_python, "Python: .* is 3.9.2", "agentkit needs 3.11"),
    "no agentkit": (_bare_python, "agentkit: .* has none", "pip install agentkit"),
    "control version": (
        lambda hosts: _changed_by(hosts, "newer", "import startup.plan.revision as it\nit.CONTROL_VERSION = 99\n"),
        "version: agentkit .* there speaks control version 99",
        "install a newer agentkit here",
    ),
    "no folder": (_no_folder, "files: there is no folder .*nowhere", "--push"),
    "read-only state": (lambda hosts: _mounted(hosts, "ro"), "starting its node: .*can't be written", "AGENTKIT_STATE_DIR"),
    "full disk": (lambda hosts: _mounted(hosts, "size=8m"), "starting its node: .*8 MB free", "make room"),
    "no way": (lambda _: {"ssh": None}, "its node: no way to it from here", "agentkit node run --cluster two --machine pc2"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_wrong_with_a_machine_is_told_with_step_and_remedy_and_the_other_comes_up(
    shared: Hosts, reason: str
) -> None:
    two = TwoHosts(shared.a, shared.b)
    two.write(APART)
    two.copy()
    breaks, found, fix = REASONS[reason]
    two.write(APART, breaks(shared))
    two.copy()
    try:
        result = two.agentkit("up", "fleet.yaml", "--json")
        assert result.code == 1, result.err
        (told,) = [line for line in result.err.splitlines() if line.startswith("agentkit: pc2 (192.0.2.2): ")]
        assert re.search(found, told)
        assert fix in told
        (unreached,) = result.json["unreached"]
        assert (unreached["machine"], unreached["host"]) == ("pc2", "192.0.2.2")
        assert [(agent["name"], agent["phase"]) for agent in result.json["agents"]] == [("Near", "ready")]
        assert processes(shared.b) == ""
    finally:
        shared.a.agentkit("node", "stop", "--cluster", "two")
        shared.b.run("umount", str(shared.b.home / ".local/state"))
    assert processes(shared.a) == ""


def test_another_patch_of_agentkit_is_a_warning(shared: Hosts) -> None:
    two = TwoHosts(shared.a, shared.b)
    two.write(APART, _changed_by(shared, "patch", "import agentkit._version as it\nit.VERSION = '0.0.9'\n"))
    two.copy()
    result = two.agentkit("up", "fleet.yaml")
    assert result.code == 0, result.err
    assert "pc2 (192.0.2.2): warning: agentkit 0.0.9 there" in result.err
    two.end()


def test_an_sshd_that_forbids_sockets_is_told(hosts: Hosts, two: TwoHosts) -> None:
    two.write(APART)
    two.copy()
    hosts.b.stop_sshd()
    hosts.b.start_sshd(AllowStreamLocalForwarding="no")
    result = two.agentkit("up", "fleet.yaml", "--no-wait")
    assert result.code == 1
    assert "reaching its node" in result.err
    assert "AllowStreamLocalForwarding yes" in result.err
    hosts.b.stop_sshd()
    hosts.b.start_sshd()
    two.end()
