"""The end of `longtake curate run`: what the policy makes of the rows, which split they go to, and the data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from longtake.config.curate import STAGES, CurateConfig
from longtake.config.meta import versions
from longtake.curation.audit import audit_checks, read_labels, row_verdicts
from longtake.curation.card import CardFacts
from longtake.curation.outputs import read_stage, write_stage
from longtake.curation.pipeline import reaches
from longtake.curation.prompts import Prompts
from longtake.curation.publish import publish
from longtake.curation.readable import unrated
from longtake.curation.split import split_rows
from longtake.llm.client import Budget
from longtake.llm.counts import paid_in
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.progress import Progress, say
from longtake.video.index import DigestIndex


def rate(config: CurateConfig, folder: Path, made: KeyedLines, answers: KeyedLines, index: DigestIndex, leave: Callable[[], None]) -> None:
    """`difficulty`: from the rows that `check` left. `made` keeps what the policy says, `answers` what a judge does. `leave` is called
    after each batch is kept; it may raise."""
    checked = read_stage(folder, "check")
    assert checked is not None, "`check` comes before"
    drafts = [row.draft for row in checked.kept]
    if config.difficulty is None or not drafts:
        write_stage(folder, "difficulty", unrated(drafts))
        return
    from longtake.curation.difficulty import rate_rows  # torch and transformers: seconds that other runs need not wait

    with Progress("difficulty", len(drafts)) as progress:

        def advance(count: int) -> None:
            progress.advance(count)
            leave()

        rated = rate_rows(
            drafts,
            config.videos,
            config.difficulty,
            seed=config.seed,
            store=made,
            out=config.out,
            calls=answers,
            budget=Budget(config.budget),
            index=index,
            advance=advance,
        )
    write_stage(folder, "difficulty", rated)


def split_and_publish(config: CurateConfig, prompts: Prompts, folder: Path, answers: KeyedLines, index: DigestIndex) -> None:
    """`split` and `publish`: of all videos. A row about a video that is dropped as another one's copy never comes here."""
    rated = read_stage(folder, "difficulty")
    assert rated is not None, "`difficulty` comes before"
    placed = split_rows(rated.kept, config.split, config.seed)
    for warning in placed.warnings:
        say(f"split: {warning}", "yellow")
    write_stage(folder, "split", placed)
    if not reaches(config.until, "publish"):
        return
    outcomes = {stage: outcome for stage in STAGES if stage != "publish" and (outcome := read_stage(folder, stage)) is not None}
    drops = [drop for outcome in outcomes.values() for drop in outcome.dropped]
    checked = outcomes["check"].kept
    published = {one.row.draft.key for one in placed.kept}
    audit = None
    if config.publish.labels is not None:
        labels = read_labels(config.publish.labels)
        audit = audit_checks(row_verdicts(outcomes["question"].kept, drops, checked, published), labels)
    facts = CardFacts(
        config,
        kept={stage: len(outcome.kept) for stage, outcome in outcomes.items()},
        drops=drops,
        checked=checked,
        prompts={purpose: prompts.text(purpose) for purpose in prompts.purposes},
        paid=paid_in(answers),
        versions=versions(),
        warnings=placed.warnings,
        audit=audit,
    )
    publish(placed.kept, outcomes["ingest"].kept, config.videos, config.out, facts, index=index)
    say(f"curate: {len(placed.kept)} rows in {config.out / 'dataset'}, with a card: README.md")
