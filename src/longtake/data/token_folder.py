"""The folder of the embedding cache: one file per video, an index beside it, a byte budget. Safe with many processes on many machines.

    tokens/ab/<digest of the tokens>.safetensors    see token_files.py
    requests/ab/<digest of the request>.json        which tokens a request has: so that a hit needs no decoding
    used                                            bytes of the token files, kept under a lock

Every file is written whole under another name and renamed: a reader sees all of it or nothing, and writers of one key replace
what the other wrote by the same. Files are mapped, so nothing ever writes into one. What a power cut may leave behind is caught by the
checksums. Deleting any of it is safe at any time.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from longtake.data.token_files import DamagedFileError, file_bytes, read_tokens, write_tokens
from longtake.observe.digest import digest_of
from longtake.types import VideoTokens

logger = logging.getLogger(__name__)

RESERVED = ".reserved"
"""Suffix of an empty file as large as one that is being written, so that a recount by another process does not forget it."""
STALE_S = 3600.0
"""A partial file or a marker this old belongs to a process that was killed."""
COUNT_AGAIN_S = 60.0
"""A full folder is counted again this often, for files that were deleted."""


@dataclass(frozen=True)
class Answer:
    """What is known of a request without decoding: which tokens it has, and what the metrics say of its frames."""

    tokens: str
    """Digest of the tokens."""
    reduced: bool
    """The token budget took frames or pixels away."""
    deviation_s: float
    """How far real frame times are from equal spacing."""


@dataclass
class _Reservation:
    used: bool = False


class TokenFolder:
    """Reads and writes the folder. `counts` gets `damaged` and `disk_refused`; nothing here ever raises for a bad or full disk."""

    def __init__(self, folder: Path, max_bytes: int, counts: Counter[str]) -> None:
        self.folder, self.max_bytes, self._counts = folder, max_bytes, counts
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._counted_at_s = -COUNT_AGAIN_S
        self._warned = False

    def read(self, digest: str) -> VideoTokens | None:
        """The tokens, mapped; None where there are none. A damaged file is counted and removed. The first read checks every byte."""
        path = self._token_path(digest)
        try:
            stamp = _stamp(path)
            tokens = read_tokens(path, digest, verify=self._verified.get(digest) != stamp)
        except OSError:
            return None
        except DamagedFileError as error:
            self._remove_damaged(path, stamp, error)
            return None
        self._verified[digest] = stamp
        return tokens

    def holds(self, digest: str) -> bool:
        """Whether there is a whole file of these tokens, its bytes not checked."""
        try:
            read_tokens(self._token_path(digest), digest, verify=False)
        except (OSError, DamagedFileError):
            return False
        return True

    def write(self, tokens: VideoTokens) -> bool:
        """Keep the tokens. False when the folder is full or cannot be written."""
        path = self._token_path(tokens.digest)
        if path.exists():
            return True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._reserved(path, file_bytes(tokens)) as reserved:
                if reserved:
                    with _whole(path) as partial:
                        write_tokens(partial, tokens)
                        reserved.used = not path.exists()  # another process was faster
            self._counts["disk_refused"] += reserved is None
            return reserved is not None
        except OSError as error:
            self._counts["disk_refused"] += 1
            if not self._warned:
                logger.warning("the cache folder %s cannot be written: %s; embeddings stay in memory", self.folder, error)
            self._warned = True
            return False

    def answer(self, request: str) -> Answer | None:
        """Which tokens the request has, if some process found out before. A damaged entry is counted and counts as absent."""
        path = self._request_path(request)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        try:
            entry = json.loads(text)
            answer = Answer(**entry["answer"])
            if entry["check"] != _check(request, answer):
                raise ValueError("its check is wrong")
        except (ValueError, KeyError, TypeError) as error:
            self._counts["damaged"] += 1
            logger.warning("%s is damaged (%s: %s) and is written anew", path, type(error).__name__, error)
            return None
        return answer

    def write_answer(self, request: str, answer: Answer) -> None:
        path = self._request_path(request)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _whole(path) as partial:
                partial.write_text(json.dumps({"answer": asdict(answer), "check": _check(request, answer)}), encoding="utf-8")
        except OSError as error:
            logger.info("%s cannot be written: %s", path, error)

    def bytes_used(self) -> int:
        """Bytes of all token files, counted now, of one being written all that is reserved. What killed processes left is removed."""
        total = 0
        for path in (self.folder / "tokens").glob("*/*"):
            try:
                status = path.stat()
                if path.suffix in (".partial", RESERVED) and time.time() - status.st_mtime > STALE_S:
                    path.unlink()
                elif path.suffix != ".partial":
                    total += status.st_size
            except OSError:  # renamed or removed meanwhile
                continue
        return total

    @contextmanager
    def _reserved(self, path: Path, size: int) -> Iterator[_Reservation | None]:
        """Room for a file of `size` bytes, given back unless it is used; None when there is none."""
        marker = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{RESERVED}")
        if not self._take(size, marker):
            yield None
            return
        reservation = _Reservation()
        try:
            yield reservation
        finally:
            if reservation.used:
                marker.unlink(missing_ok=True)
            else:
                self._give_back(size, marker)

    def _take(self, size: int, marker: Path) -> bool:
        """Add to the bytes used unless they would be too many. The marker, an empty file of that size, stands for it in a recount."""
        with _locked(self.folder / ".lock"):
            used = _read_count(self.folder / "used")
            due = time.monotonic() - self._counted_at_s >= COUNT_AGAIN_S
            if used is None or (used + size > self.max_bytes and due):
                used, self._counted_at_s = self.bytes_used(), time.monotonic()
            fits = used + size <= self.max_bytes
            if fits:
                with marker.open("wb") as file:
                    file.truncate(size)
            self._write_count(used + size * fits)
            return fits

    def _give_back(self, size: int, marker: Path) -> None:
        with _locked(self.folder / ".lock"):
            marker.unlink(missing_ok=True)
            used = _read_count(self.folder / "used")
            self._write_count((self.bytes_used() + size if used is None else used) - size)

    def _write_count(self, used: int) -> None:
        with _whole(self.folder / "used") as partial:
            partial.write_text(str(max(0, used)), encoding="utf-8")

    def _remove_damaged(self, path: Path, stamp: tuple[int, int, int], error: DamagedFileError) -> None:
        self._counts["damaged"] += 1
        logger.warning("%s; it is removed and written anew", error)
        try:
            if _stamp(path) == stamp:  # another process may have mended it
                path.unlink()
        except OSError:
            return

    def _token_path(self, digest: str) -> Path:
        return self.folder / "tokens" / digest[:2] / f"{digest}.safetensors"

    def _request_path(self, request: str) -> Path:
        return self.folder / "requests" / request[:2] / f"{request}.json"


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write under, renamed to `path` when all is written."""
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all processes, where the file system has locks (without them the byte budget is only nearly kept)."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            logger.info("%s: this file system has no locks", path)
        yield


def _read_count(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check(request: str, answer: Answer) -> str:
    return digest_of("longtake video request 1", request, answer.tokens, answer.reduced, answer.deviation_s)
