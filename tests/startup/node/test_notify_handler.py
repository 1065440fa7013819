"""What one notification makes of a process, and how a process is remembered: pure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentkit.names import Incarnation
from startup.node.memory import Remembering, process_of, without_process
from startup.node.notify_handler import MAX_TEXT, heard
from startup.node.orders import environment, fork_order, inherited, listening_on
from startup.node.paths import Places
from startup.node.sockets import named
from startup.plan import process as proc
from startup.plan import transitions
from startup.plan.phase import Health, Phase
from startup.plan.process import Process
from startup.plan.rows import Place, row_of
from startup.spec.fleet import HibernatePolicy, MachineSpec, Resources, SecretRef
from tests.startup.plan.builders import agent, revision

PLACES = Places("c", "m", run=Path("/r/c/m"), state=Path("/s/c/m"))


def forked(**keys: object) -> Process:
    p, _ = transitions.unblocked(proc.new(agent("A", **keys), 0.0), 0.0)
    return transitions.forked(p, 4711, Incarnation(9), 0.0)[0]


def test_progress_and_readiness_are_told_in_any_number_of_messages() -> None:
    p = heard(forked(), {"X_AGENTKIT_PHASE": "importing"}, 1.0)
    assert p.phase is Phase.IMPORTING
    p = heard(p, {"X_AGENTKIT_PHASE": "starting", "STATUS": "warming up"}, 2.0)
    assert (p.phase, p.status_text) == (Phase.STARTING, "warming up")
    traits = '{"get": {"idempotent": true}}'
    p = heard(
        p,
        {"READY": "1", "X_AGENTKIT_TIMEOUTS": '{"slow": 30}', "X_AGENTKIT_TRAITS": traits, "X_AGENTKIT_HEALTH": "ok"},
        3.0,
    )
    assert p.traits == {"get": {"idempotent": True}}
    assert (p.phase, p.timeouts_s, p.health) == (Phase.READY, {"slow": 30.0}, Health.OK)
    assert heard(p, {"STOPPING": "1"}, 4.0).phase is Phase.STOPPING


@pytest.mark.parametrize(
    "fields",
    [
        {"X_AGENTKIT_PHASE": "dancing"},
        {"X_AGENTKIT_TIMEOUTS": "{"},
        {"X_AGENTKIT_TIMEOUTS": "[1]"},
        {"X_AGENTKIT_TRAITS": '{"a": 7}'},
        {"X_AGENTKIT_TRAITS": "[1]"},
        {"X_AGENTKIT_REQUESTS": "many", "X_AGENTKIT_ERRORS": "-1"},
        {"X_AGENTKIT_SLEEP": "{"},
        {"X_AGENTKIT_SLEEP": '{"depth": "light"}'},
        {
            "X_AGENTKIT_SLEEP": '{"depth": "light", "since_s": NaN, "given_back_mb": 0, "wakes": 1, "wake_s": null, "kept_by": ""}'
        },
        {"UNKNOWN": "x"},
        {},
    ],
)
def test_what_cannot_be_read_is_left_out(fields: dict[str, str]) -> None:
    p = forked()
    assert heard(p, fields, 1.0) == p


def test_light_sleep_is_told_and_a_new_process_has_not_slept() -> None:
    told = {
        "depth": "light",
        "since_s": 7.5,
        "given_back_mb": 190.2,
        "wakes": 10**30,
        "wake_s": None,
        "kept_by": "x" * 9999,
    }
    p = heard(forked(), {"X_AGENTKIT_SLEEP": json.dumps(told)}, 1.0)
    sleep = p.light_sleep
    assert (sleep["is_asleep"], sleep["since_s"], sleep["given_back_mb"]) == (True, 7.5, 190.2)
    assert sleep["wakes"] < 2**64
    assert len(sleep["kept_by"]) <= 200
    shown = row_of(p, Place(), 1).sleep
    assert (shown["depth"], shown["since_s"], shown["given_back_mb"]) == ("light", 7.5, 190.2)
    assert shown["light"] == {"wakes": sleep["wakes"], "wake_s": None}
    assert transitions.unblocked(p, 2.0)[0].light_sleep == {}


def test_texts_are_bounded_and_an_unknown_health_is_not_trusted() -> None:
    p = heard(
        forked(), {"X_AGENTKIT_HEALTH": "splendid", "X_AGENTKIT_REASON": "x" * 10_000, "STATUS": "y" * 10_000}, 1.0
    )
    assert (p.health, len(p.health_reason), len(p.status_text)) == (Health.DEGRADED, MAX_TEXT, MAX_TEXT)


def test_the_excuse_of_a_failing_process_is_kept_for_its_end() -> None:
    assert heard(forked(), {"X_AGENTKIT_FAILED": "on_start raised"}, 1.0).excuse == "on_start raised"
    assert heard(forked(), {"X_AGENTKIT_ERROR": "error: disk"}, 1.0).last_error == "error: disk"


# -- what is remembered


def test_a_process_is_remembered_as_it_was() -> None:
    p = heard(forked(), {"READY": "1", "X_AGENTKIT_REQUESTS": "5", "X_AGENTKIT_TIMEOUTS": '{"a": 1}'}, 1.0)
    p = replace(p, failures=(1.0, 2.0), streak=2, restarts=2, last_exit="exit 1")
    facts = Remembering().of([p])["m/A"]
    assert replace(process_of(facts, p.spec), deadline_s=p.deadline_s) == p


def test_a_process_that_runs_with_an_older_spec_is_known_by_its_digest() -> None:
    p = forked()
    facts = Remembering().of([p])["m/A"]
    newer = agent("A", config={"n": 2})
    again = process_of(facts, newer)
    assert again.digest == p.spec.digest()
    assert not proc.runs(again, newer)
    assert Remembering().of([again])["m/A"]["digest"] == p.spec.digest()


@pytest.mark.parametrize("broken", [{}, {"phase": "dancing"}, {"phase": "ready", "digest": ""}])
def test_facts_of_another_version_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        process_of(broken, agent("A"))


def test_a_slot_whose_process_is_gone_keeps_its_budget_only() -> None:
    failed = replace(forked(), phase=Phase.FAILED, failures=(1.0,), deadline_s=5.0)
    assert without_process(failed) == replace(failed, pid=None)
    waiting = replace(forked(), phase=Phase.WAITING, failures=(1.0,), deadline_s=5.0)
    assert (without_process(waiting).phase, without_process(waiting).failures) == (Phase.PENDING, (1.0,))


# -- what is ordered


def test_a_process_gets_what_is_listed_and_nothing_else_of_the_nodes_environment() -> None:
    environ = {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h", "AWS_SECRET": "x", "CUDA_VISIBLE_DEVICES": "0"}
    assert inherited((), environ) == {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h"}
    assert inherited(("CUDA_VISIBLE_DEVICES",), environ)["CUDA_VISIBLE_DEVICES"] == "0"


def test_an_order_tells_a_process_all_that_it_must_know_and_no_secret() -> None:
    spec = agent(
        "A",
        port=7000,
        health_port=7001,
        env={"AGENT_NAME": "mine", "OWN": "1"},
        secrets={"TOKEN": SecretRef(env="HIDDEN_TOKEN")},
        watchdog_s=30.0,
        hibernate=HibernatePolicy(after_s=1.5, depth="never"),
        resource_memory_bytes=2**20,
        resources=Resources(cpu_affinity=(0,)),
    )
    fleet = replace(revision(spec).fleet, machines=(MachineSpec(name="m", workdir="/w"),))  # type: ignore[arg-type]
    order = fork_order(spec, fleet, PLACES, Incarnation(7), 1024)
    assert (order.key, order.incarnation, order.cwd, order.sys_path) == ("m/A", 7, "/w", ("/p",))
    assert (order.title, order.cpu_affinity, order.nofile) == ("agentkit: agent c/m/A#0", (0,), 1024)
    env = environment(spec, fleet, PLACES, Incarnation(7))
    assert (env["AGENT_NAME"], env["OWN"], env["PORT"], env["HEALTH_CHECK_PORT"]) == ("A", "1", "7000", "7001")
    assert (env["AGENTKIT_HIBERNATE"], env["AGENTKIT_RESOURCE_MEMORY"]) == (
        '{"after_s": 1.5, "depth": "never", "events": "wake"}',
        "1048576",
    )
    assert (env["WATCHDOG_USEC"], env["AGENTKIT_INCARNATION"], env["AGENTKIT_NODE"]) == (
        "30000000",
        "7",
        "/r/c/m/node.sock",
    )
    assert env["AGENTKIT_SECRETS"] == '{"TOKEN": {"file": null, "env": "HIDDEN_TOKEN", "as_env": false}}'


def test_listeners_are_on_loopback_unless_strangers_are_welcome() -> None:
    spec = agent("A", port=7000, health_port=7001)
    local = {"inbox-local": ("127.0.0.1", 7000), "http": ("127.0.0.1", 7001)}
    assert listening_on(spec, "127.0.0.1", "loopback") == local
    assert listening_on(spec, "10.0.0.1", "loopback") == local
    exposed = listening_on(spec, "10.0.0.1", "none")
    assert exposed == {"inbox-local": ("127.0.0.1", 7000), "inbox": ("10.0.0.1", 7000), "http": ("10.0.0.1", 7001)}
    assert listening_on(agent("A", sockets="self"), "127.0.0.1", "loopback") == {}


def test_handed_back_sockets_need_a_name_each() -> None:
    assert named("inbox-local:http", (5, 6)) == {"inbox-local": 5, "http": 6}
    assert named("inbox-local", (5, 6)) == named("", ()) == {}
