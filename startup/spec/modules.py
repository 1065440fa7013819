"""Has modules and scripts looked at in throw-away children (inspect.py): in parallel, within a limit, with a memory."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from agentkit._version import VERSION
from startup.spec.verdict import Asked, Order, Verdict

#: For all orders together, in seconds; what was not looked at by then is `not checked here`.
TIMEOUT_S: Final = 20.0
#: Of what is looked for: a higher number, and verdicts of before are asked for again.
_FORM: Final = 3

Questions = Mapping[Order, Sequence[Asked]]


def look_at(asked: Questions, *, timeout_s: float = TIMEOUT_S, cache: Path | None = None) -> dict[Order, Verdict]:
    """A verdict for each order and what its agents want of it. `cache`: default_cache() unless a test says otherwise."""
    memory = _Memory(cache or default_cache())
    found: dict[Order, Verdict] = {}
    todo: deque[Order] = deque()
    for order, wanted in asked.items():
        known = memory.recall(order, wanted)
        if known is not None:
            found[order] = known
        else:
            todo.append(order)
    if not todo:
        return found
    ends_s = time.monotonic() + timeout_s
    # a module is looked at in some 50 ms, a child starts in 200: not worth a second one for a handful
    workers = min(os.cpu_count() or 1, 1 + len(todo) // 4)
    threads = [threading.Thread(target=_work, args=(todo, asked, ends_s, timeout_s, found)) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for order, wanted in asked.items():
        memory.keep(order, wanted, found[order])
    return found


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/agentkit`, else `~/.cache/agentkit`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "agentkit" / "inspect"


def _work(todo: deque[Order], asked: Questions, ends_s: float, timeout_s: float, found: dict[Order, Verdict]) -> None:
    child: _Child | None = None
    try:
        while True:
            try:
                order = todo.popleft()
            except IndexError:
                return
            if time.monotonic() >= ends_s:
                found[order] = Verdict(
                    kind="not-checked", message=f"no time left of the {timeout_s:g} s for all modules"
                )
                continue
            child = child or _Child()
            verdict = child.ask(order, asked[order], ends_s)
            if verdict is None:
                child.end()
                why = child.why_it_ended(timeout_s)
                found[order] = why
                child = None
            else:
                found[order] = verdict
    finally:
        if child is not None:
            child.end()


class _Child:
    """One inspecting process, in a session of its own so that all it starts can be ended."""

    def __init__(self) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "startup.spec.inspect"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
        self._timed_out = False

    def ask(self, order: Order, wanted: Sequence[Asked], ends_s: float) -> Verdict | None:
        """None: it died, or took too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"order": asdict(order), "asked": list(wanted)}, default=str) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, ends_s - time.monotonic()))
            if not ready:
                self._timed_out = True
                return None
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                return None
            answer += more
        return Verdict.from_wire(json.loads(answer))

    def end(self) -> None:
        """Nothing of it is left afterwards."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()

    def why_it_ended(self, timeout_s: float) -> Verdict:
        """After `ask` had no answer and `end`."""
        if self._timed_out:
            return Verdict(kind="not-checked", message=f"importing it was not done within {timeout_s:g} s")
        return Verdict(kind="unimportable", message="importing it ends the interpreter")


class _Memory:
    """Good verdicts, one small file per order: a bad one may have causes outside the file and is asked for again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, order: Order, wanted: Sequence[Asked]) -> Verdict | None:
        try:
            kept = json.loads(self._file(order).read_bytes())
            if kept["digest"] == _digest(order, wanted):
                return Verdict.from_wire(kept["verdict"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no such file, or one of another version: it is made again
        return None

    def keep(self, order: Order, wanted: Sequence[Asked], verdict: Verdict) -> None:
        digest = _digest(order, wanted)
        called = {name for one in wanted for name in one.get("called", ())}
        is_good = verdict.kind in ("agent", "program") and not (verdict.errors or verdict.doubts)
        if digest is None or not is_good or not called <= set(verdict.methods):
            return
        file = self._file(order)
        beside = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"digest": digest, "verdict": verdict.to_wire()}))
            beside.replace(file)
        except OSError:
            return  # a read-only or full home: asked again next time

    def _file(self, order: Order) -> Path:
        name = hashlib.blake2b(json.dumps(asdict(order)).encode(), digest_size=12).hexdigest()
        return self._folder / f"{name}.json"


def source_file(order: Order) -> Path | None:
    """The file behind an order; None for a module that is not below the project root (it is found when it is imported)."""
    if order.script is not None:
        return Path(order.script)
    base = Path(order.project_root, *(order.module or "").split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _digest(order: Order, wanted: Sequence[Asked]) -> str | None:
    file = source_file(order)
    if file is None or not file.is_file():
        return None
    facts = json.dumps([sys.version, VERSION, _FORM, list(wanted)], default=str, sort_keys=True)
    return hashlib.blake2b(file.read_bytes() + facts.encode(), digest_size=16).hexdigest()
