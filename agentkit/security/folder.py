"""A folder of keys: one file for each public key that is known, one more for each secret that is ours, and a list of what was revoked.

Whoever can read a secret is who it names. So folder and files are refused when somebody else could read them, or owns them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentkit.errors import ConfigError
from agentkit.security.keys import MAX_FILE_BYTES, Key, key_from_text

#: Where keys are kept unless somebody says otherwise, and the variable by which to say it.
DEFAULT_FOLDER: Final = "~/.config/agentkit/keys"
FOLDER_VARIABLE: Final = "AGENTKIT_KEYS"

#: Keys that a folder may hold: for each of a thousand machines the old one and the new.
MAX_KEYS: Final = 4_000
#: The file that lists revoked keys: a line with fingerprint and name for each.
REVOKED: Final = "revoked"
_PUBLIC, _SECRET = ".key", ".key_secret"


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a folder holds. Pure."""

    keys: tuple[Key, ...] = ()  #: known and not revoked, by name, the newest of a name first; ours with their secrets
    revoked: Mapping[str, str] = field(default_factory=dict)  #: fingerprint -> name

    def of(self, name: str) -> tuple[Key, ...]:
        """The keys of `name`, the newest first."""
        return tuple(key for key in self.keys if key.name == name)

    def find(self, word: str) -> tuple[Key, ...]:
        """Those whose name or fingerprint `word` is."""
        return tuple(key for key in self.keys if word in (key.name, key.fingerprint))

    def own(self, name: str) -> Key | None:
        """The newest key of `name` whose secret is here."""
        return next((key for key in self.of(name) if key.secret), None)

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.name for key in self.keys))

    def next_serial(self, name: str) -> int:
        return max((key.serial for key in self.of(name)), default=0) + 1


def folder_of(configured: str = "", environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of this process: $AGENTKIT_KEYS, else `configured` (the fleet's `security.keys`), else the usual one."""
    return Path(environ.get(FOLDER_VARIABLE) or configured or DEFAULT_FOLDER).expanduser().absolute()


class KeyFolder:
    """Reads and writes one folder. Every method may raise ConfigError: not ours, readable by others, or no keys."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        return self.path.is_dir()

    def load(self, *, me: str | None = None) -> KeySet:
        """All of it; with `me` only the secrets of that name."""
        self._check(self.path, is_folder=True)
        revoked = self._revoked()
        keys: dict[str, Key] = {}
        for name in sorted(found.name for found in self.path.iterdir()):
            is_secret = name.endswith(_SECRET)
            if name.startswith(".") or not (is_secret or name.endswith(_PUBLIC)):
                continue
            if is_secret and me is not None and not name.startswith(f"{me}."):
                continue
            try:
                key = self._read(self.path / name)
            except FileNotFoundError:  # it was revoked while we looked
                continue
            if key.fingerprint not in revoked and (key.secret or key.public not in keys):
                keys[key.public] = key
            if len(keys) > MAX_KEYS:
                raise ConfigError(at=str(self.path), got=f"more than {MAX_KEYS:,} keys", want="a folder of one cluster")
        return KeySet(tuple(sorted(keys.values(), key=lambda key: (key.name, -key.serial))), revoked)

    def prepare(self) -> None:
        """Make the folder, 0700, if it is not there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        self._check(self.path, is_folder=True)

    def add(self, keys: Iterable[Key]) -> None:
        """Write keys, those with a secret both ways. One that was revoked stays revoked."""
        self.prepare()
        revoked = self._revoked()
        for key in keys:
            if key.fingerprint in revoked:
                continue
            self._write(key.file, key.without_secret().to_text())
            if key.secret:
                self._write(f"{key.file}_secret", key.to_text())

    def revoke(self, keys: Mapping[str, str]) -> None:
        """From now on these (fingerprint -> name) are nobody, here: their files go, and can't come back."""
        self.prepare()
        known = {**self._revoked(), **keys}
        lines = "".join(f"{fingerprint} {name}\n" for fingerprint, name in list(known.items())[-MAX_KEYS:])
        self._write(REVOKED, lines)  # first: should we be killed now, files alone make nobody known
        for file in [*self.path.glob(f"*{_PUBLIC}"), *self.path.glob(f"*{_SECRET}")]:
            if self._read(file).fingerprint in keys:
                file.unlink(missing_ok=True)

    def part_for(self, machine: str) -> dict[str, str]:
        """The files that `machine` needs, name -> text: everybody's public keys, and of the secret ones its own."""
        found = self.load()
        if not found.of(machine):
            raise ConfigError(
                at=str(self.path),
                got=f"no key of {machine}",
                want=f"one of {', '.join(found.names()) or 'none: `agentkit keys init` makes them'}",
                fix=f"`agentkit keys add {machine}` makes one",
            )
        files: dict[str, str] = {}
        for key in found.keys:
            files[key.file] = key.without_secret().to_text()
            if key.name == machine and key.secret:
                files[f"{key.file}_secret"] = key.to_text()
        files[REVOKED] = "".join(f"{fingerprint} {name}\n" for fingerprint, name in found.revoked.items())
        return files

    def take_part(self, files: Mapping[str, str]) -> KeySet:
        """Write what `part_for` made elsewhere; nothing when one of the files is no key. Returns what the folder then holds."""
        revoked = _lines(files.get(REVOKED, ""), at=REVOKED)
        keys = [key_from_text(text, at=name) for name, text in files.items() if name != REVOKED]
        self.prepare()
        if revoked:
            self.revoke(revoked)
        self.add(keys)
        return self.load()

    def _read(self, path: Path) -> Key:
        return key_from_text(self._text(path), at=str(path))

    def _text(self, path: Path) -> str:
        try:
            with open(path, "rb") as file:
                self._check_facts(path, os.fstat(file.fileno()), is_folder=False)
                limit = MAX_FILE_BYTES * (MAX_KEYS if path.name == REVOKED else 1)
                return file.read(limit).decode("ascii")
        except FileNotFoundError:
            raise
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(at=str(path), got=str(exc), want="a file that can be read") from exc

    def _revoked(self) -> dict[str, str]:
        path = self.path / REVOKED
        return _lines(self._text(path), at=str(path)) if path.exists() else {}

    def _check(self, path: Path, *, is_folder: bool) -> None:
        try:
            facts = path.lstat()
        except OSError as exc:
            raise ConfigError(
                at=str(path),
                got=os.strerror(exc.errno or 0),
                want="a folder of keys",
                fix="`agentkit keys init` makes one, `agentkit keys import FILE` takes what another machine exported",
            ) from exc
        self._check_facts(path, facts, is_folder=is_folder)

    def _check_facts(self, path: Path, facts: os.stat_result, *, is_folder: bool) -> None:
        mode = stat.S_IMODE(facts.st_mode)
        want = 0o700 if is_folder else 0o600
        if not (stat.S_ISDIR if is_folder else stat.S_ISREG)(facts.st_mode):
            raise ConfigError(at=str(path), got="something else", want="a folder" if is_folder else "a plain file")
        if facts.st_uid != os.geteuid():
            raise ConfigError(
                at=str(path),
                got=f"an owner with uid {facts.st_uid}",
                want=f"uid {os.geteuid()}, who runs this",
                fix=f"chown {os.geteuid()} {path}, if nobody else has had it",
            )
        if mode & 0o077:
            raise ConfigError(
                at=str(path),
                got=f"mode {mode:04o}: others can get at it",
                want=f"{want:04o}",
                fix=f"chmod {want:o} {path}; if somebody may have read a secret, revoke that key",
            )

    def _write(self, name: str, text: str) -> None:
        path, temporary = self.path / name, self.path / f".{name}.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _lines(text: str, *, at: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        fingerprint, _, name = line.partition(" ")
        if len(fingerprint) != 16 or not all(digit in "0123456789abcdef" for digit in fingerprint):
            raise ConfigError(at=at, got="a line that names no key", want="fingerprint and name")
        found[fingerprint] = name[:100]
    return found
