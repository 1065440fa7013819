"""Keys on disk: who may read them, what a machine gets of them, what revoking leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq.auth
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError, Unauthenticated
from agentkit.security.folder import KeyFolder, folder_of
from agentkit.security.keys import key_from_text, key_from_wire, new_key
from agentkit.security.ring import Keyring


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    """Keys of an operator and two machines."""
    made = KeyFolder(tmp_path / "keys")
    made.add([new_key("ops", "operator"), new_key("main_pc", "agent"), new_key("pc2", "agent")])
    return made


def carried(folder: KeyFolder, machine: str, to: Path) -> KeyFolder:
    other = KeyFolder(to)
    other.take_part(folder.part_for(machine))
    return other


def test_files_are_the_owners_alone(folder: KeyFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o700
    modes = {file.stat().st_mode & 0o777 for file in folder.path.iterdir()}
    assert modes == {0o600}
    assert len(list(folder.path.iterdir())) == 6


def test_pyzmq_reads_the_files(folder: KeyFolder) -> None:
    key = folder.load().own("pc2")
    assert key is not None
    public, secret = zmq.auth.load_certificate(folder.path / f"{key.file}_secret")
    assert (public.decode(), secret and secret.decode()) == (key.public, key.secret)


def test_a_key_is_read_as_it_was_written(folder: KeyFolder) -> None:
    for key in folder.load().keys:
        assert key_from_text(key.to_text(), at="x") == key
        assert key_from_wire(key.to_wire()) == key.without_secret()


def test_a_secret_never_shows_in_a_repr_nor_travels() -> None:
    key = new_key("ops", "operator")
    assert key.secret not in repr(key)
    assert key.secret not in str(key.to_wire())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_can_get_at_is_refused_with_the_remedy(folder: KeyFolder, mode: int) -> None:
    file = next(folder.path.glob("*.key_secret"))
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        folder.load()


def test_a_folder_that_others_can_enter_is_refused(folder: KeyFolder) -> None:
    folder.path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"mode 0755.*chmod 700"):
        folder.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_refused(folder: KeyFolder) -> None:
    file = next(folder.path.glob("*.key_secret"))
    os.chown(file, 12345, -1)
    with pytest.raises(ConfigError, match="uid 12345"):
        folder.load()


def test_a_link_to_elsewhere_is_no_folder_of_keys(folder: KeyFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.path)
    with pytest.raises(ConfigError, match="something else"):
        KeyFolder(tmp_path / "link").load()


def test_a_broken_file_is_named_without_what_is_in_it(folder: KeyFolder) -> None:
    file = next(folder.path.glob("*.key_secret"))
    secret = folder.load().keys[0].secret
    file.write_text(file.read_text().replace('secret-key = "', 'secret-key = "x'))
    with pytest.raises(ConfigError, match=file.name.replace("[", ".")) as caught:
        folder.load()
    assert secret not in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_key_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        key_from_text(text, at="here")


def test_a_machine_gets_its_own_secret_and_everybodys_public_keys(folder: KeyFolder, tmp_path: Path) -> None:
    there = carried(folder, "pc2", tmp_path / "there").load()
    assert {key.name for key in there.keys} == {"ops", "main_pc", "pc2"}
    assert [key.name for key in there.keys if key.secret] == ["pc2"]


def test_nothing_is_taken_of_a_part_that_holds_something_else(folder: KeyFolder, tmp_path: Path) -> None:
    part = {**folder.part_for("pc2"), "evil.key": "#!/bin/sh"}
    other = KeyFolder(tmp_path / "there")
    with pytest.raises(ConfigError, match=r"evil\.key"):
        other.take_part(part)
    assert not other.exists()


def test_a_machine_without_a_key_has_no_part(folder: KeyFolder) -> None:
    with pytest.raises(ConfigError, match="agentkit keys add pc3"):
        folder.part_for("pc3")


def test_what_was_revoked_is_nobody_and_does_not_come_back(folder: KeyFolder, tmp_path: Path) -> None:
    old_part = folder.part_for("pc2")
    [key] = folder.load().of("pc2")
    folder.revoke({key.fingerprint: key.name})
    assert not folder.load().of("pc2")
    folder.take_part(old_part)
    folder.add([key])
    assert not folder.load().of("pc2")
    assert not list(folder.path.glob("pc2*"))


def test_a_part_carries_what_was_revoked(folder: KeyFolder, tmp_path: Path) -> None:
    there = carried(folder, "pc2", tmp_path / "there")
    [key] = folder.load().of("main_pc")
    folder.revoke({key.fingerprint: key.name})
    there.take_part(folder.part_for("pc2"))
    assert not there.load().of("main_pc")


def test_the_newest_key_of_a_name_counts_and_all_of_them_are_known(folder: KeyFolder) -> None:
    newer = new_key("pc2", "agent", folder.load().next_serial("pc2"))
    folder.add([newer])
    known = folder.load()
    assert known.own("pc2") == newer
    assert [key.serial for key in known.of("pc2")] == [2, 1]


def test_a_machine_is_its_newest_key_or_the_one_that_it_is_told_to_be(folder: KeyFolder) -> None:
    [first] = folder.load().of("pc2")
    folder.add([newer := new_key("pc2", "agent", 2)])
    assert Keyring.of_machine(folder, "pc2").own == newer
    assert Keyring.of_machine(folder, "pc2", first.fingerprint).own == first
    with pytest.raises(ConfigError, match="agentkit keys export pc3"):
        Keyring.of_machine(folder, "pc3")


def test_a_person_is_the_operator_where_that_key_is_and_else_the_machine(folder: KeyFolder, tmp_path: Path) -> None:
    assert Keyring.of_person(folder, "pc2").own.name == "ops"
    assert Keyring.of_person(carried(folder, "pc2", tmp_path / "there"), "pc2").own.name == "pc2"


def test_a_server_is_expected_under_a_known_key_of_its_own_machine_only(folder: KeyFolder) -> None:
    ring = Keyring.of_machine(folder, "main_pc")
    [pc2], [ops] = folder.load().of("pc2"), folder.load().of("ops")
    assert ring.server_key("pc2") == ring.server_key("pc2", pc2.fingerprint) == pc2.public
    for fingerprint in (ops.fingerprint, ring.own.fingerprint, "0123456789abcdef"):
        with pytest.raises(Unauthenticated, match="not known here as one of its keys"):
            ring.server_key("pc2", fingerprint)
    with pytest.raises(Unauthenticated, match="no key of pc9"):
        ring.server_key("pc9")


def test_a_ring_hears_of_changes_when_it_reads_again(folder: KeyFolder) -> None:
    ring = Keyring.of_machine(folder, "main_pc")
    heard: list[int] = []
    end = ring.on_change(lambda: heard.append(len(ring.known.keys)))
    assert not ring.reload()
    assert not heard
    [pc2] = ring.known.of("pc2")
    folder.revoke({pc2.fingerprint: "pc2"})
    assert ring.reload()
    assert heard == [2]
    assert ring.holder(pc2.public) is None
    end()
    folder.add([new_key("pc3", "agent")])
    assert ring.reload()
    assert heard == [2]


def test_a_folder_that_can_not_be_read_leaves_a_ring_what_it_knows(folder: KeyFolder) -> None:
    ring = Keyring.of_machine(folder, "main_pc")
    folder.path.chmod(0o755)
    assert not ring.reload()
    assert len(ring.known.keys) == 3
    folder.path.chmod(0o700)


def test_the_folder_is_named_by_the_environment_before_the_file() -> None:
    assert folder_of("/b", {"AGENTKIT_KEYS": "/a"}) == Path("/a")
    assert folder_of("/b", {}) == Path("/b")
    assert folder_of("", {}) == Path("~/.config/agentkit/keys").expanduser()


def test_names_that_would_leave_the_folder_are_refused() -> None:
    for name in ("../x", "a/b", "", ".x", "a b"):
        with pytest.raises(ConfigError):
            new_key(name, "agent")
        with pytest.raises(ValueError, match="name"):
            key_from_wire({**new_key("a", "agent").to_wire(), "name": name})
