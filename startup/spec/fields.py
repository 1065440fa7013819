"""What the models of the fleet file are made of: the base of all, types whose refusals say what is wanted, secrets."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import WithJsonSchema

from startup.spec.units import duration_s, refuse, size_bytes

_DURATION_SCHEMA: Final = {"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$"}, {"const": 0}], "examples": ["300ms", "10s", "5m"]}  # fmt: skip  # noqa: E501
_SIZE_SCHEMA: Final = {
    "type": "string",
    "pattern": r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$",
    "examples": ["512Ki", "256Mi", "2Gi"],
}

_PORT_SCHEMA: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "description": "with ${VAR}, or a sum"},
    ]
}

Duration = Annotated[float, BeforeValidator(duration_s), WithJsonSchema(_DURATION_SCHEMA)]
Size = Annotated[int, BeforeValidator(size_bytes), WithJsonSchema(_SIZE_SCHEMA)]
Port = Annotated[int, Field(ge=1, le=65535), WithJsonSchema(_PORT_SCHEMA)]


class Model(BaseModel):
    """Base of all: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)


class SecretModel(Model):
    file: str | None = Field(None, description="A file on the agent's machine that holds the value.")
    env: str | None = Field(None, description="A variable of the node's environment that holds the value.")
    as_env: bool = Field(
        False, description="Also put it in the process's environment (children and `ps e` can read it there)."
    )

    @model_validator(mode="after")
    def _one_source(self) -> SecretModel:
        if (self.file is None) == (self.env is None):
            raise refuse("{file: PATH} or {env: NAME}", "secrets never stand in the file itself")
        return self
