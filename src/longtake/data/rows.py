"""From rows to checked examples: videos resolved inside the root, options and answer parsed, every failure kept in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from longtake.config.sections import DataConfig
from longtake.data.asked import parse_answer, parse_options
from longtake.data.row_files import write_rows
from longtake.data.row_formats import read_rows
from longtake.errors import PathError, RowError, VideoError
from longtake.types import Example, Failure, MediaKind, Row, VideoRef
from longtake.video.index import DigestIndex
from longtake.video.paths import resolve_inside
from longtake.video.subtitles import read_srt

__all__ = ["check_failures", "check_row", "parse_options", "read_examples", "read_rows", "write_rows"]

MAX_SHOWN_FAILURES = 5


def read_examples(config: DataConfig, index: DigestIndex | None = None) -> list[Example | Failure]:
    """The examples of a rows file in row order, a Failure standing wherever one cannot be used.

    First the categories are chosen, then the first `max_rows` of them. A failed row whose category cannot be read counts as every
    category: it is never what makes a set look whole. `index` keeps the digests of videos (None: for this call only).
    Raises RowError when the file as a whole cannot be used.
    """
    root = config.rows.parent if config.root is None else config.root
    items = [item for item in read_rows(config.rows, config.format) if chosen(item, config.categories)][: config.max_rows]
    if not items:
        given = f"{config.rows} has no row of category {', '.join(config.categories)}"
        raise RowError(given, rule="at least one row is left", remedy="change data.categories")
    videos = (DigestIndex(None) if index is None else index) if config.with_video else None
    return [item if isinstance(item, Failure) else example_or_failure(item, root, videos, config.with_subtitles) for item in items]


def chosen(item: Row | Failure, categories: Sequence[str]) -> bool:
    category = item.category if isinstance(item, Failure) else item.problem_type
    return not categories or category in categories or (isinstance(item, Failure) and category == "unknown")


def example_or_failure(row: Row, root: Path, index: DigestIndex | None, with_subtitles: bool) -> Example | Failure:
    try:
        return check_row(row, root, index, with_subtitles=with_subtitles)
    except (RowError, PathError, VideoError) as error:
        stage = "video" if isinstance(error, VideoError) else "rows"
        return Failure(row.problem_id, stage=stage, kind=type(error).__name__, message=str(error), category=row.problem_type)


def check_row(row: Row, root: Path, index: DigestIndex | None, *, with_subtitles: bool = False) -> Example:
    """A row with its options and answer parsed and its media found inside `root`; index None: asked blind, none is looked for.

    Raises RowError (options, answer, media), PathError (a path that leaves the root) or VideoError (file missing or unreadable).
    """
    where = f"row with problem_id {row.problem_id}"
    if not row.problem.strip():
        raise RowError(f"{where}: empty problem", rule="every row asks something", remedy="fill in problem")
    options = parse_options(row.problem, where)
    answer, answer_kind = parse_answer(row.answer, options, where)
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
        subtitles=subtitle_text(resolve_inside(root, row.subtitles)) if with_subtitles and row.subtitles else None,
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
    ref = index.ref(path)
    return ref if ref.kind == kind else replace(ref, kind=kind)


def subtitle_text(path: Path) -> str:
    """The lines of an SRT file, one cue per line, in order of time."""
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
