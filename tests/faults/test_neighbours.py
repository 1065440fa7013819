"""Those who know nothing of agentkit: plain REQ callers, programs with sockets of their own, agents run by hand, and attackers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
import zmq

from agentkit.client import BlockingClient
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, kill
from tests.startup.cli.launched import REPOSITORY, free_port

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: As such programs are written today: its own context, its own REP socket, no idea of anything.
OLD = """
import json, os, sys, zmq
socket = zmq.Context().socket(zmq.REP)
socket.bind(f"tcp://127.0.0.1:{os.environ['PORT']}")
print("listening", flush=True)
while True:
    request = json.loads(socket.recv())
    if request.get("action") == "die":
        os._exit(3)
    socket.send(json.dumps({"status": "success", "pid": os.getpid(), "echo": request}).encode())
"""

#: Sends what no caller would, from a process of its own, and says so when it is through.
ATTACK = """
import random, sys, time, zmq
endpoint, count = sys.argv[1], int(sys.argv[2])
random.seed(7)
sockets = [zmq.Context.instance().socket(zmq.DEALER) for _ in range(4)]
for socket in sockets:
    socket.linger = 0
    socket.sndtimeo = 100
    socket.connect(endpoint)
print("begins", flush=True)
for n in range(count):
    kind, noise = n % 5, random.randbytes(random.randrange(1, 300))
    frames = [
        [noise],                                               # random bytes
        [b"\\x94\\x03\\x01\\xa4echo"[: random.randrange(1, 8)], noise],  # truncated msgpack
        [b"\\x93\\xc3\\xc0\\x81", b""],                            # wrong types
        [b"", b'{"action": "echo", "text": ["' + noise.hex().encode()],  # broken plain request
        [noise, *[b"x"] * 70],                                 # more frames than anybody sends
    ][kind]
    try:
        sockets[n % 4].send_multipart(frames)
    except zmq.Again:
        pass  # cut off, and its queue is full until it is connected again
    if n % 5 == 0:
        time.sleep(0.001)
print("sent", flush=True)
"""


def plain(endpoint: str, request: Any) -> Any:
    """One request as an old client makes it."""
    with zmq.Context() as context, context.socket(zmq.REQ) as sock:
        sock.linger = 0
        sock.rcvtimeo = sock.sndtimeo = int(PATIENCE_S * 1000)
        sock.connect(endpoint)
        sock.send(request if isinstance(request, bytes) else json.dumps(request).encode())
        return json.loads(sock.recv())


def test_a_plain_req_client_is_served_by_an_agent_of_the_fleet(fleet: Scratch) -> None:
    fleet.write({"Plain": {}})
    (agent,) = fleet.up()["agents"]
    endpoint = agent["endpoint"]
    answer = plain(endpoint, {"action": "echo", "text": "ab", "times": 2, "request_id": "r1"})
    assert (answer["status"], answer["result"], answer["request_id"]) == ("success", "abab", "r1")
    assert plain(endpoint, {"type": "PID"})["result"] == agent["pid"]
    assert plain(endpoint, b"ping")["status"] == "success"
    wrong = plain(endpoint, {"action": "echo", "times": "many"})
    assert (wrong["status"], wrong["code"]) == ("error", "bad_request")
    assert "text" in wrong["message"]
    # it waits through a crash: the port is the node's
    before = fleet.rows()["Plain"]
    kill(before.pid)
    assert plain(endpoint, {"action": "pid"})["result"] not in (None, before.pid)


def test_a_program_with_a_rep_socket_of_its_own_is_run_ordered_restarted_and_stopped(fleet: Scratch) -> None:
    fleet.python("old_service.py", OLD)
    fleet.write(
        {
            "Old": {"agent": None, "script_path": "old_service.py", "sockets": "self"},
            "Needs": {"dependencies": ["Old"]},
        }
    )
    agents = {agent["name"]: agent for agent in fleet.up()["agents"]}
    endpoint = agents["Old"]["endpoint"]
    assert plain(endpoint, {"action": "x"}) == {
        "status": "success",
        "pid": agents["Old"]["pid"],
        "echo": {"action": "x"},
    }
    assert agents["Old"]["ready_s"] <= agents["Needs"]["forked_s"]
    before = fleet.rows()["Old"]
    with pytest.raises(zmq.Again):
        plain_and_lose(endpoint, {"action": "die"})
    after = fleet.wait_restarted("Old", before)
    assert (after.last_exit.partition(" after")[0], after.restarts) == ("exit 3", 1)
    assert plain(endpoint, {})["pid"] == after.pid
    assert "listening" in fleet.run("logs", "Old").out
    assert fleet.run("stop", "Old").code == 0
    assert fleet.rows()["Old"].phase is Phase.STOPPED


def plain_and_lose(endpoint: str, request: Any) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as sock:
        sock.linger = 0
        sock.rcvtimeo = 300
        sock.connect(endpoint)
        sock.send(json.dumps(request).encode())
        sock.recv()


def test_validate_says_what_a_program_with_sockets_of_its_own_does_without(fleet: Scratch) -> None:
    fleet.python("old_service.py", OLD)
    fleet.write({"Old": {"agent": None, "script_path": "old_service.py"}})
    result = fleet.run("validate", "fleet.yaml", "--json")
    assert result.code == 0
    (note,) = result.json["problems"]
    assert (note["severity"], note["check"]) == ("note", "programs")
    assert "no deep sleep and no hot swap" in note["found"]


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_an_agents_own_file_runs_by_hand(tmp_path: Path, signal_: signal.Signals) -> None:
    """`python agents/task_manager.py`: no node, no fleet file."""
    port, health_port = free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "agents/task_manager.py", "--port", str(port), "--health-port", str(health_port)],
        cwd=REPOSITORY,
        env={**os.environ, "AGENTKIT_DATA_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        endpoint = f"tcp://127.0.0.1:{port}"
        assert (
            plain(endpoint, {"action": "stats"})["status"] == "success"
        )  # waits until it listens; our own client gives up
        with BlockingClient(peers={"TaskManager": endpoint}) as client:
            task = client.call("TaskManager", "create", {"title": "by hand"})
            assert client.call("TaskManager", "get", {"id": task["id"]})["title"] == "by hand"
        assert plain(endpoint, {"action": "get", "id": task["id"]})["title"] == "by hand"
        process.send_signal(signal_)
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, out
        assert "agent.ready" in out
    finally:
        process.kill()
        process.communicate()


def test_an_agent_in_ten_lines_runs_by_hand_and_in_a_fleet(fleet: Scratch) -> None:
    port = free_port()
    fleet.python(
        "greeter.py",
        """\
        from agentkit import BaseAgent, rpc

        class Greeter(BaseAgent):
            @rpc
            async def greet(self, name: str) -> str:
                return f"hello {name}"

        if __name__ == "__main__":
            Greeter.main()
        """,
    )
    by_hand = fleet.begin(sys.executable, "greeter.py", "--port", str(port))
    endpoint = f"tcp://127.0.0.1:{port}"
    assert plain(endpoint, {"action": "greet", "name": "hand"})["result"] == "hello hand"
    by_hand.terminate()
    assert by_hand.wait(PATIENCE_S) == 0
    by_hand.communicate()
    fleet.write({"Greeter": {"agent": None, "script_path": "greeter.py", "port": port}})
    fleet.up()
    assert fleet.run("call", "Greeter", "greet", "name=fleet").out == "hello fleet\n"


def test_ten_thousand_hostile_frames_neither_slow_good_callers_nor_grow_the_agent(fleet: Scratch) -> None:
    """Whoever sends them is cut off, again and again, so they can't cost much: how little is in benchmarks/bench_rpc.py."""
    fleet.python("attack.py", ATTACK)
    fleet.write({"Plain": {}})
    (agent,) = fleet.up()["agents"]
    process = psutil.Process(agent["pid"])
    with BlockingClient(peers={"Plain": agent["endpoint"]}) as client:
        for _ in range(500):
            assert client.call("Plain", "echo", {"text": "x"}) == "x"
        memory = process.memory_full_info().uss
        attack = fleet.begin(sys.executable, "attack.py", agent["endpoint"], "10000")
        answered = 0
        while attack.poll() is None:
            assert client.call("Plain", "echo", {"text": "x"}, timeout=5) == "x"
            answered += 1
        out, err = attack.communicate()
        assert out == "begins\nsent\n", err
        assert answered > 100
        assert client.call("Plain", "pid") == agent["pid"]
    with urlopen(agent["health_url"].replace("/health", "/metrics"), timeout=PATIENCE_S) as answer:
        metrics = answer.read()
    (bad,) = re.findall(rb"^agent_bad_frames_total(?:{.*})? ([0-9.e+]+)$", metrics, re.MULTILINE)
    (cut,) = re.findall(rb"^agent_connections_cut_total(?:{.*})? ([0-9.e+]+)$", metrics, re.MULTILINE)
    assert float(bad) >= 4 * 16
    assert float(cut) >= 4
    assert (process.memory_full_info().uss - memory) / 2**20 < 20
    row = fleet.rows()["Plain"]
    assert (row.pid, row.phase, row.restarts) == (agent["pid"], Phase.READY, 0)
    assert fleet.log("Plain").count("\n") < 200  # told at most once a second
