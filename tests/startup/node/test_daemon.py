"""A node with real processes: starts, failures, stops, changes, as operators and agents meet them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from startup.errors import Conflict, Refused
from startup.plan.phase import Health, Phase
from startup.spec.fleet import AgentTarget, External, HealthCheckPolicy, ProgramTarget, ReadyWhen, RestartPolicy
from tests.startup.node.cluster import PATIENCE_S, Nodes, alive, kill, nodes
from tests.startup.plan.builders import agent

pytestmark = pytest.mark.process

NO_RETRY = RestartPolicy(max_attempts=0, retry_failed_after_s=0)


@pytest.fixture(scope="module")
def shared() -> Iterator[Nodes]:
    """One node for most tests: each takes over a machine on which nothing runs."""
    with nodes("m") as running:
        yield running


@pytest.fixture
def one(shared: Nodes) -> Iterator[Nodes]:
    yield shared
    shared.clear()


@pytest.fixture
def fresh() -> Iterator[Nodes]:
    """A node that has no revision yet, and may be brought to its end."""
    with nodes("m") as running:
        yield running


def test_agents_come_up_in_order_and_down_leaves_nothing(fresh: Nodes) -> None:
    fresh.up(fresh.program("A"), fresh.program("B", "A"), fresh.program("C", "B"))
    rows = fresh.wait_phase(Phase.READY)
    stamps = [rows[f"m/{name}"].stamps for name in "ABC"]
    assert stamps[0].ready_s <= stamps[1].forked_s <= stamps[1].ready_s <= stamps[2].forked_s  # type: ignore[operator]
    assert abs((stamps[2].ready_s or 0) - time.time()) < 10
    assert rows["m/C"].slowest_dependency == "m/B"
    pids = [row.pid for row in rows.values()]
    assert None not in pids
    fresh.up(down=True)
    fresh.down()
    assert not any(
        os.path.exists(f"/proc/{pid}") and os.readlink(f"/proc/{pid}/exe") for pid in pids if _is_running(pid)
    )


def _is_running(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_process_is_told_everything_that_it_needs(one: Nodes) -> None:
    said = "import json; print(json.dumps(dict(os.environ)), os.getcwd(), flush=True)"
    one.up(one.program("A", first=said, env={"MINE": "x"}, health_port=0, config={"n": 1}, shutdown_grace_s=3.0))
    one.wait_phase(Phase.READY)
    told = one.log("A")
    for expected in (
        '"AGENT_NAME": "A"',
        '"AGENT_MACHINE": "m"',
        '"MINE": "x"',
        "AGENTKIT_INCARNATION",
        '"AGENTKIT_GRACE_S": "3"',
    ):
        assert expected in told
    assert "AGENTKIT_RUN_DIR" not in told
    assert str(one.folder) in told


def test_an_agent_that_fails_is_retried_then_failed_with_its_reason_and_its_dependants_are_skipped(one: Nodes) -> None:
    policy = RestartPolicy(delay_s=0.05, max_attempts=2, retry_failed_after_s=0)
    why = "say('X_AGENTKIT_FAILED=RuntimeError: no model'); sys.exit(3)"
    one.up(one.program("A", first=why, restart=policy), one.program("B", "A"), one.program("C"))
    rows = one.wait(
        lambda rows: len(rows) == 3 and rows["m/A"].phase is Phase.FAILED and rows["m/B"].phase is Phase.SKIPPED
    )
    assert rows["m/A"].reason == "RuntimeError: no model"
    assert rows["m/A"].restarts == 2
    assert rows["m/A"].last_exit.startswith("exit 3 after ")
    assert (rows["m/B"].because, rows["m/B"].reason) == ("m/A", "A failed: RuntimeError: no model")
    one.wait_phase(Phase.READY, "C")
    assert one.ask("", "retry") == {"agents": ["m/A"]}


def test_an_agent_that_crashes_comes_back_on_the_same_sockets(one: Nodes) -> None:
    port = free_port()
    one.up(one.program("A", port=port, sockets="adopt"))
    before = one.wait_phase(Phase.READY)["m/A"]
    kill(before.pid or 0)
    with socket.create_connection(("127.0.0.1", port)):  # nobody is refused meanwhile
        rows = one.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/A"].pid != before.pid)
    assert rows["m/A"].restarts == 1
    assert rows["m/A"].incarnation > before.incarnation
    assert "signal SIGKILL" in rows["m/A"].last_exit


def test_a_port_taken_by_a_stranger_is_told_with_the_strangers_name(one: Nodes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        one.up(one.program("A", port=port, sockets="adopt", restart=NO_RETRY))
        rows = one.wait_phase(Phase.FAILED)
    assert f"port {port} on 127.0.0.1: taken by" in rows["m/A"].reason
    assert f"(pid {os.getpid()})" in rows["m/A"].reason


def test_a_start_that_hangs_ends_at_its_limit_with_its_stack_in_the_log(one: Nodes) -> None:
    hang = "import faulthandler; faulthandler.enable(); time.sleep(60)"
    one.up(one.program("A", first=hang, start_timeout_s=0.3, restart=NO_RETRY))
    rows = one.wait_phase(Phase.FAILED)
    assert "not ready within 0.3 s" in rows["m/A"].reason
    assert rows["m/A"].last_exit.startswith("start timeout (signal SIGABRT)")
    assert "time.sleep" in one.log("A") or "most recent call first" in one.log("A")


def test_a_blocked_loop_is_found_by_the_watchdog_and_restarted(one: Nodes) -> None:
    stuck = "say('WATCHDOG=1'); time.sleep(60)"
    one.up(one.program("A", then=stuck, watchdog_s=0.3, shutdown_grace_s=0.2))
    rows = one.wait(lambda rows: "m/A" in rows and rows["m/A"].restarts > 0 and rows["m/A"].phase is Phase.READY)
    assert rows["m/A"].last_exit.startswith("watchdog (signal SIGABRT)")
    assert "its loop was stuck" in rows["m/A"].last_error


def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(one: Nodes) -> None:
    one.up(
        one.program(
            "A", first="signal.signal = lambda *_: None", then="\nwhile True: time.sleep(1)", shutdown_grace_s=0.3
        )
    )
    one.wait_phase(Phase.READY)
    began_s = time.monotonic()
    one.up(stopped=("A",))
    rows = one.wait_phase(Phase.STOPPED)
    assert time.monotonic() - began_s < PATIENCE_S
    assert rows["m/A"].last_exit.startswith("signal SIGKILL")
    assert rows["m/A"].reason == "stopped by operator"


def test_grandchildren_that_an_agent_leaves_are_gone_when_it_is_stopped(one: Nodes) -> None:
    escape = (
        "\nif not os.fork():\n os.setsid()\n if not os.fork():\n"
        "  print('child', os.getpid(), flush=True); time.sleep(600)\n os._exit(0)\n"
    )
    one.up(one.program("Parent", first=escape, shutdown_grace_s=2.0))
    one.wait_phase(Phase.READY)
    wait_until(lambda: "child" in one.log("Parent"))
    child = int(one.log("Parent").split()[1])
    assert _is_running(child)
    one.up(stopped=("Parent",))
    one.wait_phase(Phase.STOPPED)
    assert not _is_running(child)


def test_a_changed_agent_is_restarted_and_the_others_keep_their_pids(one: Nodes) -> None:
    one.up(one.program("A"), one.program("B", "A"), one.program("Gone"))
    before = one.wait_phase(Phase.READY)
    one.up(one.program("A", env={"NEW": "1"}), one.program("B", "A"), one.program("New"))
    rows = one.wait(
        lambda rows: (
            rows["m/A"].phase is Phase.READY
            and rows["m/A"].pid != before["m/A"].pid
            and ("m/Gone" not in rows or rows["m/Gone"].phase is Phase.STOPPED)  # it may be forgotten before we watch
            and "m/New" in rows
            and rows["m/New"].phase is Phase.READY
        )
    )
    assert rows["m/B"].pid == before["m/B"].pid
    assert "m/Gone" not in one.rows()


def test_a_stopped_agents_dependants_stay_and_say_so(one: Nodes) -> None:
    one.up(one.program("A"), one.program("B", "A"))
    one.wait_phase(Phase.READY)
    one.up(stopped=("A",))
    rows = one.wait(lambda rows: rows["m/A"].phase is Phase.STOPPED and rows["m/B"].health is Health.DEGRADED)
    assert (rows["m/B"].phase, rows["m/B"].reason) == (Phase.READY, "A stopped by operator")


def test_restart_gives_new_processes_to_those_named_only(one: Nodes) -> None:
    one.up(one.program("A"), one.program("B", "A"))
    before = one.wait_phase(Phase.READY)
    assert one.ask("", "restart", agents=["A"]) == {"agents": ["m/A"]}
    rows = one.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/A"].pid != before["m/A"].pid)
    assert (rows["m/B"].pid, rows["m/A"].restarts) == (before["m/B"].pid, 0)


def test_what_agents_say_of_themselves_is_shown(one: Nodes) -> None:
    say = "\nSTATUS=warm\nX_AGENTKIT_HEALTH=degraded\nX_AGENTKIT_REASON=cache away\nX_AGENTKIT_REQUESTS=7\nX_AGENTKIT_ERRORS=2"
    one.up(one.program("A", say=say + '\nX_AGENTKIT_TIMEOUTS={"slow": 30}'))
    row = one.wait_phase(Phase.READY)["m/A"]
    assert (row.status_text, row.health, row.reason) == ("warm", Health.DEGRADED, "cache away")
    assert (row.requests, row.errors, row.timeouts_s) == (7, 2, {"slow": 30.0})


def test_a_task_completes_and_a_dependant_may_wait_for_that(one: Nodes) -> None:
    one.up(one.program("T", then="sys.exit(0)", kind="task"), one.program("A", "T:completed"))
    rows = one.wait_phase(Phase.READY, "A")
    assert rows["m/T"].phase is Phase.COMPLETED


@pytest.mark.parametrize("how", ["tcp", "log", "after"])
def test_programs_that_cannot_notify_are_ready_when_their_probe_says_so(one: Nodes, how: str) -> None:
    port = free_port()
    script = one.folder / "plain.py"
    script.write_text(
        "import socket, time, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"s = socket.create_server(('127.0.0.1', {port})); print('now serving', flush=True)\n"
        "time.sleep(60)\n"
    )
    ready = {
        "tcp": ReadyWhen(tcp_port=port),
        "log": ReadyWhen(log_regex="now +serving"),
        "after": ReadyWhen(after_s=0.05),
    }[how]
    one.up(agent("P", target=ProgramTarget(script=str(script)), port=port, sockets="self", ready=ready, watchdog_s=0.1))
    assert one.wait_phase(Phase.READY)["m/P"].endpoints == {"inbox-local": f"tcp://127.0.0.1:{port}"}


def test_a_command_runs_as_itself(one: Nodes) -> None:
    one.up(agent("P", target=ProgramTarget(argv=("sleep", "60")), port=0, sockets="self", ready=ReadyWhen(after_s=0.0)))
    row = one.wait_phase(Phase.READY)["m/P"]
    wait_until(
        lambda: Path(f"/proc/{row.pid}/cmdline").read_bytes() == b"sleep\x0060\x00"
    )  # forked, exec'd, between them empty


def test_an_external_holds_back_only_those_who_need_it_until_it_answers(one: Nodes) -> None:
    port = free_port()
    one.up(
        one.program("A", externals=("Db",)), one.program("B"), externals=(External(name="Db", tcp=f"127.0.0.1:{port}"),)
    )
    one.wait_phase(Phase.READY, "B")
    assert one.row("A").waiting_for == ("Db",)
    with socket.create_server(("127.0.0.1", port)):
        one.wait_phase(Phase.READY, "A")


def test_a_class_based_agent_of_ours_comes_up_and_says_where_it_is(fresh: Nodes) -> None:
    (fresh.folder / "mine.py").write_text(
        "from agentkit import BaseAgent, rpc\n"
        "class Mine(BaseAgent):\n"
        "    @rpc(timeout='9s', idempotent=True)\n"
        "    async def hello(self) -> str:\n"
        "        return self.name\n"
    )
    inbox, health = free_port(), free_port()
    fresh.up(agent("A", target=AgentTarget(module="mine", cls="Mine"), port=inbox, health_port=health, watchdog_s=30.0))
    row = fresh.wait_phase(Phase.READY)["m/A"]
    assert row.timeouts_s == {"hello": 9.0}
    assert row.record().traits == {"hello": {"idempotent": True}}
    assert row.health_url == f"http://127.0.0.1:{health}/health"
    answer = fresh.ask("", "status", memory=True)
    assert 1 < answer["agents"][0]["memory_mb"] < 100
    fresh.up(down=True)


# -- operators


def test_only_one_of_two_operators_wins_and_the_other_is_told_who(fresh: Nodes) -> None:
    fresh.up(fresh.program("A"))
    fresh.number = 0
    with pytest.raises(Conflict, match=r"revision 1 by test@here \d.* ago"):
        fresh.up(fresh.program("B"))
    fresh.number = 1


def test_what_would_listen_to_strangers_without_keys_is_refused(fresh: Nodes) -> None:
    with pytest.raises(Refused, match=r"/nowhere.*agentkit keys init"):
        fresh.up(fresh.program("A"), security="curve", encrypts_loopback=True, keys="/nowhere")
    assert fresh.ask()["revision"] is None
    fresh.number = 0


def test_questions_that_make_no_sense_are_answered_and_hurt_nobody(one: Nodes) -> None:
    with one.connect() as connection:
        for operation, arguments in (
            ("dance", {}),
            ("directory", {}),
            ("propose", {"expected": 0}),
            ("attach", {"id": "x"}),
        ):
            with pytest.raises(Exception, match=r".") as refused:
                connection.ask(operation, **arguments)
            assert not isinstance(refused.value, (TimeoutError, ConnectionError))
        assert connection.ask("ping").keys() == {"time_s"}
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(str(one.places().control))
    stranger.sendall(b"\xff" * 100)
    assert stranger.recv(10) == b""  # cut off
    stranger.close()
    assert one.ask("", "ping").keys() == {"time_s"}


def test_hello_tells_who_the_node_is(fresh: Nodes) -> None:
    fresh.up(fresh.program("A"))
    hello = fresh.ask()
    assert (hello["cluster"], hello["machine"], hello["run_dir"]) == (fresh.cluster, "m", str(fresh.places().run))
    assert (hello["revision"]["number"], hello["revision"]["author"], hello["revision"]["down"]) == (
        1,
        "test@here",
        False,
    )
    assert hello["file"] == str(fresh.folder / "fleet.yaml")


def test_a_directory_feed_tells_a_name_now_and_whenever_it_changes(one: Nodes) -> None:
    one.up(one.program("A", port=free_port(), sockets="adopt"))
    one.wait_phase(Phase.READY)
    with one.connect() as connection:
        feed = connection.events("directory", name="A")
        first = next(feed)["records"]
        assert [(record["id"], record["phase"]) for record in first] == [("m/A", "ready")]
        kill(one.row("A").pid or 0)
        phases = []
        for event in feed:
            phases.append(event["records"][0]["phase"])
            if phases[-1] == "ready":
                break
        assert "stopping" in phases
        assert event["records"][0]["incarnation"] > first[0]["incarnation"]
    with one.connect() as connection:
        assert next(connection.events("directory", name="Nobody")) == {"records": []}
    assert one.ask("", "names") == {"ids": ["m/A"]}


def test_an_agent_of_an_earlier_life_is_sent_away(one: Nodes) -> None:
    one.up(one.program("A"))
    row = one.wait_phase(Phase.READY)["m/A"]
    assert one.ask("", "attach", id="m/A", incarnation=row.incarnation) == {}
    with pytest.raises(Exception, match="not wanted any more") as refused:
        one.ask("", "attach", id="m/A", incarnation=row.incarnation - 1)
    assert isinstance(refused.value, Refused)
    assert refused.value.code == "gone"


def test_a_second_node_for_the_same_machine_is_refused(one: Nodes) -> None:
    with pytest.raises(AssertionError, match="runs already"):
        one.boot()
    assert one.ask("", "ping").keys() == {"time_s"}


# -- deaths


def test_a_killed_node_comes_back_and_finds_its_agents_alive(one: Nodes) -> None:
    port = free_port()
    one.up(one.program("A", port=port, sockets="adopt"), one.program("B", "A"))
    before = one.wait_phase(Phase.READY)

    kill(one.node_pid())
    rows = one.wait_phase(Phase.READY)
    assert {id: row.pid for id, row in rows.items()} == {id: row.pid for id, row in before.items()}
    assert [row.restarts for row in rows.values()] == [0, 0]
    kill(rows["m/A"].pid or 0)
    after = one.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/A"].pid != before["m/A"].pid)
    assert after["m/B"].pid == before["m/B"].pid
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_an_agent_that_ends_while_there_is_no_node_is_restarted_by_the_next_one(one: Nodes) -> None:
    one.up(one.program("A"))
    before = one.wait_phase(Phase.READY)["m/A"]

    kill(one.node_pid())
    kill(before.pid or 0)
    rows = one.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/A"].pid != before.pid)
    assert rows["m/A"].restarts == 1
    assert "signal SIGKILL" in rows["m/A"].last_exit


def test_a_killed_zygote_is_replaced_and_its_agents_run_on_and_are_watched(fresh: Nodes) -> None:
    port = free_port()
    fresh.up(fresh.program("A", port=port, sockets="adopt"), fresh.program("B"))
    before = fresh.wait_phase(Phase.READY)
    zygote = fresh.zygote_pid()
    kill(zygote)
    kill(before["m/A"].pid or 0)  # nobody forks at this moment
    rows = fresh.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/A"].pid != before["m/A"].pid)
    assert rows["m/B"].pid == before["m/B"].pid
    assert "signal SIGKILL" in rows["m/A"].last_exit
    assert fresh.zygote_pid() != zygote
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_when_both_die_agents_run_on_and_the_next_node_finds_them(fresh: Nodes) -> None:
    fresh.up(fresh.program("A"), fresh.program("B"))
    before = fresh.wait_phase(Phase.READY)

    node, zygote = fresh.node_pid(), fresh.zygote_pid()
    os.kill(zygote, signal.SIGSTOP)
    kill(node)
    kill(zygote)
    assert _is_running(before["m/A"].pid)
    fresh.boot()
    rows = fresh.wait_phase(Phase.READY)
    assert {row.pid for row in rows.values()} == {row.pid for row in before.values()}
    kill(rows["m/B"].pid or 0)
    fresh.wait(lambda rows: rows["m/B"].phase is Phase.READY and rows["m/B"].pid != before["m/B"].pid)


def test_an_agent_that_outlived_both_hands_its_sockets_to_the_next_node(fresh: Nodes) -> None:
    (fresh.folder / "mine.py").write_text("from agentkit import BaseAgent\nclass Mine(BaseAgent):\n    pass\n")
    port = free_port()
    fresh.up(agent("A", target=AgentTarget(module="mine", cls="Mine"), port=port, watchdog_s=30.0))
    before = fresh.wait_phase(Phase.READY)["m/A"]
    node, zygote = fresh.node_pid(), fresh.zygote_pid()
    os.kill(zygote, signal.SIGSTOP)
    kill(node)
    kill(zygote)
    fresh.boot()
    wait_until(lambda: "agent.sockets_handed_back" in fresh.node_log())
    kill(before.pid or 0)
    with socket.create_connection(("127.0.0.1", port)):  # nobody else could take it meanwhile
        rows = fresh.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/A"].pid != before.pid)
    assert rows["m/A"].restarts == 1


def test_a_node_that_is_told_to_stop_takes_its_agents_along(fresh: Nodes) -> None:
    fresh.up(fresh.program("A"), fresh.program("B", "A"))
    fresh.wait_phase(Phase.READY)
    os.kill(fresh.node_pid(), signal.SIGTERM)
    fresh.down()


def test_five_hundred_ready_at_once_are_all_heard(one: Nodes) -> None:
    """Forks of one process that all speak in the same instant, ten times each: none is lost, whatever the queue holds."""
    many = (
        "\nfor n in range(50):\n"
        " if not os.fork():\n"
        "  said = 0\n"
        "  while said < 10:\n"
        "   try: say('STATUS=x'); said += 1\n"
        "   except OSError: time.sleep(.01)\n"
        "  os.kill(os.getpid(), 9)\n"  # os._exit would write a file of coverage for each
        "for n in range(50): os.wait()\n"
    )
    one.up(one.program("Noise", first=many), *(one.program(f"A{n}") for n in range(20)))
    rows = one.wait_phase(Phase.READY)
    assert len(alive(rows)) == 21


def test_a_node_at_rest_wakes_less_than_once_a_second(one: Nodes) -> None:
    one.up(one.program("A"), one.program("B", "A"))
    one.wait_phase(Phase.READY)
    time.sleep(0.5)
    before = one.ask("", "status")["node"]["wakeups"]
    time.sleep(3.0)
    woken = one.ask("", "status")["node"]["wakeups"] - before
    assert woken <= 3 + 4  # a question is a connection, a request and an end


def wait_until(reached: Callable[[], object]) -> None:
    """For what nobody tells: a log, /proc."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline_s, "not reached"
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_a_killed_agent_takes_along_those_of_its_group_that_depend_on_it(one: Nodes) -> None:
    one.up(one.program("A"), one.program("B", "A"), one.program("Alone"), restart_strategies={"g": "rest-for-one"})
    before = one.wait_phase(Phase.READY)
    os.kill(before["m/A"].pid or 0, signal.SIGKILL)
    rows = one.wait(
        lambda rows: all(rows[id].phase is Phase.READY and rows[id].pid != before[id].pid for id in ("m/A", "m/B"))
    )
    assert (rows["m/A"].restarts, rows["m/B"].restarts) == (1, 0)
    assert rows["m/B"].last_exit.startswith("restarted with A (rest-for-one) (")
    assert rows["m/Alone"].pid == before["m/Alone"].pid


def test_dependants_of_a_killed_agent_are_degraded_with_the_cause_until_it_is_back(one: Nodes) -> None:
    one.up(one.program("A", restart=RestartPolicy(delay_s=300.0)), one.program("B", "A"))
    before = rows = one.wait_phase(Phase.READY)
    for _ in range(2):  # the first time it comes at once, the second time it backs off
        pid = rows["m/A"].pid
        os.kill(pid or 0, signal.SIGKILL)
        rows = one.wait(
            lambda rows, pid=pid: (
                rows["m/A"].phase is Phase.BACKOFF or (rows["m/A"].phase is Phase.READY and rows["m/A"].pid != pid)
            )  # type: ignore[misc]
        )
    rows = one.wait(lambda rows: rows["m/B"].health is Health.DEGRADED)
    assert (rows["m/B"].phase, rows["m/B"].reason) == (Phase.READY, "A restarting: killed by SIGKILL")
    one.ask("m", "retry")
    rows = one.wait(lambda rows: rows["m/A"].phase is Phase.READY and rows["m/B"].health is Health.OK)
    assert rows["m/B"].pid == before["m/B"].pid


#: Answers 200 until there is a file `sick`, which it takes away when it starts anew.
ANSWERS = """
import http.server, pathlib, sys
sick = pathlib.Path("sick")
sick.unlink(missing_ok=True)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if sick.exists() else 200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


def test_a_program_that_no_longer_answers_its_probe_is_restarted_and_says_why(one: Nodes) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (one.folder / "answers.py").write_text(ANSWERS)
    program = agent(
        "m/P",
        target=ProgramTarget(argv=(sys.executable, "answers.py", str(port))),
        port=port,
        sockets="self",
        ready=ReadyWhen(http_url=f"http://127.0.0.1:{port}/"),
        health_check=HealthCheckPolicy(interval_s=0.1, timeout_s=20.0, retries=2),
    )
    one.up(program)
    before = one.wait_phase(Phase.READY)["m/P"]
    (one.folder / "sick").touch()
    after = one.wait(lambda rows: rows["m/P"].phase is Phase.READY and rows["m/P"].pid != before.pid)["m/P"]
    assert after.restarts == 1
    assert after.last_error == "it did not answer 2 times in a row, each within 20 s"
    assert after.last_exit.startswith("silent (")
