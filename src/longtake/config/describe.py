"""The fields of a configuration as a flat list with dotted keys: for --help, for command-line values and for "did you mean"."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from longtake.config.base import Section

ITEM = "NAME"
"""Stands in a key for the name of a table's item."""
REQUIRED: Any = PydanticUndefined
SCALARS: dict[Any, str] = {bool: "true | false", int: "int", float: "float", str: "text", Path: "path"}
BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"), ("min_length", "length >="))


@dataclass(frozen=True)
class FieldDoc:
    """One field of a configuration, a section counted as a field too."""

    key: str
    """Dotted: `video.max_frames`."""
    annotation: Any
    default: Any
    """The default that holds at this place (the owner of a section may set another than the section's own); REQUIRED when there is none."""
    doc: str
    constraint: str
    """`>= 1`, or empty."""
    given: str = ""
    """The start of the key that a user has named, which keeps its underscores: `data.sources.my_rows.`."""

    @property
    def option(self) -> str:
        """As on the command line: `--video.max-frames`."""
        return "--" + self.given + self.key.removeprefix(self.given).replace("_", "-")

    @property
    def section(self) -> type[Section] | None:
        return section_of(self.annotation)

    @property
    def type_text(self) -> str:
        first, bar, none = type_text(self.annotation).partition(" | none")
        return f"{first} {self.constraint}".strip() + bar + none


def list_fields(kind: type[Section], prefix: str = "", owner: Section | None = None) -> Iterator[FieldDoc]:
    """All fields in order of declaration, those of a section after it, those of a table of sections after it with ITEM for the name.

    `owner` is the default instance of the section, if it has one.
    """
    for name, field in kind.model_fields.items():
        default = field.default if owner is None else getattr(owner, name)
        found = FieldDoc(prefix + name, field.annotation, default, " ".join((field.description or "").split()), _constraint(field))
        yield found
        if found.section is not None:
            yield from list_fields(found.section, f"{found.key}.", default if isinstance(default, Section) else None)
        if (items := items_of(field.annotation)) is not None:
            yield from list_fields(items, f"{found.key}.{ITEM}.")


def section_of(annotation: Any) -> type[Section] | None:
    """The section class of `X` or `X | None`; None for any other type."""
    if get_origin(annotation) is dict:
        return None
    for choice in get_args(annotation) or (annotation,):
        if isinstance(choice, type) and issubclass(choice, Section):
            return choice
    return None


def items_of(annotation: Any) -> type[Section] | None:
    """The section class of `dict[str, X]`; None for any other type."""
    return section_of(annotation.__args__[1]) if container_of(annotation) is dict else None


def container_of(annotation: Any) -> type | None:
    """`tuple` or `dict` for a field of that type (None allowed beside it); None for any other type."""
    for choice in (annotation, *get_args(annotation)):
        origin = get_origin(choice)
        if origin in (tuple, dict):
            return tuple if origin is tuple else dict
    return None


def type_text(annotation: Any) -> str:
    """`tuple[float, float]` -> `float, float`; `Literal["a", "b"] | None` -> `a | b | none`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(arg) for arg in args)
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin is tuple:
        return f"{type_text(args[0])}, ..." if args[-1] is Ellipsis else ", ".join(type_text(arg) for arg in args)
    if origin is dict:
        return f"table of {type_text(args[1])}"
    if section_of(annotation) is not None:
        return "section"
    return SCALARS.get(annotation, str(annotation))


def default_text(default: Any) -> str:
    """As one would write it on the command line."""
    if default is REQUIRED:
        return "required"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default_text(item) for item in default) or "empty"
    if isinstance(default, dict):
        return ", ".join(f"{name} {default_text(item)}" for name, item in default.items()) or "empty"
    return "none" if default is None else str(default)


def suggestion(key: str, known: list[str]) -> str | None:
    """The known key that `key` was probably meant to be: near in spelling, or the same last name in another section."""
    last = key.rpartition(".")[2]
    same_name = [other for other in known if other.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    last_names = {other.rpartition(".")[2]: other for other in reversed(known)}
    near_name = [last_names[name] for name in difflib.get_close_matches(last, list(last_names), n=1, cutoff=0.75)]
    return next(iter(same_name + near + near_name), None)


def _constraint(field: FieldInfo) -> str:
    limits = [f"{sign} {getattr(limit, name)}" for limit in field.metadata for name, sign in BOUNDS if hasattr(limit, name)]
    return ", ".join(limits)
