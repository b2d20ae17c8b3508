"""Configuration of `longtake curate view`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from longtake.config.base import Section


class CurateViewConfig(Section):
    """`longtake curate view`: look at the rows of a run of `longtake curate run`: one HTML page with frames, checks, votes and filters."""

    run: Path
    """Folder of a run, finished or not."""
    out: Path | None = None
    """The page; None: view.html in the run's folder."""
    max_rows: int = Field(default=200, ge=1)
    """Most rows shown, shared out evenly over what was kept and every reason for which something was dropped."""
    strip_frames: int = Field(default=12, ge=2, le=48)
    """Frames of the strip over a whole video."""
    videos: Path | None = None
    """Folder of the videos; None: the one that the run's configuration names."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of rows."""
