"""The nouns of curation: what the stages hand to each other, one JSON object per line in their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from longtake.config.curate import StageName
from longtake.observe.digest import digest_of

RecordT = TypeVar("RecordT")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class SourceVideo:
    """A video that was taken."""

    video: str
    """Path relative to the folder of videos."""
    digest: str
    """sha256 of its bytes."""
    duration_s: float
    width: int
    height: int
    num_frames: int
    hashes: tuple[str, ...]
    """Perceptual hash (hex, 64 bits) of frames evenly spread over it; "" for a frame without structure."""
    licence: str
    source: str


@dataclass(frozen=True)
class Clip:
    """A part of a video, in seconds from its start."""

    start_s: float
    stop_s: float


@dataclass(frozen=True)
class VideoClips:
    """What segmentation made of a video."""

    video: str
    digest: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Caption:
    """What is seen in a clip."""

    video: str
    digest: str
    start_s: float
    stop_s: float
    times_s: tuple[float, ...]
    """Of the frames that were shown, as the file gives them."""
    text: str


@dataclass(frozen=True)
class Box:
    """Where an object is in one frame."""

    video: str
    digest: str
    time_s: float
    label: str
    box: tuple[int, int, int, int]
    """left, top, right, bottom, in thousandths of width and height."""


@dataclass(frozen=True)
class TimeRange:
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Draft:
    """A question about a video, before and after rewriting."""

    video: str
    digest: str
    """Of the video."""
    category: str
    question: str
    options: tuple[str, ...]
    """Texts, in the order of the letters; () for an open-ended question."""
    answer: str
    """Text of the right option as the reasoner named it, or the open-ended answer."""
    reasoning: str
    ranges: tuple[TimeRange, ...]
    """Where the evidence is."""
    key: str = ""
    """Names the row from its first draft on: `named` sets it."""

    @property
    def letter(self) -> str | None:
        """Of the right option; None when it is open-ended, or the answer is none of the options."""
        places = [LETTERS[index] for index, option in enumerate(self.options) if option == self.answer]
        return places[0] if places else None


def named(draft: Draft) -> Draft:
    """The draft with its key: what names a row whatever is rewritten or shuffled later."""
    parts = (draft.digest, draft.category, draft.question, sorted(draft.options), draft.answer, draft.reasoning)
    return replace(draft, key=digest_of("draft 1", *parts)[:20])


@dataclass(frozen=True)
class Finding:
    """What one check found out about a row."""

    check: str
    passed: bool
    detail: str = ""
    """In words, for people: why it failed, how the votes went."""
    votes: tuple[str, ...] = ()
    """Each vote, where there were some."""


@dataclass(frozen=True)
class CheckedRow:
    """A row that was checked: as it will be published when all findings passed."""

    draft: Draft
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)


@dataclass(frozen=True)
class RatedRow:
    """A row with what the policy made of it."""

    draft: Draft
    num_right: int | None
    """None: it was not asked."""
    num_takes: int | None
    answers: tuple[str, ...] = ()
    """What it answered, for people."""

    @property
    def pass_rate(self) -> float | None:
        return None if self.num_right is None or not self.num_takes else self.num_right / self.num_takes


@dataclass(frozen=True)
class PlacedRow:
    """A row with the split it belongs to."""

    row: RatedRow
    split: str
    """sft, rl or eval."""


@dataclass(frozen=True)
class Drop:
    """Something that a stage left out: never in silence."""

    stage: StageName
    reason: str
    """Short name: of a check, of an error, of a call's failure."""
    message: str
    """One line for people."""
    video: str | None = None
    key: str | None = None
    """Of the row, where there was one."""
    category: str | None = None
    draft: Draft | None = None
    """The row, where there was one: to be looked at."""
    findings: tuple[Finding, ...] = ()
    """What the checks found out about it before it was dropped."""


@dataclass(frozen=True, eq=False)
class Outcome(Generic[RecordT]):
    """What a stage kept, in order, and what it dropped."""

    kept: tuple[RecordT, ...] = ()
    dropped: tuple[Drop, ...] = ()

    @classmethod
    def joined(cls, outcomes: Sequence[Outcome[RecordT]]) -> Outcome[RecordT]:
        return cls(
            tuple(one for outcome in outcomes for one in outcome.kept), tuple(one for outcome in outcomes for one in outcome.dropped)
        )


def to_json(record: Any) -> dict[str, Any]:
    """Of any of these records."""
    return asdict(record)


def from_json(kind: type[RecordT], value: Any) -> RecordT:
    """Inverse of `to_json`. Raises pydantic's ValidationError."""
    return adapter(kind).validate_python(value)


def adapter(kind: type[RecordT]) -> TypeAdapter[RecordT]:
    """Kept, since making one takes longer than using it a thousand times."""
    found = _ADAPTERS.get(kind)
    if found is None:
        found = _ADAPTERS[kind] = TypeAdapter(kind)
    return found


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}
