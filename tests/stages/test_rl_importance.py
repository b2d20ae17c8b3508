"""Importance correction in `longtake rl`: when it is on, which log-probs it uses, and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.config.stages import RlConfig
from longtake.errors import MismatchError
from longtake.stages import rl as stage
from longtake.stages import rl_update
from longtake.testing.samplers import bent_sampler, shifted, uneven
from longtake.testing.training import assert_same_run, base_weights, largest_difference, last_weights, metrics_of
from longtake.types import Take

Make = Callable[..., RlConfig]
GENTLE = {"eps": 1e-4}
"""AdamW's: without it the rounding of gradients near 0 becomes steps of full length."""
FREE = {"max_logprob_difference": 50.0}


def correction(kind: str, level: str = "token", **fields: float) -> dict[str, Any]:
    return {"importance": {"kind": kind, "level": level, **fields}}


def shift_all(by: float) -> Callable[[int, int, Take], Take]:
    return lambda step, key, take: shifted(take, by)


class Calls:
    """What `policy_loss` was given, call by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.policy: list[Tensor] = []
        self.sampler: list[Tensor] = []
        self.proximal: list[Tensor | None] = []
        honest = rl_update.policy_loss

        def policy_loss(policy_lp: Tensor, sampler_lp: Tensor, gains: Tensor, mask: Tensor, *given: Any, **named: Any) -> Any:
            self.policy.append(policy_lp.detach()[mask])
            self.sampler.append(sampler_lp[mask])
            proximal = named["proximal_lp"]
            self.proximal.append(None if proximal is None else proximal[mask])
            return honest(policy_lp, sampler_lp, gains, mask, *given, **named)

        monkeypatch.setattr(rl_update, "policy_loss", policy_loss)


def test_auto_is_off_for_our_own_engine(rl: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the run that says off, without a pass of its own, and no weight is ever made."""
    calls = Calls(monkeypatch)
    for name, fields in (("auto", {}), ("off", {"algorithm": correction("off")})):
        stage.run(rl(name, updates_per_step=2, **fields))
    assert_same_run(rl("auto").out, rl("off").out)
    assert calls.proximal and set(calls.proximal) == {None}
    for line in metrics_of(rl("auto").out):
        assert not any("importance" in key for key in line) and "seconds/proximal" not in line


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_with_an_honest_sampler_on_is_off(rl: Make, level: str) -> None:
    """One update a step: all weights 1, no additional pass, and the same weights after two steps. Measured: 1.2e-7 apart."""
    on = rl("on", optimizer=GENTLE, algorithm=correction("truncate", level))
    stage.run(rl("off", optimizer=GENTLE))
    stage.run(on)
    assert largest_difference(last_weights(rl("off").out), last_weights(on.out)) < 2e-6
    for line in metrics_of(on.out):
        assert line["policy/importance_weight"] == pytest.approx(1.0, abs=1e-4)
        assert line["policy/importance_ess"] == pytest.approx(1.0, abs=1e-6)
        assert line["policy/importance_truncated"] == 0.0 and line["policy/ratio"] == 1.0
        assert "seconds/proximal" not in line and line["rollout/staleness/max"] == 0.0


@pytest.mark.parametrize("train_vision", [False, True], ids=["frozen", "trained"])
def test_later_updates_are_held_against_the_weights_before_the_first(rl: Make, monkeypatch: pytest.MonkeyPatch, train_vision: bool) -> None:
    """The honest sampler's log-probs ARE those of the weights before the step. In the second update the policy has left them."""
    calls = Calls(monkeypatch)
    config = rl(steps=1, prompts_per_step=2, updates_per_step=2, model={"train_vision": train_vision}, algorithm=correction("truncate"))
    stage.run(config)
    first = [place for place, proximal in enumerate(calls.proximal) if proximal is None]
    later = [place for place, proximal in enumerate(calls.proximal) if proximal is not None]
    assert first == [0] and later == [1]
    assert (calls.policy[0] - calls.sampler[0]).abs().max() < 1e-5
    assert (calls.proximal[1] - calls.sampler[1]).abs().max() < 1e-5  # measured 1e-6
    assert (calls.policy[1] - calls.proximal[1]).abs().max() > 1e-3  # one update of lr 1e-3
    (line,) = metrics_of(config.out)
    assert line["seconds/proximal"] > 0.0 and line["mismatch/max"] < 1e-5


def test_a_truncated_token_is_weighted_by_the_cap(rl: Make) -> None:
    """The sampler finds the first token of each take e times less likely: r = e > 2 there, 1 elsewhere."""
    config = rl(steps=1, algorithm=correction("truncate"), **FREE)
    with bent_sampler(shift_all(-1.0)):
        stage.run(config)
    (line,) = metrics_of(config.out)
    takes, tokens = line["count/takes"], line["tokens/response"]
    assert line["policy/importance_truncated"] == pytest.approx(takes / tokens)
    assert line["policy/importance_weight"] == pytest.approx((2 * takes + tokens - takes) / tokens, rel=1e-5)
    assert line["policy/importance_ess"] == pytest.approx((tokens + takes) ** 2 / tokens / (tokens + 3 * takes), rel=1e-5)
    assert line["policy/ratio"] == 1.0 and line["mismatch/max"] == pytest.approx(1.0, rel=1e-4)


def test_takes_that_are_masked_teach_nothing_and_are_counted(rl: Make) -> None:
    config = rl(steps=1, algorithm=correction("mask", "sequence"), **FREE)
    with bent_sampler(shift_all(-1.0)):
        stage.run(config)
    (line,) = metrics_of(config.out)
    assert line["policy/importance_masked"] == 1.0
    assert (line["policy/importance_weight"], line["policy/importance_ess"]) == (0.0, 0.0)
    assert (line["loss/total"], line["optimizer/grad_norm"]) == (0.0, 0.0)
    assert line["count/takes"] == 12.0


def test_off_token_and_sequence_are_three_different_steps(rl: Make, base: Path) -> None:
    """Log-probs that are off by -0.4 to 0.4."""
    runs = {name: rl(name, steps=1, optimizer=GENTLE, algorithm=correction(kind, level), **FREE) for name, kind, level in WAYS}
    for config in runs.values():
        with bent_sampler(lambda step, key, take: uneven(take)):
            stage.run(config)
    weights = {name: last_weights(config.out) for name, config in runs.items()}
    assert all(largest_difference(found, base_weights(base)) > 1e-4 for found in weights.values())
    names = list(weights)
    for place, name in enumerate(names):
        for other in names[:place]:
            assert largest_difference(weights[name], weights[other]) > 1e-5, (name, other)
    for name in names[1:]:
        (line,) = metrics_of(runs[name].out)
        assert 0.3 < line["policy/importance_ess"] < 0.99


WAYS = (("off", "off", "token"), ("token", "truncate", "token"), ("sequence", "truncate", "sequence"))


def test_a_mismatch_in_a_later_update_is_refused_before_the_first(rl: Make) -> None:
    """Three prompts in updates of one and two: the last one's takes are off. Without the correction nobody knows in time."""
    for name, kind in (("off", "off"), ("on", "truncate")):
        config = rl(name, steps=1, updates_per_step=2, algorithm=correction(kind))
        with bent_sampler(lambda step, key, take: shifted(take, 3.0) if key == 2 else take):
            if kind == "off":
                stage.run(config)
                continue
            with pytest.raises(MismatchError, match=r"differ by 3"):
                stage.run(config)
        assert metrics_of(config.out) == []


def test_takes_of_older_weights_are_measured_and_not_refused(rl: Make) -> None:
    """Those of one prompt say that they are of the weights before: off by 3, over the threshold of 0.5."""
    older = lambda take: replace(shifted(take, 3.0), weights_version=take.weights_version - 1)  # noqa: E731
    config = rl(steps=1, algorithm=correction("truncate"), rollout={"staleness": 1})
    with bent_sampler(lambda step, key, take: older(take) if key == 1 else take):
        stage.run(config)
    (line,) = metrics_of(config.out)
    assert line["mismatch/max"] < 1e-5 and line["mismatch/stale_max"] == pytest.approx(3.0, rel=1e-4)
    assert line["mismatch/stale_mean"] > line["mismatch/mean"] and line["rollout/staleness/max"] == 1.0
    every = rl("every", steps=1, rollout={"staleness": 1})
    with bent_sampler(lambda step, key, take: older(take)):
        stage.run(every)
    (line,) = metrics_of(every.out)
    assert "mismatch/max" not in line and line["mismatch/stale_max"] == pytest.approx(3.0, rel=1e-4)


def test_the_remedy_names_what_an_engine_of_its_own_may_have_wrong(rl: Make) -> None:
    own = rl_update.what_to_check(rl(), 7)
    other = rl_update.what_to_check(rl(rollout={"engine": "vllm", "temperature": 0.9}, model={"dtype": "bfloat16"}), 7)
    assert "same weights" in own and "vllm" not in own
    for part in ("vllm", "version 7", "0.9", "frames", "positions", "spacing", "bfloat16", "max_logprob_difference"):
        assert part in other


def test_the_gradient_of_a_rigged_token_by_hand(rl: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first update the loss of the step is -sum of w A / T over tokens / takes: from what `policy_loss` was given."""
    told: list[tuple[float, float]] = []
    honest = rl_update.policy_loss

    def policy_loss(policy_lp: Tensor, sampler_lp: Tensor, gains: Tensor, mask: Tensor, *given: Any, **named: Any) -> Any:
        result = honest(policy_lp, sampler_lp, gains, mask, *given, **named)
        weights = torch.where(mask, (policy_lp - sampler_lp).detach().exp().clamp(max=2.0), 0.0)
        by_hand = -(weights.sum(1) / mask.sum(1) * gains).sum() / named["denominator"].num_takes
        told.append((float(result.loss.detach()), float(by_hand)))
        return result

    monkeypatch.setattr(rl_update, "policy_loss", policy_loss)
    with bent_sampler(lambda step, key, take: uneven(take)):
        stage.run(rl(steps=1, algorithm=correction("truncate"), **FREE))
    assert told and all(math.isclose(*pair, rel_tol=1e-4, abs_tol=1e-6) for pair in told)
    assert any(abs(loss) > 1e-3 for loss, _ in told)
