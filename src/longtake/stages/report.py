"""`longtake report RUN_DIR`: one self-contained page about a run."""

from __future__ import annotations

from pathlib import Path

from longtake.config.stages import ReportConfig
from longtake.observe.progress import say
from longtake.report.html import write_report


def run(config: ReportConfig) -> Path:
    """Write report.html into the run folder and say where it is."""
    path = write_report(config.run)
    say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, one file, opens in any browser)")
    return path
