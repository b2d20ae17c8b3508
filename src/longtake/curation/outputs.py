"""What a stage leaves in the folder of a run: OUT/<stage>.jsonl and OUT/<stage>.dropped.jsonl, each there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from longtake.config.curate import StageName
from longtake.curation.records import (
    Box,
    Caption,
    CheckedRow,
    Draft,
    Drop,
    Outcome,
    PlacedRow,
    RatedRow,
    SourceVideo,
    VideoClips,
    from_json,
    to_json,
)
from longtake.errors import CurationError
from longtake.observe.lines import encode_line

RecordT = TypeVar("RecordT")
KINDS: dict[StageName, type[Any]] = {
    "ingest": SourceVideo,
    "segment": VideoClips,
    "caption": Caption,
    "ground": Box,
    "question": Draft,
    "rewrite": Draft,
    "check": CheckedRow,
    "difficulty": RatedRow,
    "split": PlacedRow,
}
"""The records of each stage; what `publish` leaves is the data set."""


def stage_files(folder: Path, stage: StageName) -> tuple[Path, Path]:
    """Where a stage's records and drops are."""
    return folder / f"{stage}.jsonl", folder / f"{stage}.dropped.jsonl"


def write_stage(folder: Path, stage: StageName, outcome: Outcome[Any]) -> None:
    """Both files of a stage, written beside and renamed."""
    kept, dropped = stage_files(folder, stage)
    write_lines(kept, (to_json(record) for record in outcome.kept))
    write_lines(dropped, (to_json(drop) for drop in outcome.dropped))


def read_stage(folder: Path, stage: StageName) -> Outcome[Any] | None:
    """What `write_stage` wrote; None when the stage was not done. Raises CurationError for a line that is not a record of it."""
    kept, dropped = stage_files(folder, stage)
    if not kept.exists() or not dropped.exists():
        return None
    return Outcome(tuple(read_records(kept, KINDS[stage])), tuple(read_records(dropped, Drop)))


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """JSON lines, written beside the target and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for value in values:
            file.write(encode_line(value))
    partial.replace(path)


def read_records(path: Path, kind: type[RecordT]) -> Iterator[RecordT]:
    """The records of a file in order. Raises CurationError."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield from_json(kind, json.loads(line))
            except (ValueError, ValidationError) as error:
                raise CurationError(
                    f"{path} line {number} is no {kind.__name__}: {error}",
                    rule="outputs of stages are read as they were written",
                    remedy="run the stage again (longtake curate run): answers that are paid are kept in the state folder",
                ) from error
