"""Paths that rows and users give, and the one way in which a file of theirs is opened."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.errors import PathError

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def resolve_inside(root: Path, relative: str) -> Path:
    """The file `relative` to `root`, all links followed. Raises `PathError` unless it names a place inside `root`.

    The text comes from a dataset, so it is refused unless it is a plain relative path: no absolute path, `..`, URL or other scheme
    (`concat:`, `C:`), back slash, control character, and no link that leads out. Whether the file exists is not asked here.
    """
    reason = _objection(relative)
    if reason:
        raise _outside(relative, reason)
    try:
        base = root.resolve(strict=True)
        resolved = (base / relative).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise _outside(relative, getattr(error, "strerror", None) or "its links run in a circle") from error
    if not resolved.is_relative_to(base) or resolved == base:
        raise _outside(relative, f"it leads to {resolved}")
    return resolved


def _objection(relative: str) -> str | None:
    """Why this text is no plain relative path, or None."""
    parts = relative.split("/")
    part_bytes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    checks = {
        "it is empty": not relative.strip(),
        "it has control characters": any(ord(char) < 32 or ord(char) == 127 for char in relative),
        "it is too long": sum(part_bytes) + len(parts) > MAX_PATH_BYTES or max(part_bytes) > MAX_NAME_BYTES,
        "it is absolute": relative.startswith(("/", "~")),
        "it is a URL or has a scheme or drive letter": bool(_SCHEME.match(relative)),
        "it has a back slash": "\\" in relative,
        "it has `..`": ".." in parts,
        "it is not valid Unicode": any(0xD800 <= ord(char) <= 0xDFFF for char in relative),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _outside(relative: str, reason: str) -> PathError:
    shown = relative if len(relative) <= 200 else relative[:200] + "..."
    return PathError(
        f"path {shown!r}: {reason}",
        rule="a row names its files by plain relative paths that stay inside the data root",
        remedy="correct the row, or move the file into the data root",
    )


def regular_file(path: Path) -> Path:
    """A path that a user typed himself: may be anywhere, must be a regular file that can be read. Raises `PathError`."""
    with open_regular(path):
        return Path(path)


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[io.FileIO, os.stat_result]]:
    """The open file and its status. Never waits on a FIFO and never reads a device. Raises `PathError`."""
    rule = "a file given is a regular file that can be read"
    try:  # O_NONBLOCK: opening a FIFO must not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PathError(f"{path}: {reason}", rule=rule, remedy="correct the path or its permissions") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PathError(f"{path}: not a regular file", rule=rule, remedy="give the path of a file")
        with io.FileIO(descriptor, "rb", closefd=False) as file:
            yield file, status
    finally:
        os.close(descriptor)
