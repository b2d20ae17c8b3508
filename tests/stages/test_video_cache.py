"""The tower runs once per video and run, and not at all where a run before filled the folder; the results are the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig
from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.stages import evaluate
from longtake.stages import rl as rl_stage
from longtake.stages import sft as sft_stage
from longtake.testing.training import NUM_VIDEOS, assert_same_run, metrics_of
from longtake.video.decode import load_frames

GROUPS_PER_VIDEO = 2
"""Four frames in pairs."""
ALL = NUM_VIDEOS * GROUPS_PER_VIDEO


class Work:
    """Temporal groups encoded and videos decoded since the last look."""

    def __init__(self) -> None:
        self.groups = self.videos = 0

    def take(self) -> tuple[int, int]:
        taken = self.groups, self.videos
        self.groups = self.videos = 0
        return taken


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counted, encode_chunk = Work(), Qwen2_5VL.encode_chunk

    def counting_encode(self, pixels, gradients=False):
        counted.groups += len(pixels) // 2
        return encode_chunk(self, pixels, gradients)

    def counting_load(*args, **kwargs):
        counted.videos += 1
        return load_frames(*args, **kwargs)

    monkeypatch.setattr(Qwen2_5VL, "encode_chunk", counting_encode)
    monkeypatch.setattr("longtake.data.videos.load_frames", counting_load)
    return counted


def with_validation(rows: Path, every: int = 1) -> dict:
    return {"validation": {"data": {"rows": rows}, "num_rows": 12, "every": every, "max_new_tokens": 2}}


def test_rl_encodes_every_video_once_per_run(rl: Callable[..., RlConfig], rows: Path, work: Work) -> None:
    """Six steps of six prompts are three passes over the twelve rows, validated four times on all of them."""
    config = rl(steps=6, prompts_per_step=6, **with_validation(rows, every=2))
    rl_stage.run(config)
    assert work.take() == (ALL, NUM_VIDEOS)
    last = metrics_of(config.out)[-1]
    assert (last["encode/groups"], last["cache/misses"], last["cache/refused"]) == (ALL, NUM_VIDEOS, 0)
    assert last["cache/hits"] == 4 * 12 + 6 * 6 - NUM_VIDEOS


def test_without_room_every_use_is_encoded_anew_with_the_same_result(rl: Callable[..., RlConfig], work: Work) -> None:
    """The negative control of counting, and of the cache's having any say in the result."""
    rl_stage.run(rl("cached", steps=4))
    assert work.take()[0] <= ALL
    rl_stage.run(rl("uncached", steps=4, cache={"memory_bytes": 0}))
    assert work.take() == (4 * 3 * GROUPS_PER_VIDEO, 4 * 3)
    assert metrics_of(rl("uncached").out)[-1]["cache/refused"] == 12
    assert_same_run(rl("cached").out, rl("uncached").out)


def test_the_next_runs_take_everything_from_the_folder(
    rl: Callable[..., RlConfig], sft: Callable[..., SftConfig], rows: Path, base: Path, tmp_path: Path, work: Work
) -> None:
    cache = {"folder": tmp_path / "cache"}
    rl_stage.run(rl("first", cache=cache, **with_validation(rows)))
    assert work.take() == (ALL, NUM_VIDEOS)
    rl_stage.run(rl("second", cache=cache, **with_validation(rows)))
    rl_stage.run(rl("resumed", steps=1, cache=cache, **with_validation(rows)))
    rl_stage.run(rl("resumed", steps=2, cache=cache, **with_validation(rows)))
    sft_stage.run(sft(cache=cache))
    evaluate.run(evaluation(rows, base, tmp_path / "evaluation", cache))
    assert work.take() == (0, 0)
    rl_stage.run(rl("alone", **with_validation(rows)))
    for name in ("second", "resumed", "alone"):
        assert_same_run(rl("first").out, rl(name).out)
    assert metrics_of(rl("second").out)[-1]["cache/memory_bytes"] == 0


def test_evaluation_encodes_once_per_video_and_number_of_frames(rows: Path, base: Path, tmp_path: Path, work: Work) -> None:
    config = evaluation(rows, base, tmp_path / "evaluation", {"folder": tmp_path / "cache"}).model_copy(update={"frames": (2, 4)})
    evaluate.run(config)
    assert work.take() == (ALL // 2 + ALL, 2 * NUM_VIDEOS)
    evaluate.run(config)
    assert work.take() == (0, 0)
    assert (tmp_path / "cache" / "digests.json").exists()


def evaluation(rows: Path, base: Path, out: Path, cache: dict) -> EvaluateConfig:
    return EvaluateConfig.model_validate(
        {
            "out": out,
            "model": {"path": str(base), "device": "cpu"},
            "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
            "prompt": {"instruction": ""},
            "data": {"rows": rows},
            "rollout": {"num_takes": 1, "temperature": 0.0, "max_new_tokens": 2},
            "cache": cache,
        }
    )
