"""One CURVE key with what belongs to it, and its text: the certificate files of pyzmq (`zmq.auth.load_certificate` reads them)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final

import zmq

from agentkit.clock import wall_s
from agentkit.errors import ConfigError
from agentkit.names import is_name
from agentkit.security.roles import Holder

#: A key file is shorter than this, in bytes.
MAX_FILE_BYTES: Final = 4096
#: Z85 has no quote, no blank and no backslash.
_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_LINE: Final = re.compile(r'\s*([a-z-]+)\s*=\s*"([^"]*)"\s*')

_ABOUT_PUBLIC: Final = "# A public key of an agentkit cluster (ZeroMQ CURVE). `agentkit keys list` shows all.\n"
_ABOUT_OWN: Final = "# A SECRET key of an agentkit cluster (ZeroMQ CURVE). Whoever can read this is who it names.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key that is known here; with `secret`, one that we are."""

    name: str  #: a machine's, an operator's, ...
    role: str
    public: str  #: Z85, 40 characters
    secret: str = field(default="", repr=False)  #: likewise; "": somebody else's
    serial: int = 1  #: counts the keys of one name: the highest is the newest
    created_s: int = 0  #: seconds since the epoch, where it was made

    @property
    def fingerprint(self) -> str:
        """What people and directories call it: 16 hexadecimal digits."""
        return fingerprint_of(self.public)

    @property
    def holder(self) -> Holder:
        return Holder(self.name, self.role)

    @property
    def file(self) -> str:
        """The name of its file; that of the secret one ends in `_secret`."""
        return f"{self.name}.{self.fingerprint[:8]}.key"

    def without_secret(self) -> Key:
        return replace(self, secret="")

    def to_text(self) -> str:
        """As a file; with the secret, if there is one."""
        lines = [
            _ABOUT_OWN if self.secret else _ABOUT_PUBLIC,
            "metadata",
            f'    name = "{self.name}"',
            f'    role = "{self.role}"',
            f'    serial = "{self.serial}"',
            f'    created = "{self.created_s}"',
            "curve",
            f'    public-key = "{self.public}"',
        ]
        if self.secret:
            lines.append(f'    secret-key = "{self.secret}"')
        return "\n".join(lines) + "\n"

    def to_wire(self) -> dict[str, Any]:
        """What others are told of it: never the secret."""
        return {
            "name": self.name,
            "role": self.role,
            "public": self.public,
            "serial": self.serial,
            "created_s": self.created_s,
        }


def key_from_wire(told: Any) -> Key:
    """ValueError when `told` is no key."""
    try:
        return _checked(
            {field: str(told[field]) for field in ("name", "role", "public", "serial")}
            | {"created": str(told["created_s"])}
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"no key: {exc}") from exc


def key_from_text(text: str, *, at: str) -> Key:
    """The key in a file; ConfigError names the file (`at`) and what is wrong, and never what is in it."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith("#") and (match := _LINE.fullmatch(line)):
            found[match.group(1).replace("-key", "")] = match.group(2)
    try:
        return _checked(found)
    except ValueError as exc:
        raise ConfigError(at=at, got=str(exc), want="a key file as `agentkit keys` makes it") from None


def _checked(found: dict[str, str]) -> Key:
    missing = [word for word in ("name", "role", "public", "serial", "created") if not found.get(word)]
    if missing:
        raise ValueError(f"no {missing[0]}")
    for word in ("name", "role"):
        if not is_name(found[word]):
            raise ValueError(f"a {word} that is none")
    for word in ("serial", "created"):
        if not (found[word].isascii() and found[word].isdigit() and len(found[word]) <= 12):
            raise ValueError(f"a {word} that is no number")
    public, secret = found["public"], found.get("secret", "")
    if not _Z85.fullmatch(public):
        raise ValueError("a public key that is none")
    if secret and not (_Z85.fullmatch(secret) and zmq.curve_public(secret.encode()).decode() == public):
        raise ValueError("a secret key that does not fit the public one")
    return Key(
        name=found["name"],
        role=found["role"],
        public=public,
        secret=secret,
        serial=int(found["serial"]),
        created_s=int(found["created"]),
    )


def new_key(name: str, role: str, serial: int = 1) -> Key:
    """A key that nobody else has. ConfigError: a name or role that is none, or a libzmq without CURVE."""
    for at, word in (("name", name), ("role", role)):
        if not is_name(word):
            raise ConfigError(
                at=f"{at} of a key", got=word, want="letters, digits, `_`, `.`, `-`, starting with a letter"
            )
    if not zmq.has("curve"):
        raise ConfigError(
            at="libzmq", got=f"{zmq.zmq_version()} without CURVE", want="one that has it, as pyzmq's wheels do"
        )
    public, secret = zmq.curve_keypair()
    return Key(
        name=name,
        role=role,
        public=public.decode(),
        secret=secret.decode(),
        serial=serial,
        created_s=int(wall_s()),
    )


def fingerprint_of(public: str) -> str:
    return blake2b(public.encode(), digest_size=8).hexdigest()
