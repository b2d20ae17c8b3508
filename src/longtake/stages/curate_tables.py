"""What `longtake curate run` prints: the estimate of a dry run, and what each stage kept and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longtake.config.curate import CurateConfig, StageName
from longtake.curation.estimate import estimate_calls, total
from longtake.curation.outputs import read_stage
from longtake.curation.prompts import Prompts
from longtake.errors import CurationError, PathError, VideoError
from longtake.observe.progress import say
from longtake.video.paths import resolve_inside
from longtake.video.probe import probe

SHOWN_REASONS = 4


def print_estimate(config: CurateConfig, prompts: Prompts, files: Sequence[str]) -> None:
    """Calls, tokens and cost of a run from nothing, on stdout; of files that can be read, the others are told."""
    durations_s = [found for relative in files if (found := _duration(config, relative)) is not None]
    if not durations_s:
        raise CurationError(
            f"no video in {config.videos} can be read",
            rule="an estimate needs their lengths",
            remedy="check the folder and ingest.suffixes",
        )
    estimates = estimate_calls(durations_s, config, prompts)
    table = Table(title=f"{len(durations_s)} videos, {sum(durations_s) / 3600:.1f} hours: a run from nothing", title_justify="left")
    for column in ("calls for", "calls", "tokens asked", "tokens answered", "cost"):
        table.add_column(column, justify="left" if column == "calls for" else "right")
    for one in [*estimates, total(estimates)]:
        if one.purpose == "all":
            table.add_section()
        table.add_row(one.purpose, f"{one.calls:,.0f}", f"{one.input_tokens:,.0f}", f"{one.output_tokens:,.0f}", f"{one.cost:,.2f}")
    console = Console()
    console.print(table)
    console.print(
        "Estimated from the lengths of the videos and usual lengths of answers. Duplicates and calls that were paid before are not taken "
        "off, failed calls and answers that have to be asked for again not added.",
        soft_wrap=True,
    )


def _duration(config: CurateConfig, relative: str) -> float | None:
    try:
        duration_s = probe(resolve_inside(config.videos, relative), config.ingest.limits).duration_s
    except (PathError, VideoError) as error:
        say(f"not counted: {error}", "yellow")
        return None
    return duration_s if duration_s >= config.ingest.min_seconds else None


def print_stages(folder: Path, stages: Sequence[StageName]) -> None:
    """A line per stage, on stdout."""
    table = Table(title=f"curated in {folder}", title_justify="left")
    for column in ("stage", "kept", "dropped", "why"):
        table.add_column(column, justify="right" if column in ("kept", "dropped") else "left", overflow="fold")
    for stage in stages:
        outcome = read_stage(folder, stage) if stage != "publish" else None
        if outcome is None:
            continue
        reasons = Counter(drop.reason for drop in outcome.dropped).most_common()
        told = ", ".join(f"{reason} {count}" for reason, count in reasons[:SHOWN_REASONS])
        more = f", {len(reasons) - SHOWN_REASONS} other reasons" if len(reasons) > SHOWN_REASONS else ""
        table.add_row(stage, str(len(outcome.kept)), str(len(outcome.dropped)), escape(told + more))
    Console().print(table)
    say(f"what was dropped, and why: {folder}/*.dropped.jsonl; to look at rows: longtake curate view {folder}")
