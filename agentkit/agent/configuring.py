"""An agent's `config`: checked before it starts, and replaced while it runs where its class has `on_config`.

Two sources: what the fleet file says (`config:`), and what Consul's KV store says over it. The node tells both together and hears what
became of them: `watch_config` goes on telling, `config_taken` answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import ConfigError, Unreachable
from agentkit.observe.log import get_logger
from agentkit.settings import AgentConfig, AgentSettings, merged

log = get_logger("agentkit.config")

#: How long `on_config` may take, in seconds: who needs longer starts a task.
LIMIT_S: Final = 10.0
#: The node's operations: startup.node.configs.
WATCH_CONFIG: Final = "watch_config"
TAKEN: Final = "config_taken"


def checked(model: type[AgentConfig], config: Mapping[str, Any]) -> AgentConfig:
    """ConfigError: where it does not fit, what stands there, what is wanted."""
    try:
        return model.model_validate(dict(config))
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False)
        at = f"config.{'.'.join(map(str, errors[0]['loc']))}" if errors[0]["loc"] else "config"
        others = "; ".join(f"config.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors[1:])
        raise ConfigError(at=at, got=errors[0]["input"], want=errors[0]["msg"], fix=others) from exc


def first_config(model: type[AgentConfig], settings: AgentSettings) -> tuple[AgentConfig, str]:
    """What an agent starts with, and why it is not what Consul says; ConfigError when the fleet file's is wrong. A wrong value in Consul
    must not keep a fleet from starting."""
    if settings.config_over:
        try:
            return checked(model, merged(settings.config, settings.config_over)), ""
        except ConfigError as exc:
            return checked(model, settings.config), str(exc)
    return checked(model, settings.config), ""


class Configuring:
    """Takes what the node tells, one after the other; the last counts. Belongs to the loop."""

    def __init__(
        self,
        agent: Any,
        settings: AgentSettings,
        node: MeshDirectory | None,
        spawn: Callable[[str, Callable[[], Awaitable[None]]], None],
    ) -> None:
        """`spawn` starts a task of the agent's."""
        self.is_wanted: bool = agent._takes_configs  #: the class has `on_config`
        self._agent = agent
        self._sender = settings.sender
        self._node = node
        self._spawn = spawn
        self._next: Mapping[str, Any] | None = None
        self._is_busy = False

    def connected(self) -> None:
        """To a node, which may be another one than before."""
        if self.is_wanted and self._node is not None:
            with contextlib.suppress(Unreachable):  # then `connected` comes again
                self._node.watch(WATCH_CONFIG, self._hear, **self._sender)

    async def take(self, config: Mapping[str, Any]) -> None:
        """Replace the agent's config. ConfigError: it does not fit. What `on_config` raises is raised, TimeoutError included: the old
        one stays."""
        new = checked(type(self._agent).Config, config)
        if new == self._agent.config:
            return
        async with self._agent.keeps_awake("on_config"), asyncio.timeout(LIMIT_S):
            await self._agent.on_config(new)
        self._agent.config = new
        log.info("config.taken")

    def _hear(self, told: Mapping[str, Any]) -> None:
        self._next = told
        if not self._is_busy:
            self._is_busy = True
            self._spawn("on_config", self._work)

    async def _work(self) -> None:
        try:
            while self._next is not None:
                told, self._next = self._next, None
                error = await self._outcome(merged(told["config"], told["over"]))
                with contextlib.suppress(Unreachable):  # the next node tells it again, and it is taken already
                    assert self._node is not None
                    self._node.say(TAKEN, number=told["number"], error=error, **self._sender)
        finally:
            self._is_busy = False

    async def _outcome(self, config: Mapping[str, Any]) -> str:
        """Why it was not taken; "": it was."""
        try:
            await self.take(config)
        except ConfigError as exc:
            error = str(exc)
            self._agent.report_error("error", f"config refused: {error}")
        except TimeoutError as exc:
            error = str(exc) or f"on_config took longer than {LIMIT_S:g} s"
            self._agent.report_error("error", error)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the old config stays, and operators are told
            error = f"on_config raised {type(exc).__name__}: {exc}"
            self._agent.report_error("error", error, exc_info=exc)
        else:
            error = ""
        return error
