"""`longtake encode`: decode and encode the videos of a run ahead of it, on as many machines as there are, over one shared folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from longtake.config.env import launch
from longtake.config.sections import DataConfig
from longtake.config.stages import EncodeConfig
from longtake.data.embedding_cache import EmbeddingCache, digest_index
from longtake.data.rows import check_failures, check_row, in_turn, media_paths, media_ref, read_sourced
from longtake.data.videos import VideoSource
from longtake.errors import ConfigError, LongtakeError, PathError, PromptTooLongError, RowError, VideoError
from longtake.models import load_model
from longtake.observe.progress import Progress, say
from longtake.observe.signals import StopFlag
from longtake.observe.timing import Phases
from longtake.types import Failure, MediaKind, VideoRef
from longtake.video.index import DigestIndex

Media = tuple[Path, MediaKind]
"""A file, and as what a row names it."""
MediaRow = list[Media] | Failure
"""The media of a row, or why no run can use it."""


def run(config: EncodeConfig) -> None:
    """Fill config.cache.folder with the tokens of every video of this shard, and the index of file digests beside it.

    What is there already is not done again, so a run that was stopped goes on where it was. A video that fails is said once and counted.
    Raises RowError when more rows fail than data.max_failed_fraction allows, as the run would, ConfigError when the folder is full.
    """
    started, phases = time.perf_counter(), Phases()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    shard, num_shards = place(config)
    label = "encode" if num_shards == 1 else f"encode {shard + 1}/{num_shards}"
    rows, validation = list(rows_of(config.data, None)), list(validation_rows(config))
    unreadable = [row for row in (*rows, *validation) if isinstance(row, Failure)]
    mine = media_of([*rows, *validation])[shard::num_shards]
    index = digest_index(config.cache, None, config.video.limits)
    with StopFlag() as stop:
        refs = digests(mine, index, label, stop)
        index.save()
        sources = make_sources(config, phases)
        failed = encode_all(sources, refs, label, stop)
    counts = Counter(type(error).__name__ for error in failed.values())
    say(
        f"{label}: {len(mine)} videos: {stored(sources)}; {sum(counts.values())} failed{listed(counts)}; "
        f"{len(unreadable)} rows cannot be read{listed(Counter(failure.kind for failure in unreadable))}; "
        f"{time.perf_counter() - started:.1f} s ({', '.join(f'{name} {seconds:.1f}' for name, seconds in phases.seconds.items())})"
    )
    if outcomes := row_outcomes(rows, mine, failed, shard, num_shards):
        check_failures(outcomes, config.data.max_failed_fraction)


def place(config: EncodeConfig) -> tuple[int, int]:
    """(shard of this process, number of shards): every process of a launch is a shard of its machine's. Takes the GPU of the process."""
    this = launch()
    if config.model.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(this.local_rank % torch.cuda.device_count())
    return config.shard * this.world_size + this.rank, config.num_shards * this.world_size


def media_of(rows: Sequence[MediaRow]) -> list[Media]:
    """Each video and image once, in the order in which a run first reads them."""
    return list(dict.fromkeys(media for row in rows if not isinstance(row, Failure) for media in row))


def row_outcomes(
    rows: Sequence[MediaRow], mine: Collection[Media], failed: Mapping[Media, LongtakeError], shard: int, num_shards: int
) -> list[MediaRow]:
    """The rows of this shard, a Failure where one, or any of its media, failed.

    A row is of each shard that has media of it, which judges by these; rows without media, and those that cannot be read, are dealt out.
    """
    own = set(mine)
    outcomes: list[MediaRow] = []
    for place, row in enumerate(rows):
        if isinstance(row, Failure) or not row:
            outcomes += [row] if place % num_shards == shard else []
        elif not own.isdisjoint(row):
            error = next((failed[media] for media in row if media in failed), None)
            outcomes.append(row if error is None else Failure(None, stage="video", kind=type(error).__name__, message=str(error)))
    return outcomes


def validation_rows(config: EncodeConfig) -> Iterator[MediaRow]:
    return iter(()) if config.validation is None else rows_of(config.validation.data, config.validation.num_rows)


def rows_of(config: DataConfig, num_rows: int | None) -> Iterator[MediaRow]:
    """The media of each usable row, without reading a byte of any. Raises RowError as reading rows does."""
    for row in in_turn(read_sourced(config))[:num_rows]:
        if isinstance(row.item, Failure):
            yield row.item
            continue
        try:
            check_row(row.item, row.root, None)
            yield media_paths(row.item, row.root) if config.with_video else []
        except (RowError, PathError) as error:
            yield row.failure(error)


def digests(mine: Sequence[Media], index: DigestIndex, label: str, stop: StopFlag) -> dict[Media, VideoRef | VideoError]:
    """The digest of every file; only what the index does not know is read."""
    refs: dict[Media, VideoRef | VideoError] = {}
    with Progress(f"{label}: digests", total=len(mine)) as progress:
        for path, kind in mine:
            try:
                refs[path, kind] = media_ref(index, path, kind)
            except VideoError as error:
                refs[path, kind] = error
            progress.advance()
            if stop.requested:
                index.save()
                stop.leave(f"{len(refs)} of {len(mine)} digests are kept in {index.path}; start again to go on")
    return refs


def make_sources(config: EncodeConfig, phases: Phases) -> list[VideoSource]:
    """One per number of frames, over one cache that keeps nothing in memory."""
    model = load_model(config.model)
    cache = EmbeddingCache(config.cache.model_copy(update={"memory_bytes": 0}))
    counts = sorted(set(config.frames) or {config.video.max_frames})
    return [VideoSource(model, config.video.model_copy(update={"max_frames": count}), phases, cache) for count in counts]


def encode_all(
    sources: list[VideoSource], refs: dict[Media, VideoRef | VideoError], label: str, stop: StopFlag
) -> dict[Media, LongtakeError]:
    """Encode what is not stored yet. Returns the videos and images that failed, each said once."""
    failed: dict[Media, LongtakeError] = {media: ref for media, ref in refs.items() if isinstance(ref, VideoError)}
    good = [ref for ref in refs.values() if isinstance(ref, VideoRef)]
    todo = [(source, ref) for ref in good for source in sources if not source.is_stored(ref)]
    for error in failed.values():
        say(f"{label}: {error}", style="yellow")
    total = len(good) * len(sources)
    with Progress(label, total=total, done=total - len(todo)) as progress:
        for done, (source, ref) in enumerate(todo):
            if stop.requested:
                stop.leave(f"{total - len(todo) + done} of {total} videos are encoded; start again to go on")
            if (ref.path, ref.kind) not in failed:
                encode_one(source, ref, failed, label)
            progress.advance(1, failed=len(failed))
    return failed


def encode_one(source: VideoSource, ref: VideoRef, failed: dict[Media, LongtakeError], label: str) -> None:
    try:
        source.tokens(ref)
    except (VideoError, PathError, PromptTooLongError) as error:
        failed[ref.path, ref.kind] = error
        say(f"{label}: {error}", style="yellow")
    metrics = source.cache.metrics()
    if metrics["cache/refused"]:
        raise ConfigError(
            f"the cache folder took {metrics['cache/misses'] - metrics['cache/refused']:.0f} videos and refused {ref.path.name}",
            rule="cache.disk_bytes bounds the embeddings in it, and the disk must have room",
            remedy="raise cache.disk_bytes, make room, or choose fewer frames or pixels; what is there stays and is used",
        )


def stored(sources: list[VideoSource]) -> str:
    encoded = sum(source.metrics()["video/encoded"] for source in sources)
    return f"{encoded:.0f} encoded at {len(sources)} numbers of frames" if len(sources) > 1 else f"{encoded:.0f} encoded"


def listed(counts: Counter[str]) -> str:
    """` (VideoDamagedError 2)`, nothing for nothing."""
    return f" ({', '.join(f'{kind} {count}' for kind, count in counts.most_common())})" if counts else ""
