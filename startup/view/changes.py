"""What one revision changes of another, for a person: agents that change alike stand together, so 84 of them are a few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from agentkit.names import AgentId
from startup.plan.changes import Changed, Changes, Rescaled
from startup.plan.keys import KeyChange
from startup.spec.scale import slots_of
from startup.view.colour import BOLD, CYAN, DIM, GREEN, RED, YELLOW, paint
from startup.view.words import count, cut, fit

#: Columns of the sign in front of an agent, and of the keys below it.
_INDENT: Final = "  "
_KEYS: Final = "      "
#: The widest name of a key that the others are aligned with.
_WIDEST_KEY: Final = 32


def change_lines(found: Changes, *, width: int, colour: bool = False) -> Iterator[str]:
    """At most `width` characters each."""
    scaled_in, scaled_out = _by_scaling(found)
    for ids, sign, words, shade in (
        ([id for id in found.added if id not in scaled_in | set(found.resting)], "+", "added", GREEN),
        (found.resting, "+", "added, not started", GREEN),
        ([id for id in found.removed if id not in scaled_out], "-", "removed, drained first", RED),
    ):
        yield from _many(sign, ids, words, shade, width, colour)
    for move in found.moved:
        yield _line(">", f"{_short(move.new)}  {move.old.machine} → {move.new.machine}", CYAN, width, colour)
        yield from _keys(move.keys, width, colour)
    for rescaled in found.rescaled:
        yield _line("~", f"{rescaled.agent}  replicas {_replicas(rescaled)}", YELLOW, width, colour)
    for (keys, fate), ids in _alike(found.changed).items():
        yield from _many("~", ids, fate, YELLOW, width, colour)
        yield from _keys(keys, width, colour)
    yield from _many("+", found.started, "started: did not run", GREEN, width, colour)
    yield from _many("+", found.retried, "tried again: had failed", GREEN, width, colour)
    yield from _many("-", found.stopped, "stopped, as it was then", RED, width, colour)
    if found.fleet:
        yield _line("~", "the fleet itself", YELLOW, width, colour)
        yield from _keys(found.fleet, width, colour)
    rest = count(found.unchanged, "agent")
    if found:
        if found.unchanged:
            yield paint(cut(f"{_INDENT}{rest} unchanged", width), DIM, on=colour)
    else:
        yield cut(
            f"nothing changes: {rest} stay{'s' * (found.unchanged == 1)} as {'it is' if found.unchanged == 1 else 'they are'}",
            width,
        )


def heading(cluster: str, old: int, what: str, *, width: int, colour: bool = False) -> str:
    """`reference: revision 7 by ops@pc → configs/startup_config.yaml`."""
    return paint(cut(f"{cluster}: revision {old} → {what}", width), BOLD, on=colour)


def _many(sign: str, ids: Sequence[AgentId], words: str, shade: str, width: int, colour: bool) -> Iterator[str]:
    """One agent by its name, several by their number and as many names as fit."""
    if not ids:
        return
    names = _folded(ids)
    if len(names) == 1:
        yield _line(sign, f"{names[0]}  {words}", shade, width, colour)
        return
    head = f"{count(len(ids), 'agent')} {words}: "
    room = width - len(_INDENT) - 2 - len(head)
    shown = 0
    while shown < len(names) and len(_listed(names, shown + 1)) <= room:
        shown += 1
    yield _line(sign, head + _listed(names, max(1, shown)), shade, width, colour)


def _listed(names: Sequence[str], shown: int) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _folded(ids: Iterable[AgentId]) -> list[str]:
    """Slots of one agent as one name: `m/Worker#1-3`."""
    slots: dict[str, list[int]] = defaultdict(list)
    for id in ids:
        slots[slots_of(id)].append(id.slot)
    return [name if found == [0] else f"{name}#{_spans(found)}" for name, found in slots.items()]


def _spans(slots: Sequence[int]) -> str:
    found: list[list[int]] = []
    for slot in sorted(slots):
        if found and slot == found[-1][1] + 1:
            found[-1][1] = slot
        else:
            found.append([slot, slot])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _line(sign: str, text: str, shade: str, width: int, colour: bool) -> str:
    return _INDENT + paint(sign, shade, on=colour) + " " + cut(text, width - len(_INDENT) - 2)


def _keys(keys: Sequence[KeyChange], width: int, colour: bool) -> Iterator[str]:
    if not keys:
        return
    size = min(_WIDEST_KEY, width // 2, max(len(it.key) for it in keys))
    for it in keys:
        name = fit(it.key, size).ljust(size)
        room = width - len(_KEYS) - len(name) - 2 - 3
        old, new = _both(it.old, it.new, room)
        yield f"{_KEYS}{name}  {paint(old, DIM, on=colour)} → {new}"


def _both(old: str, new: str, room: int) -> tuple[str, str]:
    """Two texts in so many columns: the shorter leaves the other what it does not need."""
    half = room // 2
    first = max(half, room - len(new)) if len(new) < half else half
    old = cut(old, first)
    return old, cut(new, room - len(old))


def _replicas(it: Rescaled) -> str:
    def number(value: int, is_scaled: bool) -> str:
        return f"{value} (scaled)" if is_scaled else str(value)

    return f"{number(it.old, it.was_scaled)} → {number(it.new, it.is_scaled)}"


def _fate(changed: Changed) -> str:
    """What becomes of its process."""
    for key in changed.keys:
        if key.key == "enabled":
            return "started" if key.new == "true" else "stopped"
    if not changed.runs:
        return "as of its next start"
    if changed.in_place:
        return "config (in place)"
    return "replaced" if changed.is_replaced else "goes on as it is"


def _alike(changed: Iterable[Changed]) -> Mapping[tuple[tuple[KeyChange, ...], str], list[AgentId]]:
    """(keys, fate) -> whose they are."""
    groups: dict[tuple[tuple[KeyChange, ...], str], list[AgentId]] = defaultdict(list)
    for it in changed:
        groups[it.keys, _fate(it)].append(it.id)
    return groups


def _by_scaling(found: Changes) -> tuple[set[AgentId], set[AgentId]]:
    """The slots that come and go by another number of replicas: that is told in one line."""
    names = {it.agent for it in found.rescaled}
    return {id for id in found.added if slots_of(id) in names}, {id for id in found.removed if slots_of(id) in names}


def _short(id: AgentId) -> str:
    return id.instance


def summary_of(found: Changes) -> str:
    """In a few words: `2 added, 3 changed, replicas of m/Worker 2 → 4`."""
    scaled_in, scaled_out = _by_scaling(found)
    numbers = (
        (len(set(found.added) - scaled_in), "added"),
        (len(set(found.removed) - scaled_out), "removed"),
        (len(found.moved), "moved"),
        (len(found.changed), "changed"),
        (len(found.started), "started"),
        (len(found.stopped), "stopped"),
        (len(found.retried), "tried again"),
    )
    words = [f"{number} {word}" for number, word in numbers if number]
    words += [f"replicas of {it.agent} {_replicas(it)}" for it in found.rescaled]
    words += ["the fleet: " + ", ".join(it.key for it in found.fleet)] if found.fleet else []
    return ", ".join(words) or "nothing"
