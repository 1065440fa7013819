"""Running the Python that was ordered, in a process that is already its own: load, tell how far it is, run, exit code."""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import importlib.util
import os
import runpy
import sys
import threading
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentkit.transport.gate import HANDOVER, STACKS, Gate, way_of
from agentkit.transport.notify import Notifier


def run_agent(target: Mapping[str, Any]) -> int:
    """Import the agent's class and hand it to `agentkit.main.run_class`; the exit code. Never raises."""
    # the zygote's own main module would be imported again by what the agent starts with multiprocessing
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [target["script"] or target["module"]]
    faulthandler.enable()
    faulthandler.register(STACKS, all_threads=True, chain=False)  # an import may hang, too
    tell = Notifier.from_environment(os.environ)
    tell.send({"X_AGENTKIT_PHASE": "importing"})
    try:
        cls = load_class(target)
    except BaseException as exc:  # noqa: BLE001 - a module may raise anything, SystemExit too
        return failed(f"import of {target['script'] or target['module']} failed", exc)
    gate = Gate.from_environment(os.environ)
    if gate is not None and way_of(cls, os.environ) == HANDOVER:
        tell.send({"X_AGENTKIT_PHASE": "parked"})
        if not gate.wait():
            print("the node that wanted this successor is gone, and the process before it serves on", file=sys.stderr)
            return 0
        gate = None
    tell.send({"X_AGENTKIT_PHASE": "starting"})
    tell.close()
    from agentkit.main import run_class  # imported by the boot process long ago, except in tests of other targets

    try:
        return int(run_class(cls, gate=gate))
    except SystemExit as exc:
        return exit_code(exc)


def prepare(target: Mapping[str, Any]) -> None:
    """In a process that is going to fork several agents of this class: make what each of them would make of it."""
    from agentkit.rehearsal import prepare as prepare_class

    if target["module"] in sys.modules:  # else it was not preloaded: importing it here is not ours to decide
        try:
            prepare_class(load_class(target))
        except Exception as exc:  # noqa: BLE001 - the agents themselves will tell
            traceback.print_exception(exc)


def load_class(target: Mapping[str, Any]) -> Any:
    """The class that an AgentTarget (as a dict) means. Raises whatever its module raises, LookupError when it is not there."""
    if target["script"]:
        module = _load_script(target["script"])
    else:
        module = importlib.import_module(target["module"])
    if target["cls"] is None:
        return _only_agent(module, target["script"] or target["module"])
    found: Any = module
    for part in target["cls"].split("."):
        if not hasattr(found, part):
            raise LookupError(f"{target['script'] or target['module']} has no class {target['cls']}")
        found = getattr(found, part)
    return found


def run_script(target: Mapping[str, Any]) -> int:
    """Run a file as `python FILE` would: as __main__, its folder on sys.path, its threads waited for, atexit run. Never raises."""
    script = target["script"]
    sys.argv = [script, *target["argv"]]
    sys.path.insert(0, str(Path(script).parent))
    faulthandler.enable()
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exc:
        code = exit_code(exc)
    except BaseException as exc:  # noqa: BLE001
        code = failed(f"{script} failed", exc)
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does before it ends: waits for non-daemon threads
    atexit._run_exitfuncs()
    return code


def failed(what: str, exc: BaseException) -> int:
    """Traceback to the log, one line to the node; returns the exit code 1."""
    traceback.print_exception(exc)
    last = traceback.format_exception_only(exc)[-1].strip()
    report(f"{what}: {last}{_place(exc)}", printed=True)
    return 1


def report(reason: str, *, printed: bool = False) -> None:
    """Say why this process ends before it began, in its log and to the node."""
    if not printed:
        print(reason, file=sys.stderr)
    tell = Notifier.from_environment(os.environ)
    tell.send({"X_AGENTKIT_FAILED": reason})
    tell.close()


def exit_code(exc: SystemExit) -> int:
    """What the interpreter would exit with; a message goes to stderr, as there."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # a full disk, closed by the agent, or taken away
            continue


def _load_script(path: str) -> types.ModuleType:
    """Import a file under a name made of its own; its folder is importable, as it is for `python FILE`."""
    name = f"script_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.insert(1, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their own module up there
    spec.loader.exec_module(module)
    return module


def _only_agent(module: types.ModuleType, where: str) -> Any:
    from agentkit.agent.base import BaseAgent

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseAgent) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise LookupError(
            f"{where} defines {names}; want one BaseAgent subclass, or its name behind the file: x.py:Class"
        )
    return found[0]


def _place(exc: BaseException) -> str:
    """Where in the user's own code it was raised: the innermost frame that is not importlib's."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if not frame.filename.startswith("<frozen")]
    if isinstance(exc, SyntaxError) or not frames:
        return ""
    return f" ({frames[-1].filename}:{frames[-1].lineno})"
