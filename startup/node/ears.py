"""What a node gives its side of the mesh: who is told what other nodes say, and what they may ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from startup.plan.row import AgentRow


class Ears(Protocol):
    """Who is told what other nodes say (daemon.Node)."""

    def on_sync(self, machine: str, rows: list[AgentRow]) -> None:
        """All rows of a machine."""
        ...

    def on_rows(self, rows: list[AgentRow]) -> None:
        """Rows that have changed."""
        ...

    def on_peers(self) -> None:
        """Some machine's state is another now."""
        ...

    def own_rows(self) -> list[AgentRow]:
        """This machine's rows, for a sync."""
        ...

    def own_number(self) -> int:
        """This machine's revision."""
        ...

    def answers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        """What can be asked of this machine beside, by method."""
        ...
