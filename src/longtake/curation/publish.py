"""The data set: rows of each split in the published format, their videos, the card, and what was left out on the way.

OUT/dataset/sft.jsonl sft.parquet rl.jsonl ... videos/... README.md card.json prompts/ drops.jsonl

Rows files and videos are in one folder, so that training needs to be told of the rows file alone. Everything is made in a folder beside
and takes the place of an earlier one as a whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from longtake.curation.card import FIGURES, PROMPTS, README, CardFacts, card_figures, write_card
from longtake.curation.outputs import write_lines
from longtake.curation.published import published_example, published_row
from longtake.curation.records import PlacedRow, SourceVideo, to_json
from longtake.curation.split import SPLITS
from longtake.errors import CurationError, PathError, RowError, VideoError
from longtake.video.index import DigestIndex
from longtake.video.paths import resolve_inside

FOLDER, VIDEOS, DROPS = "dataset", "videos", "drops.jsonl"
"""The data set in a run's folder; in it, the videos and what was left out."""
SCHEMA = pa.schema(
    [
        ("problem_id", pa.int64()),
        *((name, pa.string()) for name in ("problem", "data_type", "problem_type", "reasoning", "videos", "answer")),
        ("duration_s", pa.float64()),
        ("key", pa.string()),
        ("pass_rate", pa.float64()),
        ("num_takes", pa.int64()),
        ("ranges", pa.list_(pa.struct([("start", pa.float64()), ("stop", pa.float64())]))),
        *((name, pa.string()) for name in ("licence", "source", "video_digest", "split")),
    ]
)
"""Of the Parquet files, whose columns are those of the JSON lines; stated, since a column of nothing but nulls has no type of its own."""
MAX_PROBLEMS = 20
"""That are told one by one."""


def publish(
    rows: Sequence[PlacedRow], videos: Sequence[SourceVideo], root: Path, out: Path, facts: CardFacts, *, index: DigestIndex | None = None
) -> dict[str, Any]:
    """Write out/dataset in the place of what is there; returns the figures of its card.

    `videos`: at least those of the rows, found below `root`. `index`: of digests, to make sure that the videos are still what they were;
    None: not looked at. facts.config.publish says what is done with the videos.
    Raises CurationError when there is no row, a row cannot be read back, a video is not there or cannot be linked, or out/dataset is
    something else than a data set.
    """
    if not rows:
        raise CurationError(
            "no row is left to publish", rule="a data set has rows", remedy=f"see what was left out and why: longtake curate view {out}"
        )
    _refuse_unreadable(rows)
    used = _videos_of(rows, videos)
    target, partial = out / FOLDER, out / f".{FOLDER}.partial"
    _refuse_foreign(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mode = facts.config.publish.videos
    for relative, path in _found(list(used.values()), root, index).items():
        if mode != "none":
            _put_video(path, partial / VIDEOS / relative, mode)
    records = _records(rows, used, "" if mode == "none" else f"{VIDEOS}/")
    for split in SPLITS:
        own = [record for record in records if record["split"] == split]
        if own:
            write_lines(partial / f"{split}.jsonl", own)
            pq.write_table(pa.Table.from_pylist(own, schema=SCHEMA), partial / f"{split}.parquet")
    here = f"{facts.config.videos.resolve()}/"
    write_lines(partial / DROPS, (to_json(replace(drop, message=drop.message.replace(here, ""))) for drop in facts.drops))
    figures = card_figures(rows, list(used.values()), facts)
    write_card(partial, figures, facts.prompts)
    _replace(target, partial)
    return figures


def _refuse_unreadable(rows: Sequence[PlacedRow]) -> None:
    problems: list[str] = []
    for one in rows:
        try:
            published_example(one.row.draft)
        except RowError as error:
            problems.append(error.given)
    if len({one.row.draft.key for one in rows}) < len(rows):
        problems.append("two rows have the same key")
    if problems:
        raise CurationError(
            f"{len(problems)} rows that training would refuse: {_shown(problems)}",
            rule="what is published is read back as it was meant",
            remedy="run the stages from difficulty on again, which drops such rows",
        )


def _shown(problems: Sequence[str]) -> str:
    return "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else "")


def _videos_of(rows: Sequence[PlacedRow], videos: Sequence[SourceVideo]) -> dict[str, SourceVideo]:
    """By digest, in the order of paths."""
    of_digest = {video.digest: video for video in videos}
    wanted = {one.row.draft.digest for one in rows}
    missing = sorted(wanted - of_digest.keys())
    if missing:
        raise CurationError(
            f"{len(missing)} videos of rows that ingest did not take, such as {missing[0]}",
            rule="rows are about videos that were taken",
            remedy="run all stages again in one folder (longtake curate run)",
        )
    used = {video.digest: video for video in sorted(of_digest.values(), key=lambda video: video.video) if video.digest in wanted}
    unwritable = [video.video for video in used.values() if any("\ud800" <= char <= "\udfff" for char in video.licence + video.source)]
    if unwritable:
        raise CurationError(
            f"licence or source of {len(unwritable)} videos, such as {unwritable[0]}, holds half of a surrogate pair",
            rule="texts can be written as UTF-8",
            remedy="correct ingest.sources and run all stages again: what was paid is kept",
        )
    return used


def _found(videos: Sequence[SourceVideo], root: Path, index: DigestIndex | None) -> dict[str, Path]:
    """Where each video is, by its path below `root`. Raises CurationError that names every one that is not there or has changed."""
    paths: dict[str, Path] = {}
    problems: list[str] = []
    for video in videos:
        try:
            path = paths[video.video] = resolve_inside(root, video.video)
            if not path.is_file():
                problems.append(f"{video.video} is not there")
            elif index is not None and index.ref(path).digest != video.digest:
                problems.append(f"{video.video} holds other bytes than were taken")
        except (PathError, VideoError) as error:
            problems.append(error.given)
    if problems:
        raise CurationError(
            f"{len(problems)} videos: {_shown(problems)}",
            rule="a data set holds the videos that its rows are about",
            remedy="put them back, or start the run again, which leaves them out",
        )
    return paths


def _put_video(path: Path, target: Path, mode: Literal["link", "copy"]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if mode == "link":
            os.link(path, target)
        else:
            shutil.copyfile(path, target)
    except OSError as error:
        remedy = "free some disk space or correct the permissions"
        if mode == "link":
            remedy = "set publish.videos = copy (or none), or let out be on the file system of the videos"
        raise CurationError(
            f"{path} cannot be {'linked' if mode == 'link' else 'copied'} to {target}: {error.strerror or error}",
            rule="a hard link is a second name on the same file system" if mode == "link" else "a copy needs its room",
            remedy=remedy,
        ) from error


def _records(rows: Sequence[PlacedRow], videos: Mapping[str, SourceVideo], folder: str) -> list[dict[str, Any]]:
    """In the order of `rows`. A row's number is its place in the order of all keys."""
    numbers = {key: number for number, key in enumerate(sorted(one.row.draft.key for one in rows))}
    return [_record(one, numbers[one.row.draft.key], videos[one.row.draft.digest], folder) for one in rows]


def _record(one: PlacedRow, number: int, video: SourceVideo, folder: str) -> dict[str, Any]:
    draft = one.row.draft
    row = vars(published_row(draft, number, folder=folder, duration_s=video.duration_s))
    return {name: row[name] for name in SCHEMA.names if name in row} | {
        "videos": f"{folder}{video.video}",
        "key": draft.key,
        "pass_rate": one.row.pass_rate,
        "num_takes": one.row.num_takes,
        "ranges": [{"start": own.start_s, "stop": own.stop_s} for own in draft.ranges],
        "licence": video.licence,
        "source": video.source,
        "video_digest": draft.digest,
        "split": one.split,
    }


def _refuse_foreign(target: Path) -> None:
    """What stands in the data set's place and is none is not removed."""
    if target.is_symlink() or (target.exists() and not (target / FIGURES).is_file()):
        raise CurationError(
            f"{target} is there and is no data set of an earlier run ({FIGURES} is missing)",
            rule="publishing replaces the whole folder",
            remedy="move it away",
        )
    if strangers := _strangers(target):
        raise CurationError(
            f"{target} holds {len(strangers)} files that no earlier run wrote, such as {strangers[0]}",
            rule="publishing replaces the whole folder",
            remedy="move them away",
        )


def _strangers(target: Path) -> list[str]:
    """Files of a data set, by their path in it, that its own publishing did not put there."""
    ours = {README, FIGURES, DROPS, *(f"{split}.{kind}" for split in SPLITS for kind in ("jsonl", "parquet"))}
    for path in (target / f"{split}.jsonl" for split in SPLITS):
        if path.is_file():
            ours |= {json.loads(line)["videos"] for line in path.open(encoding="utf-8")}
    files = (path.relative_to(target).as_posix() for path in sorted(target.rglob("*")) if not path.is_dir() or path.is_symlink())
    return [name for name in files if name not in ours and not (name.startswith(f"{PROMPTS}/") and name.endswith(".txt"))]


def _replace(target: Path, partial: Path) -> None:
    """A kill between the two renames leaves no data set, and the next run makes it again."""
    old = target.with_name(f".{FOLDER}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
