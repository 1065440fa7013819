"""Programs of Debian that tests use and that need not be installed: `python -m tests.consul.debian` unpacks them into a cache folder.

Consul left Debian after release 11, so its package comes from there, by way of the mirror that this machine's apt already uses;
Prometheus comes from this machine's own release, and for what it asks of Consul also from 11: later builds of Debian's are made
without that. apt checks Debian's signatures, `dpkg -x` unpacks, nothing is installed and
nobody has to be root. Tests run without a network, so this is called before them (`make test` does).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LIMIT_S: Final = 300


@dataclass(frozen=True)
class Package:
    name: str
    programs: tuple[str, ...]
    release: str | None = None  #: None: what this machine runs


PACKAGES: Final = (
    Package("consul", ("consul",), "bullseye"),
    Package("prometheus", ("prometheus", "promtool")),
    Package("prometheus", ("prometheus", "promtool"), "bullseye"),
)


class NotThere(Exception):
    """It could not be had; the text says why."""


def program(name: str, release: str | None = None) -> str | None:
    """Path of a program: of this machine, else of the cache; None when it is in neither. `release`: of that one, from the cache."""
    if release is None and (found := shutil.which(name)):
        return found
    packages = [it for it in PACKAGES if name in it.programs and release in (None, it.release)]
    cached = next((_folder(package) / "usr/bin" / name for package in packages), None)
    return str(cached) if cached is not None and cached.exists() else None


def _is_there(package: Package) -> bool:
    """The first of a name may be this machine's; what stands below it is there because that does not do."""
    is_first = next(it for it in PACKAGES if it.name == package.name) is package
    return all(program(name, None if is_first else package.release) for name in package.programs)


def fetch(package: Package) -> None:
    """Into the cache. NotThere says why it can't be."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise NotThere(f"there is no {tool}, which {package.name} is got with")
    into = _folder(package)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as name:
        work = Path(name)
        options = _options(package, work) if package.release else []
        if package.release:
            _run(["apt-get", "-qq", *options, "update"], work)
        _run(["apt-get", "-qq", *options, "download", package.name], work)
        (archive,) = work.glob("*.deb")
        _run(["dpkg", "-x", archive.name, "root"], work)
        shutil.rmtree(into, ignore_errors=True)
        (work / "root").rename(into)


def _options(package: Package, work: Path) -> list[str]:
    """apt with another release's list, and with folders of its own."""
    if not os.path.exists(KEYRING):
        raise NotThere(f"{KEYRING} is missing (package debian-archive-keyring): signatures can't be checked")
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {package.release} main\n")
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",  # else it gives up its rights, and may not write here
    }
    return [f"-o{key}={value}" for key, value in settings.items()]


def _mirror() -> str:
    """Where this machine's apt gets Debian from."""
    wanted = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    for line in _run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"]).splitlines():
        origin, label, component, uri = line.split("|", 3)
        if (origin, label, component) == ("Debian", "Debian", "main"):
            return uri
    raise NotThere("apt knows no mirror of Debian here (`apt-get update` has to run once)")


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotThere(f"{command[0]} took longer than {_LIMIT_S} s") from None
    if done.returncode:
        raise NotThere(f"{' '.join(command[:1] + command[-2:])}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _folder(package: Package) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "agentkit-tests" / f"{package.name}-{package.release or 'own'}"


def main() -> int:
    """1 when something is missing and this is CI; elsewhere the tests that need it are skipped."""
    missing = 0
    for package in PACKAGES:
        if _is_there(package):
            continue
        try:
            fetch(package)
            sys.stderr.write(f"{package.name}: unpacked\n")
        except NotThere as exc:
            sys.stderr.write(f"{package.name}: not to be had: {exc}\n")
            missing += 1
    return int(bool(missing and os.environ.get("CI")))


if __name__ == "__main__":
    sys.exit(main())
