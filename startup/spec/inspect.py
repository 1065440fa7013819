"""Looks at modules and scripts: is there a BaseAgent, and does its Config take the fleet's config?

Run as a child process that is thrown away, since importing runs strangers' code: orders as lines of JSON on stdin,
verdicts as lines of JSON on stdout. The parent (modules.py) sets the limits, and blames the order at hand when the child
dies or hangs. What the imported code prints goes nowhere.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from startup.spec.modules import source_file
from startup.spec.problem import did_you_mean
from startup.spec.verdict import Asked, Order, Verdict


def main() -> None:
    """Answer orders until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        asked = json.loads(line)
        verdict = look(Order(**asked["order"]), asked["asked"])
        answers.write(json.dumps(verdict.to_wire()) + "\n")
        answers.flush()


def look(order: Order, asked: Sequence[Asked]) -> Verdict:
    """Import what `order` names, here and now, and judge it. Never raises."""
    if sys.path[0] != order.project_root:
        sys.path.insert(0, order.project_root)
    if order.script is None:
        return _module(order, asked)
    path = Path(order.script)
    if not path.is_file():
        return Verdict(kind="missing", message=f"there is no file {path}")
    try:
        tree = ast.parse(importlib.util.decode_source(path.read_bytes()), filename=str(path))
    except (SyntaxError, ValueError) as exc:
        line = exc.lineno if isinstance(exc, SyntaxError) else None
        return Verdict(kind="broken", message=f"does not compile: {exc}", line=line)
    if order.cls is None and not has_candidate(tree):
        return Verdict(kind="program")
    try:
        module = _imported(path)
    except BaseException as exc:  # noqa: BLE001  sys.exit and worse at import are verdicts too
        return _unimportable(exc, str(path))
    return _judged(module, order, asked)


def has_candidate(tree: ast.Module) -> bool:
    """Whether the file could define a BaseAgent: a class with a base from outside the standard library.

    Told from the text, so that an ordinary program is not run just to learn that it is one."""
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                origin[(alias.asname or alias.name).split(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin[alias.asname or alias.name] = "." * node.level + (node.module or "")
    own = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    star = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))

    def is_foreign(base: ast.expr) -> bool:
        root = base
        while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
            root = root.func if isinstance(root, ast.Call) else root.value
        if not isinstance(root, ast.Name) or root.id in own:
            return False  # one of the file's own classes is judged by its own bases
        module = origin.get(root.id)
        if module is None:
            return star and not hasattr(__builtins__, root.id)
        return module.split(".")[0] not in sys.stdlib_module_names

    return any(is_foreign(base) for node in own.values() for base in node.bases)


def _imported(path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what stands beside a script is importable when it is run, too
    name = f"_agentkit_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    sys.argv = [str(path)]
    spec.loader.exec_module(module)
    return module


def _module(order: Order, asked: Sequence[Asked]) -> Verdict:
    assert order.module is not None
    try:
        module = importlib.import_module(order.module)
    except ModuleNotFoundError as exc:
        if exc.name and (order.module == exc.name or order.module.startswith(exc.name + ".")):
            return Verdict(
                kind="missing", message=f"there is no module {exc.name} in {order.project_root} or installed"
            )
        return _unimportable(exc, _file_of(order))
    except SyntaxError as exc:
        return Verdict(kind="broken", message=f"does not compile: {exc}", line=exc.lineno)
    except BaseException as exc:  # noqa: BLE001
        return _unimportable(exc, _file_of(order))
    return _judged(module, order, asked)


def _file_of(order: Order) -> str:
    file = source_file(order)
    return str(file) if file is not None else ""


def _unimportable(exc: BaseException, file: str) -> Verdict:
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == file]
    if isinstance(exc, SystemExit):
        return Verdict(
            kind="unimportable",
            message="importing it exits; guard its start with `if __name__ == ...`",
            line=lines[-1] if lines else None,
        )
    what = " ".join(str(exc).split())[:200]
    return Verdict(
        kind="unimportable",
        message=f"importing it raises {type(exc).__name__}: {what}",
        line=lines[-1] if lines else None,
    )


def _judged(module: ModuleType, order: Order, asked: Sequence[Asked]) -> Verdict:
    from agentkit import BaseAgent
    from agentkit.agent.class_checks import remarks_on

    def is_agent(value: object) -> bool:
        return isinstance(value, type) and issubclass(value, BaseAgent) and value is not BaseAgent

    here = tuple(
        name for name, value in vars(module).items() if is_agent(value) and value.__module__ == module.__name__
    )
    if order.cls is None:
        if len(here) != 1:
            return Verdict(kind="several" if here else "program", classes=here)
        cls = vars(module)[here[0]]
    else:
        cls = getattr(module, order.cls, None)
        if not is_agent(cls):
            return Verdict(kind="no-class" if cls is None else "no-agent", classes=here)
    faults, doubts = remarks_on(cls)
    if faults:
        return Verdict(kind="faulty", cls=cls.__name__, classes=here, message="; ".join(faults))
    errors = {
        number: found
        for number, one in enumerate(asked)
        if (found := [*_config_errors(cls, one.get("config", {})), *_method_errors(cls, one.get("methods", {}))])
    }
    return Verdict(
        kind="agent",
        cls=cls.__name__,
        errors=errors,
        methods=sorted(cls.methods),
        keeps_state=cls.keeps_state,
        doubts=doubts,
    )


def _method_errors(cls: Any, said: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    from agentkit import ConfigError
    from agentkit.agent.policies import methods_under

    found: list[tuple[str, str, str]] = []
    for name, options in said.items():
        try:
            methods_under(cls.methods, {name: options})
        except ConfigError as exc:
            if name not in cls.methods:
                found.append((exc.at, name, f"a method of {cls.__name__}: {_near(name, cls.methods)}"))
            else:
                found.append((exc.at, _shown(exc.got), exc.want))
    return found


def _near(name: str, methods: Mapping[str, Any]) -> str:
    return did_you_mean(name, methods) or ", ".join(sorted(methods)) or "it has none"


def _config_errors(cls: Any, config: Any) -> list[tuple[str, str, str]]:
    from pydantic import ValidationError

    try:
        cls.Config.model_validate(config)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        return [(".".join(("config", *map(str, e["loc"]))), _shown(e["input"]), _wanted(cls, e)) for e in errors]
    return []


def _wanted(cls: Any, error: Any) -> str:
    if error["type"] == "extra_forbidden":
        known = ", ".join(cls.Config.model_fields) or "none at all"
        return f"a key of {cls.__name__}.Config: {known}"
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    main()
