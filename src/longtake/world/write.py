"""Write a world to disk: H.264 videos, SRT files, rows in the published format, and the event log they come from.

out/videos/000000.mp4 .srt     out/rows.jsonl     out/events.jsonl     out/world.json (the configuration; written last)
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from longtake.config.stages import WorldConfig
from longtake.errors import ConfigError
from longtake.observe.progress import Progress
from longtake.types import Row
from longtake.video.encode import VideoWriter
from longtake.video.subtitles import Cue, write_srt
from longtake.world.questions import make_rows
from longtake.world.render import render_frame
from longtake.world.story import Story, make_story

MAX_VIDEOS_PER_SEED = 1_000_000
"""Stories of neighbouring seeds must not overlap: a held-out set is made with another seed."""


@dataclass(frozen=True)
class WorldSummary:
    """What was written."""

    num_videos: int
    num_rows: int
    seconds_of_video: float
    reused: bool


def write_world(config: WorldConfig) -> WorldSummary:
    """Write the world of `config` under config.out, or reuse it when the same one is already there.

    Raises ConfigError when the folder holds another world.
    """
    if is_written(config):
        return WorldSummary(config.num_videos, len((config.out / "rows.jsonl").read_text(encoding="utf-8").splitlines()), 0.0, reused=True)
    (config.out / "videos").mkdir(parents=True, exist_ok=True)
    stories = [story_of(config, index) for index in range(config.num_videos)]
    with Progress(f"world {config.out.name}", config.num_videos) as progress:
        for _ in write_videos(config):
            progress.advance()
    rows = [row for index, story in enumerate(stories) for row in rows_of(config, index, story)]
    write_lines(config.out / "rows.jsonl", (row.as_published() for row in rows))
    write_lines(config.out / "events.jsonl", ({"video": video_name(index), **asdict(story)} for index, story in enumerate(stories)))
    (config.out / "world.json").write_text(identity(config))
    return WorldSummary(config.num_videos, len(rows), sum(story.duration_s for story in stories), reused=False)


def is_written(config: WorldConfig) -> bool:
    """True when config.out already holds exactly this world."""
    marker = config.out / "world.json"
    if not marker.exists():
        return False
    if marker.read_text() != identity(config):
        raise ConfigError(
            f"{config.out} holds a world made with other settings",
            rule="a folder holds one world",
            remedy=f"choose another folder or remove {config.out}",
        )
    return True


def identity(config: WorldConfig) -> str:
    """What decides the content: everything but where it is written and by how many processes."""
    return config.model_dump_json(indent=2, exclude={"out", "workers"}) + "\n"


def story_of(config: WorldConfig, index: int) -> Story:
    seed = config.seed * MAX_VIDEOS_PER_SEED + index
    return make_story(seed, seconds=config.seconds, num_scenes=config.num_scenes, event_share=config.event_share)


def rows_of(config: WorldConfig, index: int, story: Story) -> list[Row]:
    name = video_name(index)
    return make_rows(
        story,
        first_id=index * config.questions_per_video,
        video=name,
        subtitles=name.replace(".mp4", ".srt"),
        count=config.questions_per_video,
        open_ended=config.open_ended,
        brief=config.brief,
    )


def video_name(index: int) -> str:
    return f"videos/{index:06d}.mp4"


def write_videos(config: WorldConfig) -> Iterator[int]:
    """Write all videos, yielding the index of each finished one; several processes when there are several cores."""
    workers = min(config.workers or os.cpu_count() or 1, config.num_videos)
    if workers == 1:
        for index in range(config.num_videos):
            yield write_video(config, index)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write_video, [config] * config.num_videos, range(config.num_videos), chunksize=8)


def write_video(config: WorldConfig, index: int) -> int:
    """One MP4 and its SRT."""
    story = story_of(config, index)
    path = config.out / video_name(index)
    width = round(config.size * config.aspect / 2) * 2
    with VideoWriter(path, width, config.size, fps=config.fps, gop=config.gop) as writer:
        for time_s in frame_times(config, story):
            writer.write(render_frame(story, float(time_s), config.size, width), float(time_s))
    write_srt(path.with_suffix(".srt"), cues_of(story))
    return index


def frame_times(config: WorldConfig, story: Story) -> np.ndarray:
    """Presentation times, float64 [F], starting at 0; with variable_rate a third of the frames is left out at random."""
    times = np.arange(max(1, int(story.duration_s * config.fps))) / config.fps
    if not config.variable_rate:
        return times
    kept = np.random.default_rng([story.seed, 2]).random(len(times)) > 1 / 3
    kept[0] = True
    return times[kept]


def cues_of(story: Story) -> list[Cue]:
    """What is said: talk that gives nothing away."""
    return [
        Cue(scene.event_start_s, scene.event_stop_s, f"{scene.event.actor}: {scene.said}")
        for scene in story.scenes
        if scene.said is not None
    ]


def write_lines(path: Path, records: Iterator[dict[str, object]]) -> None:
    """JSON lines, written beside the target and renamed."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(partial, path)
