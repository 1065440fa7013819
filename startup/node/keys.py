"""What a node does with the keys of its cluster: who it is to other nodes, whom it believes, and what its agents are to know.

Keys are read from this machine's folder (agentkit.security.folder) as soon as a revision needs them. Operations, for operators:

    keys_list {}                       -> {name, own, keys: [{name, role, fingerprint, serial, created_s, is_ours}], revoked}
    keys_add {keys}                    these are known from now on
    keys_revoke {keys}                 fingerprint -> name: these are nobody from now on; other nodes are told
    keys_renew {}                      -> {key}: another one for this machine, known but not in use yet
    keys_use {}                        -> {own}: it is in use from now on (key_operations.py)
    keys_reload {}                     the folder was changed by hand
    watch_keys {}                      goes on telling: an event now, and whenever keys came or went
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from agentkit.errors import BadRequest, CallError, ConfigError, Forbidden
from agentkit.names import is_beyond_loopback, is_loopback
from agentkit.observe.log import get_logger
from agentkit.transport.dealer import Dial
from startup.errors import Refused
from startup.node.control_server import Asker, Telling
from startup.spec.fleet import Fleet

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring
    from agentkit.security.roles import Holder

log = get_logger("node.keys")

#: Keys in one word of an operator or another node.
MAX_TOLD: Final = 4_000


class NodeKeys:
    """One node's. Without keys it imports, reads and keeps nothing."""

    def __init__(self, machine: str) -> None:
        self.ring: Keyring | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_revoked: Callable[[Mapping[str, str]], None] = lambda _: (
            None
        )  #: by an operator: others are to hear of it
        self._machine = machine
        self._fleet: Fleet | None = None
        self._tries: dict[str, int] = {}  # machine -> which of its keys its node may have
        self._watchers: dict[tuple[Asker, int], None] = {}

    # -- which keys

    def use(self, fleet: Fleet) -> None:
        """Read the keys if this revision needs them. Refused: they are not there, not ours alone, or without this machine's."""
        if self.ring is None and fleet.needs_keys:
            try:
                self._read(fleet.keys)
            except ConfigError as exc:
                raise Refused("security", str(exc)) from exc
        self._fleet = fleet

    def use_newest(self) -> bool:
        """Be the newest key of this machine from now on; whether that is another one than before."""
        return self._needed().use_newest()

    def use_before_revision(self, host: str) -> bool:
        """Whether a node that knows no fleet yet may listen on `host`: beyond loopback only for who has a key of this machine's
        folder."""
        if is_loopback(host):
            return True
        try:
            self._read("")
        except ConfigError as exc:
            log.warning("keys.none_yet", host=host, hint=str(exc))
            return False
        return True

    def _read(self, configured: str) -> None:
        from agentkit.security.folder import KeyFolder, folder_of
        from agentkit.security.ring import Keyring

        ring = Keyring.of_machine(KeyFolder(folder_of(configured)), self._machine)
        ring.on_change(self._changed)
        self.ring = ring
        log.info("keys.read", folder=str(ring.folder.path), own=ring.own.fingerprint, known=len(ring.known.keys))

    def encrypts(self, host: str) -> bool:
        """Whether what listens on `host` takes known keys only."""
        return self.ring is not None and self._is_guarded(beyond=not is_loopback(host))

    def _is_guarded(self, *, beyond: bool) -> bool:
        if self._fleet is None:
            return beyond
        return self._fleet.security == "curve" and (beyond or self._fleet.encrypts_loopback)

    @property
    def for_new(self) -> str:
        """Fingerprint of the key that the next process of this machine serves with; "": none."""
        if self.ring is None:
            return ""
        newest = self.ring.known.own(self._machine)
        return newest.fingerprint if newest is not None else self.ring.own.fingerprint

    # -- other nodes

    def dial(self, machine: str, endpoint: str) -> Dial | None:
        """How the node of `machine` is called; None: without encryption. Unauthenticated: no key of it is known."""
        if self.ring is None or not self._is_guarded(beyond=is_beyond_loopback(endpoint)):
            return None
        keys = self.ring.server_keys(machine) or (self.ring.server_key(machine),)
        return Dial(self.ring.own, keys[self._tries.get(machine, 0) % len(keys)])

    def missed(self, machine: str) -> None:
        """It did not answer under that key: while keys are being changed, it may have another one."""
        self._tries[machine] = self._tries.get(machine, 0) + 1

    def may_speak_for(self, holder: Holder | None, machine: str) -> CallError | None:
        """Why a word is not believed to be that of `machine`; None: it is."""
        if self.ring is None or (self._fleet is not None and self._fleet.security != "curve"):
            return None
        if holder is None:
            machines = self._fleet.machines if self._fleet is not None else ()
            host = next((found.host for found in machines if found.name == machine), "")
            if is_loopback(host) and not self._is_guarded(beyond=False):
                return None
            return Forbidden(f"the node of {machine} speaks with its key, and this connection has none")
        return None if holder.name == machine else Forbidden(f"this is the key of {holder}, not of {machine}")

    # -- changes

    def watch(self, asker: Asker, id: int) -> Telling:
        """Operation `watch_keys`."""
        self._watchers[asker, id] = None
        asker.tell(id, {})
        return Telling(lambda: self._watchers.pop((asker, id), None))

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "keys_list": self._list,
            "keys_add": self._add,
            "keys_revoke": self._revoke,
            "keys_reload": self._reload,
            "keys_renew": self._renew,
        }

    def heard(self, said: Mapping[str, Any]) -> None:
        """Another node was told to revoke."""
        revoked = _revoked(said["keys"])
        if self.ring is not None and not revoked.keys() <= self.ring.known.revoked.keys():
            self.ring.folder.revoke(revoked)
            self.ring.reload()

    def revoked(self) -> dict[str, str]:
        """All that is revoked here: for nodes that were away when it was."""
        return dict(self.ring.known.revoked) if self.ring is not None else {}

    def _list(self, _: Mapping[str, Any]) -> dict[str, Any]:
        ring = self._needed()
        return {
            "name": self._machine,
            "folder": str(ring.folder.path),
            "own": ring.own.fingerprint,
            "keys": [
                {**key.to_wire(), "fingerprint": key.fingerprint, "is_ours": bool(key.secret)}
                for key in ring.known.keys
            ],
            "revoked": dict(ring.known.revoked),
        }

    def _add(self, said: Mapping[str, Any]) -> dict[str, Any]:
        from agentkit.security.keys import key_from_wire

        ring = self._needed()
        keys = [key_from_wire(told) for told in said["keys"][:MAX_TOLD]]
        known = {key.public for key in ring.known.keys}
        ring.folder.add([key for key in keys if key.public not in known])
        ring.reload()
        return self._list({})

    def _revoke(self, said: Mapping[str, Any]) -> dict[str, Any]:
        ring = self._needed()
        revoked = _revoked(said["keys"])
        if ring.own.fingerprint in revoked:
            raise BadRequest(
                f"{ring.own.fingerprint} is the key that this node runs with: give it another one first (`agentkit keys rotate`)"
            )
        ring.folder.revoke(revoked)
        ring.reload()
        self.on_revoked(revoked)
        return self._list({})

    def _renew(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """A new key for this machine, made here: its secret never leaves. One that was made and is not in use yet is taken again."""
        from agentkit.security.keys import new_key

        ring = self._needed()
        ring.reload()
        newest = ring.known.own(self._machine)
        if newest is None or newest == ring.own:
            newest = new_key(self._machine, ring.own.role, ring.known.next_serial(self._machine))
            ring.folder.add([newest])
            ring.reload()
        return {"key": newest.to_wire()}

    def _reload(self, _: Mapping[str, Any]) -> dict[str, Any]:
        if self.ring is not None:
            self.ring.reload()
        return {}

    def _needed(self) -> Keyring:
        if self.ring is None:
            raise Refused(
                "security", "this node has no keys: its fleet listens on loopback only, or says `security: none`"
            )
        return self.ring

    def _changed(self) -> None:
        for asker, id in tuple(self._watchers):
            asker.tell(id, {})
        self.on_change()


def _revoked(told: Any) -> dict[str, str]:
    """BadRequest when it names no keys."""
    try:
        found = {str(fingerprint): str(name)[:100] for fingerprint, name in list(told.items())[:MAX_TOLD]}
        if not all(len(word) == 16 and int(word, 16) >= 0 for word in found):
            raise ValueError("a fingerprint has 16 hexadecimal digits")
    except (AttributeError, TypeError, ValueError) as exc:
        raise BadRequest(f"keys: {exc}") from exc
    return found
