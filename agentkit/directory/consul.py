"""Consul, as far as agentkit uses it: a client whose calls block, each with a time limit. The only importer of `consul`.

The library is python-consul (last released 2018), or its successor py-consul, which has the same names. What it lacks is done
here by its own means of making a call: `meta` and several checks of a service, stale reads of health, tokens that go with
deregistration and checks too; and it would let the variables CONSUL_HTTP_* of the environment win over what it is told.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import consul

from agentkit.directory.consul_http import LIMIT_S, Answer, Http, RegistryAway, RegistryError
from agentkit.directory.entries import Status, check_id
from agentkit.names import AgentId

#: The environment's settings that python-consul prefers to its arguments; they are an operator's, for the command `consul`.
_VARIABLES: Final = ("CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY")
_environment: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files. Without `ca` the system's authorities are trusted."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """OSError (ssl.SSLError is one): a file can't be read or is no certificate."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Passing:
    """An answer of a blocking query: services, and the index as it was told."""

    services: list[Mapping[str, Any]]
    index: str | None


class Key(NamedTuple):
    """One key of the KV store."""

    key: str
    value: bytes
    session: str | None  #: who holds its lock
    lock_index: int  #: grows each time that the lock is taken
    modify_index: int = 0  #: grows with each change of any key, for as long as Consul keeps its data


class _Library(consul.Consul):  # type: ignore[misc]
    """python-consul with our transport, and deaf to the environment."""

    def __init__(self, http: Http, datacenter: str | None) -> None:
        self._http = http
        with _environment:
            kept = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
            try:
                super().__init__(dc=datacenter)
            finally:
                os.environ.update(kept)

    def connect(self, *_: Any) -> Http:
        return self._http

    http_connect = connect  # as py-consul calls it


class ConsulClient:
    """For one thread, except `abort`. Every call may raise RegistryAway and RegistryRefused."""

    def __init__(
        self,
        address: str,
        *,
        token: Callable[[], str | None] = lambda: None,
        datacenter: str | None = None,
        tls: ssl.SSLContext | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """`address`: host:port. `token` is asked for each call, so that a new one needs no restart."""
        host, _, port = address.rpartition(":")
        self._http = Http(host.strip("[]"), int(port), tls, token, limit_s)
        self._datacenter = datacenter
        self._consul = _Library(self._http, datacenter)

    @property
    def calls(self) -> int:
        """Requests that were made."""
        return self._http.calls

    def abort(self) -> None:
        """Ends what is under way, from any thread; the client is of no use any more."""
        self._http.abort()

    def close(self) -> None:
        self._http.close()

    # -- services of this Consul agent

    def services(self) -> dict[str, dict[str, Any]]:
        """What is registered at this agent, whoever did it, by id."""
        return dict(self._consul.agent.services() or {})

    def register(self, definition: Mapping[str, Any]) -> None:
        self._http.put(_nothing, "/v1/agent/service/register", data=json.dumps(definition))

    def deregister(self, id: AgentId | str) -> None:
        """Harmless when it is not there."""
        self._consul.agent.service.deregister(str(id))

    def feed(self, id: AgentId, status: Status) -> bool:
        """Reset the TTL of an agent's entry; False: Consul does not know it (any more)."""
        tell = self._consul.agent.check.ttl_pass if status == "passing" else self._consul.agent.check.ttl_warn
        try:
            return bool(tell(check_id(id)))
        except RegistryAway as exc:
            if "associated TTL" in str(exc):  # 1.8 says so with code 500, newer ones with 404
                return False
            raise

    # -- what everybody has registered

    def passing(self, service: str, index: int = 0, wait_s: float = 0.0, *, stale: bool = True) -> Passing:
        """The passing entries of a service; with an index, as soon as it is another or after `wait_s`. `stale`: any server may answer,
        leader or not."""
        params = [("passing", "1"), *([("stale", "1")] if stale else []), *self._in_datacenter()]
        if index:
            params += [("index", str(index)), ("wait", f"{wait_s:g}s")]

        def found(answer: Answer) -> Passing:
            services = [item["Service"] for item in _document(answer, [])]
            return Passing(services, answer.headers.get("X-Consul-Index"))

        return self._http.get(found, f"/v1/health/service/{service}", params=params)

    # -- keys and sessions

    def keys(self, prefix: str, index: int = 0, wait_s: float = 0.0) -> tuple[list[Key], str | None]:
        """All keys below `prefix`, and the index."""
        wait = f"{wait_s:g}s" if index else None
        told, found = self._consul.kv.get(prefix, recurse=True, index=index or None, wait=wait, consistency="stale")
        return [_key(item) for item in found or ()], told

    def key(self, name: str, index: int = 0, wait_s: float = 0.0) -> tuple[Key | None, str | None]:
        """One key, read from the leader."""
        wait = f"{wait_s:g}s" if index else None
        told, found = self._consul.kv.get(name, index=index or None, wait=wait, consistency="default")
        return (None if found is None else _key(found)), told

    def put(self, name: str, value: bytes) -> None:
        self._consul.kv.put(name, value)

    def delete(self, name: str) -> None:
        self._consul.kv.delete(name)

    def open_session(self, name: str, ttl_s: int, lock_delay_s: int = 1) -> str:
        """A session that ends `ttl_s` (10 at least) after its last renewal, or up to twice as late, and not before: it hangs on no health
        check. The usual one (serfHealth) would end it as soon as Consul's own agents lose sight of each other."""
        document = {
            "Name": name,
            "TTL": f"{ttl_s}s",
            "LockDelay": f"{lock_delay_s}s",
            "Behavior": "release",
            "Checks": [],
            "NodeChecks": [],
        }

        def opened(answer: Answer) -> str:
            _nothing(answer)
            return str(_document(answer, {})["ID"])

        return self._http.put(opened, "/v1/session/create", self._in_datacenter(), data=json.dumps(document))

    def renew(self, session: str) -> bool:
        """False: it is over."""
        return self._http.put(lambda answer: answer.code == 200, f"/v1/session/renew/{session}", self._in_datacenter())

    def close_session(self, session: str) -> None:
        """What it holds is free at once."""
        self._consul.session.destroy(session)

    def acquire(self, name: str, value: bytes, session: str) -> bool:
        return bool(self._consul.kv.put(name, value, acquire=session))

    def release(self, name: str, value: bytes, session: str) -> bool:
        return bool(self._consul.kv.put(name, value, release=session))

    # -- itself

    def about(self) -> dict[str, Any]:
        """/v1/agent/self: version, name, datacenter."""
        return dict(self._consul.agent.self())

    def leader(self) -> str:
        """ "host:port" of the leader; empty: there is none."""
        return str(self._consul.status.leader())

    def date(self) -> str | None:
        """What time it is there, as HTTP says it."""
        return self._http.get(lambda answer: answer.headers.get("Date"), "/v1/status/leader")

    def _in_datacenter(self) -> list[tuple[str, str]]:
        return [("dc", self._datacenter)] if self._datacenter else []


def _nothing(answer: Answer) -> None:
    if answer.code != 200:
        raise RegistryError(f"{answer.code} {answer.body[:300]}", answer.code)


def _document(answer: Answer, otherwise: Any) -> Any:
    if answer.code != 200:
        return otherwise
    try:
        return json.loads(answer.body)
    except ValueError as exc:
        raise RegistryAway(f"this is no JSON: {answer.body[:100]!r}") from exc


def _key(item: Mapping[str, Any]) -> Key:
    return Key(
        str(item["Key"]),
        item.get("Value") or b"",
        item.get("Session"),
        int(item.get("LockIndex", 0)),
        int(item.get("ModifyIndex", 0)),
    )
