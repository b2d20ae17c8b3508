"""rollout.staleness = 1: each batch is sampled by the weights before the last update, and no older ones pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from longtake.config.stages import RlConfig
from longtake.errors import MismatchError
from longtake.observe.lines import read_lines
from longtake.stages import rl as stage
from longtake.testing.samplers import bent_sampler
from longtake.testing.training import metrics_of

Make = Callable[..., RlConfig]
AHEAD = {"staleness": 1}


def takes_of(config: RlConfig, step: int) -> list[tuple[int, list[int]]]:
    lines = [line for line in read_lines(config.out / "takes.jsonl") if line["step"] == step]
    return [(line["problem_id"], line["token_ids"]) for line in lines]


def test_a_batch_is_sampled_before_the_update_of_the_one_before(rl: Make) -> None:
    """Versions 0, 0, 1, 2 at weights 0, 1, 2, 3; the second batch is the one that the starting weights would sample."""
    ahead = rl("ahead", steps=4, rollout=AHEAD)
    stage.run(ahead)
    versions = {line["step"]: line["weights_version"] for line in read_lines(ahead.out / "takes.jsonl")}
    assert versions == {1: 0, 2: 0, 3: 1, 4: 2}
    assert [line["rollout/staleness/max"] for line in metrics_of(ahead.out)] == [0.0, 1.0, 1.0, 1.0]
    assert all("policy/importance_weight" in line for line in metrics_of(ahead.out))  # on by default here
    still = rl("still", steps=2, optimizer={"lr": 1e-12})
    stage.run(still)
    exact = rl("exact", steps=2)
    stage.run(exact)
    assert takes_of(ahead, 1) == takes_of(exact, 1)
    assert takes_of(ahead, 2) == takes_of(still, 2)
    assert takes_of(ahead, 2) != takes_of(exact, 2)  # negative control: there the first update is in
    assert [line["problem_id"] for line in read_lines(ahead.out / "takes.jsonl")][:24] == [
        line["problem_id"] for line in read_lines(exact.out / "takes.jsonl")
    ]


def test_a_resumed_run_samples_its_first_batch_anew_and_skips_no_row(rl: Make) -> None:
    whole = rl("whole", steps=4, rollout=AHEAD)
    stage.run(whole)
    parts = rl("parts", steps=2, rollout=AHEAD, checkpoint={"every": 1})
    stage.run(parts)
    stage.run(parts.model_copy(update={"steps": 4}))
    ids = [[problem for problem, _ in takes_of(config, step)] for config in (whole, parts) for step in range(1, 5)]
    assert ids[:4] == ids[4:]
    assert [line["rollout/staleness/max"] for line in metrics_of(parts.out)] == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("staleness", [0, 1])
def test_older_takes_than_allowed_are_refused(rl: Make, staleness: int) -> None:
    config = rl(f"bound{staleness}", steps=1, rollout={"staleness": staleness})
    with (
        bent_sampler(lambda step, key, take: replace(take, weights_version=take.weights_version - 1 - staleness)),
        pytest.raises(MismatchError, match=f"at most rollout.staleness = {staleness} updates old"),
    ):
        stage.run(config)
    assert metrics_of(config.out) == []


def test_a_trained_tower_is_refused(rl: Make) -> None:
    with pytest.raises(Exception, match=r"staleness = 1 with model\.train_vision"):
        rl("tower", rollout=AHEAD, model={"train_vision": True})
