"""Agents whose process is gone while they sleep: no call is lost, none is run twice, nobody but a caller wakes them, whatever dies."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.request import urlopen

import msgpack
import pytest
import zmq

from agentkit.client import BlockingClient, Client
from agentkit.errors import CallError
from startup.control import NodeConnection
from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from tests.faults.scratch import PATIENCE_S, Scratch, kill, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Appends each run of a handler to a file, so that none is seen to be missing or doubled. `broken` fails its next start.
NAPPING = """
from __future__ import annotations
import asyncio, os
from agentkit import BaseAgent, Delivery, Event, every, rpc, subscribe

class News(Event, topic="news.today"):
    n: int

class Napping(BaseAgent):
    async def on_start(self):
        self.tell("started", str(os.getpid()))
        if os.path.exists("broken"):
            raise FileNotFoundError("the model is not there")
        if os.path.exists("slow"):
            await asyncio.sleep(0.05)

    async def on_stop(self):
        if os.path.exists("slow"):
            await asyncio.sleep(0.02)

    @rpc
    async def run_once(self, key: str) -> int:
        self.tell("runs", key)
        return os.getpid()

    @rpc(timeout="60s")
    async def until(self, file: str) -> int:
        self.tell("waits", file)
        while not os.path.exists(file):
            await asyncio.sleep(0.01)
        return os.getpid()

    def tell(self, name, what):
        with open(name, "a") as file:
            file.write(what + "\\n")

class Listening(Napping):
    @subscribe("news.>")
    async def hear(self, event: Delivery) -> None:
        self.tell("heard", f"{event.data['n']} {event.lost}")

class Saying(Napping):
    @rpc
    async def say(self, n: int) -> None:
        await self.publish("news.today", News(n=n))

class Ticking(Napping):
    @every("1s", slows=False)
    async def tick(self):
        self.tell("ticks", str(os.getpid()))
"""


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Scratch]:
    """Measured by coverage, but where a test forks hundreds of processes."""
    with Scratch(measured=not request.node.get_closest_marker("soak")) as scratch:
        yield scratch


def up(fleet: Scratch, agents: dict[str, dict[str, Any]] | None = None, **settings: Any) -> AgentRow:
    fleet.python("napping.py", NAPPING)
    fleet.write(agents or {"A": {"agent": "napping:Napping", **settings}})
    assert {row["phase"] for row in fleet.up()["agents"]} == {"ready"}
    return fleet.rows()["A"]


def lay(fleet: Scratch, *names: str) -> None:
    answer = fleet.ask("hibernate", agents=list(names or ("A",)), depth="deep")
    assert not answer["awake"], answer


def started(fleet: Scratch) -> int:
    return len(fleet.told("started"))


def ran(fleet: Scratch) -> Counter[str]:
    return Counter(fleet.told("runs"))


def control(fleet: Scratch) -> str:
    return str(fleet.place("m").control)


def get(row: AgentRow, path: str) -> tuple[int, str, Any]:
    assert row.health_url is not None
    with urlopen(row.health_url.removesuffix("/health") + path, timeout=PATIENCE_S) as answer:
        return answer.status, answer.headers["connection"], answer.read().decode()


def race(fleet: Scratch, times: int, seed: int, *, first: tuple[float, float]) -> None:
    """`times` sleeps, each with calls of three kinds of callers somewhere in it: none is lost, none runs twice, one process at most."""
    draw = random.Random(seed)

    async def calls(client: Client, fresh: Client, repeat: int, connection: NodeConnection) -> None:
        threads = asyncio.get_running_loop()
        sleeping = threads.run_in_executor(None, lambda: connection.ask("hibernate", agents=["A"], depth="deep"))

        async def one(caller: Client, name: str) -> None:
            await asyncio.sleep(draw.uniform(*first))
            await caller.call("A", "run_once", {"key": f"{repeat} {name}"}, timeout=PATIENCE_S)

        blocking = threads.run_in_executor(None, lambda: from_thread(draw.uniform(*first), f"{repeat} thread"))
        await asyncio.gather(one(client, "kept"), one(fresh, "fresh"), blocking, sleeping)

    with BlockingClient(node=control(fleet)) as kept_blocking:

        def from_thread(after_s: float, key: str) -> None:
            time.sleep(after_s)
            kept_blocking.call("A", "run_once", {"key": key}, timeout=PATIENCE_S)

        async def all_of_them() -> None:
            with fleet.connect() as connection:
                async with Client(node=control(fleet)) as client:
                    for repeat in range(times):
                        async with Client(node=control(fleet)) as fresh:
                            await calls(client, fresh, repeat, connection)

        asyncio.run(all_of_them())
    expected = Counter(f"{repeat} {name}" for repeat in range(times) for name in ("kept", "fresh", "thread"))
    assert ran(fleet) == expected


@pytest.mark.soak
def test_a_call_in_any_window_of_falling_asleep_and_waking_is_answered_and_runs_once(
    fleet: Scratch, times: int
) -> None:
    up(fleet)
    race(fleet, 200 * times, 7, first=(0.0, 0.06))
    row = fleet.rows()["A"]
    assert row.sleep["deep"]["wakes"] > 20  # else no window but the first was hit
    assert row.restarts == 0


@pytest.mark.soak
def test_the_same_when_stopping_and_starting_take_long(fleet: Scratch, times: int) -> None:
    up(fleet)
    (fleet.folder / "slow").touch()
    race(fleet, 60 * times, 8, first=(0.0, 0.15))
    assert fleet.rows()["A"].sleep["deep"]["wakes"] > 10


def test_a_hundred_callers_wake_one_process_and_all_are_answered(fleet: Scratch) -> None:
    up(fleet)
    lay(fleet)
    before = started(fleet)

    def one(number: int) -> Any:
        with BlockingClient(node=control(fleet)) as client:
            return client.call("A", "run_once", {"key": str(number)}, timeout=PATIENCE_S)

    with ThreadPoolExecutor(100) as threads:
        pids = set(threads.map(one, range(100)))
    assert len(pids) == 1
    assert ran(fleet) == Counter(map(str, range(100)))
    assert started(fleet) == before + 1
    assert fleet.rows()["A"].sleep["deep"]["wakes"] == 1


def test_probes_scrapes_and_idle_callers_wake_nobody_and_are_told_that_it_sleeps(fleet: Scratch, times: int) -> None:
    row = up(fleet)

    async def probed() -> None:
        async with Client(node=control(fleet)) as client:  # it was connected, and stays idle
            await client.call("A", "run_once", {"key": "before"}, timeout=PATIENCE_S)
            with BlockingClient(node=control(fleet)) as blocking:
                blocking.call("A", "run_once", {"key": "blocking"}, timeout=PATIENCE_S)
                await asyncio.to_thread(lay, fleet)
                before = started(fleet)
                for _ in range(200 * times):
                    for path in ("/live", "/ready", "/startup", "/health", "/metrics"):
                        status, connection, body = await asyncio.to_thread(get, row, path)
                        assert (status, connection) == (200, "close")
                        assert "hibernated" in body
                assert 'agent_requests_total{agent="A",method="run_once",outcome="ok"} 2.0' in body
                assert "process_" not in body
                assert started(fleet) == before
                assert fleet.rows()["A"].phase is Phase.HIBERNATED
                await client.call("A", "run_once", {"key": "after"}, timeout=PATIENCE_S)
                blocking.call("A", "run_once", {"key": "blocking after"}, timeout=PATIENCE_S)
                assert started(fleet) == before + 1

    asyncio.run(probed())
    assert json.loads(get(row, "/health")[2])["phase"] == "ready"
    assert set(ran(fleet).values()) == {1}


def test_hostile_health_clients_of_a_sleeper_cost_a_bounded_amount(fleet: Scratch) -> None:
    row = up(fleet)
    lay(fleet)
    assert row.health_url is not None
    port = int(row.health_url.rpartition(":")[2].partition("/")[0])
    idle = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) for _ in range(300)]
    try:
        assert idle[0].recv(1) == b""  # the oldest made room
        for request, answer in (
            (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
            (b"POST /health HTTP/1.1\r\n\r\n", b"405"),
            (b"\x00\x01\x02\r\n\r\n", b"400"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
                sock.sendall(request)
                assert answer in sock.recv(4096)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock, pytest.raises(ConnectionError):
            for _ in range(100_000):
                sock.sendall(b"x" * 4096)
    finally:
        for sock in idle:
            sock.close()
    assert get(row, "/live")[0] == 200
    assert fleet.rows()["A"].phase is Phase.HIBERNATED


def test_a_plain_client_that_is_connected_keeps_it_awake_and_status_names_it(fleet: Scratch) -> None:
    row = up(fleet)
    port = int(row.endpoints["inbox-local"].rpartition(":")[2])
    context = zmq.Context()
    req = context.socket(zmq.REQ)
    try:
        req.connect(f"tcp://127.0.0.1:{port}")
        req.send_json({"action": "run_once", "key": "plain", "source_agent": "OldOne"})
        assert req.poll(PATIENCE_S * 1000)
        assert req.recv_json()["status"] == "success"
        answer = fleet.ask("hibernate", agents=["A"], depth="deep")
        assert "OldOne" in answer["awake"]["m/A"]
        assert "OldOne" in fleet.run("status", "A").out
    finally:
        req.close(linger=0)
        context.term()
    until(lambda: not fleet.ask("hibernate", agents=["A"], depth="deep")["awake"])


def test_what_runs_keeps_it_awake_and_is_answered(fleet: Scratch) -> None:
    row = up(fleet)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(fleet.call, "A", "until", file=str(fleet.folder / "done"))
        until(lambda: fleet.told("waits"))
        assert "a call runs" in fleet.ask("hibernate", agents=["A"], depth="deep")["awake"]["m/A"]
        (fleet.folder / "done").touch()
        assert answer.result() == row.pid
    lay(fleet)


def test_one_that_can_not_start_when_it_is_woken_fails_with_its_reason_and_its_caller_is_told(fleet: Scratch) -> None:
    up(fleet, restart={"max_attempts": 1, "delay": "10ms"})
    lay(fleet)
    (fleet.folder / "broken").touch()
    with pytest.raises(CallError) as told:
        fleet.call("A", "run_once", key="lost")
    assert told.value.code == "peer_lost"
    assert told.value.retry_safe
    row = fleet.wait_phase(Phase.FAILED, "A")["A"]
    assert "the model is not there" in row.reason
    (fleet.folder / "broken").unlink()
    assert fleet.run("start", "A").code == 0
    fleet.call("A", "run_once", key="again")
    assert ran(fleet) == Counter(["again"])


def test_a_node_killed_while_its_agents_sleep_is_followed_by_one_that_wakes_them(fleet: Scratch) -> None:
    row = up(fleet, {name: {"agent": "napping:Napping"} for name in ("A", "B")})
    lay(fleet, "A", "B")
    node = fleet.node_pid()
    before = started(fleet)
    kill(node)
    with BlockingClient(peers={"A": row.endpoints["inbox-local"]}) as client:  # nobody is there to fork it
        client.call("A", "run_once", {"key": "meanwhile"}, timeout=PATIENCE_S)
    fleet.wait_for_another_node(node)
    assert fleet.rows()["B"].phase is Phase.HIBERNATED
    assert (started(fleet), ran(fleet)) == (before + 1, Counter(["meanwhile"]))
    fleet.call("B", "run_once", key="B")


def test_node_and_zygote_killed_while_agents_sleep_the_next_up_watches_their_ports_again(fleet: Scratch) -> None:
    row = up(fleet)
    lay(fleet)
    before = started(fleet)
    kill(fleet.node_pid(), fleet.zygote_pid())
    assert fleet.run("up", "fleet.yaml", "--json").code == 0
    assert fleet.rows()["A"].phase is Phase.HIBERNATED
    assert "adoption.sleepers_unheard" in fleet.node_log()
    assert get(row, "/health")[0] == 200
    assert started(fleet) == before
    fleet.call("A", "run_once", key="after")
    assert ran(fleet) == Counter(["after"])


def test_after_a_reboot_sleepers_sleep_on_with_their_ports_open_and_the_others_are_started(fleet: Scratch) -> None:
    up(fleet, {name: {"agent": "napping:Napping"} for name in ("A", "B")})
    lay(fleet)
    kill(fleet.node_pid(), fleet.zygote_pid(), fleet.rows()["B"].pid)
    snapshot = fleet.place("m").state / "processes.msgpack"
    kept = msgpack.unpackb(snapshot.read_bytes(), strict_map_key=False)
    snapshot.write_bytes(msgpack.packb({**kept, "boot": "the boot before"}))
    before = started(fleet)
    assert fleet.run("up", "fleet.yaml").code == 0
    rows = fleet.rows()
    assert (rows["A"].phase, rows["B"].phase, started(fleet)) == (Phase.HIBERNATED, Phase.READY, before + 1)
    fleet.call("A", "run_once", key="after")
    assert (started(fleet), ran(fleet)) == (before + 2, Counter(["after"]))


def test_an_answer_that_is_promised_to_a_key_is_not_forgotten_in_a_sleep(fleet: Scratch) -> None:
    up(fleet, serve={"idempotency": {"window": "1s"}})
    with BlockingClient(node=control(fleet)) as client:
        once = partial(client.call, "A", "run_once", {"key": "k"}, idempotency_key="k", timeout=PATIENCE_S)
        first = once()
        answer = fleet.ask("hibernate", agents=["A"], depth="deep")
        if answer["awake"]:  # else the second was over before it was told to
            assert "promised" in answer["awake"]["m/A"]
            assert once() == first
    until(lambda: not fleet.ask("hibernate", agents=["A"], depth="deep")["awake"])
    assert ran(fleet) == Counter(["k"])


def lay_listener(fleet: Scratch) -> None:
    """Which may just be ending the run that told what it heard."""
    until(lambda: not fleet.ask("hibernate", agents=["A"], depth="deep")["awake"])


LISTENING = {"agent": "napping:Listening"}
SAYING = {"agent": "napping:Saying"}


def heard(fleet: Scratch) -> list[tuple[int, int]]:
    """What A had of the events, and how many were lost right before each; without the -1 that only finds out
    whether anything arrives."""
    told = [(int(n), int(lost)) for n, lost in map(str.split, fleet.told("heard"))]
    return [(n, lost) for n, lost in told if n >= 0]


def race_of_events(fleet: Scratch, times: int, seed: int) -> None:
    """`times` sleeps, each with three events somewhere in falling asleep and waking: each is heard once, in order, and nothing is lost."""
    draw, said = random.Random(seed), 0
    with fleet.connect() as connection, ThreadPoolExecutor(1) as thread, BlockingClient(node=control(fleet)) as client:
        for _ in range(times):
            sleeping = thread.submit(connection.ask, "hibernate", agents=["A"], depth="deep")
            for longest_s in (0.06, 0.03, 0.03):
                time.sleep(draw.uniform(0.0, longest_s))
                client.call("B", "say", {"n": said}, timeout=PATIENCE_S)
                said += 1
            sleeping.result(PATIENCE_S)
    try:
        until(lambda: len(heard(fleet)) >= said)
    except AssertionError:
        raise AssertionError(f"of {said} came {heard(fleet)}") from None
    assert heard(fleet) == [(n, 0) for n in range(said)]
    row = fleet.rows()["A" if len(fleet.machines) == 1 else "m/A"]
    assert row.sleep["deep"]["wakes"] > times // 10  # else no window but the first was hit
    assert row.restarts == 0


@pytest.mark.soak
def test_an_event_in_any_window_of_falling_asleep_and_waking_is_heard_once_and_in_order(
    fleet: Scratch, times: int
) -> None:
    up(fleet, {"A": LISTENING, "B": SAYING})
    race_of_events(fleet, 30 * times, 9)


def test_an_event_of_another_machine_wakes_it_and_none_is_lost_over_a_killed_node_without_being_counted() -> None:
    with Scratch(machines=("m", "n")) as fleet:
        fleet.python("napping.py", NAPPING)
        fleet.write({"A": {**LISTENING, "machine": "m"}, "B": {**SAYING, "machine": "n"}})
        assert {row["phase"] for row in fleet.up()["agents"]} == {"ready"}

        def say(number: int) -> None:
            with BlockingClient(node=str(fleet.place("n").control)) as client:
                client.call("B", "say", {"n": number}, timeout=PATIENCE_S)

        until(lambda: say(-1) or fleet.told("heard"))  # an agent does not wait until other machines' relays know of it
        race_of_events(fleet, 3, 10)
        lay_listener(fleet)
        node = fleet.node_pid("m")
        kill(node)
        fleet.wait_for_another_node(node, "m")
        count = len(heard(fleet))

        def is_heard() -> bool:
            nonlocal count
            say(count)
            count += 1
            return len(heard(fleet)) > 9

        until(is_heard)  # the new node listens again after a moment: what came before that is counted
        last, lost = heard(fleet)[9]
        assert lost == last - 9
        assert fleet.rows()["m/A"].sleep["deep"]["woken_by"] == "an event"


def test_one_that_falls_asleep_by_itself_is_woken_by_each_event(fleet: Scratch) -> None:
    up(fleet, {"A": {**LISTENING, "hibernate": {"after": "0.05s", "depth": "deep"}}, "B": SAYING})
    for number in range(2):
        fleet.wait_phase(Phase.HIBERNATED, "A")
        fleet.call("B", "say", n=number)
        until(lambda number=number: len(heard(fleet)) > number)  # type: ignore[misc]
    fleet.wait_phase(Phase.HIBERNATED, "A")
    assert heard(fleet) == [(n, 0) for n in range(2)]


def test_a_subscriber_whose_file_says_count_sleeps_on_and_then_what_it_missed_is_counted(fleet: Scratch) -> None:
    up(fleet, {"A": {**LISTENING, "hibernate": {"events": "count"}}, "B": SAYING})
    fleet.call("B", "say", n=1)
    until(lambda: heard(fleet) == [(1, 0)])
    lay_listener(fleet)
    for number in (2, 3, 4):
        fleet.call("B", "say", n=number)
    assert fleet.rows()["A"].phase is Phase.HIBERNATED
    fleet.run("wake", "A")
    fleet.wait_phase(Phase.READY, "A")
    fleet.call("B", "say", n=5)
    until(lambda: heard(fleet) == [(1, 0), (5, 3)])
    metrics = get(fleet.rows()["A"], "/metrics")[2]
    assert 'agent_events_lost_total{agent="A"} 3.0' in metrics


def test_a_timer_wakes_it_and_is_not_forgotten_over_its_sleeps(fleet: Scratch) -> None:
    up(fleet, {"A": {"agent": "napping:Ticking"}})
    for count in range(1, 4):
        until(lambda count=count: len(fleet.told("ticks")) >= count)  # type: ignore[misc]
        answer = fleet.ask("hibernate", agents=["A"], depth="deep")
        assert not answer["awake"], answer
    assert len(set(fleet.told("ticks"))) == 3  # a process for each
    assert fleet.rows()["A"].sleep["deep"]["woken_by"] == "its timer"


def test_somebody_who_only_knocks_makes_it_stay_awake_longer_each_time(fleet: Scratch) -> None:
    row = up(fleet)
    port = int(row.endpoints["inbox-local"].rpartition(":")[2])
    for _ in range(3):
        lay(fleet)
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
        fleet.wait_phase(Phase.READY, "A")
    lay(fleet)
    row = fleet.rows()["A"]
    assert (row.sleep["deep"]["wakes"], row.sleep["deep"]["useless"], row.restarts) == (3, 3, 0)


def test_stop_restart_and_down_of_a_sleeper(fleet: Scratch) -> None:
    row = up(fleet)
    lay(fleet)
    assert fleet.run("stop", "A").code == 0
    with pytest.raises(OSError, match="refused"):
        get(row, "/live")
    assert fleet.run("start", "A").code == 0
    lay(fleet)
    assert fleet.run("restart", "A").code == 0
    assert fleet.rows()["A"].phase is Phase.READY
    lay(fleet)
    assert fleet.run("wake", "A").code == 0
    assert fleet.rows()["A"].sleep["deep"]["woken_by"] == "an operator"
    lay(fleet)


def test_a_dependant_starts_beside_a_sleeping_dependency_and_wakes_it_by_calling_only(fleet: Scratch) -> None:
    up(fleet, {"A": {"agent": "napping:Napping"}, "B": {"agent": "napping:Napping", "dependencies": ["A"]}})
    lay(fleet)
    before = started(fleet)
    assert fleet.run("restart", "B").code == 0
    assert (fleet.rows()["A"].phase, started(fleet)) == (Phase.HIBERNATED, before + 1)
