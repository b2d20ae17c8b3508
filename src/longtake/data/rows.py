"""From rows to checked examples: videos resolved inside the root, options and answer parsed, every failure kept in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Protocol, TypeVar

from longtake.config.sections import DataConfig
from longtake.data.asked import parse_answer, parse_options
from longtake.data.row_files import write_rows
from longtake.data.row_formats import read_rows
from longtake.errors import LongtakeError, PathError, RowError, VideoError
from longtake.observe.progress import say
from longtake.types import Example, Failure, MediaKind, Row, RowName, VideoRef, row_name
from longtake.video.index import DigestIndex
from longtake.video.paths import resolve_inside
from longtake.video.subtitles import read_srt

__all__ = ["check_failures", "check_row", "parse_options", "read_examples", "read_rows", "write_rows"]

MAX_SHOWN_FAILURES = 5


class FromSource(Protocol):
    """An example, a failure, or a row that may become one."""

    @property
    def source(self) -> str: ...


FromSourceT = TypeVar("FromSourceT", bound=FromSource)


@dataclass(frozen=True)
class SourcedRow:
    """A row as it was read, and what the configuration says of where it comes from."""

    item: Row | Failure
    source: str
    """Name of the source in a mixture; empty for the rows of one file."""
    root: Path
    with_subtitles: bool

    @property
    def name(self) -> RowName | None:
        """None for a row without a readable problem_id."""
        return None if self.item.problem_id is None else row_name(self.source, self.item.problem_id)

    def failure(self, error: LongtakeError) -> Failure:
        """The failure of this row."""
        category = self.item.category if isinstance(self.item, Failure) else self.item.problem_type
        stage = "video" if isinstance(error, VideoError) else "rows"
        return Failure(self.item.problem_id, stage, type(error).__name__, str(error), category, self.source)


def read_sourced(config: DataConfig) -> list[SourcedRow]:
    """The rows of a file in their order, or those of the sources of a mixture, one source behind the other.

    Of each file first the categories are chosen, then the first `max_rows` of them. A failed row whose category cannot be read counts
    as every category: it is never what makes a set look whole. Raises RowError when a file as a whole cannot be used.
    """
    found: list[SourcedRow] = []
    for name, source in config.parts.items():
        items = [item for item in read_rows(source.rows, source.format) if chosen(item, source.categories)][: source.max_rows]
        if not items:
            given = f"{source.rows} has no row of category {', '.join(source.categories)}"
            remedy = f"change data.sources.{name}.categories" if name else "change data.categories"
            raise RowError(given, rule="at least one row is left", remedy=remedy)
        root = source.rows.parent if source.root is None else source.root
        subtitles = config.with_subtitles if source.with_subtitles is None else source.with_subtitles
        if subtitles:
            count_subtitles(items, source.rows, name)
        found += [SourcedRow(replace(item, source=name) if isinstance(item, Failure) else item, name, root, subtitles) for item in items]
    return found


def count_subtitles(items: Sequence[Row | Failure], path: Path, source: str) -> None:
    """Say how many rows of a file have subtitles, which are to be shown. Raises RowError when none has."""
    rows = [item for item in items if isinstance(item, Row)]
    told = f"{sum(row.subtitles is not None for row in rows)} of {len(rows)} rows have subtitles"
    if rows and all(row.subtitles is None for row in rows):
        setting = f"data.sources.{source}.with_subtitles" if source else "data.with_subtitles"
        rule = "where subtitles are to be shown (with_subtitles), at least one row has some"
        raise RowError(f"{path}: {told}", rule=rule, remedy=f"name the SRT files in the field subtitles, or set {setting} = false")
    say(f"{path}: {told}")


def read_examples(config: DataConfig, index: DigestIndex | None = None) -> list[Example | Failure]:
    """The examples of a rows file or a mixture in the order of `read_sourced`, a Failure standing wherever one cannot be used.

    `index` keeps the digests of videos (None: for this call only). Raises RowError when a file as a whole cannot be used.
    """
    videos = (DigestIndex(None) if index is None else index) if config.with_video else None
    return [example_or_failure(row, videos) for row in read_sourced(config)]


def in_turn(items: Sequence[FromSourceT]) -> list[FromSourceT]:
    """The first of each source, then the second of each, and so on: the beginning of a mixture that is read in part."""
    by_source: dict[str, list[FromSourceT]] = {}
    for item in items:
        by_source.setdefault(item.source, []).append(item)
    return [item for turn in zip_longest(*by_source.values()) for item in turn if item is not None]


def chosen(item: Row | Failure, categories: Sequence[str]) -> bool:
    category = item.category if isinstance(item, Failure) else item.problem_type
    return not categories or category in categories or (isinstance(item, Failure) and category == "unknown")


def example_or_failure(row: SourcedRow, index: DigestIndex | None) -> Example | Failure:
    """`check_row` on it; index None: asked blind."""
    if isinstance(row.item, Failure):
        return row.item
    try:
        return replace(check_row(row.item, row.root, index, with_subtitles=row.with_subtitles), source=row.source)
    except (RowError, PathError, VideoError) as error:
        return row.failure(error)


def check_row(row: Row, root: Path, index: DigestIndex | None, *, with_subtitles: bool = False) -> Example:
    """A row with its options and answer parsed and its media found inside `root`; index None: asked blind, none is looked for.

    Raises RowError (options, answer, media), PathError (a path that leaves the root) or VideoError (file missing or unreadable).
    """
    where = f"row with problem_id {row.problem_id}"
    if not row.problem.strip():
        raise RowError(f"{where}: empty problem", rule="every row asks something", remedy="fill in problem")
    options = parse_options(row.problem, where)
    answer, answer_kind = parse_answer(row.answer, options, where, row.problem)
    check_media(row, where)
    return Example(
        problem_id=row.problem_id,
        question=row.problem,
        options=options,
        answer=answer,
        answer_kind=answer_kind,
        category=row.problem_type,
        reasoning=row.reasoning,
        media=() if index is None else media_refs(row, root, index),
        subtitles=subtitle_text(resolve_inside(root, row.subtitles)) if with_subtitles and row.subtitles is not None else None,
        duration_s=row.duration_s,
    )


def check_media(row: Row, where: str) -> None:
    """Raises RowError when the media that a row names are not those of its data_type."""
    if row.data_type == "video" and not row.videos:
        raise RowError(f"{where}: data_type video and no path in videos", rule="a video row names its video", remedy="fill in videos")
    if row.data_type == "image" and (row.videos or not row.images):
        named = f"{len(row.videos)} videos and {len(row.images)} images"
        raise RowError(f"{where}: data_type image and {named}", rule="an image row names images alone", remedy="mend data_type or images")
    if row.data_type == "text" and (row.videos or row.images):
        named = (row.videos + row.images)[0][:80]
        raise RowError(
            f"{where}: data_type text and the path {named!r}", rule="a text row names no video and no image", remedy="mend data_type"
        )


def media_refs(row: Row, root: Path, index: DigestIndex) -> tuple[VideoRef, ...]:
    """Videos, then images, in the row's order. Raises PathError or VideoError."""
    return tuple(media_ref(index, path, kind) for path, kind in media_paths(row, root))


def media_paths(row: Row, root: Path) -> list[tuple[Path, MediaKind]]:
    """Where the files are that a row names, and as what it names each. Raises PathError."""
    videos: list[tuple[Path, MediaKind]] = [(resolve_inside(root, path), "video") for path in row.videos]
    return [*videos, *((resolve_inside(root, path), "image") for path in row.images)]


def media_ref(index: DigestIndex, path: Path, kind: MediaKind) -> VideoRef:
    """Raises VideoError."""
    return index.ref(path, kind)


def subtitle_text(path: Path) -> str:
    """The text of an SRT file, one cue per line, in order of time."""
    return "\n".join(" ".join(cue.text.split()) for cue in read_srt(path))


def check_failures(items: Iterable[object], max_failed_fraction: float) -> int:
    """How many of `items` are a Failure. Raises RowError with the counts by kind when they are more than the allowed share, or all."""
    everything = list(items)
    failures = [item for item in everything if isinstance(item, Failure)]
    if len(failures) <= max_failed_fraction * len(everything) and len(failures) < len(everything):
        return len(failures)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(failure.kind for failure in failures).most_common())
    shown = " | ".join(failure.message for failure in failures[:MAX_SHOWN_FAILURES])
    raise RowError(
        f"{len(failures)} of {len(everything)} rows cannot be used ({kinds}). First: {shown}",
        rule=f"at most {max_failed_fraction:.0%} fail (data.max_failed_fraction), and at least one is left",
        remedy="mend the rows, or allow a larger share",
    )
