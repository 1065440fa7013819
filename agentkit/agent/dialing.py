"""Where an agent is called, and with which keys: loopback on its own machine, its machine's address from others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from agentkit.clock import now_s
from agentkit.directory.base import INBOX, INBOX_LOCAL, AgentRecord
from agentkit.errors import ConfigError, Unauthenticated, Unreachable
from agentkit.names import is_beyond_loopback
from agentkit.transport.dealer import Dial

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring

#: A key that is not known may have come since the folder was read: it is read again, at most so often, in seconds.
READ_AGAIN_S: Final = 1.0


class Dialer:
    """Where to connect. For one thread at a time, but that its keys may be read by several."""

    def __init__(
        self,
        here: str,
        keys: Callable[[], Keyring] | None = None,
        *,
        is_strict: bool = False,
        even_here: bool = False,
        shows_key: bool = False,
    ) -> None:
        """`keys` reads ours; called when an endpoint needs them, and again when a peer does not have one of them. `is_strict`: beyond
        loopback nobody is called without encryption; with `even_here` nobody at all. `shows_key`: called where the callee sees whose
        key it is, if there is such an address."""
        self._here = here
        self._read = keys
        self._ring: Keyring | None = None
        self._read_s = float("-inf")
        self._is_strict = is_strict
        self._even_here = even_here
        self._shows_key = shows_key

    def where(self, record: AgentRecord) -> tuple[str, Dial | None]:
        """Endpoint and keys. Unreachable: it has no inbox. Unauthenticated: we have no keys, or it serves with one that is not its."""
        names = [INBOX_LOCAL, INBOX] if record.id.machine == self._here else [INBOX, INBOX_LOCAL]
        if self._shows_key and record.keys and self._has_keys():
            names.sort(key=lambda name: name not in record.keys)
        name = next((name for name in names if name in record.endpoints), None)
        if name is None:
            raise Unreachable(f"{record.id} has no inbox: it is {record.phase}")
        endpoint, fingerprint = record.endpoints[name], record.keys.get(name, "")
        if not fingerprint and not (self._is_strict and (self._even_here or is_beyond_loopback(endpoint))):
            return endpoint, None
        return endpoint, self._dial(record, fingerprint)

    def knows(self, dial: Dial) -> bool:
        """Whether the key that we expected there is still a known one."""
        try:
            ring = self._ring or self._read_keys()
        except ConfigError:
            return False
        return ring.holder(dial.server) is not None

    def renew(self) -> None:
        """Keys came or went: they are read again before they are used again. From any thread."""
        self._ring = None

    def _dial(self, record: AgentRecord, fingerprint: str) -> Dial:
        if self._read is None:
            raise Unauthenticated(
                f"{record.id} takes encrypted connections only, and we have no keys (`security` of the fleet's file)"
            )
        try:
            ring = self._ring or self._read_keys()
            try:
                server = ring.server_key(record.id.machine, fingerprint)
            except Unauthenticated:
                if now_s() - self._read_s < READ_AGAIN_S:
                    raise
                ring = self._read_keys()
                server = ring.server_key(record.id.machine, fingerprint)
        except ConfigError as exc:
            raise Unauthenticated(f"{record.id} takes encrypted connections only: {exc}") from exc
        return Dial(ring.own, server)

    def _has_keys(self) -> bool:
        if self._ring is None and self._read is not None and now_s() - self._read_s >= READ_AGAIN_S:
            with contextlib.suppress(ConfigError):
                self._read_keys()
        return self._ring is not None

    def _read_keys(self) -> Keyring:
        assert self._read is not None
        self._read_s = now_s()
        self._ring = self._read()
        return self._ring
