"""The client, against a real Consul."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentkit.directory.consul import ConsulClient, Tls
from agentkit.directory.consul_http import RegistryAway, RegistryRefused
from agentkit.directory.entries import entries_of
from tests.agentkit.directory.test_entries import entry
from tests.consul.debian import program
from tests.consul.fixtures import needs
from tests.consul.server import Server

pytestmark = pytest.mark.process

SERVICE = "agentkit-c"


@pytest.fixture
def client(consul_server: Server) -> Iterator[ConsulClient]:
    made = ConsulClient(consul_server.address)
    yield made
    made.close()


def test_what_is_registered_is_passing_is_fed_and_is_gone_when_deregistered(client: ConsulClient) -> None:
    given = entry("m/a#1", methods={"timeouts_s": {"slow": 60.0}, "traits": {"get": {"idempotent": True}}})
    client.register(given.definition(15.0, None))
    found, strangers = entries_of(client.passing(SERVICE, 0, 0).services, "c")
    assert strangers == 0
    assert found[given.id].methods == given.methods
    assert found[given.id].digest != ""
    assert client.feed(given.id, "passing")
    assert client.feed(given.id, "warning")
    assert not client.passing(SERVICE, 0, 0).services
    client.deregister(given.id)
    assert not client.services()
    assert not client.feed(given.id, "passing")
    client.deregister(given.id)  # again: harmless


def test_an_entry_that_is_registered_anew_keeps_its_status(client: ConsulClient) -> None:
    client.register(entry("m/a").definition(15.0, None))
    client.feed(entry("m/a").id, "warning")
    client.register(entry("m/a", incarnation=2).definition(15.0, None))
    assert not client.passing(SERVICE, 0, 0).services


def test_a_blocking_query_ends_when_something_changes_and_not_before(
    client: ConsulClient, consul_server: Server
) -> None:
    client.register(entry("m/a").definition(15.0, None))
    index = int(client.passing(SERVICE, 0, 0).index or 0)
    assert len(client.passing(SERVICE, index, 0.2).services) == 1  # `wait` ends it
    other = ConsulClient(consul_server.address)
    later = threading.Timer(0.2, lambda: other.register(entry("m/b").definition(15.0, None)))
    later.start()
    try:
        answer = client.passing(SERVICE, index, 30.0)
        while len(answer.services) < 2:  # that it ends is no promise that something changed
            answer = client.passing(SERVICE, int(answer.index or 0), 30.0)
    finally:
        later.join()
        other.close()


def test_a_query_that_waits_is_ended_by_abort(client: ConsulClient) -> None:
    client.register(entry("m/a").definition(15.0, None))
    index = int(client.passing(SERVICE, 0, 0).index or 0)
    later = threading.Timer(0.2, client.abort)
    later.start()
    with pytest.raises(RegistryAway):
        while True:  # it may end sooner, for news of the server's own
            index = int(client.passing(SERVICE, index, 60.0).index or 0)
    later.join()
    with pytest.raises(RegistryAway):
        client.leader()


def test_a_kept_connection_that_consul_closed_costs_no_call(client: ConsulClient, consul_server: Server) -> None:
    assert client.leader()
    consul_server.stop()
    with pytest.raises(RegistryAway):
        client.leader()
    consul_server.start()
    assert client.leader()


def test_a_server_that_says_nothing_costs_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client = ConsulClient(f"127.0.0.1:{mute.getsockname()[1]}", limit_s=0.2)
        began_s = time.monotonic()
        with pytest.raises(RegistryAway):
            client.leader()
        assert time.monotonic() - began_s >= 0.2
        client.close()


def test_keys_are_written_watched_and_locked_by_sessions(client: ConsulClient) -> None:
    assert client.keys("agentkit/c/") == ([], client.keys("agentkit/c/")[1])
    client.put("agentkit/c/a", b"1")
    (key,), _ = client.keys("agentkit/c/")
    assert (key.key, key.value, key.session) == ("agentkit/c/a", b"1", None)
    mine, other = client.open_session("mine", 10, 0), client.open_session("other", 10, 0)
    assert client.acquire("lock", b"mine", mine)
    assert not client.acquire("lock", b"other", other)
    held, _ = client.key("lock")
    assert held is not None
    assert (held.session, held.lock_index) == (mine, 1)
    client.close_session(mine)
    assert not client.renew(mine)
    assert client.renew(other)
    assert client.acquire("lock", b"other", other)
    assert client.release("lock", b"", other)
    client.delete("lock")
    assert client.key("lock")[0] is None
    client.close_session(other)


def test_the_environment_of_the_command_consul_changes_nothing(
    consul_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "https://elsewhere:1:2")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "somebody's")
    client = ConsulClient(consul_server.address)
    assert client.leader()
    client.close()


def test_an_unknown_token_is_refused(client: ConsulClient) -> None:
    needs_rights = Server(
        "closed", settings={"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": "root"}}}
    )
    needs_rights.token = "root"
    needs_rights.start()
    try:
        stranger = ConsulClient(needs_rights.address, token=lambda: "nobody")
        with pytest.raises(RegistryRefused):
            stranger.register(entry("m/a").definition(15.0, None))
        stranger.close()
        # python-consul forgets the token in these two
        owner = ConsulClient(needs_rights.address, token=lambda: "root")
        owner.register(entry("m/a").definition(15.0, None))
        assert owner.feed(entry("m/a").id, "passing")
        owner.deregister(entry("m/a").id)
        assert not needs_rights.services()
        owner.close()
    finally:
        needs_rights.close()


def test_https_is_spoken_with_both_sides_certificates_and_with_nobody_else(tmp_path: Path) -> None:
    needs("consul")
    consul = str(program("consul"))
    subprocess.run([consul, "tls", "ca", "create"], cwd=tmp_path, check=True, capture_output=True)
    for kind in ("-server", "-client"):
        subprocess.run([consul, "tls", "cert", "create", kind], cwd=tmp_path, check=True, capture_output=True)
    ca = str(tmp_path / "consul-agent-ca.pem")
    server = Server(
        settings={
            "ca_file": ca,
            "cert_file": str(tmp_path / "dc1-server-consul-0.pem"),
            "key_file": str(tmp_path / "dc1-server-consul-0-key.pem"),
            "verify_incoming_https": True,
            "ports": {"https": (https := free_port())},
        }
    )
    address = f"127.0.0.1:{https}"
    known = Tls(
        ca=ca, cert=str(tmp_path / "dc1-client-consul-0.pem"), key=str(tmp_path / "dc1-client-consul-0-key.pem")
    )
    try:
        server.start()
        client = ConsulClient(address, tls=known.context())
        client.register(entry("m/a").definition(15.0, None))
        assert set(client.services()) == {"m/a"}
        client.close()
        for stranger in (Tls(ca=ca), Tls()):  # shows no certificate; trusts another authority
            client = ConsulClient(address, tls=stranger.context())
            with pytest.raises(RegistryAway):
                client.leader()
            client.close()
    finally:
        server.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
