"""What supervision costs, and how fast it acts.

    python benchmarks/bench_supervise.py [--quick] [--json] [--only TEXT]...

`--only kill`, `--only rest`, `--only large`, `--only apply`: one of the parts; `--only circus` and the like: one supervisor of the
first.

- kill: `kill -9` to the next answer, beside circus and supervisord (supervise_restarts.py).
- rest: how much of one core fleet84, its nodes and its zygotes take together while nobody calls, beside as many bare processes
  that wake as often (supervise_size.py).
- large: 1,000 agents on this machine: `up`, `status`, `down` and memory, beside as many forks that do nothing.
- apply: a change of all agents of fleet84 while they are called (supervise_apply.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from common import Options, Table, compile_all, options, show
from supervise_apply import apply
from supervise_restarts import SUPERVISORS, restarts
from supervise_size import large, rest

PARTS: Final[dict[str, Callable[[Options], list[Table]]]] = {
    "kill": restarts,
    "rest": rest,
    "large": large,
    "apply": apply,
}


def main() -> None:
    wanted = options(__doc__ or "")
    compile_all()
    parts = {name: [name, *(SUPERVISORS if name == "kill" else ())] for name in PARTS}
    chosen = [
        run
        for name, run in PARTS.items()
        if not wanted.only or any(text in word for text in wanted.only for word in parts[name])
    ]
    show("bench_supervise", [table for run in chosen for table in run(wanted)], as_json=wanted.json)


if __name__ == "__main__":
    main()
