"""Agents whose machine has keys: who may call what, from agents, clients and threads. Real sockets in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentkit import BaseAgent, BlockingClient, Client, Forbidden, Unauthenticated, rpc
from agentkit.agent.agent_keys import AgentKeys
from agentkit.agent.dialing import Dialer
from agentkit.directory.base import INBOX, INBOX_LOCAL, AgentRecord
from agentkit.directory.static import StaticDirectory
from agentkit.errors import ConfigError
from agentkit.names import AgentId, AgentName, Incarnation, MachineName, is_beyond_loopback
from agentkit.runtime import AgentRuntime
from agentkit.security.folder import KeyFolder
from agentkit.security.keys import new_key
from agentkit.security.ring import Keyring
from agentkit.settings import AgentSettings
from agentkit.testing import running
from agentkit.transport import adopt


class Bank(BaseAgent):
    """Anybody may look, operators may pay, screens may show."""

    @rpc
    async def balance(self) -> int:
        return 7

    @rpc(role="operator")
    async def pay(self, amount: int) -> str:
        return f"paid {amount}"

    @rpc(role="screen")
    def show(self) -> str:
        return "shown"

    @rpc
    async def ask(self, target: str, method: str) -> Any:
        return await self.call(target, method)

    @rpc
    def ask_in_thread(self, target: str, method: str) -> Any:
        return self.blocking.call(target, method)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    made.add(
        [
            new_key(name, role)
            for name, role in (("ops", "operator"), ("pc1", "agent"), ("pc2", "agent"), ("wall", "screen"))
        ]
    )
    return made


def of(folder: KeyFolder, name: str, to: Path) -> Path:
    """A folder with that name's secret only."""
    KeyFolder(to / name).take_part(folder.part_for(name))
    return to / name


def settings_of(machine: str, keys: Path, **more: Any) -> AgentSettings:
    return AgentSettings(
        id=AgentId(MachineName(machine), AgentName("Bank")),
        incarnation=Incarnation(3),
        security="curve",
        keys=str(keys),
        watchdog_s=0,
        **more,
    )


@asynccontextmanager
async def a_bank(
    machine: str, keys: Path, scratch: Path, directory: StaticDirectory | None = None
) -> AsyncIterator[AgentRecord]:
    """A Bank with a plain and an encrypted address; the record that a directory would tell of it."""
    settings = settings_of(machine, keys, data_dir=scratch / machine)
    listeners = {name: adopt.opened("127.0.0.1", 0, "PORT") for name in (INBOX_LOCAL, INBOX)}
    runtime = AgentRuntime(
        Bank._from_settings(settings, {}), settings, listeners=listeners, directory=directory or StaticDirectory()
    )
    try:
        await runtime.start()
        endpoints = {name: f"tcp://127.0.0.1:{sock.getsockname()[1]}" for name, sock in listeners.items()}
        assert runtime._keys.ring is not None
        yield AgentRecord(
            id=settings.id,
            incarnation=settings.incarnation,
            phase="ready",
            endpoints=endpoints,
            keys={INBOX: runtime._keys.ring.own.fingerprint},
        )
    finally:
        await runtime.stop()


@asynccontextmanager
async def a_client(record: AgentRecord, keys: Path | None) -> AsyncIterator[Client]:
    client = Client(peers={}, keys=keys)
    assert isinstance(client._directory, StaticDirectory)
    client._directory.put(record)
    async with client:
        yield client


async def test_roles_come_from_the_key(folder: KeyFolder, tmp_path: Path) -> None:
    async with a_bank("pc1", of(folder, "pc1", tmp_path), tmp_path) as record:
        async with a_client(record, of(folder, "ops", tmp_path)) as operator:
            assert await operator.call("pc1/Bank", "pay", {"amount": 5}) == "paid 5"
            assert await operator.call("pc1/Bank", "show") == "shown"
        async with a_client(record, of(folder, "wall", tmp_path)) as screen:
            assert await screen.call("pc1/Bank", "show") == "shown"
            assert await screen.call("pc1/Bank", "balance") == 7
            with pytest.raises(Forbidden, match=r"pay is for role 'operator', and this is the key of wall \(screen\)"):
                await screen.call("pc1/Bank", "pay", {"amount": 5})


async def test_without_encryption_a_method_with_a_role_is_forbidden_with_the_remedy() -> None:
    async with running(Bank) as bank:
        assert await bank.call("balance") == 7
        with pytest.raises(Forbidden, match=r"security: \{local: curve\}") as caught:
            await bank.call("pay", {"amount": 5})
    assert not caught.value.retry_safe


async def test_describe_tells_the_role() -> None:
    async with running(Bank) as bank:
        methods = (await bank.call("agentkit.describe"))["methods"]
    assert methods["pay"]["role"] == "operator"
    assert methods["balance"]["role"] is None


async def test_a_client_on_the_same_machine_shows_its_key_where_it_can(folder: KeyFolder, tmp_path: Path) -> None:
    async with (
        a_bank("local", of_local(folder, tmp_path), tmp_path) as record,
        a_client(record, folder.path) as operator,
    ):
        assert await operator.call("Bank", "pay", {"amount": 5}) == "paid 5"


def of_local(folder: KeyFolder, tmp_path: Path) -> Path:
    folder.add([new_key("local", "agent")])
    return of(folder, "local", tmp_path)


async def test_a_client_without_any_keys_uses_the_plain_address(
    folder: KeyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTKIT_KEYS", str(tmp_path / "nowhere"))
    async with a_bank("local", of_local(folder, tmp_path), tmp_path) as record, a_client(record, None) as client:
        assert await client.call("Bank", "balance") == 7
        with pytest.raises(Forbidden):
            await client.call("Bank", "pay", {"amount": 5})


async def test_a_client_of_another_machine_without_keys_is_told_what_it_needs(
    folder: KeyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTKIT_KEYS", str(tmp_path / "nowhere"))
    async with a_bank("pc1", of(folder, "pc1", tmp_path), tmp_path) as record, a_client(record, None) as client:
        with pytest.raises(Unauthenticated, match=r"encrypted connections only.*nowhere.*agentkit keys"):
            await client.call("pc1/Bank", "balance")


async def test_a_blocking_client_calls_by_name_of_machine_and_agent(folder: KeyFolder, tmp_path: Path) -> None:
    async with a_bank("pc1", of(folder, "pc1", tmp_path), tmp_path) as record:
        endpoint = record.endpoints[INBOX]

        def call() -> Any:
            with BlockingClient(peers={}, keys=of(folder, "ops", tmp_path)) as client:
                client._static.put(record)
                return client.call("pc1/Bank", "pay", {"amount": 1})

        assert await asyncio.to_thread(call) == "paid 1"
        assert not is_beyond_loopback(endpoint)


async def test_agents_of_two_machines_call_each_other_from_loop_and_threads(folder: KeyFolder, tmp_path: Path) -> None:
    table = StaticDirectory(here="pc2")
    async with (
        a_bank("pc1", of(folder, "pc1", tmp_path), tmp_path) as first,
        a_bank("pc2", of(folder, "pc2", tmp_path), tmp_path, table) as second,
        a_client(second, folder.path) as client,
    ):
        table.put(first)
        for method in ("ask", "ask_in_thread"):
            assert await client.call("pc2/Bank", method, {"target": "pc1/Bank", "method": "balance"}) == 7
            with pytest.raises(Forbidden, match=r"pc2 \(agent\)"):
                await client.call("pc2/Bank", method, {"target": "pc1/Bank", "method": "show"})


async def test_a_machine_that_serves_with_another_ones_key_is_not_called(folder: KeyFolder, tmp_path: Path) -> None:
    async with a_bank("pc1", of(folder, "pc1", tmp_path), tmp_path) as record:
        lie = AgentRecord(
            id=AgentId(MachineName("pc2"), AgentName("Bank")),
            incarnation=record.incarnation,
            phase="ready",
            endpoints=record.endpoints,
            keys=record.keys,
        )
        async with a_client(lie, folder.path) as client:
            with pytest.raises(Unauthenticated, match=r"pc2 serves with key .* not known here as one of its keys"):
                await client.call("pc2/Bank", "balance")


async def test_a_process_hears_that_a_peer_was_revoked_and_calls_it_no_more(folder: KeyFolder, tmp_path: Path) -> None:
    settings = settings_of("pc2", folder.path)
    changes: list[str] = []
    keys = AgentKeys(settings, lambda: changes.append("changed"))
    loops, threads = keys.dialer(), keys.dialer(for_threads=True)
    [pc1] = folder.load().of("pc1")
    record = AgentRecord(
        id=AgentId(MachineName("pc1"), AgentName("Bank")),
        incarnation=Incarnation(1),
        phase="ready",
        endpoints={INBOX: "tcp://10.0.0.1:1"},
        keys={INBOX: pc1.fingerprint},
    )
    dials = [dialer.where(record)[1] for dialer in (loops, threads)]
    assert all(dial is not None and dial.server == pc1.public for dial in dials)
    folder.revoke({pc1.fingerprint: "pc1"})
    keys._on_word({})
    assert changes == ["changed"]
    for dialer, dial in zip((loops, threads), dials, strict=True):
        assert dial is not None
        assert not dialer.knows(dial)
        with pytest.raises(Unauthenticated, match="no key of pc1"):
            dialer.where(record)


def test_beyond_loopback_a_strict_caller_calls_nobody_in_the_clear(folder: KeyFolder) -> None:
    plain = AgentRecord(
        id=AgentId(MachineName("pc1"), AgentName("Bank")),
        incarnation=Incarnation(1),
        phase="ready",
        endpoints={INBOX: "tcp://10.0.0.1:1"},
    )
    strict = Dialer("pc2", lambda: Keyring.of_machine(folder, "pc2"), is_strict=True)
    endpoint, dial = strict.where(plain)
    assert endpoint == "tcp://10.0.0.1:1"
    assert dial is not None
    assert dial.server == folder.load().of("pc1")[0].public
    assert Dialer("pc2").where(plain) == (endpoint, None)


async def test_an_agent_whose_machine_has_no_key_does_not_start_to_listen(folder: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agentkit keys export pc9"):
        async with a_bank("pc9", folder.path, tmp_path):
            pass


@pytest.mark.parametrize(
    ("settings", "host", "is_encrypted"),
    [
        ({"security": "curve"}, "127.0.0.1", False),
        ({"security": "curve"}, "10.0.0.1", True),
        ({"security": "curve", "encrypts_loopback": True}, "127.0.0.1", True),
        ({"security": "none"}, "10.0.0.1", False),
        ({}, "127.0.0.1", False),
    ],
)
def test_what_listens_beyond_loopback_is_encrypted_and_loopback_where_that_is_asked_for(
    settings: dict[str, Any], host: str, is_encrypted: bool
) -> None:
    id = AgentId(MachineName("m"), AgentName("A"))
    assert AgentSettings(id=id, **settings).is_encrypted(host) is is_encrypted


@pytest.mark.parametrize("role", ["", "two words", "a/b"])
def test_a_role_that_no_key_can_have_is_refused_where_it_is_written(role: str) -> None:
    with pytest.raises(ConfigError, match=r"@rpc\(role=\)"):
        rpc(role=role)
