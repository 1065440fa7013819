"""What a node gives its side of the mesh: who is told what other nodes say, and what they may ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from startup.plan.row import AgentRow


class MeshCallbacks(Protocol):
    """Who is told what other nodes say (cluster_observer.ClusterObserver)."""

    def on_rows(self, machine: str, rows: list[AgentRow], *, generation: int, upto: int, is_all: bool) -> None:
        """Rows of another machine, as of its version `upto`; all that there are, or those that have changed.

        `generation`: which life of its node says so, counted by us; a greater one replaces what a smaller one said."""
        ...

    def on_peers(self) -> None:
        """Some machine's state is another now."""
        ...

    def on_revision(self, machine: str, number: int, digest: str) -> None:
        """Another machine has said which revision it acts on."""
        ...

    def own_rows(self) -> list[AgentRow]:
        """This machine's rows, for a sync."""
        ...

    def own_upto(self) -> int:
        """The version of this machine's rows."""
        ...

    def rows_digest(self, machine: str, generation: int | None = None) -> str | None:
        """Equal where the same rows of `machine` are known; with `generation`: None when some are from before it."""
        ...

    def own_revision(self) -> tuple[int, str]:
        """Number and digest of this machine's revision."""
        ...

    def answers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        """What can be asked of this machine beside, by method."""
        ...
