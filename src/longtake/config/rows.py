"""Configuration of `longtake rows`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from longtake.config.base import Section
from longtake.config.sections import RowFormat, VideoLimits


class RowsConfig(Section):
    """`longtake rows`: what is in a file of rows, what of it cannot be used and why; any of the formats, converted to ours with --out."""

    rows: Path
    """JSON lines, JSON array or Parquet file of rows."""
    root: Path | None = None
    """Folder that every path must stay inside; None: the folder of the rows file."""
    format: RowFormat = "auto"
    """Whose fields the rows have; auto: those of the first row that has some."""
    out: Path | None = None
    """JSON lines file to write: the usable rows in the published format; None: nothing is written."""
    media: bool = False
    """Open every video and image that is named, and tell which are missing or damaged."""
    limits: VideoLimits = VideoLimits()
    """What a media file may not pass."""
    max_failed_fraction: float = Field(default=0.1, ge=0, le=1)
    """With more unusable rows than this share the exit code is 2, and nothing is written."""
