"""`state` of an agent: where it keeps what it remembers, and how often (docs/state.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag

from startup.spec.fields import Duration, Model, SecretModel
from startup.spec.fleet import AgentSpec, SecretRef, StatePolicy
from startup.spec.problem import Problem
from startup.spec.units import refuse

if TYPE_CHECKING:
    from startup.spec.resolve import Resolved


def _open_address(value: str) -> str:
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        url = urlsplit("")
    if url.scheme not in ("redis", "rediss", "unix"):
        raise refuse("the address of a Redis such as redis://127.0.0.1:6379/0")
    if url.password is not None:
        raise refuse(
            "an address without a password",
            "keep the whole address as a secret: {env: NAME} or {file: PATH}",
            found="one",
        )
    return value


def _text_or_mapping(value: object) -> str:
    return "text" if isinstance(value, str) else "mapping"


Address = Annotated[
    Annotated[str, AfterValidator(_open_address), Tag("text")] | Annotated[SecretModel, Tag("mapping")],
    Discriminator(_text_or_mapping),
]


class StateModel(Model):
    store: Literal["sqlite", "redis"] = Field(
        "sqlite", description="Where what it remembers is kept: a file in its data directory, or Redis."
    )
    url: Address | None = Field(
        None,
        description="With `store: redis`, its address: redis://HOST:PORT/NUMBER, or {env: NAME}, {file: PATH} that hold it.",
    )
    every: Duration = Field(
        300.0, description="How often it is saved when it changes; 0: only when it stops, sleeps, or saves by itself."
    )


def state_of(state: StateModel) -> StatePolicy:
    """As a node acts on it."""
    url = state.url
    secret = SecretRef(file=url.file, env=url.env) if isinstance(url, SecretModel) else None
    return StatePolicy(store=state.store, url=url if isinstance(url, str) else None, secret=secret, every_s=state.every)


def _has_address(resolved: Resolved, spec: AgentSpec) -> bool:
    """Whether one is written, which was refused then."""
    written = (resolved.entries[spec.id].keys, resolved.settings.get("defaults") or {})
    return any("url" in (keys.get("state") or {}) for keys in written)


def state_problems(resolved: Resolved) -> Iterator[Problem]:
    """A store without its address."""
    for spec in resolved.fleet.agents:
        is_without = spec.state.store == "redis" and spec.state.url is None and spec.state.secret is None
        if spec.id.slot == 0 and is_without and not _has_address(resolved, spec):
            yield Problem(
                check="state",
                place=resolved.place(spec.id, "state"),
                at=f"{spec.name}.state.url",
                found="`store: redis` without an address",
                want="`url: redis://HOST:PORT/NUMBER`, or a secret that holds it",
            )
