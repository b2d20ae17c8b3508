"""What a stage leaves in the folder of a run: OUT/<stage>.jsonl and OUT/<stage>.dropped.jsonl, each there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

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
    with _beside(path).open("wb") as file:
        file.writelines(encode_line(value) for value in values)
    _beside(path).replace(path)


def forget_stages(folder: Path) -> None:
    """Remove the outputs of a former run: what they hold is made again from the state folder."""
    for path in (path for stage in KINDS for path in stage_files(folder, stage)):
        path.unlink(missing_ok=True)


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


class StageWriter:
    """The outputs of several stages, written video by video in their order, whoever is finished first. A context manager.

    The files appear when the block ends without an error, all of them; with one, the former ones stay.
    """

    def __init__(self, folder: Path, stages: Sequence[StageName]) -> None:
        self._folder, self._stages = folder, stages
        self._waiting: dict[int, Mapping[StageName, Outcome[Any]]] = {}
        self._next = 0
        self._files: dict[Path, IO[bytes]] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in (path for stage in self._stages for path in stage_files(self._folder, stage)):
            self._files[path] = _beside(path).open("wb")
        return self

    def put(self, number: int, outcomes: Mapping[StageName, Outcome[Any]]) -> None:
        """What became of video `number`, counted from 0."""
        self._waiting[number] = outcomes
        while self._next in self._waiting:
            for stage, outcome in self._waiting.pop(self._next).items():
                for path, records in zip(stage_files(self._folder, stage), (outcome.kept, outcome.dropped), strict=True):
                    self._files[path].writelines(encode_line(to_json(record)) for record in records)
            self._next += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for path, file in self._files.items():
            file.close()
            if kind is None:
                _beside(path).replace(path)
            else:
                _beside(path).unlink()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
