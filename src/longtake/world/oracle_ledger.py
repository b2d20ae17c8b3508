"""The ledger of an oracle: every question it drafted, with what is wrong with it. JSON lines, appended and flushed one by one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from longtake.errors import CurationError
from longtake.observe.lines import encode_line
from longtake.world.oracle_drafts import Range


@dataclass(frozen=True)
class LedgerEntry:
    """One drafted question, as it was given out."""

    request: str
    """Digest of the request."""
    number: int
    """Among the questions of that request."""
    category: str
    question: str
    options: tuple[str, ...]
    answer: str
    """Text of the key."""
    reasoning: str
    ranges: tuple[Range, ...]
    fault: str | None
    """What was planted (world.oracle_faults.FAULTS)."""
    key_lied: bool
    """Whether the key is another one than what the captions say."""
    captions_lied: bool
    """Whether a cited caption contradicts the event log."""
    video: str | None
    """File that the captions fit best."""
    true: bool
    """Whether the answer is true of that video by its log, whatever was planted."""

    @property
    def wrong(self) -> bool:
        """Whether a row made of it is a bad one."""
        return self.fault is not None or not self.true


class Ledger:
    """Writes; a request that was answered before, also by an earlier process, is not written again."""

    def __init__(self, path: Path | None) -> None:
        """None: nothing is kept. Raises CurationError for a file that is no ledger."""
        self._lock = threading.Lock()
        self._known = {entry.request for entry in read_ledger(path)} if path is not None and path.exists() else set()
        self._file: IO[bytes] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.truncate(_end_of_lines(path))

    @property
    def is_kept(self) -> bool:
        """Whether anything is written at all."""
        return self._file is not None

    def write(self, entries: list[LedgerEntry]) -> None:
        """All of one request."""
        with self._lock:
            if self._file is None or not entries or entries[0].request in self._known:
                return
            self._known.add(entries[0].request)
            self._file.write(b"".join(encode_line(asdict(entry)) for entry in entries))
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def read_ledger(path: Path) -> Iterator[LedgerEntry]:
    """Raises CurationError for a line that is no entry, except for a last one that was cut off."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # behind the last end of a line there is nothing, or a line that was cut off
        try:
            yield _ENTRY.validate_python(_decoded(line))
        except (ValueError, ValidationError) as error:
            raise CurationError(
                f"{path} line {number} is no entry of a ledger: {error}", rule="one question a line", remedy="give another --ledger"
            ) from error


def _end_of_lines(path: Path) -> int:
    """Bytes up to the last end of a line: what follows was cut off when the writer died."""
    return path.read_bytes().rfind(b"\n") + 1


def _decoded(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    return value if isinstance(value, dict) else {}


_ENTRY = TypeAdapter(LedgerEntry)
