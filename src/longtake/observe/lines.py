"""Append-only JSON lines that survive a kill.

A run killed at any moment and resumed at a checkpoint ends with the file of the run that was never killed: lines after the checkpoint's
step, and a last line that was cut, are dropped on resume and written again. For that, flush the lines of a step BEFORE its checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from longtake.errors import CheckpointError

LINE_HEAD = re.compile(rb'\{"step": (\d+)[,}]')
"""How `encode_line` begins a line."""


class JsonLines:
    """One file of JSON objects, each with the `step` it belongs to; steps never decrease.

    `resume_at=None` starts an empty file (what an earlier run left in it is dropped); `resume_at=n` keeps the lines of steps <= n.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._last_step = -1
        if resume_at is not None and path.exists():
            self._last_step = truncate_after(path, resume_at)
        self._file: IO[bytes] = path.open("wb" if resume_at is None else "ab")

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        """Add one line; it is safe from a kill after the next `flush`.

        Standard JSON has no NaN or infinity: such a value is written as null and its place listed in `non_finite`.
        Raises ValueError when `step` is smaller than the step before, or is also a key of `record`.
        """
        if step < self._last_step or "step" in record:
            raise ValueError(f"step {step} after step {self._last_step}; steps must not decrease, nor stand in the record too")
        self._last_step = step
        self._file.write(encode_line({"step": step, **record}))

    def flush(self) -> None:
        """Hand everything to the operating system: once per step."""
        self._file.flush()

    def sync(self) -> None:
        """Flush down to the disk, against a loss of power: before a checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line of standard JSON, UTF-8."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        places: list[str] = []
        clean = _without_non_finite(record, "", places)
        text = json.dumps({**clean, "non_finite": places}, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of the file; a last line without its line end is left out. Raises CheckpointError for a damaged one."""
    with path.open("rb") as file:
        return [_parse(path, number, line) for number, line in enumerate(file, 1) if line.endswith(b"\n")]


def truncate_after(path: Path, step: int) -> int:
    """Cut the file after the last line of a step <= `step`; returns the step of that line, -1 when none is left.

    Cuts in place, so a kill during it leaves a file that the next resume mends. Raises CheckpointError when a line before that is not
    one of ours: the file was then changed by someone else, and cutting would hide it.
    """
    end, last_step = 0, -1
    with path.open("r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            # The head of a line tells its step; parsing whole lines of takes would read a large file at 20 MB/s.
            head = LINE_HEAD.match(line)
            line_step = int(head[1]) if head and line.endswith(b"}\n") else _parse(path, number, line)["step"]
            if line_step > step:
                break
            end, last_step = end + len(line), line_step
        file.truncate(end)
    return last_step


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise CheckpointError(
            f"{path} line {number} is not a JSON object with a step",
            rule="a run's logs are only appended to",
            remedy="restore the file, or move it away and start the run in a new folder",
        )
    return record


def _without_non_finite(value: Any, place: str, places: list[str]) -> Any:
    """A copy with NaN and infinities replaced by None; their dotted places are added to `places`."""
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item, f"{place}.{key}".lstrip("."), places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item, f"{place}.{index}", places) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        places.append(place)
        return None
    return value
