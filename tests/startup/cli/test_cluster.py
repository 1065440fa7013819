"""Conversations with several nodes, some of which go away or fall silent: real servers, one near, one by way of AK1."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agentkit.transport import context
from startup.cli.cluster import Cluster
from startup.control import UnixDoor
from startup.errors import Conflict, NodeLost
from startup.plan.revision import Revision
from startup.remote import RemoteDoor
from startup.spec.fleet import Fleet
from tests.startup.node.test_control import folder  # noqa: F401
from tests.startup.node.test_remote_control import Remote


class Node(Remote):
    """Takes revisions; `silent` operations get no answer."""

    def __init__(self, path: Path) -> None:
        self.number = 1
        self.taken: list[int] = []
        self.silent: set[str] = set()
        super().__init__(path)

    def handle(self, conversation: Any, id: int, operation: str, arguments: Any) -> Any:
        if operation in self.silent:
            return asyncio.sleep(3600)
        if operation == "hello":
            return {"revision": {"number": self.number}}
        if operation == "propose":
            if arguments["expected"] != self.number:
                raise Conflict(f"conflict: revision {self.number} by ops@pc2 3 s ago", {"number": self.number})
            self.number = arguments["revision"]["number"]
            self.taken.append(self.number)
            return {"number": self.number}
        return super().handle(conversation, id, operation, arguments)


@pytest.fixture
def nodes(folder: Path) -> Iterator[dict[str, Node]]:  # noqa: F811
    uvloop.new_event_loop().close()
    running = {name: Node(folder / f"{name}.sock") for name in ("far", "near")}
    yield running
    for node in running.values():
        node.close()
    context.close_context()


@pytest.fixture
def cluster(nodes: dict[str, Node]) -> Iterator[Cluster]:
    doors = {"near": UnixDoor(str(nodes["near"].path)), "far": RemoteDoor("far", nodes["far"].endpoint)}
    with Cluster("c", doors, {name: door.open(timeout_s=0.5) for name, door in doors.items()}, here=("near",)) as made:
        yield made


def wanted() -> Revision:
    fleet = Fleet(cluster="c", project_root="/", file="/f.yaml", machines=(), agents=())
    return Revision(number=0, author="", time_s=0.0, fleet=fleet)


def test_a_revision_goes_to_every_node_in_name_order_numbered_behind_all(
    nodes: dict[str, Node], cluster: Cluster
) -> None:
    nodes["near"].number = 7
    assert cluster.propose(wanted()).number == 8
    assert [nodes[name].taken for name in ("far", "near")] == [[8], [8]]
    assert cluster.unreached(["far", "near", "off"]) == {"off": "its node was not found from here"}


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_a_node_that_is_lost_on_the_way_is_missing_and_the_others_are_told(
    nodes: dict[str, Node], cluster: Cluster, how: str
) -> None:
    bases = cluster.numbers()
    if how == "silent":
        nodes["far"].silent.add("propose")
    else:
        nodes["far"].close()
    assert cluster.propose(wanted(), bases).number == 2
    assert (nodes["far"].taken, nodes["near"].taken) == ([], [2])
    assert list(cluster.missing) == ["far"]
    assert ("did not answer `propose` within" if how == "silent" else "propose: ") in cluster.missing["far"]
    assert cluster.ask_each("hello") == {"near": {"revision": {"number": 2}}}


def test_who_comes_second_changes_no_node_after_the_one_that_says_so(nodes: dict[str, Node], cluster: Cluster) -> None:
    bases = cluster.numbers()
    nodes["near"].number = 2
    with pytest.raises(
        Conflict, match=r"^near: conflict: revision 2 by ops@pc2 3 s ago \(far took it; run the command again\)$"
    ):
        cluster.propose(wanted(), bases)
    assert cluster.propose(wanted()).number == 3
    assert cluster.numbers() == {"far": 3, "near": 3}


def test_any_node_answers_while_one_is_left(nodes: dict[str, Node], cluster: Cluster) -> None:
    nodes["far"].silent.add("hello")
    assert cluster.ask("hello") == {"revision": {"number": 1}}
    nodes["near"].close()
    with pytest.raises(NodeLost):
        cluster.ask("hello")
