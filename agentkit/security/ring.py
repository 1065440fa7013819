"""The keys of one process: who it is, whom it lets in, and by which key it knows that a peer is who it should be.

Read from a folder; read again when somebody says that the folder changed. Belongs to one thread."""

from __future__ import annotations

from collections.abc import Callable

from agentkit.errors import ConfigError, Unauthenticated
from agentkit.observe.log import get_logger
from agentkit.security.folder import KeyFolder, KeySet
from agentkit.security.keys import Key
from agentkit.security.roles import OPERATOR, Holder

log = get_logger("agentkit.security")


class Keyring:
    """`own` is the key that this process speaks and serves with; what is bound or connected keeps the one that it was made with."""

    def __init__(self, folder: KeyFolder, own: Key, known: KeySet) -> None:
        self.own = own
        self.folder = folder
        self._known = known
        self._holders = _holders(known)
        self._on_change: list[Callable[[], None]] = []

    @classmethod
    def of_machine(cls, folder: KeyFolder, machine: str, fingerprint: str = "") -> Keyring:
        """For a machine's node and agents. `fingerprint`: the key to be, else the machine's newest. ConfigError: it is not there."""
        known = folder.load(me=machine)
        own = [key for key in known.of(machine) if key.secret and fingerprint in ("", key.fingerprint)]
        if not own:
            what = f"key {fingerprint} of {machine}" if fingerprint else f"secret key of {machine}"
            raise ConfigError(
                at=str(folder.path),
                got=f"no {what}",
                want="this machine's part of the cluster's keys",
                fix=f"`agentkit keys export {machine} FILE` where the keys were made, `agentkit keys import FILE` here",
            )
        return cls(folder, own[0], known)

    @classmethod
    def of_person(cls, folder: KeyFolder, machine: str) -> Keyring:
        """For commands and scripts: the operator's key if its secret is here, else the machine's, else the only one there is."""
        known = folder.load()
        ours = [key for key in known.keys if key.secret]
        best = sorted(ours, key=lambda key: (key.role != OPERATOR, key.name != machine))
        if not best:
            raise ConfigError(
                at=str(folder.path), got="no secret key", want="an operator's", fix="`agentkit keys import FILE`"
            )
        return cls(folder, best[0], known)

    def use_newest(self) -> bool:
        """What is bound and dialled from now on is so under our newest key; whether that is another one."""
        newest = self._known.own(self.own.name)
        if newest is None or newest == self.own:
            return False
        self.own = newest
        return True

    def holder(self, public: str | None) -> Holder | None:
        """Whose key `public` (Z85) is; None: nobody's, or it was revoked."""
        return self._holders.get(public) if public is not None else None

    def server_key(self, machine: str, fingerprint: str = "") -> str:
        """The public key under which to expect `machine`: the one that the directory tells (`fingerprint`), else its newest.

        Unauthenticated unless it is a known key of that very machine: whoever serves with another is somebody else."""
        keys = self._known.of(machine)
        for key in keys:
            if fingerprint in ("", key.fingerprint):
                return key.public
        if not keys:
            raise Unauthenticated(
                f"no key of {machine} is known in {self.folder.path}; `agentkit keys list` shows what is"
            )
        raise Unauthenticated(
            f"{machine} serves with key {fingerprint}, which is not known here as one of its keys: it was revoked, or import it"
        )

    def server_keys(self, machine: str) -> tuple[str, ...]:
        """All public keys of `machine`, the newest first."""
        return tuple(key.public for key in self._known.of(machine))

    @property
    def known(self) -> KeySet:
        return self._known

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change; the result ends that."""
        self._on_change.append(listener)
        return lambda: self._on_change.remove(listener)

    def reload(self) -> bool:
        """Read the folder again; whether that changed anything. A folder that can't be read leaves what is known."""
        try:
            known = self.folder.load(me=self.own.name)
        except ConfigError as exc:
            log.error("keys.not_read", error=str(exc))
            return False
        if known == self._known:
            return False
        self._known = known
        self._holders = _holders(known)
        log.info("keys.changed", known=len(known.keys), revoked=len(known.revoked))
        for listener in tuple(self._on_change):
            listener()
        return True


def _holders(known: KeySet) -> dict[str, Holder]:
    return {key.public: key.holder for key in known.keys}
