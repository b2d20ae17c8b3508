"""How well the checks did, measured on rows that somebody, or whoever planted the faults, has judged.

A row stops at the first check that it fails, so a check sees only what those before it let through. Its recall is therefore told twice:
of the wrong rows that reached it, and of all. `quota` is no judgement of a row and has neither.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longtake.config.curate import CHECKS
from longtake.curation.records import CheckedRow, Draft, Drop
from longtake.errors import CurationError
from longtake.evaluation.intervals import wilson
from longtake.video.paths import open_regular

QUOTA = "quota"
JUDGING = tuple(name for name in CHECKS if name != QUOTA)
"""Checks that say whether a row is good."""
PUBLISHED, FAILED, OVER_QUOTA, LOST = "published", "failed a check", "over the quota", "lost to a failed call"
"""What became of a draft; besides, the later stages drop some."""
MAX_PROBLEMS = 20
"""Bad lines that are told one by one."""


@dataclass(frozen=True)
class Label:
    """What is known of a row."""

    key: str
    right: bool
    """Question, answer, reasoning and evidence are as they should be."""
    fault: str | None = None
    """What is wrong with it, in a word."""


@dataclass(frozen=True)
class RowVerdict:
    """What became of a draft."""

    key: str
    fate: str
    """PUBLISHED, FAILED, OVER_QUOTA, LOST, or `left out by` a later stage."""
    reached: tuple[str, ...]
    """The checks that it was put to."""
    failed: str | None
    """The one that it failed."""


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    total: int

    @property
    def share(self) -> float | None:
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Wilson)."""
        return wilson(self.count, self.total)


@dataclass(frozen=True)
class CheckScore:
    """Of one check, over labelled rows."""

    name: str
    precision: Share
    """Wrong ones of those that it failed."""
    recall: Share
    """Those that it failed, of the wrong ones that reached it."""
    recall_overall: Share
    """The same, of all wrong ones."""
    right_lost: Share
    """Those that it failed, of all right ones."""


@dataclass(frozen=True)
class FaultScore:
    """Of the rows with one fault."""

    fault: str
    removed: Share
    """By a check."""
    by: Mapping[str, int]
    """By which, most first."""
    published: int


@dataclass(frozen=True)
class Audit:
    """The checks against the labels."""

    num_labels: int
    unknown: int
    """Labels of rows that were never drafted."""
    num_drafts: int
    wrong_before: Share
    """Wrong ones of the labelled drafts."""
    wrong_after: Share
    """Of those that failed no check."""
    wrong_published: Share
    """Of those that were published."""
    wrong_removed: Share
    """Wrong ones that a check failed, of all wrong ones."""
    right_lost: Share
    """Right ones that a check failed, of all right ones."""
    fates: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """What became of (wrong ones, right ones)."""
    checks: tuple[CheckScore, ...] = ()
    faults: tuple[FaultScore, ...] = ()


def read_labels(path: Path) -> dict[str, Label]:
    """JSON lines of {"key": row, "right": true | false, "fault": name | null}, by key.

    Raises CurationError with all bad lines, PathError when the file cannot be read.
    """
    with open_regular(path) as (file, _):
        lines = file.read().decode("utf-8", "replace").split("\n")
    labels: dict[str, Label] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label = _label(line)
        if isinstance(label, str) or labels.get(label.key, label) != label:
            problems.append(f"line {number}: {label if isinstance(label, str) else f'{label.key} was said to be something else before'}")
        else:
            labels[label.key] = label
    if problems:
        shown = problems[:MAX_PROBLEMS] + [f"and {len(problems) - MAX_PROBLEMS} more"] * (len(problems) > MAX_PROBLEMS)
        raise CurationError(
            f"{path}: {'; '.join(shown)}",
            rule='every line is {"key": row, "right": true | false, "fault": name | null}, and each row has one label',
            remedy="correct these lines",
        )
    return labels


def _label(line: str) -> Label | str:
    """The label, or what is wrong with the line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(value, dict) or not isinstance(value.get("key"), str) or not isinstance(value.get("right"), bool):
        return "no object with a key and right = true or false"
    fault = value.get("fault")
    if not (fault is None or isinstance(fault, str)):
        return "fault is a text or null"
    return "a right row has no fault" if value["right"] and fault else Label(value["key"], value["right"], fault or None)


def row_verdicts(
    drafts: Sequence[Draft], drops: Sequence[Drop], checked: Sequence[CheckedRow], published: Collection[str]
) -> tuple[RowVerdict, ...]:
    """What became of each draft of the question stage.

    `drops`: of all stages. `checked`: the rows that passed, with their findings. `published`: keys. Raises CurationError for a draft that
    is nowhere: the outputs are then not those of one run.
    """
    dropped = {drop.key: drop for drop in drops if drop.key is not None}
    passed = {row.draft.key: tuple(finding.check for finding in row.findings) for row in checked}
    return tuple(_verdict(draft.key, dropped.get(draft.key), passed.get(draft.key, ()), published) for draft in drafts)


def _verdict(key: str, drop: Drop | None, passed: tuple[str, ...], published: Collection[str]) -> RowVerdict:
    if drop is None:
        if key not in published:
            raise CurationError(
                f"row {key} is neither published nor dropped",
                rule="no row disappears without a reason",
                remedy="run all stages again in one folder (longtake curate run)",
            )
        return RowVerdict(key, PUBLISHED, passed, None)
    reached = tuple(finding.check for finding in drop.findings) or passed
    if drop.stage not in ("rewrite", "check"):
        return RowVerdict(key, f"left out by {drop.stage}", reached, None)
    if drop.reason == QUOTA:
        return RowVerdict(key, OVER_QUOTA, reached, None)
    if drop.reason not in JUDGING:
        return RowVerdict(key, LOST, reached, None)
    return RowVerdict(key, FAILED, reached if drop.reason in reached else (*reached, drop.reason), drop.reason)


def audit_checks(verdicts: Sequence[RowVerdict], labels: Mapping[str, Label]) -> Audit:
    """The figures of the card. Rows without a label count nowhere but in `num_drafts`."""
    drafted = {one.key for one in verdicts}
    labelled = [(one, labels[one.key]) for one in verdicts if one.key in labels]
    wrong = [one for one, label in labelled if not label.right]
    right = [one for one, label in labelled if label.right]
    left = [(one, label) for one, label in labelled if one.failed is None]
    return Audit(
        num_labels=len(labels),
        unknown=len(labels.keys() - drafted),
        num_drafts=len(verdicts),
        wrong_before=_wrong_of([label for _, label in labelled]),
        wrong_after=_wrong_of([label for _, label in left]),
        wrong_published=_wrong_of([label for one, label in left if one.fate == PUBLISHED]),
        wrong_removed=Share(sum(one.failed is not None for one in wrong), len(wrong)),
        right_lost=Share(sum(one.failed is not None for one in right), len(right)),
        fates=_fates(wrong, right),
        checks=tuple(_score(name, wrong, right) for name in JUDGING if any(name in one.reached for one, _ in labelled)),
        faults=_faults(labelled),
    )


def _wrong_of(labels: Sequence[Label]) -> Share:
    return Share(sum(not label.right for label in labels), len(labels))


def _fates(wrong: Sequence[RowVerdict], right: Sequence[RowVerdict]) -> dict[str, tuple[int, int]]:
    counts = Counter(one.fate for one in wrong), Counter(one.fate for one in right)
    first = (PUBLISHED, FAILED, OVER_QUOTA, LOST)
    others = sorted({*counts[0], *counts[1]} - {*first})
    return {fate: (counts[0][fate], counts[1][fate]) for fate in (*first, *others)}


def _score(name: str, wrong: Sequence[RowVerdict], right: Sequence[RowVerdict]) -> CheckScore:
    found = sum(one.failed == name for one in wrong)
    lost = sum(one.failed == name for one in right)
    return CheckScore(
        name=name,
        precision=Share(found, found + lost),
        recall=Share(found, sum(name in one.reached for one in wrong)),
        recall_overall=Share(found, len(wrong)),
        right_lost=Share(lost, len(right)),
    )


def _faults(labelled: Sequence[tuple[RowVerdict, Label]]) -> tuple[FaultScore, ...]:
    """By name."""
    rows: dict[str, list[RowVerdict]] = defaultdict(list)
    for one, label in labelled:
        if label.fault is not None:
            rows[label.fault].append(one)
    return tuple(
        FaultScore(
            fault=fault,
            removed=Share(sum(one.failed is not None for one in own), len(own)),
            by=dict(Counter(one.failed for one in own if one.failed is not None).most_common()),
            published=sum(one.fate == PUBLISHED for one in own),
        )
        for fault, own in sorted(rows.items())
    )
