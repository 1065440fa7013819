"""The operation `upgrade`: another process with the code that is installed now becomes the node; agents are not touched.

    upgrade {within_s}    -> {pid: of the heir} as soon as that is prepared; error `upgrade`: it can't be, and why, and nothing has changed

Afterwards `hello` tells the pid of the heir, or that of this node and `upgrade_error`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from agentkit.observe.log import get_logger
from startup.errors import Refused
from startup.node.heirs import PREPARED, Heir
from startup.node.options import NodeOptions

log = get_logger("node.upgrade")

#: How long an heir may take to be up, in seconds, unless somebody says otherwise; and at most.
WITHIN_S: Final = 30.0
MAX_WITHIN_S: Final = 600.0
#: The answer leaves before the node lets go, in seconds.
_LAST_WORDS_S: Final = 0.05


class Upgrade:
    def __init__(
        self,
        options: NodeOptions,
        listener: Callable[[], int],
        on_prepared: Callable[[Heir], None],
        is_ending: Callable[[], bool],
    ) -> None:
        """`listener`: another descriptor of the control conversation's listening socket."""
        self._options = options
        self._listener = listener
        self._on_prepared = on_prepared
        self._is_ending = is_ending
        self._is_under_way = False
        self._loop = asyncio.get_running_loop()

    async def perform(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See above."""
        if self._is_under_way or self._is_ending():
            raise Refused(
                "upgrade", "this node is on its way out" if self._is_ending() else "an upgrade is under way already"
            )
        self._is_under_way = True
        try:
            heir = await self._prepared(min(float(arguments.get("within_s", WITHIN_S)), MAX_WITHIN_S))
        except BaseException:
            self._is_under_way = False
            raise
        log.info("upgrade.prepared", heir=heir.pid)
        self._loop.call_later(_LAST_WORDS_S, self._on_prepared, heir)
        return {"pid": heir.pid}

    async def _prepared(self, within_s: float) -> Heir:
        assert self._options.lock is not None
        heir = Heir(self._options, lock_fd=self._options.lock.fileno(), control_fd=self._listener(), within_s=within_s)
        told = asyncio.Event()
        self._loop.add_reader(heir.channel_fd, told.set)
        try:
            await asyncio.wait([waiting := self._loop.create_task(told.wait())], timeout=heir.left_s)
            waiting.cancel()
            why = heir.heard(PREPARED)
        except BaseException:
            why = "it was given up"
            raise
        finally:
            self._loop.remove_reader(heir.channel_fd)
            if why:
                os.close(heir.control_fd)
                heir.end()
        if why:
            raise Refused("upgrade", f"the code that is installed now does not come up, this node goes on: {why}")
        return heir
