"""From a file and command-line values to a checked configuration, and back to JSON that can be fed in again. Imports no torch.

Values are taken in this order, later ones win: the defaults of the class, the file (TOML or JSON), the overrides.
A relative path in a file is relative to the CURRENT directory, as on the command line, and not to the file: so a saved config.json means
the same wherever it is moved, as long as the command runs from the same place.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from longtake.config.base import Section
from longtake.config.describe import ITEM, REQUIRED, FieldDoc, container_of, items_of, list_fields, suggestion
from longtake.errors import ConfigError

META_KEY = "_meta"
SHOWN_CHARS = 80

SectionT = TypeVar("SectionT", bound=Section)


def load_config(kind: type[SectionT], path: Path | None, overrides: Sequence[tuple[str, str]] = ()) -> SectionT:
    """The configuration of a stage.

    `overrides` are (dotted key, text) pairs: `("optimizer.lr", "1e-4")`; dashes stand for underscores; `none` is None; lists are JSON or
    `a,b,c`; sections and tables are JSON. Raises ConfigError that lists ALL problems: unknown keys, wrong types, ranges, missing fields.
    """
    values = {} if path is None else read_config_file(path)
    problems: list[ConfigError] = []
    from_options = set()
    for key, text in overrides:
        try:
            from_options.add(set_override(kind, values, key, text))
        except ConfigError as error:
            problems.append(error)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        problems += _problems(kind, error, None if path is None else path.name, from_options)
    if problems:
        raise ConfigError.joined(problems)
    return config


def dump_config(config: Section, meta: Mapping[str, Any] | None = None) -> str:
    """Every field as JSON; `meta` (see config.meta.run_meta) goes under `_meta`, which reading ignores."""
    head = {} if meta is None else {META_KEY: dict(meta)}
    return json.dumps({**head, **config.model_dump(mode="json")}, indent=2, ensure_ascii=False) + "\n"


def read_config_file(path: Path) -> dict[str, Any]:
    """The table of a .toml or .json file, without `_meta`. Raises ConfigError."""
    parsers = {".toml": tomllib.loads, ".json": json.loads}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(f"configuration file {path}", rule="its name ends in .toml or .json", remedy="rename or convert it")
    try:
        values = parse(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}", rule="must be readable", remedy="check the path") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", rule=f"it must be valid {path.suffix[1:].upper()} in UTF-8", remedy="correct it") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}", rule="it must hold a table of fields", remedy="write {...}")
    values.pop(META_KEY, None)
    return values


def find_field(kind: type[Section], key: str) -> FieldDoc:
    """The field that a dotted key of the command line names; `rewards.weights.accuracy` finds the item of a table.

    Raises ConfigError with the nearest known key.
    """
    wanted = key.replace("-", "_")
    fields = {field.key: field for field in list_fields(kind)}
    if wanted in fields:
        return fields[wanted]
    for table_key, table in fields.items():
        if not wanted.startswith(f"{table_key}.") or container_of(table.annotation) is not dict:
            continue
        item = key[len(table_key) + 1 :]  # the name of an item keeps its dashes
        name, dot, inner = item.partition(".")
        if items_of(table.annotation) is None or not dot:
            return FieldDoc(f"{table_key}.{item}", dict_value_type(table.annotation), REQUIRED, "", "")
        found = item_field(fields, f"{table_key}.{name}.{inner.replace('-', '_')}")
        if found is not None:
            return found
    raise unknown_field(f"option --{key}", wanted, list(fields), option=True)


def item_field(fields: Mapping[str, FieldDoc], key: str) -> FieldDoc | None:
    """The field that `key` names inside an item of a table of sections: `data.sources.kitchen.weight`, or `...kitchen.rewards.accuracy`."""
    for table_key, table in fields.items():
        if not key.startswith(f"{table_key}.") or items_of(table.annotation) is None:
            continue
        name, _, inner = key[len(table_key) + 1 :].partition(".")
        given, general = f"{table_key}.{name}.", f"{table_key}.{ITEM}."
        found = fields.get(general + inner)
        if found is None and (owner := fields.get(f"{general}{inner.partition('.')[0]}")) and container_of(owner.annotation) is dict:
            found = FieldDoc(general + inner, dict_value_type(owner.annotation), REQUIRED, "", "")
        return None if found is None else replace(found, key=given + inner, given=given)
    return None


def set_override(kind: type[Section], values: dict[str, Any], key: str, text: str) -> str:
    """Put one command-line value into the nested `values`; returns the dotted key of the field. Raises ConfigError."""
    field = find_field(kind, key)
    fields = {other.key: other for other in list_fields(kind)}
    table, names = values, _split(field.key, fields)
    for depth, name in enumerate(names[:-1], 1):
        inner = table.get(name)
        if not isinstance(inner, dict):
            default = fields[".".join(names[:depth])].default if ".".join(names[:depth]) in fields else None
            inner = dict(default) if isinstance(default, dict) else {}
        table[name] = table = dict(inner)
    table[names[-1]] = parse_text(field, text)
    return field.key


def parse_text(field: FieldDoc, text: str) -> Any:
    """Lists, tables and sections from JSON (lists also from `a,b,c`); anything else stays text, which pydantic converts."""
    container = container_of(field.annotation)
    if text == "none" or (container is None and field.section is None):
        return text
    if container is tuple and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{field.option} {clip(text)}: {error}",
            rule=f"a {'list' if container is tuple else 'table'} is written as JSON",
            remedy=_compound_remedy(field),
        ) from None


def unknown_field(where: str, key: str, known: list[str], option: bool) -> ConfigError:
    """The error for a key that does not exist."""
    near = suggestion(key, known)
    shown = None if near is None else (f"--{near.replace('_', '-')}" if option else near)
    remedy = "remove it; --help lists all fields" if shown is None else f"did you mean {shown}? If not, remove it"
    return ConfigError(f"unknown {where}", rule="only known fields are taken, so that no typing error goes unseen", remedy=remedy)


def dict_value_type(annotation: Any) -> Any:
    """`float` for `dict[str, float]`."""
    return annotation.__args__[1]


def clip(value: object) -> str:
    """A value as shown in a message."""
    text = value if isinstance(value, str) and value.isprintable() and " " not in value and value else repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def _split(key: str, fields: Mapping[str, FieldDoc]) -> list[str]:
    """Names along the way; the name of a table's item may hold dots itself."""
    for table_key, table in fields.items():
        if key.startswith(f"{table_key}.") and container_of(table.annotation) is dict:
            item = key[len(table_key) + 1 :]
            name, dot, inner = item.partition(".")
            if (items := items_of(table.annotation)) is None or not dot:
                return [*table_key.split("."), item]
            return [*table_key.split("."), name, *_split(inner, {field.key: field for field in list_fields(items)})]
    return key.split(".")


def _compound_remedy(field: FieldDoc) -> str:
    if container_of(field.annotation) is tuple:
        return "write '[1, 2]' or 1,2"
    if field.section is None:
        return f"write '{{\"name\": value}}', or set one item with {field.option}.NAME VALUE"
    first = next(iter(field.section.model_fields))
    return f"set its fields one by one, e.g. {field.option}.{first.replace('_', '-')} VALUE"


def _problems(kind: type[Section], error: ValidationError, file: str | None, from_options: set[str]) -> list[ConfigError]:
    fields = {field.key: field for field in list_fields(kind)}
    problems: list[ConfigError] = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        where = key if file is None else f"{file}: {key}"
        if any(key == option or key.startswith(f"{option}.") for option in from_options):
            where = f"--{key.replace('_', '-')}"
        if detail["type"] == "missing" and (field := fields.get(key) or item_field(fields, key)) is not None:
            problems += [_missing(one) for one in _required_under(fields, field)]
        elif detail["type"] == "extra_forbidden":
            problems.append(unknown_field(f"field {where}", key, list(fields), option=False))
        elif detail["type"] == "rule":
            problems.append(_broken_rule(key, detail, fields, where))
        else:
            problems.append(_wrong_value(_enclosing(fields, key), where, detail))
    return problems


def _enclosing(fields: Mapping[str, FieldDoc], key: str) -> FieldDoc | None:
    """The field of a key, which may point at an item inside it: `optimizer.betas.1`. None for the whole configuration."""
    while key:
        if (found := fields.get(key) or item_field(fields, key)) is not None:
            return found
        key = key.rpartition(".")[0]
    return None


def _required_under(fields: Mapping[str, FieldDoc], field: FieldDoc) -> list[FieldDoc]:
    """The field itself, or for a missing section the fields in it that have no default, the first one where all have some."""
    if field.section is None:
        return [field]
    inside = [other for name, other in fields.items() if name.startswith(f"{field.key}.") and other.section is None]
    inside = [other for other in inside if f".{ITEM}." not in other.key]
    return [other for other in inside if other.default is REQUIRED] or inside[:1]


def _missing(field: FieldDoc) -> ConfigError:
    return ConfigError(
        f"{field.key} is not set",
        rule=f"it has no default ({field.doc.rstrip('.') or field.type_text})",
        remedy=f"add {field.key} to the file, or pass {field.option} VALUE",
    )


def _broken_rule(key: str, detail: ErrorDetails, fields: Mapping[str, FieldDoc], where: str) -> ConfigError:
    """From a validator of ours (sections.broken); one that checks a whole section names its fields itself, relative to the section."""
    context = detail["ctx"]
    leaf = key in fields and fields[key].section is None
    given = f"{where} = {clip(detail['input'])}" if leaf else f"{where}: {context['given']}" if key else context["given"]
    return ConfigError(given, rule=context["rule"], remedy=context["remedy"])


def _wrong_value(field: FieldDoc | None, where: str, detail: ErrorDetails) -> ConfigError:
    rule = detail["msg"].replace("Input should", "must").removeprefix("Value error, ")
    if field is None or (field.section is not None and detail["type"] == "value_error"):
        return ConfigError(where or "the configuration", rule=rule, remedy="correct the fields it names")
    remedy = f"give {field.type_text}"
    if field.section is not None:
        rule, remedy = "it is a section with fields of its own", _compound_remedy(field)
    elif detail["type"] == "missing":
        rule = "a list of fixed length needs all its items"
    elif detail["type"] == "literal_error":
        near = suggestion(str(detail["input"]), field.type_text.split(" | "))
        remedy = f"did you mean {near}? If not, {remedy}" if near else remedy
    return ConfigError(f"{where} = {clip(detail['input'])}", rule=rule, remedy=remedy)
