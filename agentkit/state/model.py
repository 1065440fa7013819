"""AgentState: what authors subclass to say what an agent remembers from one life to the next."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from agentkit.errors import ConfigError, StateDamaged, StateNotSaved

#: A packed state is at most this large, in bytes: it is packed on the event loop, which stands still meanwhile (5-10 ms for each
#: megabyte). What is larger belongs into files or a database of the agent's own.
MAX_STATE_BYTES: Final = 16 * 1024 * 1024


class AgentState(BaseModel):
    """Base of an agent's own `State`: what it remembers. Every field has a default, which is what the first life begins with.

        class Counter(BaseAgent):
            class State(AgentState):
                served: int = 0

            state: State

    Kept as JSON: fields are of types that pydantic reads from JSON again. Values that do not fit their field are refused where they
    are assigned. `version`: raised whenever fields change so that what was saved does not fit any more; the agent's
    `migrate_state` then turns the old into the new."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
    )

    version: ClassVar[int] = 1


def is_state(owner: str, found: object) -> bool:
    """Whether an agent's `State` is one of ours: another class of that name is the author's own affair. ConfigError: it is meant to
    be, and can't be used."""
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        return False
    if not issubclass(found, AgentState):
        raise ConfigError(at=f"{owner}.State", got=found.__mro__[1].__name__, want="a subclass of AgentState")
    if not isinstance(found.version, int) or found.version < 1:
        raise ConfigError(at=f"{owner}.State.version", got=found.version, want="a whole number, 1 or more")
    if required := [name for name, field in found.model_fields.items() if field.is_required()]:
        raise ConfigError(
            at=f"{owner}.State",
            got=f"no default for {', '.join(required)}",
            want="one for every field: the first life begins with it",
        )
    return True


def packed(state: Any, model: type[AgentState]) -> bytes:
    """The state as it is kept. StateNotSaved: it is not of `model`, holds what can't be kept, or is too large."""
    if not isinstance(state, model):
        raise StateNotSaved(f"self.state is of type {type(state).__qualname__}, want {model.__qualname__}")
    try:
        data = state.__pydantic_serializer__.to_json(state, warnings="error")
    except (PydanticSerializationError, ValueError) as exc:
        raise StateNotSaved(f"self.state can't be packed: {' '.join(str(exc).split())[:300]}") from exc
    if len(data) > MAX_STATE_BYTES:
        raise StateNotSaved(
            f"self.state is {len(data):,} bytes as JSON, want at most {MAX_STATE_BYTES:,}; keep what is large in files of data_dir"
        )
    return data


def unpacked(model: type[AgentState], data: bytes) -> AgentState:
    """StateDamaged: it does not fit `model`."""
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        raise StateDamaged(_misfit(model, exc)) from exc


def migrated(model: type[AgentState], data: Any) -> AgentState:
    """The same for what an author's `migrate_state` returned."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise StateDamaged(f"what migrate_state returned: {_misfit(model, exc)}") from exc


def _misfit(model: type[AgentState], exc: ValidationError) -> str:
    first, *others = exc.errors(include_url=False, include_context=False)
    at = ".".join(map(str, first["loc"])) or "the whole"
    more = f" and {len(others)} more" if others else ""
    return (
        f"it does not fit {model.__qualname__} of version {model.version}: {at}: {first['msg']}{more}; when fields change, raise "
        f"State.version and turn the old into the new in migrate_state"
    )
