"""What an agent process reads from its environment: every variable, and that a wrong one is named without showing a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentkit.errors import ConfigError
from agentkit.health.checks import CheckPolicy
from agentkit.settings import AgentSettings, SecretSource, is_loopback


def settings(**environ: str) -> AgentSettings:
    return AgentSettings.from_environment(environ, default_name="Agent")


def test_by_hand_nothing_needs_to_be_set() -> None:
    s = settings(HOME="/home/x")
    assert (str(s.id), s.incarnation, s.port, s.health_port) == ("local/Agent", 0, 0, None)
    assert (s.host, s.node_socket, s.grace_s, s.watchdog_s) == ("127.0.0.1", None, 10.0, 0)
    assert s.data_dir == Path("/home/x/.local/state/agentkit/by-hand/local/data/Agent")
    assert settings(AGENTKIT_STATE_DIR="/s").data_dir == Path("/s/by-hand/local/data/Agent")
    assert s.checks == CheckPolicy()


def test_everything_that_a_node_sets_is_read() -> None:
    s = settings(
        AGENT_NAME="Cache", AGENT_INSTANCE="Cache#2", AGENT_MACHINE="pc2", AGENTKIT_INCARNATION="18446744073709551615",
        AGENTKIT_CLUSTER="reference", PORT="7000", HEALTH_CHECK_PORT="7001", AGENT_CONFIG='{"a": 1}',
        AGENTKIT_NODE="/run/node.sock", AGENTKIT_PEERS='{"X": "tcp://h:1"}', AGENTKIT_DATA_DIR="/data",
        AGENTKIT_RESOURCE_MEMORY="1048576", AGENTKIT_TRACE_SAMPLE="0.5", AGENTKIT_HIBERNATE='{"after_s": 1.5, "depth": "deep"}',
        AGENTKIT_GRACE_S="2.5", WATCHDOG_USEC="1500000", AGENTKIT_HEALTH='{"interval_s": 3, "timeout_s": 1, "retries": 2}',
        AGENTKIT_SECRETS='{"T": {"env": "TOKEN"}}', AGENTKIT_LOG_FORMAT="json", AGENTKIT_LOG_LEVEL="debug",
    )  # fmt: skip
    assert (str(s.id), s.incarnation, s.cluster) == ("pc2/Cache#2", 2**64 - 1, "reference")
    assert (s.port, s.health_port, s.config, s.node_socket) == (7000, 7001, {"a": 1}, "/run/node.sock")
    assert s.trace_sample == 0.5
    assert s.resource_memory_bytes == 2**20
    assert (s.hibernate.after_s, s.hibernate.depth) == (1.5, "deep")
    assert (s.peers, s.data_dir, s.grace_s, s.watchdog_s) == ({"X": "tcp://h:1"}, Path("/data"), 2.5, 1.5)
    assert s.checks == CheckPolicy(interval_s=3, timeout_s=1, retries=2)
    assert s.secrets == {"T": SecretSource(env="TOKEN")}
    assert (s.log_format, s.log_level) == ("json", "DEBUG")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AGENT_NAME", "9 lives"),
        ("AGENT_MACHINE", "a/b"),
        ("AGENT_INSTANCE", "Agent#two"),
        ("AGENTKIT_INCARNATION", "-1"),
        ("AGENTKIT_INCARNATION", "nan"),
        ("PORT", "70000"),
        ("PORT", "x"),
        ("PORT", "1.5"),
        ("HEALTH_CHECK_PORT", "99999"),
        ("AGENT_CONFIG", "[1]"),
        ("AGENT_CONFIG", "{"),
        ("AGENTKIT_PEERS", '{"X": 5}'),
        ("AGENTKIT_GRACE_S", "soon"),
        ("AGENTKIT_GRACE_S", "nan"),
        ("AGENTKIT_GRACE_S", "-1"),
        ("AGENTKIT_TRACE_SAMPLE", "1.1"),
        ("AGENTKIT_TRACE_SAMPLE", "nan"),
        ("WATCHDOG_USEC", "inf"),
        ("AGENTKIT_HEALTH", '{"interval": 3}'),
        ("AGENTKIT_HEALTH", '{"interval_s": "3"}'),
        ("AGENTKIT_SECRETS", '{"T": {}}'),
        ("AGENTKIT_SECRETS", '{"T": {"env": "A", "file": "b"}}'),
        ("AGENTKIT_SECURITY", "open"),
        ("AGENTKIT_LOG_FORMAT", "xml"),
        ("AGENTKIT_KIND", "job"),
        ("AGENTKIT_HIBERNATE", '{"after_s": 0}'),
        ("AGENTKIT_HIBERNATE", '{"depth": "deeper"}'),
        ("AGENTKIT_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{variable}"):
        settings(**{variable: value})


@pytest.mark.parametrize("retries", ["0", '"3"'])
def test_a_wrong_health_policy_names_its_key(retries: str) -> None:
    with pytest.raises(ConfigError, match=r"AGENTKIT_HEALTH|health_check\.retries"):
        settings(AGENTKIT_HEALTH=f'{{"retries": {retries}}}')


def test_a_secret_that_stands_where_a_reference_belongs_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        settings(AGENTKIT_SECRETS='{"T": "hunter2"}')
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


def test_secrets_are_read_from_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("from file\n")
    monkeypatch.setenv("TOKEN", "from env")
    s = settings(AGENTKIT_SECRETS=f'{{"F": {{"file": "{tmp_path}/token"}}, "E": {{"env": "TOKEN"}}}}')
    assert s.read_secrets() == {"F": "from file", "E": "from env"}
    assert "from env" not in repr(s)


def test_a_secret_that_can_t_be_read_is_named_and_never_quoted(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"s3cret\xff")
    for source, says in (
        (f'{{"file": "{tmp_path}/missing"}}', "No such file"),
        (f'{{"file": "{tmp_path}/binary"}}', "not UTF-8"),
        ('{"env": "NOT_SET_ANYWHERE"}', r"\$NOT_SET_ANYWHERE, which is not set"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            settings(AGENTKIT_SECRETS=f'{{"T": {source}}}').read_secrets()
        assert caught.value.at == "secrets.T"
        assert "s3cret" not in str(caught.value) + repr(caught.value.__cause__)


def test_binding_beyond_loopback_must_be_asked_for() -> None:
    settings().check_binding()
    with pytest.raises(ConfigError, match="AGENTKIT_SECURITY=none"):
        settings(AGENT_HOST="0.0.0.0").check_binding()
    settings(AGENT_HOST="0.0.0.0", AGENTKIT_SECURITY="none").check_binding()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_socket_that_is_handed_down_is_asked_alike(host: str) -> None:
    sockets = {"http": "127.0.0.1", "inbox-local": host}
    settings().check_binding(dict.fromkeys(sockets, "::1"))
    with pytest.raises(ConfigError, match="AGENTKIT_SECURITY=none") as caught:
        settings().check_binding(sockets)
    assert (caught.value.at, caught.value.got) == ("socket inbox-local", host)
    for security in ("none", "curve"):
        settings(AGENTKIT_SECURITY=security).check_binding(sockets)


@pytest.mark.parametrize(
    ("host", "is_so"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("", False), ("0.0.0.0", False),
     ("10.0.0.1", False), ("example.org", False), ("127.example.org", False)],
)  # fmt: skip
def test_what_counts_as_loopback(host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so
