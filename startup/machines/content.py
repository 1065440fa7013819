"""What of a project has to be equal on all machines of a fleet: its code and its configuration, never its data.

Where there is git: what it knows below the project's root, as it is on disk now, committed or not. Else everything below the root
that is not hidden, and in no folder that tools or nodes write. In both cases only files with one of SUFFIXES, and the files
that the fleet names. Both ends of a connection use this; only the standard library is imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

#: What code and configuration are written in.
SUFFIXES: Final = frozenset({".cfg", ".ini", ".json", ".py", ".pyi", ".sql", ".toml", ".yaml", ".yml"})
#: Folders that are looked into only by those who have git say so.
_PASSED_OVER: Final = frozenset({"__pycache__", "build", "data", "dist", "keys", "logs", "node_modules", "state"})
#: git answers within milliseconds; a network disk may not.
_GIT_WITHIN_S: Final = 30.0


def files(root: Path, named: Iterable[str] = ()) -> list[str]:
    """Paths from `root`, sorted. `named`: absolute paths that belong to it whatever they are called, where they lie below it."""
    known = _of_git(root)
    found = _walked(root) if known is None else known
    chosen = {path for path in found if PurePosixPath(path).suffix in SUFFIXES}
    chosen.update(os.path.relpath(path, root) for path in named if Path(path).is_relative_to(root))
    return sorted(path for path in chosen if (root / path).is_file())


def digests(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path -> digest of what stands in it; "" where it can't be read or is not below `root`."""
    return {path: _digest(root, path) for path in paths}


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Files that are another there, and files that are missing there."""
    missing = [path for path in ours if not theirs.get(path)]
    changed = [path for path, digest in ours.items() if theirs.get(path) and theirs[path] != digest]
    return changed, missing


def _digest(root: Path, path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        return ""
    try:
        with (root / path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def _of_git(root: Path) -> Sequence[str] | None:
    """None: no git, or the folder is in no repository of it."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else os.fsdecode(done.stdout).split("\0")[:-1]


def _walked(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _PASSED_OVER
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))  # noqa: PTH110, PTH118
        ]
        below = os.path.relpath(folder, root)
        yield from (os.path.normpath(os.path.join(below, name)) for name in names if not name.startswith("."))  # noqa: PTH118
