"""Two machines whose cluster has keys: who may call what, who is turned away, and who is nobody any more."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.hosts.conftest import Hosts
from tests.hosts.machines import Machine, Result
from tests.hosts.projects import install, typed, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

BANKS = """
from agentkit import BaseAgent, rpc


class Bank(BaseAgent):
    @rpc
    async def balance(self) -> int:
        return 7

    @rpc(role="operator")
    async def pay(self, amount: int = 1) -> str:
        return f"paid {amount}"

    @rpc
    async def ask(self, target: str, method: str) -> object:
        return await self.call(target, method)

    @rpc
    def ask_in_thread(self, target: str, method: str) -> object:
        return self.blocking.call(target, method)
"""

#: Calls once a second what it is told to, for as long as nobody stops it, and says how that went.
CALLS = """
import sys, time
from agentkit import BlockingClient, CallError
with BlockingClient(peers={"pc2/Far": sys.argv[1]}, keys=sys.argv[2]) as client:
    while True:
        try:
            print(client.call("pc2/Far", "balance", timeout=5), flush=True)
        except CallError as error:
            print(error.code, flush=True)
            if error.code == "unauthenticated":
                break
        time.sleep(0.05)
"""

#: Has agents of both machines call each other, and says how that went.
CROSSWISE = """
from agentkit import BlockingClient
with BlockingClient() as client:
    while True:
        for caller, other in (("Near", "Far"), ("Far", "Near")):
            for method in ("ask", "ask_in_thread"):
                print(client.call(caller, method, {"target": other, "method": "balance"}, timeout=10), flush=True)
"""

#: Sends a plain request to an address, and shows what comes within a second.
PLAIN = """
import sys, zmq
sock = zmq.Context().socket(zmq.REQ)
sock.connect(sys.argv[1])
sock.send(b'{"action": "balance"}')
print(sock.recv() if sock.poll(1000) else "nothing")
"""


def bring_up(hosts: Hosts, **facts: Any) -> None:
    """Keys made on main_pc, pc2's part carried there by hand, then the fleet from main_pc."""
    a, b, _ = hosts
    banks = {
        name: {"agent": "banks:Bank", "machine": machine, "port": port, "health_check_port": port + 1}
        for name, machine, port in (("Near", a.name, 20_000), ("Far", b.name, 20_002))
    }
    install(a, b, agents={}, **({"security": {}, "agent_groups": {"core": banks}} | facts))
    for machine in (a, b):
        (machine.home / "fleet" / "banks.py").write_text(BANKS)
    done(typed(a, "keys", "init"))
    done(typed(a, "keys", "export", b.name, "part.tar"))
    (b.home / "part.tar").write_bytes((a.home / "fleet" / "part.tar").read_bytes())
    done(typed(b, "keys", "import", str(b.home / "part.tar")))
    done(typed(a, "up", "--json"))


def done(result: Result) -> Result:
    assert result.code == 0, result.err + result.out
    return result


def error_of(result: Result) -> str:
    assert result.code == 1, result
    return str(result.json["error"]["code"])


def fingerprints(machine: Machine) -> dict[str, str]:
    return {key["name"]: key["fingerprint"] for key in typed(machine, "keys", "list", "--json").json["keys"]}


def test_calls_between_machines_are_by_key_and_strangers_get_nothing(hosts: Hosts) -> None:
    a, b, _ = hosts
    bring_up(hosts)
    for method in ("ask", "ask_in_thread"):
        assert done(typed(a, "call", "Near", method, "target=Far", "method=balance")).out == "7\n"
        assert error_of(typed(a, "call", "Near", method, "target=Far", "method=pay", "--json")) == "forbidden"
    assert done(typed(a, "call", "Far", "pay", "amount=3")).out == "paid 3\n", "the operator's key is here"
    assert done(typed(a, "call", "Near", "pay")).out == "paid 1\n", "and shown to agents of its own machine, too"
    assert error_of(typed(b, "call", "Far", "pay", "--json")) == "forbidden", "pc2 has no operator's key"
    assert done(typed(b, "call", "Near", "balance")).out == "7\n"

    endpoint = f"tcp://{b.address}:20002"
    assert a.run(sys.executable, "-c", PLAIN, endpoint).out == "nothing\n"
    metrics = f"import urllib.request as u; print(u.urlopen('http://{b.address}:20003/metrics').read().decode())"
    counted = a.run(sys.executable, "-c", metrics).out
    assert (
        float(next(line for line in counted.splitlines() if line.startswith("agent_unauthenticated_total")).split()[-1])
        >= 1
    )
    done(typed(a, "down"))


def test_who_is_revoked_is_cut_off_while_it_calls_and_everybody_else_goes_on(hosts: Hosts) -> None:
    a, b, _ = hosts
    bring_up(hosts)
    done(typed(a, "keys", "add", "screen", "--role", "reader"))
    until(lambda: fingerprints(b).keys() == {"main_pc", "pc2", "operator", "screen"})
    done(typed(a, "keys", "export", "screen", "screen.tar"))
    folder = str(a.home / "screen")
    done(typed(a, "keys", "import", "screen.tar", "--dir", folder))
    caller = a.start(sys.executable, "-c", CALLS, f"tcp://{b.address}:20002", folder)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "7\n"
    done(typed(a, "keys", "revoke", "screen"))
    *calls, last = caller.communicate(timeout=30)[0].splitlines()
    assert last == "unauthenticated"
    assert set(calls) <= {"7", "peer_lost", "draining"}
    assert "screen" not in fingerprints(b)
    assert done(typed(a, "call", "Near", "ask", "target=Far", "method=balance")).out == "7\n"
    done(typed(a, "down"))


def test_keys_are_changed_while_agents_call_each_other_and_no_call_fails(hosts: Hosts) -> None:
    a, b, _ = hosts
    bring_up(hosts)
    before = fingerprints(a)
    caller = a.start(sys.executable, "-c", CROSSWISE, folder=a.home / "fleet")
    assert caller.stdout is not None
    assert caller.stdout.readline() == "7\n"
    rotated = done(typed(a, "keys", "rotate", "--json")).json
    assert set(rotated["revoked"]) == set(before.values())
    assert all(caller.stdout.readline() == "7\n" for _ in range(20))
    a.interrupt(caller)
    assert set(caller.communicate(timeout=30)[0].split()) <= {"7"}
    assert fingerprints(a) == fingerprints(b) == {key["name"]: key["fingerprint"] for key in rotated["new"]}
    assert done(typed(a, "call", "Far", "pay")).out == "paid 1\n"
    done(typed(a, "down"))


def test_a_machine_that_was_away_hears_who_was_revoked_when_it_is_back(hosts: Hosts) -> None:
    a, b, link = hosts
    bring_up(hosts)
    done(typed(a, "keys", "add", "screen", "--role", "reader"))
    assert "screen" in fingerprints(b)
    link.cut()
    told = typed(a, "keys", "revoke", "screen", "--json")
    assert told.code == 1
    assert list(told.json["missing"]) == ["pc2"]
    assert "screen" not in fingerprints(a)
    link.heal()
    until(lambda: "screen" not in fingerprints(b))
    done(typed(a, "down"))


def test_events_cross_to_the_other_machine_by_key(hosts: Hosts) -> None:
    a, b, _ = hosts
    bring_up(hosts)
    listening = b.start(sys.executable, "-m", "startup", "events", "-f", "news.*", "--json", folder=b.home / "fleet")
    assert listening.stdout is not None
    send = (
        "import asyncio\nfrom agentkit import Client, Event\n"
        "class News(Event, topic='news.came'):\n n: int\n"
        "async def main():\n async with Client() as client:\n  for n in range(200):\n"
        "   await client.publish('news.came', News(n=n)); await asyncio.sleep(0.05)\nasyncio.run(main())"
    )
    sender = a.start(sys.executable, "-c", send, folder=a.home / "fleet")
    assert json.loads(listening.stdout.readline())["topic"] == "news.came"
    for process in (listening, sender):
        process.kill()
    done(typed(a, "down"))
