"""`longtake sft` on a small world and a small random model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longtake.config.stages import SftConfig
from longtake.errors import CheckpointError, RowError
from longtake.stages import sft as stage
from longtake.stages import training_run
from longtake.testing.training import (
    assert_same_run,
    base_weights,
    largest_difference,
    last_tensors,
    last_weights,
    metrics_of,
)

Make = Callable[..., SftConfig]
TOWER = "model.visual."


def test_loss_falls(sft: Make) -> None:
    """From log(vocabulary) = 6.2 down; measured 6.35 -> 0.86."""
    config = sft(max_steps=40, optimizer={"lr": 5e-3})
    stage.run(config)
    losses = [line["loss/sft"] for line in metrics_of(config.out)]
    assert len(losses) == 40
    assert losses[0] > 5.5 and losses[-1] < 0.3 * losses[0]


def test_weights_do_not_depend_on_micro_batches(sft: Make) -> None:
    """Two steps of lr 1e-3. Measured: 3e-8 at most, where the weights have moved by 1.1e-3."""
    for size in (1, 4, 2):
        stage.run(sft(f"micro{size}", micro_batch_size=size, optimizer={"eps": 1e-4}))
    one = last_weights(sft("micro1").out)
    for size in (2, 4):
        assert largest_difference(one, last_weights(sft(f"micro{size}").out)) < 1e-6
    assert largest_difference(one, base_weights(Path(sft().model.path))) > 5e-4


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.3}], ids=["full", "lora with dropout"])
def test_resumed_is_uninterrupted(sft: Make, lora: dict | None, rows: Path) -> None:
    """Bit for bit, with the random numbers of dropout, the warm-up, and the validation before and after the break."""
    settings = {
        "model": {"lora": lora},
        "optimizer": {"warmup_steps": 2, "schedule": "constant"},
        "validation": {"data": {"rows": rows}, "num_rows": 3, "every": 2, "max_new_tokens": 4},
    }
    stage.run(sft("whole", max_steps=7, **settings))
    for stop in (3, 4, 7):
        stage.run(sft("parts", max_steps=stop, **settings))
    # a run that ends is validated at its end: those of the parts' own ends are not in the whole run
    whole, parts = last_tensors(sft("whole").out), last_tensors(sft("parts").out)
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    losses = [[line.get("loss/sft") for line in metrics_of(sft(name).out)] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 8


def test_resumed_under_another_lr_or_other_rows_is_refused(sft: Make, rows: Path, tmp_path: Path) -> None:
    stage.run(sft())
    with pytest.raises(CheckpointError, match=r"optimizer\.lr was 0\.001, is 0\.5"):
        stage.run(sft(max_steps=3, optimizer={"lr": 0.5}))
    with pytest.raises(CheckpointError, match="resume = false"):
        stage.run(sft(max_steps=3, resume=False))
    changed = tmp_path / "rows.jsonl"
    changed.write_text(rows.read_text())
    root = {"rows": changed, "root": rows.parent}
    stage.run(sft("other", data=root))
    changed.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(CheckpointError, match="not those that this run was started with"):
        stage.run(sft("other", max_steps=3, data=root))


def test_only_damaged_checkpoints_are_no_new_start(sft: Make) -> None:
    """Its logs would be emptied."""
    config = sft()
    stage.run(config)
    (manifest,) = config.out.glob("checkpoints/*/manifest.json")
    manifest.write_text("{}")
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        stage.run(config)
    assert (config.out / "metrics.jsonl").read_bytes() == before


def rigged(monkeypatch: pytest.MonkeyPatch, accuracies: list[float | BaseException]) -> None:
    """Validations give these accuracies in turn; an exception is raised."""
    outcomes = iter(accuracies)

    def summarise(records: list) -> dict:
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return {"accuracy": outcome, "by_source": {}, "format_rate": 0.0, "response_tokens": {"mean": 1.0}}

    monkeypatch.setattr(training_run, "summarise", summarise)


def validated(rows: Path, **changes: object) -> dict:
    return {"validation": {"data": {"rows": rows}, "num_rows": 2, "every": 1, "max_new_tokens": 2, **changes}}


def test_patience_ends_and_the_best_is_kept(sft: Make, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Best at step 2; 3, 4 and 5 are not better (equal is not); one that fails counts neither way."""
    rigged(monkeypatch, [0.1, 0.2, 0.5, 0.5, OSError("disk"), 0.4, 0.3, 0.9])
    config = sft(max_steps=20, checkpoint={"every": 100, "keep_last": 1}, **validated(rows, patience=3))
    stage.run(config)
    lines = metrics_of(config.out)
    assert [line.get("validation/accuracy") for line in lines] == [0.1, 0.2, 0.5, 0.5, None, 0.4, 0.3]
    assert [line["validation/failed"] for line in lines] == [0, 0, 0, 0, 1, 0, 0]
    folders = sorted(path.parent.name for path in config.out.glob("checkpoints/*/manifest.json"))
    assert folders == ["step-00000002", "step-00000006"], "the best and the last"
    assert (config.out / "checkpoints/step-00000002/best").exists()


def test_best_may_be_the_start(sft: Make, rows: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that only made it worse still has a best checkpoint: the weights it began with."""
    rigged(monkeypatch, [0.5, 0.4, 0.3])
    config = sft(**validated(rows))
    stage.run(config)
    (marker,) = config.out.glob("checkpoints/*/best")
    assert marker.parent.name == "step-00000000"
    start = training_run.CheckpointStore(config.out).best()
    assert start is not None and start.extra["best"] == {"accuracy": 0.5, "step": 0, "validations_since": 0}


def test_validation_that_dies_of_a_bug_costs_no_step(sft: Make, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is logged and saved although no checkpoint was due, and the run goes on from there."""
    config = sft(max_steps=4, checkpoint={"every": 100}, **validated(rows))
    rigged(monkeypatch, [0.5, 0.4, ZeroDivisionError("a bug")])
    with pytest.raises(ZeroDivisionError):
        stage.run(config)
    assert [(line["step"], line["validation/failed"]) for line in metrics_of(config.out)] == [(0, 0), (1, 0), (2, 1)]
    rigged(monkeypatch, [0.3, 0.6])
    stage.run(config)
    assert [(line["step"], line.get("validation/accuracy")) for line in metrics_of(config.out)] == [
        (0, 0.5),
        (1, 0.4),
        (2, None),
        (3, 0.3),
        (4, 0.6),
    ]


def test_blind(sft: Make) -> None:
    """No video is opened: the prompts are shorter by their tokens (2 video tokens of the 4 frames and their two brackets)."""
    stage.run(sft("seeing"))
    stage.run(sft("blind", data={"with_video": False}))
    seeing, blind = metrics_of(sft("seeing").out)[0], metrics_of(sft("blind").out)[0]
    assert "seconds/decode" in seeing and "seconds/decode" not in blind
    assert seeing["tokens/prompt"] - blind["tokens/prompt"] == 4 * (2 + 2)
    assert seeing["tokens/response"] == blind["tokens/response"] and seeing["loss/sft"] != blind["loss/sft"]


def test_lora_trains_the_adapters_alone(sft: Make) -> None:
    stage.run(sft(model={"lora": {"rank": 2}}))
    weights = last_weights(sft().out)
    assert weights and all(".lora_" in name for name in weights)
    grown = [tensor.abs().max().item() for name, tensor in weights.items() if "lora_B" in name]
    assert min(grown) > 1e-4, "B starts at 0 and every one of them moves"


@pytest.mark.parametrize("train_vision", [False, True])
def test_the_tower_trains_only_when_asked(sft: Make, base: Path, train_vision: bool) -> None:
    stage.run(sft(model={"train_vision": train_vision}))
    before, after = base_weights(base), last_weights(sft().out)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    tower = {name for name in before if TOWER in name}
    assert tower
    # a bias of the attention's keys has no gradient: softmax does not see a constant
    assert (moved & tower == set()) if not train_vision else (len(moved & tower) >= len(tower) - 4)
    assert len(moved - tower) >= len(before.keys() - tower) - 2


def test_trained_tower_does_not_depend_on_micro_batches(sft: Make) -> None:
    """Measured: 6e-8 at most, where the weights have moved by 1.1e-3."""
    for size in (1, 4):
        stage.run(sft(f"micro{size}", micro_batch_size=size, model={"train_vision": True}, optimizer={"eps": 1e-4}))
    assert largest_difference(last_weights(sft("micro1").out), last_weights(sft("micro4").out)) < 1e-6


@pytest.mark.parametrize("field", ["problem", "reasoning", "answer", "videos", "subtitles", "bytes"])
def test_resumed_on_rows_that_show_or_teach_something_else_is_refused(sft: Make, rows: Path, tmp_path: Path, field: str) -> None:
    """Also where the bytes of a video are others under the same name, and where only the validation has changed."""
    shutil.copytree(rows.parent, tmp_path / "copy")
    path = tmp_path / "copy" / rows.name
    data = {"rows": path, "with_subtitles": True}
    for name, own in (("trains", {"data": data}), ("validates", {"validation": {"data": data, "every": 1, "max_new_tokens": 2}})):
        stage.run(sft(name, **own))
        stage.run(sft(name, **own))  # as it was
    records = [json.loads(line) for line in path.read_text().splitlines()]
    first, last = records[0], next(record for record in records if record["videos"] != records[0]["videos"])
    if field == "bytes":
        shutil.copy(path.parent / last["videos"], path.parent / first["videos"])
    elif field == "subtitles":
        subtitles = path.parent / first["subtitles"]
        subtitles.write_text("1\n00:00:01,000 --> 00:00:02,000\nSomething else is said.\n")
    else:
        other = "<answer>A</answer>" if "B" in first["answer"] else "<answer>B</answer>"
        first |= {"problem": {"problem": "So " + first["problem"]}, "answer": {"answer": other}}.get(field, {field: last[field]})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(CheckpointError, match="not those that this run was started with"):
        stage.run(sft("trains", data=data, max_steps=3))
    validates = sft("validates", validation={"data": data, "every": 1, "max_new_tokens": 2}, max_steps=3)
    if field == "reasoning":  # which validation does not read
        stage.run(validates)
    else:
        with pytest.raises(CheckpointError, match="or those of the validation"):
            stage.run(validates)


@pytest.mark.parametrize(
    ("reasoning", "told"), [(" \n", "no reasoning.*leave such rows to RL"), ("first </think> then more", "</think> inside its reasoning")]
)
def test_a_response_that_cannot_be_taught_is_a_failed_row_before_training(
    sft: Make, rows: Path, tmp_path: Path, reasoning: str, told: str
) -> None:
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    records[3]["reasoning"] = reasoning
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {"rows": path, "root": rows.parent}
    stage.run(sft(data=data))
    assert metrics_of(sft().out)[0]["failures/known_rows"] == 1.0
    with pytest.raises(RowError, match=rf"1 of 12 rows cannot be used.*{told}"):
        stage.run(sft("strict", data={**data, "max_failed_fraction": 0.05}))
    assert not (sft("strict").out / "checkpoints").exists()


def test_steps_from_epochs_and_stop_by_seconds(sft: Make) -> None:
    """12 rows, 1.5 epochs, 4 a step: ceil(4.5) = 5."""
    stage.run(sft(max_steps=None, epochs=1.5))
    assert metrics_of(sft().out)[-1]["step"] == 5
    stage.run(sft("timed", max_steps=100_000, max_seconds=0.3, checkpoint={"every": 100_000}))
    last = metrics_of(sft("timed").out)[-1]["step"]
    found = training_run.CheckpointStore(sft("timed").out).latest()
    assert found is not None and found.step == last < 100_000, "the last step is always saved"
    assert math.isclose(found.position, 4 * last)
    before = (sft("timed").out / "metrics.jsonl").read_bytes()
    stage.run(sft("timed", max_steps=100_000, max_seconds=0.3, checkpoint={"every": 100_000}))
    assert (sft("timed").out / "metrics.jsonl").read_bytes() == before, "its seconds are used up"


def test_two_runs_are_the_same(sft: Make) -> None:
    stage.run(sft("one"))
    stage.run(sft("two"))
    assert_same_run(sft("one").out, sft("two").out)
