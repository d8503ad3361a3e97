"""What the settings of jobs and of sites have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from hpcdat.config.scalars import as_written


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys are errors, and numbers and booleans are as written."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_by_name=True
    )
    other_names: ClassVar[Mapping[str, str]] = {}
    """Names that files may use for settings of other names."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        return as_written(value, cls.model_fields[info.field_name].annotation)


def refusal(key: str, expected: str) -> PydanticCustomError:
    """An error in a setting, by its dotted key, that does not go together with others."""
    return _error(key, f"expected {expected}")


def not_allowed(key: str, why: str) -> PydanticCustomError:
    """An error in a setting, by its dotted key, that may not be set here."""
    return _error(key, f"not allowed {why}")


def _error(key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("job", "{message}", {"key": key, "message": message})
