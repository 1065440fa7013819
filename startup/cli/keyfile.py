"""A machine's part of the keys as one file that ops carry: a tar, readable by its owner only."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentkit.errors import ConfigError

#: The whole file, in bytes: keys of 4,000 machines are 4 MB.
MAX_BYTES: Final = 16 * 1024 * 1024


def write_part(path: Path, files: Mapping[str, str]) -> None:
    """Write `files` (name -> text) to a new file of mode 0600. ConfigError: it is there already, or can't be written."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            data = text.encode("ascii")
            facts = tarfile.TarInfo(name)
            facts.size, facts.mode = len(data), 0o600
            tar.addfile(facts, io.BytesIO(data))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ConfigError(at=str(path), got=os.strerror(exc.errno or 0), want="a file that is not there yet") from exc
    with os.fdopen(descriptor, "wb") as file:
        file.write(packed.getvalue())


def read_part(path: Path) -> dict[str, str]:
    """What `write_part` wrote. Nothing is unpacked to disk: texts only, however the tar is made. ConfigError: it is something else."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigError(
            at=str(path), got=os.strerror(exc.errno or 0), want="a file of `agentkit keys export`"
        ) from exc
    files: dict[str, str] = {}
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        with tarfile.open(
            fileobj=io.BytesIO(data), mode="r:"
        ) as tar:  # not compressed: it can't unfold to more than it is
            for facts in tar:
                if not facts.isreg() or "/" in facts.name or facts.size > len(data):
                    raise ValueError(f"{facts.name[:100]!r} is no plain file")
                member = tar.extractfile(facts)
                assert member is not None
                files[facts.name] = member.read().decode("ascii")
    except (tarfile.TarError, ValueError, UnicodeDecodeError) as exc:
        raise ConfigError(at=str(path), got=str(exc), want="a file of `agentkit keys export`") from exc
    return files
