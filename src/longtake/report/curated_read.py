"""What a run of `longtake curate run` has come to so far: its outputs joined row by row, and what is absent, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from longtake.config.curate import CurateConfig, StageName
from longtake.config.load import load_config
from longtake.curation.outputs import KINDS, read_stage, stage_files
from longtake.curation.records import Box, Caption, CheckedRow, Draft, Drop, Finding, Outcome, PlacedRow, RatedRow, SourceVideo
from longtake.errors import ConfigError, CurationError, RowError
from longtake.observe.digest import digest_of

ROW_STAGES: tuple[StageName, ...] = ("question", "rewrite", "check", "difficulty", "split")
"""Those whose records are rows."""
State = Literal["kept", "dropped", "lost"]
"""lost: in the output of a stage, and neither in the last one nor dropped by any. That is a fault, and shown as one."""
KeyT = TypeVar("KeyT")


@dataclass(frozen=True)
class Entry:
    """One card of the page: a row, or something that was dropped before it became a row."""

    number: int
    """From 1, in the order of the run's videos, whatever is shown."""
    state: State
    stage: StageName
    """The last one that kept it, or the one that dropped it."""
    video: str | None
    key: str | None
    category: str | None
    draft: Draft | None
    """As last written; None where there was no row."""
    first: Draft | None
    """Before rewriting."""
    findings: tuple[Finding, ...]
    rated: RatedRow | None
    split: str | None
    drop: Drop | None

    @property
    def reason(self) -> str | None:
        """Why it was dropped, in one word."""
        return None if self.drop is None else self.drop.reason


@dataclass
class CuratedRun:
    """Everything that the page is made of."""

    folder: Path
    config: CurateConfig | None
    outcomes: dict[StageName, Outcome[Any]]
    """Of the stages that are done."""
    videos_root: Path | None
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is absent, could not be read, or does not add up."""

    def __post_init__(self) -> None:
        self.videos: dict[str, SourceVideo] = {one.video: one for one in self.kept("ingest")}
        self.captions: dict[str, list[Caption]] = _by_video(self.kept("caption"))
        self.boxes: dict[str, list[Box]] = _by_video(self.kept("ground"))

    def kept(self, stage: StageName) -> tuple[Any, ...]:
        outcome = self.outcomes.get(stage)
        return () if outcome is None else outcome.kept


def read_curated(folder: Path, videos: Path | None = None) -> CuratedRun:
    """Read the folder of a run, finished or not. Raises RowError when it holds no output of any stage."""
    notes: list[str] = []
    outcomes = {stage: outcome for stage in KINDS if (outcome := _read_stage(folder, stage, notes)) is not None}
    if not outcomes:
        raise RowError(
            f"{folder} holds no output of a stage" + "".join(f"; {note}" for note in notes),
            rule="what is looked at is the folder of a run of longtake curate run",
            remedy="give the folder that was its `out` (of a part of a run: shards/PART in it), or wait until ingest is done",
        )
    missing = [stage for stage in KINDS if stage not in outcomes]
    if missing:
        notes.append(f"Not done yet: {', '.join(missing)}.")
    config = _read_config(folder, notes)
    run = CuratedRun(folder, config, outcomes, _videos_root(folder, config, videos, notes), notes=notes)
    run.entries = _entries(run)
    return run


def _read_stage(folder: Path, stage: StageName, notes: list[str]) -> Outcome[Any] | None:
    try:
        outcome = read_stage(folder, stage)
    except (CurationError, OSError, UnicodeDecodeError) as error:
        notes.append(f"{stage} could not be read, and counts as not done: {error}")
        return None
    halves = [path.name for path in stage_files(folder, stage) if path.exists()]
    if outcome is None and halves:
        notes.append(f"{stage}: {halves[0]} is there without its other half, and counts as not done.")
    return outcome


def _read_config(folder: Path, notes: list[str]) -> CurateConfig | None:
    try:
        return load_config(CurateConfig, folder / "config.json")
    except ConfigError as error:
        notes.append(f"The configuration of the run is unknown: {error}")
        return None


def _videos_root(folder: Path, config: CurateConfig | None, given: Path | None, notes: list[str]) -> Path | None:
    """The folder of videos: as given, else as configured, looked for from here and from each folder above the run's."""
    named = given or (config.videos if config is not None else None)
    if named is None:
        notes.append("The folder of videos is unknown: no frames are shown. Give it with --videos FOLDER.")
        return None
    above = () if given is not None or named.is_absolute() else tuple(parent / named for parent in folder.resolve().parents)
    found = next((path for path in (named, *above) if path.is_dir()), None)
    if found is None:
        notes.append(f"The folder of videos, {named}, is not there: no frames are shown. Give its place with --videos FOLDER.")
    return found


def _by_video(records: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in records:
        found.setdefault(record.video, []).append(record)
    return found


def draft_of(record: Any) -> Draft:
    """The draft inside a record of one of ROW_STAGES."""
    match record:
        case PlacedRow():
            return record.row.draft
        case CheckedRow() | RatedRow():
            return record.draft
    assert isinstance(record, Draft)
    return record


def _entries(run: CuratedRun) -> list[Entry]:
    """Every row once where it ended, and every drop, in the order of videos and of their first drafts."""
    done = [stage for stage in ROW_STAGES if stage in run.outcomes]
    rows = {stage: {draft_of(record).key: record for record in run.kept(stage)} for stage in done}
    join = _Join(rows)
    found = [join.entry(draft_of(record).key, done[-1], "kept") for record in run.kept(done[-1])] if done else []
    found += [join.dropped(drop) for outcome in run.outcomes.values() for drop in outcome.dropped]
    lost = join.lost(found)
    for stage, keys in lost.items():
        run.notes.append(f"{len(keys)} rows of {stage} are neither in the stages after it nor dropped by any: they are shown as lost.")
        found += [join.entry(key, stage, "lost") for key in keys]
    places = {video: place for place, video in enumerate(run.videos)}
    order = {key: place for place, key in enumerate(join.first)}
    last = len(places) + len(order)
    found.sort(key=lambda one: (places.get(one.video or "", last), one.video or "", one.draft is None, order.get(one.key or "", last)))
    return [replace(one, number=number) for number, one in enumerate(found, 1)]


@dataclass(frozen=True)
class _Join:
    """Rows by stage and key, put together."""

    rows: Mapping[StageName, Mapping[str, Any]]

    @property
    def first(self) -> Mapping[str, Any]:
        return self.rows.get("question", {})

    def entry(self, key: str, stage: StageName, state: State, drop: Drop | None = None) -> Entry:
        drafts = [draft_of(self.rows[stage][key]) for stage in ROW_STAGES if key in self.rows.get(stage, {})]
        draft = drop.draft if drop is not None and drop.draft is not None else drafts[-1] if drafts else None
        checked, placed = self.rows.get("check", {}).get(key), self.rows.get("split", {}).get(key)
        rated = placed.row if placed is not None else self.rows.get("difficulty", {}).get(key)
        return Entry(
            number=0,
            state=state,
            stage=stage,
            video=draft.video if draft is not None else drop.video if drop is not None else None,
            key=key or None,
            category=draft.category if draft is not None else drop.category if drop is not None else None,
            draft=draft,
            first=self.first.get(key),
            findings=drop.findings if drop is not None and drop.findings else checked.findings if checked is not None else (),
            rated=rated,
            split=None if placed is None else placed.split,
            drop=drop,
        )

    def lost(self, found: Iterable[Entry]) -> dict[StageName, list[str]]:
        """Keys by the last stage that has them, of those that are neither kept nor dropped. (Some checks are made before rewriting.)"""
        told = {one.key for one in found}
        last = {key: stage for stage in ROW_STAGES for key in self.rows.get(stage, {})}
        keys: dict[StageName, list[str]] = {}
        for key, stage in last.items():
            if key not in told:
                keys.setdefault(stage, []).append(key)
        return keys

    def dropped(self, drop: Drop) -> Entry:
        key = drop.key or (drop.draft.key if drop.draft is not None else "")
        return self.entry(key, drop.stage, "dropped", drop)


def choose(entries: Sequence[Entry], max_rows: int, seed: int) -> list[Entry]:
    """At most `max_rows` of them, in order: as many of what was kept as of each reason, as far as there are; which ones is drawn."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.state, entry.reason or ""), []).append(entry)
    shares = even_shares({group: len(own) for group, own in groups.items()}, max_rows)
    taken = set()
    for group, own in groups.items():
        drawn = sorted(own, key=lambda one: digest_of(seed, one.key or one.video, one.number))
        taken |= {one.number for one in drawn[: shares[group]]}
    return [entry for entry in entries if entry.number in taken]


def even_shares(sizes: Mapping[KeyT, int], total: int) -> dict[KeyT, int]:
    """How many to take of each: the same of all, save of those that have fewer, whose rest goes to the others.

    >>> even_shares({"kept": 100, "blind": 3, "support": 50}, 23)
    {'kept': 10, 'blind': 3, 'support': 10}
    """
    shares: dict[KeyT, int] = {}
    left = total
    smallest_first = sorted(sizes, key=lambda one: sizes[one])
    for place, one in enumerate(smallest_first):
        shares[one] = min(sizes[one], left // (len(smallest_first) - place))
        left -= shares[one]
    return {one: shares[one] for one in sizes}
