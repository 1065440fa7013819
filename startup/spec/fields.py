"""What the models of the fleet file are made of: the base of all, and types whose refusals say what is wanted."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.json_schema import WithJsonSchema

from startup.spec.units import duration_s, size_bytes

_DURATION_SCHEMA: Final = {"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$"}, {"const": 0}], "examples": ["300ms", "10s", "5m"]}  # fmt: skip  # noqa: E501
_SIZE_SCHEMA: Final = {
    "type": "string",
    "pattern": r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$",
    "examples": ["512Ki", "256Mi", "2Gi"],
}

Duration = Annotated[float, BeforeValidator(duration_s), WithJsonSchema(_DURATION_SCHEMA)]
Size = Annotated[int, BeforeValidator(size_bytes), WithJsonSchema(_SIZE_SCHEMA)]


class Model(BaseModel):
    """Base of all: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)
