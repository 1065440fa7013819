"""One leader among all agents that ask for the same name: what an agent knows of its terms, and what it tells its node.

    async with self.leader("indexer") as term:      # waits until this agent leads; cancelled, then LeadershipLost, when it no longer does
        await index(fence=term.fence)

Who leads is decided by the node (startup.node.leadership.leaders), among the agents of its machine or, with `registry: consul`, of
all of them. A term is over here before anybody else can be elected: what was lost is answered for (`resign`) only when every block
has ended, and a term that Consul guards has a last moment on this machine's own clock, which the node puts off for as long as
Consul lets it. Without a node (run by hand, in tests) an agent leads at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, TypeVar

from agentkit.clock import now_s, wall_s
from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import ConfigError, LeadershipLost, NotRunning, Unreachable
from agentkit.names import is_name
from agentkit.observe.log import get_logger

T = TypeVar("T")

log = get_logger("agentkit.leading")

#: The node's operations: startup.node.leadership.leaders.
LEAD: Final = "lead"
RESIGN: Final = "resign"


class Term:
    """One stretch of time in which this agent leads."""

    def __init__(self, name: str, fence: int, until_s: float | None = None) -> None:
        self.name = name
        #: Greater than that of every earlier leader of this name: who takes orders refuses those with a smaller one than it has seen.
        self.fence = fence
        self._until_s = until_s
        self._lost = ""

    @property
    def is_valid(self) -> bool:
        """Whether nobody else can have been elected yet. From any thread."""
        return not self._lost and (self._until_s is None or now_s() < self._until_s)

    def check(self) -> None:
        """LeadershipLost when the term is over: for threads, and before what must not be done twice. From any thread."""
        if not self.is_valid:
            raise LeadershipLost(self.name, self._lost or "time is up")

    def __repr__(self) -> str:
        return f"<Term {self.name} fence={self.fence}{'' if self.is_valid else ' (over)'}>"


class Leader:
    """What `self.leader(name)` returns: a handle for one place in the author's code. Leading is the process's: where several
    places ask for the same name, all of them lead at the same time."""

    def __init__(self, leading: Leading, name: str) -> None:
        self.name = name
        self._leading = leading
        self._block: _Block | None = None

    @property
    def term(self) -> Term | None:
        """The one that this agent leads in now. From any thread."""
        return self._leading.term(self.name)

    @property
    def is_leader(self) -> bool:
        """Whether this agent leads now; it has to ask for it somewhere (`async with`, `lead`, `@every(leader=)`). From any thread."""
        return self.term is not None

    async def lead(self, work: Callable[[Term], Awaitable[T]]) -> T:
        """Await `work(term)` in every term until it returns. When a term is lost, it is cancelled, and called again in the next."""
        while True:
            try:
                async with Leader(self._leading, self.name) as term:
                    return await work(term)
            except LeadershipLost as exc:
                if exc.name != self.name:
                    raise
                log.warning("leading.lost", leader=self.name, why=exc.why)

    async def __aenter__(self) -> Term:
        if self._block is not None:
            raise RuntimeError(f"self.leader({self.name!r}) is entered already: ask for another handle")
        block = _Block()
        term = await self._leading.enter(self.name, block)
        self._block = block
        return term

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        assert block is not None
        lost = block.ended(kind)
        self._leading.leave(self.name, block)
        if lost is not None:
            raise lost from exc


class _Block:
    """The body of one `async with`."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._lost: LeadershipLost | None = None

    def lose(self, lost: LeadershipLost) -> None:
        """As asyncio.timeout does it: cancelled once, and the cancellation taken back at the end of the block."""
        if self._lost is None:
            self._lost = lost
            self._task.cancel()

    def ended(self, kind: type[BaseException] | None) -> LeadershipLost | None:
        """The exception to be raised instead of our own cancellation."""
        if self._lost is None:
            return None
        is_ours = self._task.uncancel() <= self._cancelling
        return self._lost if is_ours and kind is asyncio.CancelledError else None


class _Candidacy:
    """This process and one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting = 0
        self.inside: set[_Block] = set()
        self.term: Term | None = None  #: also one that is lost, until every block has ended
        self.round = 0  #: grows with each time that it stands: what is told of earlier ones does not count
        self.stands = False
        self.changed: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Whoever waits for a change looks again."""
        if self.changed is not None and not self.changed.done():
            self.changed.set_result(None)
        self.changed = None


class Leading:
    """One for each agent; belongs to its loop."""

    def __init__(self, sender: Mapping[str, Any], node: MeshDirectory | None) -> None:
        """`sender`: this process as its node knows it (AgentSettings.sender)."""
        self._sender = dict(sender)
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._candidacies: dict[str, _Candidacy] = {}
        self._owed: dict[str, int] = {}  # name -> fence of a term that ended while the node was away
        self._starter: asyncio.Task[Any] | None = None
        self._is_open = False
        self._is_over = False
        self._last_fence = 0

    def leader(self, name: str) -> Leader:
        """`BaseAgent.leader`. ConfigError: `name` can't be one."""
        if not is_name(name):
            raise ConfigError(at="self.leader()", got=name, want="a letter, then letters, digits, _ . or -")
        return Leader(self, name)

    def term(self, name: str) -> Term | None:
        """Ours, while it lasts by our own clock; None: we do not lead."""
        candidacy = self._candidacies.get(name)
        term = candidacy.term if candidacy is not None else None
        return term if term is not None and term.is_valid else None

    @property
    def names(self) -> tuple[str, ...]:
        """What it leads, or stands for."""
        return tuple(name for name, it in self._candidacies.items() if it.term is not None or it.stands)

    # -- an agent's life

    def starting(self) -> None:
        """The running task is the one that runs `on_start`."""
        self._starter = asyncio.current_task()

    def open(self) -> None:
        """Ready, and nothing is left of a predecessor: from now on it stands."""
        self._is_open = True
        for candidacy in self._candidacies.values():
            self._consider(candidacy)

    def no_more(self) -> None:
        """Told to stop: what it leads it leads until its blocks have ended, and it is not elected any more."""
        self._is_over = True
        for candidacy in self._candidacies.values():
            self._consider(candidacy)

    def close(self) -> None:
        """`on_stop` has run. Blocks that are still open are of tasks that nobody waits for."""
        self._is_over = True
        for candidacy in tuple(self._candidacies.values()):
            self._lose(candidacy, "the agent stops")

    def connected(self) -> None:
        """To a node, which may be another one than before."""
        owed, self._owed = self._owed, {}
        for name, fence in owed.items():
            self._resign(name, fence)
        for candidacy in self._candidacies.values():
            if candidacy.term is not None and candidacy.term.is_valid:
                self._stand(candidacy, claims=candidacy.term.fence)
            elif candidacy.term is None and candidacy.stands:
                self._stand(candidacy)

    # -- blocks

    async def enter(self, name: str, block: _Block) -> Term:
        """Wait until we lead `name`. NotRunning: in `on_start`, where a successor would wait for ever."""
        if self._starter is not None and not self._is_open and asyncio.current_task() is self._starter:
            raise NotRunning(
                f"self.leader({name!r}) in on_start would wait for ever: who replaces a running agent is elected after that has gone, "
                f"and that goes when this one is ready; wait in `run`, or use @every(leader={name!r})"
            )
        candidacy = self._candidacies.setdefault(name, _Candidacy(name))
        candidacy.waiting += 1
        try:
            while candidacy.term is None or not candidacy.term.is_valid:
                self._consider(candidacy)
                if candidacy.changed is None:
                    candidacy.changed = self._loop.create_future()
                await asyncio.shield(candidacy.changed)
            candidacy.inside.add(block)
            return candidacy.term
        finally:
            candidacy.waiting -= 1
            self._settle(candidacy)

    def leave(self, name: str, block: _Block) -> None:
        """`block` has ended: with the last of them the term, unless somebody here waits to enter."""
        candidacy = self._candidacies[name]
        candidacy.inside.discard(block)
        self._settle(candidacy)

    # -- standing

    def _consider(self, candidacy: _Candidacy) -> None:
        """Stand, or stand no more."""
        if candidacy.term is not None:
            return
        wants = candidacy.waiting > 0 and self._is_open and not self._is_over
        if wants and not candidacy.stands:
            candidacy.stands = True
            self._stand(candidacy)
        elif candidacy.stands and not wants:
            candidacy.stands = False
            candidacy.round += 1
            self._resign(candidacy.name, 0)

    def _stand(self, candidacy: _Candidacy, claims: int = 0) -> None:
        candidacy.round += 1
        round = candidacy.round

        def hear(told: Mapping[str, Any]) -> None:
            if round == candidacy.round:
                self._told(candidacy, told)

        if self._node is None:
            self._loop.call_soon(hear, {"fence": self._own_fence(), "until_s": None})
            return
        self._node.start()
        with contextlib.suppress(Unreachable):  # then `connected` does it again
            self._node.watch(LEAD, hear, name=candidacy.name, claims=claims, **self._sender)

    def _own_fence(self) -> int:
        """Nobody else is asked, so the clock has to do."""
        self._last_fence = max(self._last_fence + 1, int(wall_s() * 1000))
        return self._last_fence

    def _told(self, candidacy: _Candidacy, told: Mapping[str, Any]) -> None:
        if "lost" in told:
            self._lose(candidacy, str(told["lost"]))
            return
        until_s = told.get("until_s")
        term = candidacy.term
        if "fence" not in told or (term is not None and term.fence == told["fence"]):
            if term is not None and term.is_valid and term._until_s is not None:  # what is over does not begin anew
                term._until_s = max(term._until_s, until_s or 0.0)
            return
        if term is not None:
            self._lose(candidacy, "the node has begun another term")
            return
        candidacy.term = Term(candidacy.name, int(told["fence"]), until_s)
        log.info("leading.begun", leader=candidacy.name, fence=candidacy.term.fence)
        self._await_end(candidacy)
        candidacy.wake()
        self._settle(candidacy)

    def _await_end(self, candidacy: _Candidacy) -> None:
        """The timer is not moved with every word of the node: it looks again when it is due."""
        term = candidacy.term
        if term is None or term._until_s is None:
            return
        left_s = term._until_s - now_s()
        if left_s > 0:
            candidacy.timer = self._loop.call_later(left_s, self._await_end, candidacy)
        else:
            self._lose(candidacy, "the node, or its Consul, has not been heard for too long")

    def _lose(self, candidacy: _Candidacy, why: str) -> None:
        term = candidacy.term
        if term is None:
            return
        term._lost = term._lost or why
        for block in tuple(candidacy.inside):
            block.lose(LeadershipLost(term.name, why))
        self._settle(candidacy)

    def _settle(self, candidacy: _Candidacy) -> None:
        """A term ends when nobody is inside: only now it is given back."""
        term = candidacy.term
        if term is not None and not candidacy.inside and (not term.is_valid or not candidacy.waiting):
            term._lost = term._lost or "given back"
            candidacy.term, candidacy.stands = None, False
            candidacy.round += 1
            if candidacy.timer is not None:
                candidacy.timer.cancel()
                candidacy.timer = None
            log.info("leading.ended", leader=term.name, fence=term.fence, why=term._lost)
            self._resign(term.name, term.fence)
        self._consider(candidacy)
        candidacy.wake()

    def _resign(self, name: str, fence: int) -> None:
        if self._node is None:
            return
        try:
            self._node.say(RESIGN, name=name, fence=fence, **self._sender)
        except Unreachable:
            if fence:
                self._owed[name] = fence
