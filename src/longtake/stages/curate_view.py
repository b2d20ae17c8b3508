"""`longtake curate view RUN`: one self-contained page to look at the rows of a curation run."""

from __future__ import annotations

from pathlib import Path

from longtake.config.curate_view import CurateViewConfig
from longtake.observe.progress import say
from longtake.report.curated import write_curated_page


def run(config: CurateViewConfig) -> Path:
    """Write the page and say where it is, and what it does not show."""
    page = write_curated_page(config)
    if page.unseen:
        say(f"no frames of {len(page.unseen)} videos, such as {page.unseen[0]}: the page says why", "yellow")
    say(
        f"view: {page.path} ({page.num_shown} of {page.num_entries} rows and drops, {page.path.stat().st_size / 1e6:.1f} MB, one file, "
        "opens in any browser)"
    )
    return page.path
