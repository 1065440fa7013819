"""What agents of other users may ask a node, without a node."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from agentkit.errors import CallError
from startup.errors import Refused
from startup.node.other_users import MAX_FOLLOWED, OtherUsers
from startup.plan import process as proc
from startup.plan.reconcile import Reconciler
from tests.startup.plan.builders import agent

ALICE, BOB = 1001, 1002


class Doors:
    """Two users were let in."""

    renewed = 0

    def uids(self) -> frozenset[int]:
        return frozenset({ALICE, BOB})

    def uid_of(self, text: str) -> int | None:
        return {"alice": ALICE, "bob": BOB}.get(text)

    def renew(self) -> None:
        self.renewed += 1


class Asker:
    def tell(self, id: int, event: Any) -> None: ...

    def write(self, frame: bytes) -> None: ...


@pytest.fixture
def doors() -> Doors:
    return Doors()


@pytest.fixture
def users(doors: Doors) -> OtherUsers:
    core = Reconciler("m", Random(1))
    for name, user in (("Hers", "alice"), ("His", "bob"), ("Ours", "")):
        core.remember(proc.new(agent(name, user=user), 0.0))

    def handle(asker: Any, id: int, operation: str, arguments: Mapping[str, Any]) -> str:
        return f"did {operation}"

    return OtherUsers(doors, core, handle)  # type: ignore[arg-type]


def ask(users: OtherUsers, uid: int, operation: str, **arguments: Any) -> Any:
    return users.handler(uid)(Asker(), 1, operation, arguments)


@pytest.mark.parametrize("operation", ["attach", "report", "lead", "resign"])
def test_a_user_speaks_for_its_own_agents_only(users: OtherUsers, operation: str) -> None:
    assert ask(users, ALICE, operation, id="m/Hers") == f"did {operation}"
    for id in ("m/His", "m/Ours", "m/Missing", "other/Hers"):
        with pytest.raises(Refused) as refused:
            ask(users, ALICE, operation, id=id)
        assert refused.value.code == "forbidden"
    with pytest.raises((CallError, KeyError)):
        ask(users, ALICE, operation)


@pytest.mark.parametrize("operation", ["directory", "names", "events", "ping"])
def test_what_everybody_may_know_is_told(users: OtherUsers, operation: str) -> None:
    assert ask(users, BOB, operation) == f"did {operation}"


@pytest.mark.parametrize("operation", ["propose", "restart", "stop_node", "status", "lend", "revision", "", "no_such"])
def test_all_else_is_forbidden_known_or_not(users: OtherUsers, operation: str) -> None:
    with pytest.raises(Refused) as refused:
        ask(users, ALICE, operation, id="m/Hers")
    assert refused.value.code == "forbidden"


def test_doors_lead_to_an_event_relay_that_began_just_now(users: OtherUsers, doors: Doors) -> None:
    ask(users, ALICE, "events")
    assert doors.renewed == 1


def test_a_connection_follows_a_bounded_number_of_names(users: OtherUsers) -> None:
    serve = users.handler(ALICE)
    for number in range(MAX_FOLLOWED):
        serve(Asker(), number, "directory", {"name": "A"})
    with pytest.raises(Refused) as refused:
        serve(Asker(), 0, "directory", {"name": "A"})
    assert refused.value.code == "overloaded"
    assert users.handler(ALICE)(Asker(), 0, "directory", {"name": "A"}) == "did directory"
