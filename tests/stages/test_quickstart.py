"""The quickstart's pipeline at a toy size: every stage a real process, the summary complete, an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longtake.recipes.quickstart import FRAMES, quickstart
from longtake.stages.quickstart import STAGE_KEYS, print_table, run_pipeline

Capture = pytest.CaptureFixture[str]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_pipeline_at_a_toy_size(tmp_path: Path, capfd: Capture) -> None:
    recipe = quickstart(tmp_path, 0, num_videos=9, num_held_out=4, sft_steps=3, rl_steps=2)
    summary = json.loads(json.dumps(run_pipeline(tmp_path, recipe)))
    assert list(summary["stages"]) == ["base", "sft", "sft_control", "rl"]
    for stage in summary["stages"].values():
        assert set(stage) == set(STAGE_KEYS)
        assert stage["n"] == 16
        assert stage["ci95"][0] <= stage["accuracy"] <= stage["ci95"][1]
        assert set(stage["by_frames"]) == {str(count) for count in FRAMES}
        assert sum(share["n"] for share in stage["by_category"].values()) == 16
    assert summary["blind"]["n"] == 16
    assert set(summary["paired"]) == {"rl_vs_sft", "rl_vs_sft_control"}
    assert summary["seconds"]["total"] == pytest.approx(
        sum(summary["seconds"][name] for name in ("world", "sft", "rl", "sft_control", "evaluate"))
    )
    seconds = summary["seconds"]
    assert seconds["rl_training"] <= seconds["sft_control_training"]  # to the end of its step
    rows = {name: {row["videos"] for row in lines(tmp_path / "data" / f"{name}.jsonl")} for name in ("sft", "rl")}
    assert len(rows["sft"]) == 3 and len(rows["rl"]) == 6 and not rows["sft"] & rows["rl"]
    print_table(summary)
    assert "sft_control" in capfd.readouterr().out
    again(tmp_path, summary, capfd)


def again(folder: Path, summary: dict[str, object], capfd: Capture) -> None:
    """A second start with one evaluation missing trains nothing again and ends with the same figures."""
    shutil.rmtree(folder / "eval" / "rl")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*/manifest.json")}
    second = run_pipeline(folder, quickstart(folder, 0, num_videos=9, num_held_out=4, sft_steps=3, rl_steps=2))
    assert second["stages"] == summary["stages"]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/*/manifest.json")} == before
    capfd.readouterr()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
