"""Which videos are taken: found, opened, measured, and told apart from each other and from what must not be trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from longtake.config.curate import IngestConfig
from longtake.curation.hashes import HOW, first_same, first_same_before, hashes_of, looks_of
from longtake.curation.records import Drop, Outcome, SourceVideo
from longtake.errors import CurationError, PathError, VideoError
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.types import VideoRef
from longtake.video.index import DigestIndex
from longtake.video.paths import open_regular, resolve_inside

MAX_PROBLEMS = 20
"""Bad lines of `sources` that are told one by one."""


@dataclass(frozen=True)
class Origin:
    """Where a video is from, and what may be done with it."""

    licence: str
    source: str


@dataclass(frozen=True)
class _Facts:
    """What inspecting a file costs time to find out."""

    duration_s: float
    width: int
    height: int
    num_frames: int
    hashes: tuple[str, ...]


def list_files(root: Path, config: IngestConfig, skip: Sequence[Path] = ()) -> tuple[tuple[str, ...], int]:
    """(paths relative to `root` of all files with a suffix of `config.suffixes`, sorted; number of others, which are ignored).

    Links to folders are not followed, and count as ignored; `skip` names folders that are not entered, such as the run's own. What
    cannot be opened safely (a link that leads out, a FIFO) is listed: `inspect` refuses it with its reason. Raises CurationError when
    `root` cannot be read.
    """
    if not root.is_dir():
        raise CurationError(f"{root} is not a folder", rule="videos are in a folder", remedy="correct the path")
    suffixes = tuple(suffix.lower() for suffix in config.suffixes)
    left_out = {path.resolve() for path in skip}
    found: list[str] = []
    ignored = 0
    for folder, folders, files in os.walk(root, onerror=_raise_unreadable):
        here = Path(folder)
        ignored += sum((here / name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if (here / name).resolve() not in left_out]
        names = [name for name in files if name.lower().endswith(suffixes)]
        ignored += len(files) - len(names)
        found += [(here / name).relative_to(root).as_posix() for name in names]
    return tuple(sorted(found)), ignored


def _raise_unreadable(error: OSError) -> None:
    raise CurationError(
        f"{error.filename}: {error.strerror}", rule="every folder of videos can be read", remedy="correct its permissions"
    ) from error


def read_origins(config: IngestConfig) -> dict[str, Origin]:
    """Video -> what `config.sources` says of it; for a field that a line leaves out, `config` speaks.

    Raises CurationError with all bad lines, PathError when the file cannot be read.
    """
    if config.sources is None:
        return {}
    with open_regular(config.sources) as (file, _):
        lines = file.read().decode("utf-8", "replace").split("\n")
    origins: dict[str, Origin] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            video, origin, problem = _origin(line, Origin(config.licence, config.source))
            if not problem and video in origins:
                problem = f"{video} is named a second time"
            if problem:
                problems.append(f"line {number}: {problem}")
            else:
                origins[video] = origin
    if problems:
        shown = problems[:MAX_PROBLEMS] + [f"and {len(problems) - MAX_PROBLEMS} more"] * (len(problems) > MAX_PROBLEMS)
        raise CurationError(
            f"{config.sources}: {'; '.join(shown)}",
            rule='every line is {"video": path, "licence": text, "source": text}, and no video is named twice',
            remedy="correct these lines",
        )
    return origins


def _origin(line: str, default: Origin) -> tuple[str, Origin, str]:
    """(video, origin, what is wrong with the line or "")."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "", default, "no JSON"
    if not isinstance(value, dict) or not isinstance(value.get("video"), str):
        return "", default, "no object with a video"
    unknown = sorted(set(value) - {"video", "licence", "source"})
    if unknown:
        return "", default, f"unknown field {', '.join(unknown)}"
    if not all(isinstance(text, str) for text in value.values()):
        return "", default, "licence and source are texts"
    return value["video"], Origin(value.get("licence", default.licence), value.get("source", default.source)), ""


def inspect(
    root: Path,
    relative: str,
    config: IngestConfig,
    index: DigestIndex,
    store: KeyedLines,
    origins: Mapping[str, Origin] | None = None,
) -> SourceVideo | Drop:
    """Open a file, check and measure it; what was measured is kept in `store` by the file's digest and the settings.

    Dropped with the error's class as the reason, or as `too_short`. A file that failed is looked at again next time.
    """
    try:
        ref = index.ref(resolve_inside(root, relative))
        facts = _facts(ref, config, store)
    except (PathError, VideoError) as error:
        return Drop("ingest", type(error).__name__, str(error), video=relative)
    if facts.duration_s < config.min_seconds:
        told = f"{facts.duration_s:.1f} s, and ingest.min_seconds is {config.min_seconds:g}"
        return Drop("ingest", "too_short", told, video=relative)
    origin = (origins or {}).get(relative, Origin(config.licence, config.source))
    return SourceVideo(video=relative, digest=ref.digest, **asdict(facts), **asdict(origin))


def _facts(ref: VideoRef, config: IngestConfig, store: KeyedLines) -> _Facts:
    key = digest_of("ingest 1", HOW, ref.digest, config.hash_frames, config.limits.model_dump_json())
    known = store.get(key)
    if known is None:
        info, hashes = hashes_of(ref.path, config.limits, config.hash_frames)
        known = asdict(_Facts(info.duration_s, info.width, info.height, info.num_frames, hashes))
        store.put(key, known)
    return _Facts(**{**known, "hashes": tuple(known["hashes"])})


def inspect_held_out(config: IngestConfig, index: DigestIndex, store: KeyedLines) -> Outcome[SourceVideo]:
    """The videos of all folders in `config.held_out`, however short; each is named `folder/path`. What cannot be read is among the
    dropped: nothing can be compared with it. Raises CurationError."""
    anyhow = config.model_copy(update={"min_seconds": 0.0})
    kept: list[SourceVideo] = []
    dropped: list[Drop] = []
    for folder in config.held_out:
        for relative in list_files(folder, config)[0]:
            found = inspect(folder, relative, anyhow, index, store, {relative: Origin("held out", "held out")})
            name = f"{folder}/{relative}"
            if isinstance(found, Drop):
                dropped.append(Drop("ingest", "held_out_unreadable", found.message, video=name))
            else:
                kept.append(replace(found, video=name))
    return Outcome(tuple(kept), tuple(dropped))


def deduplicate(videos: Sequence[SourceVideo], held_out: Sequence[SourceVideo], max_distance: float) -> Outcome[SourceVideo]:
    """Each video once, the first by path, in the order of the paths; none that is also held out.

    Dropped as `in_held_out`, `duplicate_bytes` or `duplicate_content`, with the name of the other; longtake.curation.hashes says when
    two are the same in content.
    """
    ordered = sorted(videos, key=lambda video: video.video)
    dropped = _drops(ordered, _held_out(ordered, held_out, max_distance), held_out, "in_held_out")
    free = [video for video in ordered if video.video not in dropped]
    by_bytes: dict[str, int] = {}
    for number, video in enumerate(free):
        by_bytes.setdefault(video.digest, number)
    firsts = [by_bytes[video.digest] for video in free]
    dropped |= _drops(free, [first if first != number else -1 for number, first in enumerate(firsts)], free, "duplicate_bytes")
    unequal = [video for video in free if video.video not in dropped]
    dropped |= _drops(unequal, first_same_before(looks_of(unequal), max_distance).tolist(), unequal, "duplicate_content")
    kept = tuple(video for video in ordered if video.video not in dropped)
    return Outcome(kept, tuple(dropped[video.video] for video in ordered if video.video in dropped))


def _held_out(videos: Sequence[SourceVideo], held_out: Sequence[SourceVideo], max_distance: float) -> list[int]:
    """For each video which held-out one it is, -1 for none."""
    by_bytes = {video.digest: number for number, video in enumerate(held_out)}
    by_looks = first_same(looks_of(videos), looks_of(held_out), max_distance).tolist()
    return [by_bytes.get(video.digest, looks) for video, looks in zip(videos, by_looks, strict=True)]


def _drops(videos: Sequence[SourceVideo], same: Sequence[int], others: Sequence[SourceVideo], reason: str) -> dict[str, Drop]:
    """Path -> drop, of the videos that are the same as one of `others`."""
    return {
        video.video: Drop("ingest", reason, f"the same as {others[number].video}", video=video.video)
        for video, number in zip(videos, same, strict=True)
        if number >= 0
    }
