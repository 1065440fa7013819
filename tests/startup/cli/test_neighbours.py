"""What `doctor` says of other machines: pure, and the one question that needs no second machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from startup.cli.by_key import operator_keys, unanswered
from startup.cli.neighbours import Neighbour, judge
from tests.startup.cli.launched import free_port


def found(**changes: Any) -> dict[str, tuple[str, str, str]]:
    facts: dict[str, Any] = {
        "name": "pc2", "host": "pc2.lan", "node_port": 10002, "resolves": True, "way": "tcp://pc2.lan:10002", "has_node": True,
        "clock_s": 0.01,
    }  # fmt: skip
    return {
        it.name.partition(": ")[2]: (it.verdict, it.value, it.fix) for it in judge(Neighbour(**{**facts, **changes}))
    }


def test_a_machine_that_is_there_has_nothing_to_fix() -> None:
    assert {name: (verdict, fix) for name, (verdict, _, fix) in found().items()} == dict.fromkeys(
        ("address", "node port", "way there", "clock"), ("ok", "")
    )


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "value", "fix"),
    [
        ({"resolves": False}, "address", "fail", "pc2.lan", "/etc/hosts"),
        ({"node_port": None}, "node port", "fail", "not set", "machines.pc2.node_port"),
        (
            {"silent": "pc2.lan:10002: Connection refused", "has_node": False},
            "node port",
            "warn",
            "refused",
            "none is needed",
        ),
        ({"silent": "pc2.lan:10002: no answer within 3 s"}, "node port", "fail", "its node runs, but", "firewall"),
        ({"trouble": "pc2: SSH: login: no"}, "way there", "fail", "SSH: login: no", "what the message says"),
        ({"has_node": False, "way": "SSH", "clock_s": None}, "way there", "ok", "SSH; no node runs there", ""),
        ({"clock_s": 3600.0}, "clock", "warn", "1h00m ahead", "chrony"),
        ({"clock_s": -2.0}, "clock", "warn", "2.00 s behind", "chrony"),
    ],
)
def test_each_trouble_is_named_with_its_fix(
    changes: dict[str, Any], name: str, verdict: str, value: str, fix: str
) -> None:
    told = found(**changes)[name]
    assert told[0] == verdict
    assert value in told[1]
    assert fix in told[2]


def test_addresses_are_tried_at_once_and_only_those_that_fail_are_told() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        places = {
            "here": ("127.0.0.1", listening.getsockname()[1]),
            "nobody": ("127.0.0.1", free_port()),
            "nowhere": ("no.such.host.invalid", 1),
        }
        failed = unanswered(places, 5.0)
    assert failed.keys() == {"nobody", "nowhere"}
    assert failed["nobody"].endswith("Connection refused")
    assert failed["nowhere"].startswith("no.such.host.invalid: ")


def test_why_there_is_no_operators_key_is_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentkit.security.folder import KeyFolder
    from agentkit.security.keys import new_key

    monkeypatch.setenv("AGENTKIT_KEYS", str(tmp_path / "keys"))
    assert operator_keys() == f"there are no keys in {tmp_path / 'keys'}"
    folder = KeyFolder(tmp_path / "keys")
    folder.add([new_key("pc2", "agent")])
    assert operator_keys() == f"{tmp_path / 'keys'} holds no operator's key, but that of pc2 (agent)"
    folder.add([new_key("ops", "operator")])
    ring = operator_keys()
    assert not isinstance(ring, str)
    assert ring.own.name == "ops"
    (tmp_path / "keys").chmod(0o755)
    assert "chmod 700" in str(operator_keys())


def test_a_fleet_on_one_host_pays_for_no_way_to_another() -> None:
    code = (
        "import sys; from contextlib import ExitStack\n"
        "from startup.cli.cluster import Cluster; from startup.cli.elsewhere import Elsewhere\n"
        "stack = ExitStack(); others = Elsewhere(stack, 'c', []); others.begin_find(); assert not others.finish().doors\n"
        "print(sorted({'asyncio', 'asyncssh', 'zmq', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
