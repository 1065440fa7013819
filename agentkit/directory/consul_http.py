"""HTTP to Consul for `consul.py`: one kept connection, a time limit on every call, and a way to end a call from another thread.

python-consul's own (requests, without time limits) waits for ever for a server that says nothing, and a blocking query can't be
ended from outside. The token travels in a header, never in an address, and goes with every call."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from agentkit.clock import now_s
from agentkit.errors import AgentkitError

T = TypeVar("T")

#: One call, in seconds; what a blocking query waits on the server comes on top. A Consul that takes 10 s still does its work.
LIMIT_S: Final = 12.0
#: Until there is a connection, in seconds.
CONNECT_S: Final = 3.0
#: Largest answer that is read: 1,000 entries are 2 MB.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
#: A server adds up to a sixteenth of `wait` to it, so that not all queries end at once.
_JITTER_PART: Final = 16


class RegistryError(AgentkitError):
    """Consul did not do what was asked."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code  #: HTTP status; None: there was no answer


class RegistryAway(RegistryError):
    """No answer in time, or one that says that Consul itself is in trouble (no leader): tried again later."""


class RegistryRefused(RegistryError):
    """The token is unknown, or has no right to this."""


class Answer(NamedTuple):
    """What python-consul's callbacks look at."""

    code: int
    headers: http.client.HTTPMessage
    body: str


class Http:
    """python-consul's HTTPClient, for one thread; `abort` is for the others."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        token: Callable[[], str | None],
        limit_s: float = LIMIT_S,
    ) -> None:
        self.calls = 0
        self.where = f"Consul at {'https' if tls else 'http'}://{host}:{port}"
        self._host, self._port, self._tls, self._token, self._limit_s = host, port, tls, token, limit_s
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        self._is_aborted = False

    def get(self, callback: Callable[[Answer], T], path: str, params: Any = None, **_: Any) -> T:
        return callback(self._call("GET", path, params))

    def put(self, callback: Callable[[Answer], T], path: str, params: Any = None, data: Any = "", **_: Any) -> T:
        return callback(self._call("PUT", path, params, data))

    def post(self, callback: Callable[[Answer], T], path: str, params: Any = None, data: Any = "", **_: Any) -> T:
        return callback(self._call("POST", path, params, data))

    def delete(self, callback: Callable[[Answer], T], path: str, params: Any = None, **_: Any) -> T:
        return callback(self._call("DELETE", path, params))

    def abort(self) -> None:
        """End the call that is under way, and every later one, with RegistryAway. From any thread."""
        with self._lock:
            self._is_aborted = True
            sock = self._connection.sock if self._connection is not None else None
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # -- one call

    def _call(self, method: str, path: str, params: Sequence[tuple[str, Any]] | None, data: Any = None) -> Answer:
        limit_s = self._limit_s + _waits_s(params)
        target = quote(path, safe="/:") + (f"?{urlencode(params)}" if params else "")
        body = data.encode() if isinstance(data, str) else data
        self.calls += 1
        try:
            answer = self._exchange(method, target, body, limit_s)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            self.close()
            raise RegistryAway(f"{self.where}: {method} {path}: {exc or type(exc).__name__}") from exc
        if answer.code in (401, 403):
            raise RegistryRefused(f"{self.where}: {method} {path}: {answer.body.strip()[:300]}", answer.code)
        if answer.code >= 500 or answer.code == 429:
            raise RegistryAway(f"{self.where}: {method} {path}: {answer.code} {answer.body.strip()[:300]}", answer.code)
        if answer.code >= 400 and answer.code != 404:
            raise RegistryError(
                f"{self.where}: {method} {path}: {answer.code} {answer.body.strip()[:300]}", answer.code
            )
        return answer

    def _exchange(self, method: str, target: str, body: bytes | None, limit_s: float) -> Answer:
        # a query that waits for a change ends with its connection: whoever answers next may be another, with another index
        may_repeat = self._connection is not None and limit_s == self._limit_s
        try:
            return self._once(method, target, body, limit_s)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # a kept connection that the server had closed meanwhile: nothing was lost, as all that we ask may be asked twice
            if not may_repeat or self._is_aborted:
                raise
            self.close()
            return self._once(method, target, body, limit_s)

    def _once(self, method: str, target: str, body: bytes | None, limit_s: float) -> Answer:
        ends_s = now_s() + limit_s
        connection = self._connected(limit_s)
        connection.request(method, target, body, self._headers())
        response = connection.getresponse()
        text = bytearray()
        while part := response.read(65536):
            text += part
            if len(text) > MAX_ANSWER_BYTES:
                raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES:,} bytes")
            if now_s() > ends_s:
                raise TimeoutError(f"the answer did not end within {limit_s:g} s")
        if response.will_close:
            self.close()
        return Answer(response.status, response.headers, text.decode("utf-8", "replace"))

    def _headers(self) -> dict[str, str]:
        token = self._token()
        return {"X-Consul-Token": token} if token else {}

    def _connected(self, limit_s: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            connect_s = min(CONNECT_S, self._limit_s)
            if self._tls is None:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=connect_s)
            else:
                connection = http.client.HTTPSConnection(self._host, self._port, timeout=connect_s, context=self._tls)
            connection.connect()
            # PUTs are two segments (headers, body): without it the second waits 40 ms for the first to be acknowledged
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connection = connection
                if self._is_aborted:
                    connection.close()
        if self._is_aborted:
            raise ConnectionAbortedError("no longer wanted")
        connection.sock.settimeout(limit_s)
        return connection


def _waits_s(params: Sequence[tuple[str, Any]] | None) -> float:
    """How long the server may hold a query on purpose."""
    for name, value in params or ():
        if name == "wait":
            waits_s = float(str(value).removesuffix("s"))
            return waits_s + waits_s / _JITTER_PART
    return 0.0
