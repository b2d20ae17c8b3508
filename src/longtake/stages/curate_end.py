"""The end of `longtake curate run`: what the policy makes of the rows, which split they go to, and the data set."""

from __future__ import annotations

from pathlib import Path

from longtake.config.curate import CurateConfig
from longtake.curation.difficulty import rate_rows, unrated
from longtake.curation.outputs import read_stage, write_stage
from longtake.curation.prompts import Prompts
from longtake.curation.split import split_rows
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.progress import Progress, say


def rate(config: CurateConfig, folder: Path, store: KeyedLines) -> None:
    """`difficulty`: from the rows that `check` left."""
    checked = read_stage(folder, "check")
    assert checked is not None, "`check` comes before"
    drafts = [row.draft for row in checked.kept]
    if config.difficulty is None or not drafts:
        write_stage(folder, "difficulty", unrated(drafts))
        return
    with Progress("difficulty", len(drafts)) as progress:
        rated = rate_rows(
            drafts,
            config.videos,
            config.difficulty,
            seed=config.seed,
            store=store,
            out=config.out,
            shard=config.shard_index,
            advance=progress.advance,
        )
    write_stage(folder, "difficulty", rated)


def split_and_publish(config: CurateConfig, prompts: Prompts, folder: Path, answers: KeyedLines) -> None:
    """`split` and `publish`: of all videos."""
    rated = read_stage(folder, "difficulty")
    assert rated is not None, "`difficulty` comes before"
    placed = split_rows(rated.kept, config.split, config.seed)
    for warning in placed.warnings:
        say(f"split: {warning}", "yellow")
    write_stage(folder, "split", placed)
