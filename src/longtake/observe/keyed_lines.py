"""Results on disk by the key of what they were made from: what was made, or paid, once is found again by every later run.

folder/<writer>.jsonl, one JSON object per line: {"key": ..., "made": {...}}. Any number of processes share a folder, each with a file of
its own. In memory are only the keys and where their lines stand.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from longtake.errors import CheckpointError
from longtake.observe.progress import say

HEAD = re.compile(rb'\{"key": "([^"\\]*)", "made": \{')
"""How `put` begins a line whose key needs no escapes: parsing whole lines would read a large folder at 100 MB/s."""
TAIL = b"}}\n"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class _Place(NamedTuple):
    """Of a line."""

    file: int
    offset: int
    length: int


class _File:
    """One writer's file, as far as it was read: whole lines only."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self.fd = path, fd
        self.end = 0
        """Offset behind the last whole line."""
        self.num_lines = 0

    def new_lines(self) -> Iterator[tuple[str, int, int]]:
        """(key, offset, length) of each line behind `end`, which moves on. A last line without its end is left alone: it was cut by a
        kill, or is just being written. Raises CheckpointError."""
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self.end:
                raise CheckpointError(
                    f"{self.path} is shorter than it was", rule="results are only appended to", remedy="start again, what is left is used"
                )
            file.seek(self.end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                key = self._key_of(line)
                yield key, self.end, len(line)
                self.end += len(line)
                self.num_lines += 1

    def read(self, place: _Place, key: str) -> dict[str, Any]:
        """What a line holds. Raises CheckpointError."""
        record = _parsed(os.pread(self.fd, place.length, place.offset))
        if record is None or record["key"] != key:
            raise self._damaged(1 + _num_lines_before(self.path, place.offset))
        return record["made"]  # type: ignore[no-any-return]

    def _key_of(self, line: bytes) -> str:
        head = HEAD.match(line)
        if head and line.endswith(TAIL):
            return head[1].decode("utf-8", "replace")
        record = _parsed(line)
        if record is None:
            raise self._damaged(self.num_lines + 1)
        return str(record["key"])

    def _damaged(self, number: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path} line {number} is damaged",
            rule="results are only appended, a whole line each",
            remedy=f"delete that line, e.g. sed -i {number}d {self.path}: what it held is then made, or paid, once more",
        )


class KeyedLines:
    """Records by key. Safe from threads of one process.

    >>> with KeyedLines(folder, "part-0") as kept:
    ...     kept.put("a", {"text": "yes"})
    ...     kept.get("a")
    {'text': 'yes'}
    """

    def __init__(self, folder: Path, writer: str) -> None:
        """Reads what is there; of this writer's own file a last line that was cut by a kill is removed.

        `writer` is part of a file name: letters, digits, `.`, `_` and `-`. Raises CheckpointError when another process writes under this
        name, or a line is damaged.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", writer):
            raise ValueError(f"writer = {writer!r}; letters, digits, '.', '_' and '-' make a file name")
        self.folder = folder
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        """In the order in which they were found or put."""
        self._files: list[_File] = []
        self.closed = False
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{writer}.jsonl"
        self._own = _File(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666))
        self._files.append(self._own)
        with ExitStack() as on_error:
            on_error.callback(self.close)
            _lock_file(self._own)
            self._read_on(0)
            os.ftruncate(self._own.fd, self._own.end)
            self.refresh()
            on_error.pop_all()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was made from it, by whichever process; None: nothing as far as the files were read. Raises CheckpointError for a damaged
        line."""
        place = self._places.get(key)
        return None if place is None else self._files[place.file].read(place, key)

    def put(self, key: str, made: Mapping[str, Any]) -> None:
        """Keep it: in the hands of the operating system when this returns, so that a kill loses nothing. A key that is there already keeps
        what it has.

        Raises ValueError for what standard JSON cannot hold (NaN, infinity), CheckpointError when the disk is full.
        """
        text = json.dumps({"key": key, "made": dict(made)}, ensure_ascii=False, allow_nan=False)
        line = text.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate pair becomes its JSON escape
        with self._lock:
            self._check_open()
            if key in self._places:
                return
            self._write(line)
            self._places[key] = _Place(0, self._own.end, len(line))
            self._own.end += len(line)
            self._own.num_lines += 1

    def refresh(self) -> int:
        """Read what other writers have appended since; returns how many keys are new. Raises CheckpointError for a damaged line."""
        with self._lock:
            self._check_open()
            before = len(self._places)
            known = {file.path for file in self._files}
            for path in sorted(self.folder.glob("*.jsonl")):
                if path not in known:
                    self._files.append(_File(path, os.open(path, os.O_RDONLY)))
            for index in range(1, len(self._files)):
                if self._files[index].path.stat().st_size != self._files[index].end:
                    self._read_on(index)
            return len(self._places) - before

    def items(self, start: int = 0, *, others: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, made) in the order in which they were found or put, from number `start` on: `len(self)` now is where to go on later.
        `others`: only what other writers made. Reads the lines one after the other."""
        with self._lock:
            places = list(islice(self._places.items(), start, None))
        for key, place in places:
            if place.file or not others:
                yield key, self._files[place.file].read(place, key)

    def close(self) -> None:
        """Gives the writer's name free; nothing can be read or put any more."""
        with self._lock:
            for file in self._files:
                os.close(file.fd)
            self._files, self._places, self.closed = [], {}, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"the results in {self.folder} are closed")

    def _read_on(self, index: int) -> None:
        for key, offset, length in self._files[index].new_lines():
            self._places.setdefault(key, _Place(index, offset, length))

    def _write(self, line: bytes) -> None:
        """In one piece, or not at all."""
        try:
            written = os.write(self._own.fd, line)
            fault = f"only {written} of {len(line)} bytes could be written" if written != len(line) else ""
        except OSError as error:
            fault = error.strerror or str(error)
        if fault:
            os.ftruncate(self._own.fd, self._own.end)
            raise CheckpointError(
                f"{self._own.path}: {fault}", rule="every result is kept", remedy="make room on that disk and give the same command again"
            )


def _lock_file(own: _File) -> None:
    """For as long as it is open. The kernel gives it free when the process dies, however it dies."""
    try:
        fcntl.flock(own.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(
            f"another process writes to {own.path}",
            rule="each process that shares a folder of results writes to a file of its own",
            remedy=f"wait until it has ended, or end it (`fuser {own.path}` names it); machines that share the work have a shard each",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(f"{own.path}: this file system has no locks; take care that no second process does the same part of the work")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole record, or None for a damaged line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(record, dict) and isinstance(record.get("key"), str) and isinstance(record.get("made"), dict)
    return record if sound else None


def _num_lines_before(path: Path, offset: int) -> int:
    count = 0
    with path.open("rb") as file:
        while offset > 0 and (part := file.read(min(offset, 1 << 20))):
            count += part.count(b"\n")
            offset -= len(part)
    return count
