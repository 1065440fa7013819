"""The logs of agents wherever they are: files of this host are read, those of other machines are asked for, a piece at a time.

Nothing is kept by the node that is asked, and it is asked for the next piece when the last one has been shown: a slow reader costs
it nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from agentkit.errors import NoNode
from agentkit.names import AgentId
from startup.cli.cluster import Cluster
from startup.cli.tail import Follower
from startup.errors import NodeLost
from startup.node.logread import last_lines
from startup.plan.row import CLOCKS_AGREE_S, AgentRow
from startup.view.words import duration

#: Seconds between two looks at what is written here, and two questions to other machines: a person does not see less.
LOOK_EVERY_S: Final = 0.2
ASK_EVERY_S: Final = 0.5


class LogFeed:
    """The logs of `rows`. `notes` holds what has to be said beside; each once."""

    def __init__(self, cluster: Cluster, rows: Iterable[AgentRow]) -> None:
        rows = [row for row in rows if row.log]
        self._cluster = cluster
        self._here = {row.id: row.log for row in rows if row.id.machine in cluster.here}
        self._cursors: dict[AgentId, int] = {row.id: 0 for row in rows if row.id.machine not in cluster.here}
        self._followers: dict[AgentId, Follower] = {}
        self._asked_s = 0.0
        self._silent: set[str] = set()
        self._is_alone = False
        self.clocks_s: dict[str, float] = {}  #: how far other machines' clocks are ahead of this one's
        self.notes: list[str] = []

    def last(self, lines: int) -> dict[AgentId, list[str]]:
        """The last `lines` of each."""
        # before the ends are read: nothing written in between is lost, though it may be shown twice
        self._followers = {id: Follower(path) for id, path in self._here.items()}
        found = {id: last_lines(path, lines) for id, path in self._here.items()}
        cut = []
        for id, piece in self._pieces(dict.fromkeys(self._cursors, None), lines):
            found[id] = piece["lines"]
            if piece["more"]:
                cut.append(f"{id} ({len(piece['lines']):,} lines)")
        if cut:
            self.notes.append(f"more was asked for than is sent of a log at once: {', '.join(cut)}")
        return found

    def come(self) -> dict[AgentId, list[str]]:
        """What has come since `last`, or since this was called last; after a pause."""
        time.sleep(LOOK_EVERY_S)
        found = {id: list(follower.read()) for id, follower in self._followers.items()}
        now_s = time.monotonic()
        if self._cursors and now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            for id, piece in self._pieces(self._cursors, 0):
                found.setdefault(id, []).extend(piece["lines"])
        return found

    def _pieces(self, agents: Mapping[AgentId, int | None], lines: int) -> list[tuple[AgentId, Any]]:
        """All pieces that there are, question after question."""
        found: list[tuple[AgentId, Any]] = []
        asked = {str(id): cursor for id, cursor in agents.items()}
        while asked:
            answer = self._ask(asked, lines)
            if answer is None:
                break
            self._note(answer)
            again: dict[str, int | None] = {}
            for told in filter(None, answer.values()):
                for text, piece in told["agents"].items():
                    found.append((AgentId.parse(text), piece))
                    self._cursors[AgentId.parse(text)] = piece["cursor"]
                    if piece["more"] and asked[text] is not None:
                        again[text] = piece["cursor"]
            answered = {machine for machine, told in answer.items() if told is not None}
            told_of = {text for told in filter(None, answer.values()) for text in told["agents"]}
            rest = {it: at for it, at in asked.items() if it not in told_of and it.partition("/")[0] in answered}
            asked = rest | again
        return found

    def _ask(self, agents: Mapping[str, int | None], lines: int) -> dict[str, Any] | None:
        """None: no node answers here now; the next question is for the one that comes after it."""
        try:
            answer: dict[str, Any] = self._cluster.ask("logs", agents=agents, lines=lines)["machines"]
        except (NodeLost, TimeoutError):
            if not self._is_alone:
                self.notes.append("no node answers here: the logs of other machines are missing until one does")
            self._is_alone = True
            with suppress(NoNode):
                fresh = Cluster.of(self._cluster.name)
                self._cluster.close()
                self._cluster = fresh
            return None
        if self._is_alone:
            self._is_alone = False
            self.notes.append("a node answers again")
        return answer

    def _note(self, answer: Mapping[str, Any]) -> None:
        for machine, told in sorted(answer.items()):
            if told is None:
                if machine not in self._silent:
                    self._silent.add(machine)
                    self.notes.append(f"{machine} does not answer: its logs are missing")
                continue
            if machine in self._silent:
                self._silent.discard(machine)
                self.notes.append(f"{machine} answers again")
            if machine not in self.clocks_s:
                self.clocks_s[machine] = told["clock_s"]
                self.notes += clock_note(machine, told["clock_s"])


def clock_note(machine: str, ahead_s: float) -> Sequence[str]:
    """What the order of lines means where clocks differ; nothing where they do not."""
    if abs(ahead_s) < CLOCKS_AGREE_S:
        return []
    where = "ahead of" if ahead_s > 0 else "behind"
    difference = f"{duration(abs(ahead_s))} {where} this machine's"
    order = "its lines show its own time, and stand where this machine's clock puts them"
    return [f"the clock of {machine} is {difference}: {order}"]


def tails(cluster: Cluster, rows: Iterable[AgentRow], lines: int) -> dict[AgentId, list[str]]:
    """The ends of these agents' logs; of a machine that does not answer: nothing."""
    rows = list(rows)
    return LogFeed(cluster, rows).last(lines) if rows else {}
