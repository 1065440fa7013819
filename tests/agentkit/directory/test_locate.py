"""Finding the nodes of this machine by what they wrote into their run directories."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentkit.directory.locate import NodeInfo, default_cluster, find_node, is_answering, run_root, running_nodes
from agentkit.errors import NoNode


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ak-") as folder:  # a unix socket's path must be short
        yield Path(folder)


@pytest.fixture
def environ(root: Path) -> dict[str, str]:
    return {"AGENTKIT_RUN_DIR": str(root)}


class Cluster:
    """Node files, with somebody listening or nobody."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socks: list[socket.socket] = []

    def add(self, cluster: str, machine: str = "main_pc", *, answering: bool = True) -> NodeInfo:
        folder = self.root / cluster / machine
        folder.mkdir(parents=True)
        control = folder / "node.sock"
        if answering:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(control))
            sock.listen()
            self.socks.append(sock)
        info = NodeInfo(
            cluster=cluster, machine=machine, pid=os.getpid(), control=str(control), mesh=None, file=None,
            project_root=None, started_s=1.0,
        )  # fmt: skip
        (folder / "node.json").write_text(json.dumps(dataclasses.asdict(info)))
        return info


@pytest.fixture
def nodes(root: Path) -> Iterator[Cluster]:
    cluster = Cluster(root)
    yield cluster
    for sock in cluster.socks:
        sock.close()


def test_the_only_running_cluster_is_found(nodes: Cluster, environ: dict[str, str], root: Path) -> None:
    info = nodes.add("one")
    nodes.add("dead", answering=False)
    assert find_node(environ=environ, folder=root) == info
    assert running_nodes(environ=environ) == (info,)
    assert is_answering(info.control)


def test_a_named_cluster_is_found_among_several(nodes: Cluster, environ: dict[str, str], root: Path) -> None:
    nodes.add("one")
    two = nodes.add("two")
    assert find_node("two", environ=environ, folder=root) == two


def test_several_clusters_without_a_choice_are_listed(nodes: Cluster, environ: dict[str, str], root: Path) -> None:
    nodes.add("one")
    nodes.add("two")
    with pytest.raises(NoNode, match=r"several clusters run here \(one, two\)"):
        find_node(environ=environ, folder=root)


def test_the_default_files_cluster_is_meant_if_it_runs(nodes: Cluster, environ: dict[str, str], root: Path) -> None:
    nodes.add("one")
    two = nodes.add("two")
    (root / "startup_config.yaml").write_text("version: 1\ncluster: 'two'  # mine\n")
    assert default_cluster(root) == "two"
    assert find_node(environ=environ, folder=root) == two


def test_the_variable_names_a_node_and_is_believed_only_while_it_answers(
    nodes: Cluster, environ: dict[str, str], root: Path
) -> None:
    one = nodes.add("one")
    nodes.add("two")
    assert find_node(environ=environ | {"AGENTKIT_NODE": one.control}, folder=root) == one
    dead = nodes.add("dead", answering=False)
    with pytest.raises(NoNode, match="no node answers there"):
        find_node(environ=environ | {"AGENTKIT_NODE": dead.control}, folder=root)


def test_nothing_running_says_where_it_looked(environ: dict[str, str], root: Path) -> None:
    with pytest.raises(NoNode, match=str(root)):
        find_node(environ=environ, folder=root)
    with pytest.raises(NoNode, match="no node of cluster 'x' runs here"):
        find_node("x", environ=environ, folder=root)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cluster": "x"}', '{"odd": 1}'])
def test_a_node_file_of_another_shape_is_passed_over(environ: dict[str, str], root: Path, text: str) -> None:
    (root / "c/m").mkdir(parents=True)
    (root / "c/m/node.json").write_text(text)
    assert running_nodes(environ=environ) == ()


def test_the_run_directory_is_found_whatever_the_environment_says() -> None:
    assert run_root({"AGENTKIT_RUN_DIR": "/x"}) == Path("/x")
    assert run_root({}).name in (f"agentkit-{os.getuid()}", "agentkit")
