"""`agentkit events` as text and as a document: topics with who publishes them, subscribers with what they missed. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentkit.events.topics import Pattern
from startup.view.colour import BOLD, DIM, paint
from startup.view.words import columns, cut, duration, listing, number


@dataclass(slots=True)
class Topic:
    """One topic over all publishers."""

    name: str
    count: int = 0
    per_s: float = 0.0
    publishers: list[str] = field(default_factory=list)
    age_s: float = float("inf")  #: since its last publisher told


def topics(answers: Iterable[Mapping[str, Any]], pattern: Pattern | None = None) -> list[Topic]:
    """From the answers of all nodes to `events_seen`, by name."""
    found: dict[str, Topic] = {}
    for agent in (agent for answer in answers for agent in answer["agents"]):
        for name, told in agent["published"].items():
            if pattern is None or pattern.matches(name):
                topic = found.setdefault(name, Topic(name))
                topic.count += told["count"]
                topic.per_s += told["per_s"] or 0.0
                topic.publishers.append(agent["id"])
                topic.age_s = min(topic.age_s, agent["age_s"])
    return [found[name] for name in sorted(found)]


def subscribers(answers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The agents that subscribed to something and have received anything yet, by name."""
    told = (agent for answer in answers for agent in answer["agents"] if agent["patterns"])
    return sorted(told, key=lambda agent: str(agent["id"]))


def document(answers: Iterable[Mapping[str, Any]], pattern: Pattern | None = None) -> dict[str, Any]:
    answers = list(answers)
    return {
        "topics": [
            {"topic": it.name, "published": it.count, "per_s": round(it.per_s, 1), "publishers": it.publishers}
            for it in topics(answers, pattern)
        ],
        "subscribers": [
            {name: agent[name] for name in ("id", "patterns", "received", "lost", "failed")}
            for agent in subscribers(answers)
        ],
        "dropped": {
            agent["id"]: agent["dropped"] for answer in answers for agent in answer["agents"] if agent["dropped"]
        },
    }


def lines(
    answers: Iterable[Mapping[str, Any]], pattern: Pattern | None = None, *, width: int, colour: bool = False
) -> list[str]:
    """Two tables; a table without rows is left out."""
    answers = list(answers)

    def painted(y: int, _: int, cell: str) -> str:
        return paint(cell, BOLD, on=colour) if y == 0 else cell

    published = [
        (it.name, number(it.count), f"{it.per_s:,.1f}", duration(it.age_s), listing(it.publishers))
        for it in topics(answers, pattern)
    ]
    received = [
        (agent["id"], *(number(agent[name]) for name in ("received", "lost", "failed")), listing(agent["patterns"]))
        for agent in subscribers(answers)
    ]
    result: list[str] = []
    if published:
        heading = ("TOPIC", "PUBLISHED", "PER S", "AGE", "BY")
        result += columns([heading, *published], right={1, 2, 3}, width=width, paint=painted)
    if received:
        heading = ("SUBSCRIBER", "RECEIVED", "LOST", "FAILED", "TO")
        result += [
            *([""] if result else []),
            *columns([heading, *received], right={1, 2, 3}, width=width, paint=painted),
        ]
    for agent in (agent for answer in answers for agent in answer["agents"]):
        if agent["dropped"]:
            result.append(f"{agent['id']}: {number(agent['dropped'])} found no room towards the relay of its node")
    return result


def arrived(
    topic: str, publisher: str, at: datetime, data: Any, lost: int, *, width: int, colour: bool = False
) -> list[str]:
    """One event as it comes, and before it how many were missed."""
    gap = [paint(f"({lost} of {publisher} on {topic} missed)", DIM, on=colour)] if lost else []
    text = json.dumps(data, default=str, ensure_ascii=False)
    stamp = paint(at.astimezone().strftime("%H:%M:%S.%f")[:-3], DIM, on=colour)
    head = f"{topic}  {publisher}  "
    return [*gap, f"{stamp} {paint(topic, BOLD, on=colour)}  {publisher}  {cut(text, max(20, width - 13 - len(head)))}"]
