"""A LockKeeper as the loop sees it (locks.Locks): callbacks come on the loop, and what can't be relied on counts as lost in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from agentkit.clock import now_s
from startup.node.registry.registry import client_of
from startup.spec.fleet import ConsulAccess

if TYPE_CHECKING:
    from startup.node.leadership.lockkeeper import LockKeeper

#: The end of the node waits so long for its locks to be let go, in seconds.
CLOSE_S: Final = 3.0


class ConsulLocks:
    """For one Consul. OSError, ImportError: as registry.client_of."""

    believes = False

    def __init__(
        self,
        access: ConsulAccess,
        cluster: str,
        machine: str,
        *,
        session: str,
        held: Mapping[str, int],
        fences: Mapping[str, int],
        on_got: Callable[[str, int], None],
        on_lost: Callable[[str, str], None],
        on_renewed: Callable[[], None],
        on_known: Callable[[], None],
    ) -> None:
        from startup.node.leadership.lockkeeper import MARGIN_PART, LockKeeper

        self._loop = asyncio.get_running_loop()
        self._held = dict(held)
        self._told_got, self._told_lost, self._told_renewed = on_got, on_lost, on_renewed
        self._is_closed = False
        # an earlier node's locks are taken for ours until they can't be; their leaders know better, by what they were told
        self._presumed_s = now_s() + access.leader_ttl_s * (1.0 - MARGIN_PART)
        self._timer: asyncio.TimerHandle | None = None
        self._keeper: LockKeeper = LockKeeper(
            client_of(access),
            client_of(access),
            f"agentkit/{cluster}/leader/",
            machine,
            ttl_s=access.leader_ttl_s,
            session=session,
            held=held,
            fences=fences,
            on_got=lambda name, fence: self._call(self._got, name, fence),
            on_lost=lambda name, why: self._call(self._lost, name, why),
            on_renewed=lambda: self._call(self._renewed),
            on_known=lambda: self._call(on_known),
        )
        self._keeper.start()
        self._await_end()

    @property
    def session(self) -> str:
        """To be kept for the next node."""
        return self._keeper.session

    @property
    def problem(self) -> str:
        return self._keeper.problem

    @property
    def fences(self) -> dict[str, int]:
        """The greatest that was seen of each name, whoever leads."""
        return self._keeper.fences

    @property
    def until_s(self) -> float | None:
        return self._keeper.until_s or 0.0

    def want(self, name: str) -> None:
        self._keeper.want(name)

    def unwant(self, name: str) -> None:
        self._keeper.unwant(name)

    def release(self, name: str, fence: int) -> None:  # noqa: ARG002 - a name has one lock here
        self._held.pop(name, None)
        self._keeper.release(name)

    def close(self, *, lets_go: bool) -> asyncio.Future[Any]:
        """As LockKeeper's."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._keeper.close(lets_go=lets_go)
        return self._loop.run_in_executor(None, self._keeper.join, CLOSE_S)

    # -- what is told, on the loop

    def _call(self, what: Callable[..., None], *arguments: Any) -> None:
        if not self._is_closed:
            self._loop.call_soon_threadsafe(self._unless_closed, what, *arguments)

    def _unless_closed(self, what: Callable[..., None], *arguments: Any) -> None:
        if not self._is_closed:
            what(*arguments)

    def _got(self, name: str, fence: int) -> None:
        self._held[name] = fence
        self._told_got(name, fence)
        self._await_end()

    def _lost(self, name: str, why: str) -> None:
        if self._held.pop(name, None) is not None:
            self._told_lost(name, why)

    def _renewed(self) -> None:
        if self._held:
            self._told_renewed()

    def _await_end(self) -> None:
        """One timer, which looks again when it is due: renewals only put the end off."""
        if self._timer is not None or not self._held:
            return
        left_s = (self._keeper.until_s or self._presumed_s) - now_s()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._is_due)
            return
        for name in tuple(self._held):
            self._lost(name, f"Consul has not been heard for too long: {self.problem or 'no answer yet'}")
            self._keeper.release(name)

    def _is_due(self) -> None:
        self._timer = None
        self._await_end()
