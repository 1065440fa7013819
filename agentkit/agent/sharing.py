"""One run for many requests: whoever repeats an idempotency key, or asks a cached method the same, gets the answer that is kept, or
that of the run which is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from agentkit.agent.call_options import IDEMPOTENCY_KEY
from agentkit.agent.context import Serving
from agentkit.agent.handlers import Method
from agentkit.clock import now_s
from agentkit.errors import BadRequest, CallCancelled, CallError, DeadlineExceeded
from agentkit.resilience.kept import Freezer, Frozen, Kept
from agentkit.resilience.policy import ServePolicy
from agentkit.wire.values import Unsendable

#: Longest key, in characters.
MAX_KEY: Final = 200

Outcome = Frozen | CallError


class Share(NamedTuple):
    """What makes requests the same."""

    method: str
    key: str  #: the caller's; "": the arguments are all that counts
    arguments: bytes  #: a digest


class _Run:
    """One that is under way, and who waits for its end."""

    __slots__ = ("arguments", "followers")

    def __init__(self, arguments: bytes) -> None:
        self.arguments = arguments
        self.followers: dict[int, Serving] = {}


class Sharing:
    """Of one dispatcher."""

    def __init__(
        self,
        policy: ServePolicy,
        methods: Mapping[str, Method],
        *,
        settle: Callable[[Serving, Outcome], None],
        admit: Callable[[Serving], None],
    ) -> None:
        """`settle`: answer it thus, unrun. `admit`: run it after all."""
        self._settle, self._admit = settle, admit
        self._freezer = Freezer()
        self.hits: Counter[str] = Counter()  #: answered without a run, by method
        self.misses: Counter[str] = Counter()  #: of cached methods
        self.repeats: Counter[str] = Counter()  #: of idempotency keys
        self._keys: Kept[tuple[bytes, Outcome]] = Kept(
            ttl_s=policy.idempotency_window_s, entries=policy.idempotency_entries, max_bytes=policy.idempotency_bytes
        )
        self._caches: dict[str, Kept[tuple[bytes, Outcome]]] = {
            name: Kept(ttl_s=cache_s, entries=policy.cache_entries, max_bytes=policy.cache_bytes)
            for name, method in methods.items()
            if (cache_s := method.options.cache_s) is not None
        }
        self._runs: dict[tuple[str, str, bytes], _Run] = {}

    def takes(self, work: Serving) -> bool:
        """Whether it is answered without a run of its own: now, or when the run of another ends. BadRequest: a key that can't be
        one, or that came with other arguments before."""
        key = work.inbound.meta.get(IDEMPOTENCY_KEY, "")
        if not isinstance(key, str) or len(key) > MAX_KEY:
            raise BadRequest(f"{work.method.name}: an idempotency key is text of at most {MAX_KEY} characters")
        if work.inbound.flags:
            if key:
                raise BadRequest(f"{work.method.name}: a call with a stream has no idempotency key")
            return False
        try:
            arguments = self._digest(work.arguments)
        except Unsendable:  # an author's own type: it was made from what travelled, and can't be told from others
            if key:
                arguments = self._digest(repr(sorted(work.arguments)))
            else:
                return False
        share = Share(work.method.name, key, arguments)
        kept = self._kept(share).get(_place(share), now_s())
        if kept is not None:
            self._same(share, kept[0])
            self._count(share)
            self._settle(work, kept[1])
            return True
        run = self._runs.get(_place(share))
        work.share = share
        if run is not None:
            self._same(share, run.arguments)
            self._count(share)
            run.followers[work.key] = work
            return True
        if not key:
            self.misses[share.method] += 1
        self._runs[_place(share)] = _Run(arguments)
        work.leads = True
        return False

    def ended(self, work: Serving, end: object, *, was_cut: bool = False) -> None:
        """The run ended by a value or a CallError. `was_cut`: cancelled, or by its deadline."""
        share = work.share
        assert share is not None
        if was_cut and not share.key:
            self._next(share)
            return
        try:
            outcome: Outcome = end if isinstance(end, CallError) else self._freezer.freeze(end)
        except Unsendable:
            self._next(share)
            return
        if share.key or not isinstance(outcome, CallError):
            size = outcome.size if isinstance(outcome, Frozen) else len(outcome.message)
            self._kept(share).put(_place(share), (share.arguments, outcome), size, now_s())
        self._end_all(share, outcome)

    def release(self) -> None:
        """Forget answers of cached methods, and those to keys that are no longer promised."""
        for cache in self._caches.values():
            cache.clear()
        self._keys.expire(now_s())

    @property
    def promised_until_s(self) -> float:
        """When the last answer to a key may be forgotten; in the past: none is kept."""
        return self._keys.until_s

    def left(self, work: Serving, why: CallError) -> None:
        """It will not run, or does not wait for the other's run any more."""
        share = work.share
        assert share is not None
        if not work.leads:
            run = self._runs.get(_place(share))
            if run is not None:
                run.followers.pop(work.key, None)
        elif isinstance(why, CallCancelled | DeadlineExceeded):
            self._next(share)
        else:
            self._end_all(share, why)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _kept(self, share: Share) -> Kept[tuple[bytes, Outcome]]:
        return self._keys if share.key else self._caches[share.method]

    def _digest(self, arguments: Any) -> bytes:
        frozen = self._freezer.freeze(sorted(arguments.items()) if isinstance(arguments, dict) else arguments)
        digest = blake2b(frozen.body, digest_size=16)
        for frame in frozen.frames:
            digest.update(frame)
        return digest.digest()

    def _count(self, share: Share) -> None:
        (self.repeats if share.key else self.hits)[share.method] += 1

    def _same(self, share: Share, arguments: bytes) -> None:
        if share.arguments != arguments:
            raise BadRequest(f"{share.method}: the idempotency key {share.key!r} came with other arguments before")

    def _next(self, share: Share) -> None:
        """The next of those who wait runs in its stead."""
        run = self._runs.pop(_place(share))
        if run.followers:
            key = next(iter(run.followers))
            work = run.followers.pop(key)
            self._runs[_place(share)] = run
            work.leads = True
            self._admit(work)

    def _end_all(self, share: Share, outcome: Outcome) -> None:
        for follower in self._runs.pop(_place(share)).followers.values():
            follower.share = None
            self._settle(follower, outcome)


def _place(share: Share) -> tuple[str, str, bytes]:
    """Where it is looked for: a caller's key alone, or the arguments."""
    return (share.method, share.key, b"" if share.key else share.arguments)
