"""sha256 of video and image files, kept by (path, size, time of change), so that terabytes are not read again at each start."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.config.sections import VideoLimits
from longtake.errors import PathError, VideoDamagedError, VideoMissingError
from longtake.types import MediaKind, VideoRef
from longtake.video.image_bytes import image_limit_error
from longtake.video.paths import open_regular
from longtake.video.scan import limit_error

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 1.0
"""New digests are written this often at most; what a kill loses is hashed again."""


class DigestIndex:
    """Digests of files. With a path they are kept there as JSON (written whole and renamed, shared by processes); without, in memory.

    Safe to use from several threads. A damaged index file counts as empty: it is only a cache.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_bytes: int = VideoLimits().max_bytes,
        max_image_bytes: int = VideoLimits().max_image_bytes,
    ) -> None:
        self.path, self.max_bytes, self.max_image_bytes = path, max_bytes, max_image_bytes
        self.num_hashed = 0
        """Files read so far because the index did not know them."""
        self._lock = threading.Lock()
        self._saved_at_s = -SAVE_EVERY_S
        self._entries = _read_entries(path)

    def ref(self, path: Path, kind: MediaKind = "video") -> VideoRef:
        """The file with the digest of its bytes.

        Raises VideoMissingError, VideoLimitError (each kind has a limit of its own) or, while it is written, VideoDamagedError.
        """
        absolute = Path(os.path.abspath(path))
        try:
            with open_regular(absolute) as (file, status):
                key, stamp = str(absolute), [status.st_size, status.st_mtime_ns]
                with self._lock:
                    known = self._entries.get(key)
                if known is not None and known[:2] == stamp:
                    return VideoRef(absolute, known[2], (known[0], known[1]), kind)
                self._check_size(path, kind, status.st_size)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                after = os.fstat(file.fileno())
        except PathError as error:
            raise VideoMissingError(error.given, rule=error.rule, remedy=error.remedy) from error
        if [after.st_size, after.st_mtime_ns] != stamp:
            given = f"{path}: changed while it was read"
            raise VideoDamagedError(given, rule="videos do not change while they are used", remedy="wait until it is written")
        self._remember(key, [*stamp, digest])
        return VideoRef(absolute, digest, (stamp[0], stamp[1]), kind)

    def _check_size(self, path: Path, kind: MediaKind, size_bytes: int) -> None:
        if kind == "image" and size_bytes > self.max_image_bytes:
            raise image_limit_error(path, f"{size_bytes} bytes", "max_image_bytes", self.max_image_bytes)
        if kind == "video" and size_bytes > self.max_bytes:
            raise limit_error(path, f"{size_bytes} bytes", "max_bytes", self.max_bytes)

    def _remember(self, key: str, entry: list[Any]) -> None:
        with self._lock:
            self._entries[key] = entry
            self.num_hashed += 1
            due = time.monotonic() - self._saved_at_s >= SAVE_EVERY_S
        if due:
            self.save()

    def save(self) -> None:
        """Write the index, keeping what other processes have added to it; nothing to do for one in memory.

        A folder that cannot be written costs hashing anew, and nothing else.
        """
        if self.path is None:
            return
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self.path.with_name(f".{self.path.name}.lock")):
                    self._entries = {**_read_entries(self.path), **self._entries}
                    partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.partial")
                    partial.write_text(json.dumps(self._entries), encoding="utf-8")
                    os.replace(partial, self.path)
            except OSError as error:
                logger.warning("%s cannot be written: %s; videos will be hashed again", self.path, error)
            self._saved_at_s = time.monotonic()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all processes, where the file system has locks: two that read and write at once would lose each other's entries."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            logger.info("%s: this file system has no locks", path)
        yield


def _read_entries(path: Path | None) -> dict[str, list[Any]]:
    """path -> [size, mtime_ns, digest]."""
    if path is None or not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # also UnicodeDecodeError and JSONDecodeError
        return {}
    if not isinstance(entries, dict):
        return {}
    return {key: entry for key, entry in entries.items() if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] and len(entry[2]) == 64
