"""What every configuration object is made from: the base class, and the error its validators raise. Imports no torch."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Base of every configuration object."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """Before pydantic's own conversion: `none` for fields that may be None, no bool as a number, tables over their defaults."""
        field = cls.model_fields[str(info.field_name)]
        choices = get_args(field.annotation) or (field.annotation,)
        if value == "none" and type(None) in choices:  # TOML and the command line have no null
            return None
        if isinstance(value, bool) and bool not in choices and (int in choices or float in choices):
            raise broken(f"{info.field_name} = {str(value).lower()}", "must be a number", "write a number")
        if isinstance(value, dict) and isinstance(field.default, Section):
            return _overlay(field.default, value)
        return value


def _overlay(default: Section, given: dict[str, Any]) -> dict[str, Any]:
    """What is given, over what the owner of the section set in its default.

    SftConfig's optimizer has lr 1e-5; a file that sets only optimizer.weight_decay must not fall back to OptimizerConfig's own lr 1e-6.
    """
    merged: dict[str, Any] = {name: getattr(default, name) for name in default.model_fields_set}
    for name, value in given.items():
        inner = getattr(default, name, None)
        merged[name] = _overlay(inner, value) if isinstance(inner, Section) and isinstance(value, dict) else value
    return merged


def broken(given: str, rule: str, remedy: str) -> PydanticCustomError:
    """The error that a validator of ours raises; `load_config` turns it into a line of its ConfigError."""
    return PydanticCustomError("rule", "{given}: {rule}; {remedy}", {"given": given, "rule": rule, "remedy": remedy})


def check_address(name: str, address: str | None) -> None:
    """An address that a configuration gives. Raises PydanticCustomError."""
    if address is not None and not re.fullmatch(r"https?://[^/\s:@]+(:[0-9]{1,5})?(/[^\s?#]*)?", address):
        raise broken(f"{name} = {address!r}", "must be the address of a server", "write e.g. http://127.0.0.1:8000")
