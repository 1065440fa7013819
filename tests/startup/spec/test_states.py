"""`state` in a fleet file: defaults, what reaches the agent, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentkit.names import Incarnation
from agentkit.settings import AgentSettings
from startup.node.orders import environment
from startup.node.paths import Places
from startup.spec.load import load
from startup.spec.resolve import REDIS_MODULE, STATE_MODULES

URL = "redis://cache:6379/2"


def loaded(tmp_path: Path, state: Any, defaults: Any = None, cls: str = "B") -> Any:
    (tmp_path / "a.py").write_text(
        "from agentkit import AgentState, BaseAgent\nclass A(BaseAgent):\n    pass\n"
        "class B(BaseAgent):\n    class State(AgentState):\n        n: int = 0\n"
    )
    document = {
        "version": 1, "cluster": "c", "machines": {"m": {}}, "defaults": {"state": defaults} if defaults else {},
        "agent_groups": {"core": {"A": {"agent": f"a:{cls}", **({"state": state} if state else {})}}},
    }  # fmt: skip
    file = tmp_path / "fleet.yaml"
    file.write_text(json.dumps(document))
    return load(file, environ={})


def settings_of(tmp_path: Path, found: Any) -> AgentSettings:
    (spec,) = found.fleet.agents
    told = environment(spec, found.fleet, Places("c", "m", tmp_path, tmp_path), Incarnation(1))
    return AgentSettings.from_environment(told, default_name="A")


def test_without_a_word_it_is_sqlite_every_five_minutes_and_nothing_is_told(tmp_path: Path) -> None:
    found = loaded(tmp_path, None)
    (spec,) = found.fleet.agents
    told = environment(spec, found.fleet, Places("c", "m", tmp_path, tmp_path), Incarnation(1))
    assert not [name for name in told if name.startswith("AGENTKIT_STATE") or name == "AGENTKIT_SECRETS"]
    settings = settings_of(tmp_path, found)
    assert (settings.state_store, settings.state_every_s) == ("sqlite", 300.0)


def test_what_agents_with_a_state_need_is_imported_once_for_all_of_them(tmp_path: Path) -> None:
    assert loaded(tmp_path, None, cls="A").fleet.preload == ()
    assert loaded(tmp_path, None).fleet.preload == STATE_MODULES
    assert loaded(tmp_path, {"store": "redis", "url": URL}).fleet.preload == (*STATE_MODULES, REDIS_MODULE)


def test_defaults_and_an_agents_own_words_reach_it(tmp_path: Path) -> None:
    found = loaded(tmp_path, {"every": "30s"}, defaults={"store": "redis", "url": URL})
    settings = settings_of(tmp_path, found)
    assert (settings.state_store, settings.state_every_s) == ("redis", 30.0)
    assert settings.state_url is not None
    assert settings.state_url.env == "AGENTKIT_STATE_URL"


def test_an_address_that_is_a_secret_stays_a_reference_and_is_none_of_the_authors_secrets(tmp_path: Path) -> None:
    found = loaded(tmp_path, {"store": "redis", "url": {"file": "/run/secrets/redis"}})
    settings = settings_of(tmp_path, found)
    assert settings.state_url is not None
    assert settings.state_url.file == "/run/secrets/redis"
    assert settings.secrets == {}


def test_what_can_not_be_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    for state, want in (
        ({"store": "redis"}, "`url: redis://HOST:PORT/NUMBER`, or a secret that holds it"),
        ({"store": "redis", "url": "redis://:hush@h/0"}, "an address without a password"),
        ({"store": "redis", "url": "http://h"}, "the address of a Redis such as redis://127.0.0.1:6379/0"),
        ({"store": "redis", "url": "redis://h:port"}, "the address of a Redis such as redis://127.0.0.1:6379/0"),
        ({"store": "file"}, "'sqlite' or 'redis'"),
    ):
        problems = loaded(tmp_path, state).problems
        assert [problem.want for problem in problems if problem.severity == "error"] == [want]
        assert "hush" not in str(problems)
