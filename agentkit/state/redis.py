"""States in Redis: one hash for each agent, `agent:{id}:state`. What claims and saves is a script there, so whole or not at all.

Between two saves there is no connection: an agent saves every few minutes, and a Redis that came back is then like any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from redis import exceptions as errors

from agentkit.errors import ConfigError, StateDamaged, StateError, StateFenced, StateNotSaved, StateUnreachable
from agentkit.names import AgentId, Incarnation
from agentkit.state.store import PLACES, Found, Snapshot

#: Longest time for a connection and for an answer, in seconds.
_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 5.0

#: Beside each other: whose it is, then what is asked for. Answers are a word and what belongs to it.
_GUARD: Final = """
local cluster = redis.call('HGET', KEYS[1], 'cluster')
if cluster and cluster ~= ARGV[2] then return {'cluster', cluster} end
local holder = redis.call('HGET', KEYS[1], 'incarnation')
"""
_CLAIM: Final = (
    _GUARD
    + """
if holder and tonumber(holder) > tonumber(ARGV[1]) then return {'fenced', holder} end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'cluster', ARGV[2])
return {'ok', ''}
"""
)
#: A key that is gone was lost with its Redis; whoever has the state in memory saves it anew.
_SAVE: Final = (
    _GUARD
    + """
if holder and holder ~= ARGV[1] then return {'fenced', holder} end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'cluster', ARGV[2],
  ARGV[3] .. ':number', ARGV[4], ARGV[3] .. ':version', ARGV[5], ARGV[3] .. ':incarnation', ARGV[1], ARGV[3] .. ':saved_s', ARGV[6],
  ARGV[3] .. ':checksum', ARGV[7], ARGV[3] .. ':data', ARGV[8])
return {'ok', ''}
"""
)


class RedisStore:
    """Each call connects, asks and hangs up."""

    kind = "redis"

    def __init__(self, url: str, id: AgentId, cluster: str) -> None:
        """`url`: redis://, rediss:// or unix://, perhaps with user, password and a database. ConfigError: it is none of these."""
        self.key = f"agent:{id}:state"
        self._cluster = cluster
        try:
            self._url = urlsplit(url)
            self._client: Any = redis.Redis.from_url(
                url, socket_connect_timeout=_CONNECT_S, socket_timeout=_ANSWER_S, protocol=2, retry=None
            )
        except ValueError:
            # without the cause: it quotes the address, which may hold a password
            raise ConfigError(at="state.url", got="no address of a Redis", want="redis://HOST:PORT/NUMBER") from None
        self._claim = self._client.register_script(_CLAIM)
        self._save = self._client.register_script(_SAVE)

    @property
    def where(self) -> str:
        port = f":{self._url.port}" if self._url.port else ""
        return f"{self._url.scheme}://{self._url.hostname or ''}{port}{self._url.path} {self.key}"

    @property
    def remedy(self) -> str:
        return f"put a copy back, or delete the key {self.key} there"

    def claim(self, incarnation: Incarnation) -> None:
        with self._told():
            self._heed(incarnation, self._claim(keys=[self.key], args=[int(incarnation), self._cluster]))

    def load(self) -> Found:
        with self._told():
            found: dict[bytes, bytes] = self._client.hgetall(self.key)
        snapshots, unreadable = [], []
        for place in range(PLACES):
            prefix = b"%d:" % place
            fields = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
            try:
                snapshots += [_snapshot(fields)] if fields else []
            except (KeyError, ValueError) as exc:
                unreadable.append(f"{self.where}: fields of snapshot {place} are wrong: {exc}")
        return Found(sorted(snapshots, key=lambda it: -it.number), unreadable)

    def save(self, snapshot: Snapshot) -> None:
        arguments = [
            snapshot.incarnation, self._cluster, snapshot.place, snapshot.number, snapshot.version, repr(snapshot.saved_s),
            snapshot.checksum, snapshot.data,
        ]  # fmt: skip
        try:
            with self._told():
                self._heed(Incarnation(snapshot.incarnation), self._save(keys=[self.key], args=arguments))
        except StateNotSaved:
            raise
        except StateError as exc:
            raise StateNotSaved(str(exc)) from exc

    def close(self) -> None:
        self._client.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _heed(self, incarnation: Incarnation, answer: list[bytes]) -> None:
        word, what = answer[0], answer[1].decode(errors="replace")
        if word == b"cluster":
            raise StateDamaged(
                f"{self.where} belongs to an agent of cluster {what}, and this is cluster {self._cluster}; give each cluster a "
                f"database of its own, such as redis://HOST/1"
            )
        if word == b"fenced":
            raise StateFenced(self.where, incarnation, int(float(what)))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the client raises, as ours; then the connection is given up."""
        try:
            yield
        except (errors.ConnectionError, errors.TimeoutError, OSError) as exc:
            raise StateUnreachable(f"{self.where}: {exc}") from exc
        except errors.ResponseError as exc:
            kind = StateDamaged if str(exc).startswith("WRONGTYPE") else StateUnreachable
            raise kind(f"{self.where}: {exc}") from exc
        except errors.RedisError as exc:
            raise StateUnreachable(f"{self.where}: {type(exc).__name__}: {exc}") from exc
        finally:
            self._client.connection_pool.disconnect()


def _snapshot(fields: dict[bytes, bytes]) -> Snapshot:
    """KeyError, ValueError: a field is missing, or is no number."""
    return Snapshot(
        number=int(fields[b"number"]),
        version=int(fields[b"version"]),
        incarnation=int(fields[b"incarnation"]),
        saved_s=float(fields[b"saved_s"]),
        checksum=fields[b"checksum"],
        data=fields[b"data"],
    )
