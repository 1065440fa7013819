"""`serve` and `calls`: what may be said of an agent's calls, and what is said back to who is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentkit.agent.decorators import Rpc
from agentkit.resilience.policy import CallPolicy, FilePolicy, ServePolicy
from startup.spec.load import Loaded
from startup.spec.policies import CalledModel, ServedMethodModel, ServeModel
from tests.startup.spec.projects import agents, loaded, of, one, write

WORKERS = """
from agentkit import BaseAgent, rpc

class Store(BaseAgent):
    @rpc(concurrency=2)
    async def create(self, user: str) -> str:
        return user

    @rpc
    async def words(self):
        yield 1

class User(BaseAgent):
    @rpc
    async def use(self) -> None: ...
"""


def policy(tmp_path: Path, text: str, settings: str = "") -> dict[str, Any]:
    found = loaded(tmp_path, settings + agents(f"A: {{agent: 'm:C'{text}}}\nB: {{agent: 'm:C'}}"))
    assert not found.errors, found.errors
    assert found.fleet is not None
    return dict(found.fleet.agents[0].policy)


def checked(tmp_path: Path, text: str) -> Loaded:
    write(tmp_path, {"work.py": WORKERS})
    return loaded(tmp_path, agents(text), inspect=True)


def test_every_word_reaches_the_agent_under_its_own_name(tmp_path: Path) -> None:
    serve = (
        "running: 5, threads: 2, queue: 3, queue_wait: 20ms, idempotency: {window: 1m, entries: 4, size: 1Mi}, "
        "cache: {entries: 6, size: 2Ki}, methods: {m: {timeout: 2s, concurrency: 1, queue: 0, queue_wait: 0, priority: high, cache: 1s, "
        "balance: hash, key: user}}"
    )
    calls = (
        "timeout: 2s, attempts: 4, retry: {wait: 1s, factor: 3, jitter: 0, budget: 0.5, reserve: 1}, breaker: {failures: 2, rest: 1m}, "
        "balance: hash, key: user"
    )
    told = FilePolicy.read(
        policy(tmp_path, f", serve: {{{serve}}}, calls: {{{calls}, to: {{B: {{attempts: 1}}, B.m: {{timeout: 9s}}}}}}")
    )
    assert set(told.serve.said()) == set(ServePolicy.__dataclass_fields__), "no value of the policy is left out"
    assert set(told.calls.said()) == set(CallPolicy.__dataclass_fields__)
    assert set(told.methods["m"]) == set(Rpc.__dataclass_fields__) - {"idempotent", "role"}, "the author's alone"
    assert (told.serve.queue_wait_s, told.serve.cache_bytes, told.methods["m"]["cache_s"]) == (0.02, 2048, 1.0)
    assert (told.calls.breaker_rest_s, told.to["B"].attempts, told.to["B.m"].timeout_s) == (60.0, 1, 9.0)


def test_defaults_of_the_file_are_those_of_the_library() -> None:
    assert FilePolicy.read({}).serve == ServePolicy()
    usual = {name: info.get_default(call_default_factory=True) for name, info in ServeModel.model_fields.items()}
    assert (usual["running"], usual["threads"], usual["queue"], usual["queue_wait"]) == (64, 8, 1024, 0.05)
    assert (usual["idempotency"].window, usual["idempotency"].size) == (300.0, ServePolicy().idempotency_bytes)
    called = CalledModel()
    assert (called.attempts, called.retry.wait, called.retry.budget, called.retry.reserve) == (3, 1.0, 0.1, 10)
    assert (called.breaker.failures, called.breaker.rest, called.balance) == (5, 30.0, CallPolicy().balance)
    assert ServedMethodModel().timeout == Rpc().timeout_s


def test_what_is_not_said_is_not_told_and_defaults_fill_in_key_by_key(tmp_path: Path) -> None:
    assert policy(tmp_path, "") == {}
    settings = (
        "defaults: {serve: {running: 9, queue: 1}, calls: {breaker: {failures: 2, rest: 1s}, to: {B: {attempts: 1}}}}\n"
    )
    assert policy(tmp_path, ", serve: {queue: 7}, calls: {breaker: {rest: 5s}}", settings) == {
        "serve": {"running": 9, "queue": 7},
        "calls": {"breaker_failures": 2, "breaker_rest_s": 5.0},
        "to": {"B": {"attempts": 1}},
    }


def test_a_changed_policy_is_a_reason_to_restart(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', port: 10100, {text}}}"))
        assert found.fleet is not None
        return found.fleet.agents[0].digest()

    assert digest("serve: {running: 5}") != digest("serve: {running: 6}")
    assert digest("calls: {attempts: 2}") != digest("required: true")


@pytest.mark.parametrize(
    ("text", "at", "told"),
    [
        ("serve: {runing: 5}", "serve.runing", "running"),
        ("serve: {queue_wait: 5}", "serve.queue_wait", "5s"),
        ("serve: {idempotency: {size: 16}}", "serve.idempotency.size", "16Mi"),
        ("serve: {methods: {m: {concurency: 5}}}", "serve.methods.m.concurency", "concurrency"),
        ("serve: {methods: {m: {timeout: 0}}}", "serve.methods.m.timeout", "more than 0"),
        ("calls: {attempts: 0}", "calls.attempts", "at least 1"),
        ("calls: {balance: best}", "calls.balance", "'hash'"),
        ("calls: {to: {B: {breaker: {fails: 1}}}}", "calls.to.B.breaker.fails", "failures"),
        ("calls: {to: {Bb: {attempts: 1}}}", "calls.to.Bb", "`B`"),
        ("calls: {to: {Bb.m: {attempts: 1}}}", "calls.to.Bb.m", "`B`"),
        ("calls: {to: {B.m: {breaker: {rest: 1s}}}}", "calls.to.B.m.breaker", "below `B`"),
        ("calls: {to: {B.m: {retry: {wait: 1s, budget: 1}}}}", "calls.to.B.m.retry.budget", "below `B`"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_what_may_be_meant(
    tmp_path: Path, text: str, at: str, told: str
) -> None:
    found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', {text}}}\nB: {{agent: 'm:C'}}"))
    (problem,) = found.errors
    assert problem.at == f"agent_groups.core.A.{at}"
    assert problem.place.endswith("fleet.yaml:5")
    assert told in f"{problem.want} {problem.fix}"


def test_methods_are_no_matter_of_defaults(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, "defaults: {serve: {methods: {m: {timeout: 1s}}}}\n" + agents("A: {agent: 'm:C', machine: local}")
    )
    (problem,) = found.errors
    assert problem.at == "defaults"
    assert "below the agents" in problem.want


def test_programs_have_no_policies_and_are_told_so(tmp_path: Path) -> None:
    found = loaded(tmp_path, "defaults: {serve: {running: 9}}\n" + agents("A: {command: [ls], serve: {running: 5}}"))
    assert not found.errors
    assert one(found, "policy").at == "agent_groups.core.A.serve"
    assert found.fleet is not None
    assert found.fleet.agents[0].policy == {}


@pytest.mark.process
@pytest.mark.parametrize(
    ("text", "at", "told"),
    [
        ("Store: {agent: 'work:Store', serve: {methods: {creat: {timeout: 1s}}}}", "Store.serve.methods.creat", "create"),
        ("Store: {agent: 'work:Store', serve: {methods: {words: {queue: 3}}}}", "Store.serve.methods.words", "concurrency"),
        ("Store: {agent: 'work:Store', serve: {methods: {words: {cache: 1s}}}}", "Store.serve.methods.words", "one result"),
        (
            "Store: {agent: 'work:Store', serve: {methods: {create: {balance: hash, key: usr}}}}",
            "Store.serve.methods.create",
            "user",
        ),
        (
            "Store: {agent: 'work:Store'}\nUser: {agent: 'work:User', calls: {to: {Store.creat: {attempts: 1}}}}",
            "User.calls.to.Store.creat",
            "create",
        ),
    ],
)  # fmt: skip
def test_a_method_that_the_class_does_not_have_or_that_can_not_be_so_is_an_error(
    tmp_path: Path, text: str, at: str, told: str
) -> None:
    for _ in range(2):  # the second time from the memory of the first, if there were one
        (problem,) = of(checked(tmp_path, text), "policy")
        assert problem.at == f"agent_groups.core.{at}"
        assert told in f"{problem.want} {problem.fix}"


@pytest.mark.process
def test_methods_that_are_there_are_no_problem_and_are_remembered_with_what_was_said(tmp_path: Path) -> None:
    good = (
        "Store: {agent: 'work:Store', serve: {methods: {create: {queue: 5, balance: hash, key: user}}}}\n"
        "User: {agent: 'work:User', calls: {to: {Store: {attempts: 1}, Store.create: {balance: hash, key: user}}}}"
    )
    assert not checked(tmp_path, good).problems
    assert not checked(tmp_path, good).problems
    assert of(checked(tmp_path, good.replace("key: user}}}}\nUser", "key: nobody}}}}\nUser")), "policy")
