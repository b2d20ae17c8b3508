"""Which rows of a curation run are right: its drafts against the oracle's ledger and the world's event log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.curation.outputs import read_stage
from longtake.curation.records import Draft
from longtake.llm.prompts import flat
from longtake.world.log import read_world
from longtake.world.oracle_ledger import LedgerEntry, read_ledger
from longtake.world.story import Story
from longtake.world.truth import is_true

UNTRUE = "untrue"
"""Fault of a row into which nothing was planted: its answer is not true of the video."""


@dataclass(frozen=True)
class Label:
    """Of one row."""

    key: str
    right: bool
    fault: str | None
    """What was planted; else `wrong key`, `lying captions` or `untrue` where the answer is not true; None for a right row."""


def label_drafts(drafts: Iterable[Draft], ledger: Path, worlds: Sequence[Path]) -> list[Label]:
    """In the order of the drafts, as they were before rewriting. The truth is that of the draft's own video.

    Raises LookupError for a draft that is not in the ledger, or about a video that is in none of the worlds.
    """
    stories = {Path(name).name: story for world in map(read_world, worlds) for name, story in zip(world.names, world.stories, strict=True)}
    entries = {_identity(entry.question, entry.options, entry.answer, entry.reasoning): entry for entry in read_ledger(ledger)}
    return [_label(draft, entries, stories[Path(draft.video).name]) for draft in drafts]


def write_labels(path: Path, run: Path, ledger: Path, worlds: Sequence[Path]) -> list[Label]:
    """Labels of all that the stage `question` of a run kept, as JSON lines for publish.labels."""
    drafts = read_stage(run, "question")
    labels = label_drafts(drafts.kept if drafts is not None else (), ledger, worlds)
    path.write_text("".join(json.dumps(label.__dict__) + "\n" for label in labels), encoding="utf-8")
    return labels


def _label(draft: Draft, entries: dict[tuple[object, ...], LedgerEntry], story: Story) -> Label:
    entry = entries[_identity(draft.question, draft.options, draft.answer, draft.reasoning)]
    true = is_true(story, draft.question, draft.answer)
    why = "wrong key" if entry.key_lied else "lying captions" if entry.captions_lied else UNTRUE
    fault = entry.fault if entry.fault is not None else None if true else why
    return Label(draft.key, fault is None, fault)


def _identity(question: str, options: Sequence[str], answer: str, reasoning: str) -> tuple[object, ...]:
    """Of a draft, as the pipeline lays out its texts."""
    return flat(question), tuple(flat(option) for option in options), flat(answer), reasoning.strip()
