"""Results on disk by the key of what they were made from: what was made, or paid, once is found again by every later run.

folder/<writer>.jsonl, one JSON object per line: {"key": ..., "made": {...}}. Any number of processes share a folder, each with a file of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class KeyedLines:
    """Records by key. Safe from threads of one process."""

    def __init__(self, folder: Path, writer: str) -> None:
        """Reads what is there. Raises CheckpointError when another process writes under this name, or a line is damaged."""
        raise NotImplementedError

    def __contains__(self, key: str) -> bool:
        raise NotImplementedError

    def get(self, key: str) -> dict[str, Any] | None:
        """What was made from it, by whichever process."""
        raise NotImplementedError

    def put(self, key: str, made: Mapping[str, Any]) -> None:
        """Keep it: in the hands of the operating system when this returns, so that a kill loses nothing."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
