"""A small world with its questions as drafts, and a small model that was trained on them for some seconds: it answers, now right, now
wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longtake.config.curate import DifficultyConfig
from longtake.config.stages import ExportConfig
from longtake.curation.records import Draft, SourceVideo, TimeRange, named
from longtake.stages import export, sft
from longtake.testing import training
from longtake.testing.curated_run import World, make_world
from longtake.video.index import DigestIndex

NUM_VIDEOS = 4
SEES = {"max_frames": 4, "max_pixels_per_frame": 28 * 28}
STEPS = 60
"""Of training; measured: 3 s on one core."""


def small_world(folder: Path) -> World:
    """Four videos of ten to twelve seconds, eight questions about each, two of them open-ended."""
    return make_world(folder, NUM_VIDEOS, seconds=(10, 12), size=56, num_scenes=(5, 5), brief=1.0, open_ended=0.25)


def answering_model(folder: Path, world: World) -> Path:
    """A checkpoint directory."""
    base = training.small_model(folder / "base")
    settings = {"max_steps": STEPS, "batch_size": 8, "micro_batch_size": 8, "optimizer": {"lr": 5e-3}, "video": SEES}
    sft.run(training.sft_config(world.folder / "rows.jsonl", base, folder / "sft", **settings))
    export.run(ExportConfig(run=folder / "sft", out=folder / "model"))
    return folder / "model"


def policy_config(model: Path, **changes: Any) -> DifficultyConfig:
    """Asked as it was trained; six takes, 24 at a time. `changes` are laid over section by section."""
    base = {
        "model": {"path": str(model), "device": "cpu"},
        "video": SEES,
        "prompt": {"instruction": ""},
        "rollout": {"num_takes": 6, "temperature": 0.8, "max_new_tokens": 48, "max_rows": 24},
    }
    return DifficultyConfig.model_validate(training.merged(base, changes))


def drafts_of(world: World) -> tuple[Draft, ...]:
    """The world's own questions, with the digests of its files."""
    index = DigestIndex()
    return tuple(_draft(row, index.ref(world.folder / row["videos"]).digest) for row in world.rows)


def sources_of(world: World) -> tuple[SourceVideo, ...]:
    """Its videos as ingest describes them."""
    index = DigestIndex()
    return tuple(
        SourceVideo(
            video=story["video"],
            digest=index.ref(world.folder / story["video"]).digest,
            duration_s=story["duration_s"],
            width=56,
            height=56,
            num_frames=20,
            hashes=("0" * 16,),
            licence="CC BY 4.0",
            source="made by longtake world",
        )
        for story in world.stories
    )


def _draft(row: dict[str, Any], digest: str) -> Draft:
    asked, *options = row["problem"].split("\n")
    texts = tuple(option[3:] for option in options)
    answer = row["answer"].removeprefix("<answer>").removesuffix("</answer>")
    return named(
        Draft(
            video=row["videos"],
            digest=digest,
            category=row["problem_type"],
            question=asked,
            options=texts,
            answer=texts["ABCD".index(answer)] if texts else answer,
            reasoning=row["reasoning"],
            ranges=(TimeRange(1.0, 3.5),),
        )
    )
