"""SubRip (.srt) subtitles: read strictly, write what reads back the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from longtake.errors import RowError
from longtake.video.paths import open_regular

MAX_BYTES = 32 << 20
_TIME = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{2})[,.](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s+\S.*)?")


@dataclass(frozen=True)
class Cue:
    """One subtitle, shown from start_s to end_s."""

    start_s: float
    end_s: float
    text: str
    """Lines joined by line feeds; mark-up left as it is."""


def read_srt(path: Path) -> list[Cue]:
    """Cues in order of their start, those of one start as in the file. UTF-8 with or without BOM, any line ends.

    Raises `RowError` naming the line, or `PathError`.
    """
    with open_regular(path) as (file, status):
        if status.st_size > MAX_BYTES:
            raise _malformed(path, None, f"{status.st_size} bytes", f"subtitles are at most {MAX_BYTES} bytes")
        data = file.read(MAX_BYTES + 1)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _malformed(path, line, f"byte {data[error.start]:#04x}", "subtitles are UTF-8") from error
    if "\0" in text:
        raise _malformed(path, text.count("\n", 0, text.index("\0")) + 1, "a NUL byte", "subtitles are text")
    cues = [_cue(path, block) for block in _blocks(re.split(r"\r\n|\n|\r", text))]
    return sorted(cues, key=lambda cue: cue.start_s)


def _blocks(lines: list[str]) -> Iterator[list[tuple[int, str]]]:
    """Runs of lines that are not blank, with their line numbers."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append((number, line))
        elif block:
            yield block
            block = []


def _cue(path: Path, block: list[tuple[int, str]]) -> Cue:
    """A block is: an optional number, the timing, the text."""
    if len(block) > 1 and block[0][1].strip().isdecimal() and "-->" in block[1][1]:
        block = block[1:]
    number, timing = block[0]
    match = _TIMING.fullmatch(timing)
    if match is None:
        raise _malformed(path, number, repr(timing[:80]), "a cue has a line `HH:MM:SS,mmm --> HH:MM:SS,mmm`")
    start_s, end_s = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
    if end_s < start_s:
        raise _malformed(path, number, repr(timing[:80]), "a cue does not end before it starts")
    return Cue(start_s, end_s, "\n".join(line.rstrip() for _, line in block[1:]))


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    millis = int(str(fraction).ljust(3, "0"))
    return (int(hours or 0) * 3_600_000 + int(minutes or 0) * 60_000 + int(seconds or 0) * 1000 + millis) / 1000


def _malformed(path: Path, line: int | None, what: str, rule: str) -> RowError:
    place = f"{path} line {line}" if line is not None else f"{path}"
    return RowError(f"{place}: {what}", rule=rule, remedy="correct the subtitle file or leave it out of the row")


def write_srt(path: Path, cues: Iterable[Cue]) -> None:
    """Times to the millisecond. Raises `RowError` for a cue that would not read back: blank lines inside, or times that run backwards."""
    blocks = []
    for number, cue in enumerate(cues, start=1):
        if any(not line.strip() for line in re.split(r"\r\n|\n|\r", cue.text)) or not 0 <= cue.start_s <= cue.end_s:
            rule = "a cue has text without blank lines, and 0 <= start <= end"
            raise RowError(f"{path} cue {number}: {cue!r}", rule=rule, remedy="split or correct the cue")
        blocks.append(f"{number}\n{_stamp(cue.start_s)} --> {_stamp(cue.end_s)}\n{cue.text}\n")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text("\n".join(blocks), encoding="utf-8", newline="\n")
    os.replace(partial, path)


def _stamp(time_s: float) -> str:
    millis = round(time_s * 1000)
    return f"{millis // 3_600_000:02}:{millis // 60_000 % 60:02}:{millis // 1000 % 60:02},{millis % 1000:03}"
