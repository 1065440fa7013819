"""`on_config`: another config for an agent that runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentkit import AgentConfig, BaseAgent, ConfigError
from agentkit.agent import configuring
from agentkit.agent.configuring import Configuring
from agentkit.names import AgentId
from agentkit.settings import AgentSettings, merged
from agentkit.testing import running


class Speaker(BaseAgent):
    class Config(AgentConfig):
        words: str = "hello"
        times: int = 1

    seen: tuple[str, str] = ("", "")

    async def on_config(self, config: Speaker.Config) -> None:
        self.seen = (self.config.words, config.words)
        if config.words == "bad":
            raise ValueError("not this one")
        if config.words == "slow":
            await asyncio.sleep(3600)


def configuring_of(agent: BaseAgent) -> Configuring:
    def spawn(*_: Any) -> None:
        raise AssertionError("nobody tells it anything")

    assert agent._wiring is not None
    return Configuring(agent, AgentSettings(id=agent._wiring.settings.id), None, spawn)  # type: ignore[attr-defined]


async def test_the_hook_sees_the_old_and_the_new_config_and_the_new_one_counts_from_then_on() -> None:
    async with running(Speaker) as it:
        await configuring_of(it.agent).take({"words": "ahoy"})
        assert it.agent.seen == ("hello", "ahoy")
        assert it.agent.config.words == "ahoy"
        it.agent.seen = ("", "")
        await configuring_of(it.agent).take({"words": "ahoy", "times": 1})
        assert it.agent.seen == ("", "")  # nothing new


async def test_a_config_that_does_not_fit_or_is_refused_or_takes_too_long_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configuring, "LIMIT_S", 0.05)
    async with running(Speaker) as it:
        with pytest.raises(ConfigError, match=r"config.times: got 'x', want .*integer"):
            await configuring_of(it.agent).take({"times": "x"})
        with pytest.raises(ValueError, match="not this one"):
            await configuring_of(it.agent).take({"words": "bad"})
        with pytest.raises(TimeoutError):
            await configuring_of(it.agent).take({"words": "slow"})
        assert it.agent.config == Speaker.Config()


def test_only_a_class_with_the_hook_takes_configs() -> None:
    class Child(Speaker):
        pass

    class Plain(BaseAgent):
        pass

    assert Child._takes_configs
    assert not Plain._takes_configs


def test_what_consul_says_counts_at_the_start_unless_it_does_not_fit() -> None:
    model = Speaker.Config
    first = configuring.first_config

    def of(**facts: Any) -> AgentSettings:
        return AgentSettings(id=AgentId.parse("m/A"), **facts)

    assert first(model, of(config={"times": 2}, config_over={"words": "ahoy"})) == (model(times=2, words="ahoy"), "")
    config, refused = first(model, of(config={"times": 2}, config_over={"times": "x"}))
    assert config == model(times=2)
    assert "config.times: got 'x'" in refused
    with pytest.raises(ConfigError):
        first(model, of(config={"times": "x"}))


def test_maps_are_merged_and_everything_else_is_replaced() -> None:
    assert merged({"a": {"x": 1, "y": [1]}, "b": 1}, {"a": {"y": [2]}, "b": {"z": 1}}) == {
        "a": {"x": 1, "y": [2]},
        "b": {"z": 1},
    }
