"""What the holder of a key may do. Pure.

A key has a name and one role. `operator` may do everything; any other role is a word, and a method that asks for a role is open to keys
with exactly that word. Without a key (loopback without encryption) nobody is anybody."""

from __future__ import annotations

from typing import Final, NamedTuple

from agentkit.errors import Forbidden

#: Commands nodes, and may call every method.
OPERATOR: Final = "operator"
#: A machine: its node and its agents share the key.
AGENT: Final = "agent"


class Holder(NamedTuple):
    """Whose key it is."""

    name: str
    role: str

    def __str__(self) -> str:
        return f"{self.name} ({self.role})"


def may(holder: Holder | None, role: str) -> bool:
    """Whether `holder` fulfils `role`; None has no key, and fulfils none."""
    return holder is not None and holder.role in (role, OPERATOR)


def forbidden(what: str, role: str, holder: Holder | None) -> Forbidden:
    """The refusal of `what`, which needs `role`: who asked, as far as that is known, and what would help."""
    details = {"role": role, "name": holder.name if holder else None, "has": holder.role if holder else None}
    if holder is None:
        return Forbidden(
            f"{what} is for role {role!r}, and this connection is not encrypted, so nobody knows who calls: call the machine's own "
            "address with a key of that role, or set `security: {local: curve}`",
            details=details,
        )
    return Forbidden(f"{what} is for role {role!r}, and this is the key of {holder}", details=details)
