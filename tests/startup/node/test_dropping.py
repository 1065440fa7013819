"""Which files root reads for another user, and which folders that user can pass."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from startup.node.zygote.dropping import is_roots, take_along_secrets
from startup.spec.users import User

ALICE = User("alice", 12345, 12345, (12345, 777), "/home/alice")
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that are root's")


@ONLY_ROOT
def test_what_somebody_else_can_put_there_is_not_roots(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    file = folder / "token"
    file.write_text("x")
    assert is_roots(file)
    assert not is_roots(folder / "missing")
    assert not is_roots(Path("token"))
    file.chmod(0o666)
    assert not is_roots(file)
    file.chmod(0o600)
    folder.chmod(0o775)
    assert not is_roots(file)
    folder.chmod(0o755)
    os.chown(folder, ALICE.uid, ALICE.gid)
    assert not is_roots(file)


@ONLY_ROOT
def test_a_link_that_a_user_made_to_roots_file_is_not_roots(tmp_path: Path) -> None:
    hers, roots = tmp_path / "hers", tmp_path / "roots"
    roots.write_text("x")
    hers.mkdir()
    (hers / "link").symlink_to(roots)
    os.chown(hers, ALICE.uid, ALICE.gid)
    assert not is_roots(hers / "link")
    mine = tmp_path / "mine"
    mine.symlink_to(roots)
    assert is_roots(mine)
    into_hers = tmp_path / "into_hers"
    into_hers.symlink_to(hers / "link")
    assert not is_roots(into_hers / ".." / "link")


@ONLY_ROOT
def test_roots_secrets_are_handed_on_in_memory_and_others_stay_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "roots").write_text("hidden\n")
    (tmp_path / "hers").write_text("hers\n")
    os.chown(tmp_path / "hers", ALICE.uid, ALICE.gid)
    secrets = {
        "A": {"file": "~/roots", "env": None},
        "B": {"file": str(tmp_path / "hers"), "env": None},
        "C": {"file": None, "env": "X"},
    }
    monkeypatch.setenv("AGENTKIT_SECRETS", json.dumps(secrets))
    take_along_secrets(os.environ, str(tmp_path))
    found = json.loads(os.environ["AGENTKIT_SECRETS"])
    assert (found["B"], found["C"]) == (secrets["B"], secrets["C"])
    held = found["A"]["file"]
    try:
        assert Path(held).read_text() == "hidden\n"
        (tmp_path / "roots").unlink()
        assert Path(held).read_text() == "hidden\n"
    finally:
        os.close(int(held.rpartition("/")[2]))


@ONLY_ROOT
def test_the_first_folder_that_is_closed_to_a_user_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if not ALICE.may_pass(folder):
            assert ALICE.closed(tmp_path) is not None
            return
    closed = tmp_path / "closed"
    inner = closed / "inner"
    inner.mkdir(parents=True)
    assert ALICE.closed(inner) is None
    closed.chmod(0o700)
    assert ALICE.closed(inner) == closed
    closed.chmod(0o710)
    os.chown(closed, 0, 777)
    assert ALICE.closed(inner) is None
    os.chown(closed, ALICE.uid, 777)
    closed.chmod(0o070)
    assert ALICE.closed(inner) == closed  # its owner's rights count, not its group's
