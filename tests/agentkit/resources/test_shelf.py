"""Which resource goes: the least recently used of those that nobody uses, and no more than has to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.resources.shelf import Shelf

NAMES = st.sampled_from("abcdef")
KINDS = st.sampled_from(["put", "pin", "unpin", "leave", "drop", "room"])
STEPS = st.lists(st.tuples(KINDS, NAMES, st.integers(0, 50)), max_size=60)


class Model:
    """The same, slowly: a list of [name, size, pins, leaving], oldest use first."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.items = limit, []  # type: ignore[var-annotated]

    def find(self, name: str):  # type: ignore[no-untyped-def]
        return next((item for item in self.items if item[0] == name), None)

    def victim(self, needed: int) -> str | None:
        if self.limit is None:
            return None
        staying = sum(size for _, size, _, leaving in self.items if not leaving)
        if staying + needed <= self.limit:
            return None
        return next((name for name, _, pins, leaving in self.items if not pins and not leaving), None)


@given(st.none() | st.integers(0, 100), STEPS)
def test_it_does_what_a_plain_list_would(limit: int | None, steps: list[tuple[str, str, int]]) -> None:
    shelf, model = Shelf(limit), Model(limit)
    for step, name, number in steps:
        item = model.find(name)
        if step == "put":
            shelf.put(name, number, pins=number % 2)
            if item is not None:
                model.items.remove(item)
            model.items.append([name, number, number % 2, False])
        elif step == "room":
            while (victim := shelf.victim(number)) is not None:
                assert victim == model.victim(number)
                shelf.leave(victim)
                model.find(victim)[3] = True
            assert model.victim(number) is None
        elif item is None:
            shelf.drop(name)
            assert name not in shelf
        elif step == "pin" and not item[3]:
            shelf.pin(name)
            item[2] += 1
            model.items.remove(item)
            model.items.append(item)
        elif step == "unpin" and item[2]:
            shelf.unpin(name)
            item[2] -= 1
        elif step == "leave" and not item[2]:
            shelf.leave(name)
            item[3] = True
        elif step == "drop":
            shelf.drop(name)
            model.items.remove(item)
        assert shelf.total == sum(size for _, size, _, _ in model.items)
        assert shelf.pinned == sum(pins > 0 for _, _, pins, _ in model.items)
        assert shelf.idle() == [name for name, _, pins, leaving in model.items if not pins and not leaving]


def test_no_more_goes_than_has_to() -> None:
    shelf = Shelf(100)
    for name in "abc":
        shelf.put(name, 30)
    assert shelf.victim(10) is None
    assert shelf.victim(20) == "a"
    shelf.leave("a")
    assert shelf.victim(20) is None
    assert shelf.excess(20) == 10
    assert shelf.victim(50) == "b"
    shelf.pin("b")
    assert shelf.victim(50) == "c"
