"""`agentkit keys` on files, without a running cluster."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from startup.cli import exits
from startup.cli.keyfile import read_part
from startup.cli.main import main


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, no file, no home of a real person."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AGENTKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("AGENTKIT_KEYS", raising=False)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder of keys of two machines and an operator."""
    assert main(["keys", "init", "--machine", "a", "--machine", "b", "--dir", str(tmp_path / "keys")]) == exits.DONE
    return tmp_path / "keys"


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["keys", "list", "--dir", str(folder), "--json"]) == exits.DONE
    return dict(json.loads(capsys.readouterr().out))


def test_init_makes_a_key_for_each_machine_of_the_file_and_for_an_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "startup_config.yaml").write_text(
        "version: 1\ncluster: c\nsecurity: {keys: ~/mine}\nmachines: {one: {}, two: {}}\n"
        "agent_groups: {g: {A: {command: [/bin/true], port: 10200, machine: one, class: standard}}}\n"
    )
    assert main(["keys", "init"]) == exits.DONE
    keys = listed(tmp_path / "mine", capsys)["keys"]
    assert {(key["name"], key["role"], key["has_secret"]) for key in keys} == {
        ("one", "agent", True),
        ("two", "agent", True),
        ("operator", "operator", True),
    }


def test_init_of_a_file_that_is_wrong_says_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "startup_config.yaml").write_text("version: 1\n")
    assert main(["keys", "init"]) == exits.USAGE
    assert "agentkit validate" in capsys.readouterr().err


def test_init_does_not_touch_a_folder_that_has_keys(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    assert main(["keys", "init", "--machine", "c", "--dir", str(made)]) == exits.USAGE
    assert "a folder with keys" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before


def test_init_without_a_file_or_names_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "init"]) == exits.USAGE
    assert "--machine NAME" in capsys.readouterr().err


def test_a_part_is_carried_by_hand_and_holds_one_secret(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "export", "b", "b.tar", "--dir", str(made)]) == exits.DONE
    assert Path("b.tar").stat().st_mode & 0o777 == 0o600
    assert main(["keys", "import", "b.tar", "--dir", str(tmp_path / "there")]) == exits.DONE
    there = listed(tmp_path / "there", capsys)["keys"]
    assert {key["name"] for key in there} == {"a", "b", "operator"}
    assert [key["name"] for key in there if key["has_secret"]] == ["b"]


def test_an_export_overwrites_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.tar").write_text("mine")
    assert main(["keys", "export", "b", "b.tar", "--dir", str(made)]) == exits.USAGE
    assert Path("b.tar").read_text() == "mine"


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for facts, data in members:
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))
    return packed.getvalue()


def _link() -> tarfile.TarInfo:
    facts = tarfile.TarInfo("link.key")
    facts.type, facts.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return facts


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no tar at all",
        _tar((tarfile.TarInfo("../../evil.key"), b"x")),
        _tar((tarfile.TarInfo("/etc/evil.key"), b"x")),
        _tar((_link(), b"")),
        _tar((tarfile.TarInfo("a.key"), b"\xff\xfe")),
        _tar((tarfile.TarInfo("a.key"), b"#!/bin/sh")),
    ],
)
def test_a_file_that_is_no_export_changes_nothing(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.tar").write_bytes(data)
    folder = tmp_path / "there"
    assert main(["keys", "import", "in.tar", "--dir", str(folder)]) in (exits.USAGE, exits.DONE)
    assert not list(folder.glob("*")) if folder.exists() else True
    assert not (tmp_path.parent / "evil.key").exists()


def test_a_part_that_was_cut_short_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "export", "b", "b.tar", "--dir", str(made)]) == exits.DONE
    whole = Path("b.tar").read_bytes()
    Path("b.tar").write_bytes(whole[:700])
    assert main(["keys", "import", "b.tar", "--dir", "there"]) == exits.USAGE
    assert len(read_part_of(whole)) == 5


def read_part_of(data: bytes) -> dict[str, str]:
    Path("whole.tar").write_bytes(data)
    return read_part(Path("whole.tar"))


def test_revoking_by_name_or_fingerprint_leaves_no_file_and_can_be_said_again(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "add", "screen", "--role", "reader", "--dir", str(made)]) == exits.DONE
    fingerprint = next(key["fingerprint"] for key in listed(made, capsys)["keys"] if key["name"] == "screen")
    for word in (fingerprint, "screen", fingerprint):
        assert main(["keys", "revoke", word, "--dir", str(made)]) == exits.DONE
    assert listed(made, capsys)["revoked"] == {fingerprint: "screen"}
    assert not list(made.glob("screen*"))


def test_the_only_operator_can_not_be_revoked_and_nobody_unknown(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "revoke", "operator", "--dir", str(made)]) == exits.USAGE
    assert "another operator's left" in capsys.readouterr().err
    assert main(["keys", "revoke", "nobody", "--dir", str(made)]) == exits.USAGE
    assert main(["keys", "revoke", "--dir", str(made)]) == exits.USAGE


def test_a_name_has_one_key_unless_it_is_rotated(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "a", "--dir", str(made)]) == exits.USAGE
    assert "keys rotate" in capsys.readouterr().err


def test_keys_that_others_can_read_are_used_by_no_command(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(made.glob("*.key_secret")).chmod(0o644)
    for words in (["list"], ["export", "b", "b.tar"], ["revoke", "a"], ["add", "c"]):
        assert main(["keys", *words, "--dir", str(made)]) == exits.USAGE
        assert "chmod 600" in capsys.readouterr().err


def test_rotation_without_a_cluster_says_so_and_changes_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name for file in made.iterdir()}
    assert main(["keys", "rotate", "--dir", str(made)]) == exits.NO_NODE
    assert {file.name for file in made.iterdir()} == before
