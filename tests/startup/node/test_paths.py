"""Where a node keeps its files, who may, and what is said when that can't be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agentkit.directory.locate import NodeInfo, node_files, run_root
from agentkit.errors import ConfigError
from startup.errors import NodeRuns
from startup.node import paths
from startup.node.paths import Lock, Places, state_root, write_atomically


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places("c", "m", tmp_path / "r" / "c" / "m", tmp_path / "s" / "c" / "m")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_both_directories_are_made_for_the_owner_alone(places: Places) -> None:
    places.prepare()
    places.prepare()
    folders = [
        places.run,
        places.run.parent,
        places.run.parent.parent,
        places.state,
        places.logs,
        places.state / "data",
    ]
    assert {mode(folder) for folder in folders} == {0o700}


def test_a_directory_that_others_could_enter_is_closed(places: Places) -> None:
    places.run.mkdir(parents=True, mode=0o755)
    places.run.chmod(0o755)
    places.prepare()
    assert mode(places.run) == 0o700


def test_a_path_too_long_for_a_socket_is_refused_with_the_way_out(tmp_path: Path) -> None:
    places = Places("c", "m", tmp_path / ("x" * 100) / "c" / "m", tmp_path / "s" / "c" / "m")
    with pytest.raises(ConfigError, match=r"socket paths of \d+ bytes.*at most 107.*AGENTKIT_RUN_DIR"):
        places.prepare()
    assert not places.run.exists()


def test_the_longest_path_that_is_allowed_can_be_bound(tmp_path: Path) -> None:
    import socket

    fill = paths.MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path / "c" / "m" / "zygote.sock")) - 1
    places = Places("c", "m", tmp_path / ("x" * fill) / "c" / "m", tmp_path / "s" / "c" / "m")
    places.prepare()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(places.zygote))


def test_a_directory_of_somebody_else_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.run.mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(
        ConfigError, match=r"a folder of uid \d+, want|got 'a folder of uid \d+'.*uid 4242.*AGENTKIT_RUN_DIR"
    ):
        places.prepare()


def test_a_link_in_place_of_a_directory_is_refused(places: Places, tmp_path: Path) -> None:
    (tmp_path / "r").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        places.prepare()


def test_roots_come_from_the_environment_else_from_what_the_machine_has(tmp_path: Path) -> None:
    assert run_root({"AGENTKIT_RUN_DIR": str(tmp_path)}) == tmp_path
    by_user = Path(f"/run/user/{os.getuid()}")
    expected = by_user / "agentkit" if by_user.is_dir() else Path(f"/tmp/agentkit-{os.getuid()}")
    assert run_root({"XDG_RUNTIME_DIR": "/elsewhere"}) == expected
    assert state_root({"AGENTKIT_STATE_DIR": str(tmp_path)}) == tmp_path
    assert state_root({"HOME": "/home/x"}) == Path("/home/x/.local/state/agentkit")


def test_only_one_node_can_hold_a_machine(places: Places) -> None:
    places.prepare()
    lock = Lock(places)
    with pytest.raises(NodeRuns, match=rf"c/m runs already \(pid {os.getpid()}\)"):
        Lock(places)
    lock.release()
    Lock(places).release()


def test_a_file_is_replaced_whole_and_is_the_owners(places: Places) -> None:
    places.prepare()
    file = places.state / "x"
    write_atomically(file, b"one")
    write_atomically(file, b"two")
    assert (file.read_bytes(), mode(file)) == (b"two", 0o600)
    assert [found.name for found in places.state.iterdir() if found.is_file()] == ["x"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.prepare()
    file = places.state / "x"
    write_atomically(file, b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"two")
    assert file.read_bytes() == b"one"
    assert [found.name for found in places.state.iterdir() if found.is_file()] == ["x"]


def test_nodes_leave_word_of_themselves_and_garbage_is_passed_over(places: Places) -> None:
    places.prepare()
    info = NodeInfo(
        cluster="c",
        machine="m",
        pid=1,
        control="/x",
        mesh="tcp://127.0.0.1:1",
        file=None,
        project_root=None,
        started_s=1.0,
    )
    places.announce(info)
    broken = places.run.parent / "n"
    broken.mkdir()
    (broken / "node.json").write_text("{")
    root = places.run.parent.parent
    assert list(node_files(root)) == [info]
    assert list(node_files(root, "c")) == [info]
    assert list(node_files(root, "other")) == []
