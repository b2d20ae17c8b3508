"""Rows in files: JSON lines, a JSON array or Parquet, in exactly the published fields. A bad row becomes a `Failure` in its place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longtake.errors import RowError
from longtake.types import Failure, Row

MAX_ROW_BYTES = 1 << 20
"""Longest row read; the published ones are below 20 KB."""
MAX_ARRAY_BYTES = 4 << 30
"""Largest JSON array read: unlike the other formats it has to be in memory as a whole."""
MAX_PROBLEM_ID = 2**63 - 1
MAX_DURATION_S = 1e9
MAX_CATEGORY_CHARS = 64
MAX_MEDIA = 64
"""Most videos, and most images, of one row."""
DATA_TYPES = ("video", "image", "text")
TEXT_FIELDS = ("problem", "data_type", "problem_type", "reasoning", "answer")
FOREIGN_FIELDS = ("options", "process", "solution", "path", "id", "conversations", "video", "image", "category")
"""What `row_formats` reads of other projects."""
KNOWN_FIELDS = ("problem_id", *TEXT_FIELDS, "videos", "images", "subtitles", "duration_s", "duration", *FOREIGN_FIELDS)

Record = tuple[int, object]
"""Row number, from 1 (the line in JSON lines), and what stands there: a decoded JSON value, or the RowError that reading it gave."""


def read_rows(path: Path) -> list[Row | Failure]:
    """All rows of a .jsonl, .json or .parquet file, in order; fields that are not published ones are ignored.

    A row that cannot be read (syntax, encoding, missing field, wrong type, repeated problem_id, larger than MAX_ROW_BYTES) is a
    Failure that names the file, the row and the remedy. Raises RowError when the file as a whole cannot be read or holds no row.
    """
    rows: list[Row | Failure] = []
    first_seen: dict[int, int] = {}
    for number, value in read_records(path):
        where = f"{path.name} row {number}"
        try:
            row = parse_row(value, where)
            if row.problem_id in first_seen:
                raise row_error(
                    where, f"problem_id {row.problem_id} is that of row {first_seen[row.problem_id]} too", "give each row its own id"
                )
        except RowError as error:
            rows.append(row_failure(error, value))
            continue
        first_seen[row.problem_id] = number
        rows.append(row)
    if not rows:
        raise RowError(f"{path} holds no row", rule="a rows file has at least one row", remedy="check the path in data.rows")
    return rows


def read_records(path: Path) -> Iterator[Record]:
    """The reader for the file's suffix. A .json file may hold an array or JSON lines."""
    readers = {".jsonl": read_json_lines, ".ndjson": read_json_lines, ".json": read_json, ".parquet": read_parquet}
    if path.suffix.lower() not in readers:
        raise RowError(f"{path} ends in {path.suffix!r}", rule=f"rows files end in {', '.join(readers)}", remedy="convert or rename it")
    if path.exists() and not path.is_file():
        raise RowError(f"{path} is not a regular file", rule="data.rows is a readable, undamaged file", remedy="check the path")
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise RowError(
            f"{path} cannot be read: {error.strerror or error}", rule="data.rows is a readable, undamaged file", remedy="check the path"
        ) from error


def read_json_lines(path: Path) -> Iterator[Record]:
    """One row per line, blank lines skipped; memory is bounded by MAX_ROW_BYTES whatever the file holds."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, row_error(f"{path.name} row {number}", f"longer than {MAX_ROW_BYTES} bytes", "shorten or remove the row")
            elif line.strip():
                yield number, decode_json(line, f"{path.name} row {number}")


def read_json(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        yield from read_json_lines(path)
        return
    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise row_error(str(path), f"larger than {MAX_ARRAY_BYTES} bytes", "write it as JSON lines (.jsonl), which is read row by row")
    values = load_json(path.read_bytes(), str(path))
    if isinstance(values, RowError):
        raise values
    if not isinstance(values, list):
        raise row_error(str(path), "not one JSON array", "write one array of objects, or JSON lines")
    for number, value in enumerate(values, start=1):
        yield number, without_flaw(value, f"{path.name} row {number}")


def read_parquet(path: Path) -> Iterator[Record]:
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name in KNOWN_FIELDS]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for value in batch.to_pylist():
                number += 1
                yield number, value
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise row_error(str(path), f"no readable Parquet file ({error})", "write it again") from error


@dataclass(frozen=True)
class Flaw:
    """Stands in decoded JSON for an object or a number that Python would read in silence, but that is no JSON, or not one value."""

    given: str
    remedy: str


def decode_json(data: bytes, where: str) -> object:
    """The value, or the RowError in its place; also for a name that an object has twice, of which Python would keep the last."""
    return without_flaw(load_json(data, where), where)


def load_json(data: bytes, where: str) -> object:
    """The value, a Flaw where one is, or the RowError in its place. RecursionError is what thousands of nested brackets end in."""
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=no_number, object_pairs_hook=object_of)
    except UnicodeDecodeError as error:
        return row_error(where, f"not UTF-8 at byte {error.start}", "save the file as UTF-8")
    except RecursionError:
        return row_error(where, "JSON nested too deep", "write one flat object per row")
    except ValueError as error:
        return row_error(where, f"not JSON: {error}", "write one JSON object per row")


def without_flaw(value: object, where: str) -> object:
    """The value, or the RowError in the place of one with a flaw."""
    flaw = flaw_of(value)
    return value if flaw is None else row_error(where, flaw.given, flaw.remedy)


def no_number(name: str) -> Flaw:
    return Flaw(f"not JSON: {name} is not a JSON number", "write one JSON object per row")


def object_of(pairs: list[tuple[str, object]]) -> dict[str, object] | Flaw:
    """The object, or a flaw in it."""
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = (name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return Flaw(f"{', '.join(map(shown, repeated))} stands there twice", "give every field once")
    return flaw_of(list(record.values())) or record


def flaw_of(value: object) -> Flaw | None:
    """A flaw in a value, of whose objects those with one are a Flaw already."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, Flaw):
            return one
        left += one if isinstance(one, list) else ()
    return None


def parse_row(value: object, where: str) -> Row:
    """A Row from a decoded record. Raises RowError."""
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, dict):
        raise row_error(where, f"a JSON {type(value).__name__}", "write one JSON object per row")
    record: dict[str, Any] = value
    missing = [name for name in ("problem_id", *TEXT_FIELDS) if record.get(name) is None]
    if record.get("videos") is None and record.get("images") is None and record.get("data_type") != "text":
        missing.append("videos")
    if missing:
        raise row_error(where, f"no field {', '.join(missing)}", "add it; the fields of a row are listed in types.Row")
    texts = {name: text_field(record[name], name, where) for name in TEXT_FIELDS}
    if texts["data_type"] not in DATA_TYPES:
        raise row_error(where, f"data_type {texts['data_type'][:40]!r}", f"use {', '.join(DATA_TYPES[:-1])} or {DATA_TYPES[-1]}")
    if not texts["problem_type"].isprintable() or not 0 < len(texts["problem_type"]) <= MAX_CATEGORY_CHARS:
        raise row_error(where, "problem_type is empty, too long or not printable", f"use a name of 1 to {MAX_CATEGORY_CHARS} characters")
    return Row(
        problem_id=id_field(record["problem_id"], where),
        videos=paths_field(record.get("videos"), "videos", where),
        images=paths_field(record.get("images"), "images", where),
        subtitles=subtitles_field(record.get("subtitles"), where),
        duration_s=duration_field(record.get("duration_s", record.get("duration")), where),
        **texts,
    )


def id_field(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PROBLEM_ID:
        raise row_error(
            where, f"problem_id {shown(value)} of type {type(value).__name__}", f"use a whole number from 0 to {MAX_PROBLEM_ID}"
        )
    return value


def text_field(value: object, name: str, where: str) -> str:
    """A string that can be written as UTF-8 (no half of a surrogate pair), without NUL, not larger than a row may be."""
    if not isinstance(value, str):
        raise row_error(where, f"{name} is of type {type(value).__name__}", "make it a string")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise row_error(where, f"{name} holds a NUL or half of a surrogate pair", "remove that character")
    if len(value) > MAX_ROW_BYTES:
        raise row_error(where, f"{name} is longer than {MAX_ROW_BYTES} characters", "shorten it")
    return value


def paths_field(value: object, name: str, where: str) -> tuple[str, ...]:
    """The paths: a string (the published form; empty for none) or a list of strings, none of them empty. Raises RowError."""
    if value is None or value == "":
        return ()
    paths = tuple(text_field(path, name, where) for path in (value if isinstance(value, list) else [value]))
    if not all(paths) or len(paths) > MAX_MEDIA:
        raise row_error(where, f"{name} is a list of {len(paths)}, {paths.count('')} of them empty", f"name 1 to {MAX_MEDIA} files")
    return paths


def subtitles_field(value: object, where: str) -> str | None:
    """The path; None where it is empty. Raises RowError."""
    return None if value is None else text_field(value, "subtitles", where) or None


def duration_field(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DURATION_S:  # nan compares false
        raise row_error(where, f"duration {shown(value)} of type {type(value).__name__}", "use seconds > 0, or leave it out")
    return float(value)


def shown(value: object) -> str:
    """At most 40 characters of a value; never the decimal digits of a huge int, which Python refuses to print."""
    if isinstance(value, int) and abs(value) > MAX_PROBLEM_ID:
        return f"of {value.bit_length()} bits"
    return repr(value)[:40] if isinstance(value, int | float | str | None) else "..."


def row_error(where: str, problem: str, remedy: str) -> RowError:
    return RowError(f"{where}: {problem}", rule="rows have the published fields and types", remedy=remedy)


def row_failure(error: RowError, value: object) -> Failure:
    """The failure of a row, under its id and category as far as they can be read."""
    record = value if isinstance(value, dict) else {}
    problem_id, category = record.get("problem_id"), record.get("problem_type")
    is_id = isinstance(problem_id, int) and not isinstance(problem_id, bool) and 0 <= problem_id <= MAX_PROBLEM_ID
    is_category = isinstance(category, str) and category.isprintable() and 0 < len(category) <= MAX_CATEGORY_CHARS
    return Failure(
        problem_id=problem_id if is_id else None,
        stage="rows",
        kind=type(error).__name__,
        message=str(error),
        category=str(category) if is_category else "unknown",
    )


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write JSON lines in the published format, optional fields only where they are set; returns the number of rows.

    The file appears whole or not at all.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    num_rows = 0
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row.as_published(), ensure_ascii=False) + "\n")
            num_rows += 1
    partial.replace(path)
    return num_rows
