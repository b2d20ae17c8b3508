"""The stage on real files: a small world, a random model, one damaged video."""

import json
from pathlib import Path

import pytest

from longtake.config.sections import DataConfig, ModelConfig, RolloutConfig, VideoConfig
from longtake.config.stages import EvaluateConfig, WorldConfig
from longtake.errors import ConfigError
from longtake.evaluation.records import read_records
from longtake.evaluation.summary import summarise
from longtake.stages import evaluate
from longtake.world.write import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three videos with four questions each; the second file is cut in half."""
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(out=folder, num_videos=3, seconds=(20.0, 24.0), size=56, seed=3))
    video = sorted((folder / "videos").glob("*.mp4"))[1]
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    return folder


def config(world, model, out, **changes):
    settings = {
        "out": out,
        "model": ModelConfig(path=str(Path(model.hf.name_or_path)), device="cpu"),
        "video": VideoConfig(max_frames=8, max_pixels_per_frame=56 * 56),
        "data": DataConfig(rows=world / "rows.jsonl"),
        "rollout": RolloutConfig(num_takes=1, temperature=0.0, max_new_tokens=4, max_rows=5),
    }
    return EvaluateConfig(**settings | changes)


def test_all_rows_at_every_number_of_frames_with_the_damaged_video_counted(world, model, tmp_path, capsys):
    summary = evaluate.run(config(world, model, tmp_path / "out", frames=(8, 4)))
    records = read_records(tmp_path / "out" / "answers.jsonl")
    rows = [json.loads(line) for line in (world / "rows.jsonl").read_text().splitlines()]
    for frames in (4, 8):
        own = [record for record in records if record.frames == frames]
        assert [record.problem_id for record in own] == [row["problem_id"] for row in rows]
        assert [record.failure is not None for record in own] == [4 <= index < 8 for index in range(12)]
    assert summary["n"] == 12 and summary["num_failures"] == 4 and sum(summary["failures"].values()) == 4
    assert list(summary["by_frames"]) == ["4", "8"] and summary["frames"] == 8 and summary["num_videos"] >= 2
    assert summary == summarise(records)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["summary"] == summary and results["config"]["frames"] == [8, 4] and results["versions"]["longtake"]
    assert results["seconds"]["decode"] > 0 and results["seconds"]["encode"] > 0 and results["seconds"]["answer"] > 0
    shown = capsys.readouterr().out
    assert "12 rows at 8 frames" in shown and "failures (counted as wrong)" in shown


def test_letters_scoring_answers_every_usable_row_and_blind_needs_no_video(world, model, tmp_path):
    seen = evaluate.run(config(world, model, tmp_path / "seen", scoring="letters"))
    assert seen["format_rate"] is None and seen["num_failures"] == 4 and seen["num_unread"] == 4
    assert sum(part["predicted"] for part in seen["by_letter"].values()) == 8
    unseen = DataConfig(rows=world / "rows.jsonl", with_video=False)
    blind = evaluate.run(config(world, model, tmp_path / "blind", scoring="letters", data=unseen, frames=(4, 8)))
    assert blind["num_failures"] == 0 and list(blind["by_frames"]) == ["0"] and blind["chance"] == 0.25


def test_more_than_one_take_per_row_is_refused(world, model, tmp_path):
    with pytest.raises(ConfigError, match="num_takes = 8"):
        evaluate.run(config(world, model, tmp_path, rollout=RolloutConfig(num_takes=8)))
