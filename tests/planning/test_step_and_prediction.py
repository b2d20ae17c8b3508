"""A whole step predicted, and the errors of predictions as metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from longtake.models.costs import model_costs
from longtake.observe.metrics import metric_for
from longtake.parallel.layouts import Plan
from longtake.parallel.memory import RankBytes, RolloutLimits
from longtake.parallel.planner import plan_batch
from longtake.parallel.prediction import PredictionErrors, layout_metrics
from longtake.parallel.seconds import prefill_seconds, sample_seconds
from longtake.parallel.setting import GIB, Cluster, DeviceRates, Setting, assumed_rates, training_costs
from longtake.parallel.step import StepWork, VideoShape, plan_step
from longtake.types import Layout, MicroBatch, PackedGroup, Piece

SEVEN = model_costs(str(Path(__file__).parent / "qwen2_5_vl_7b"), "bfloat16")
HOUR = VideoShape(3600, 252, 448, decoded_pixels=2.5e9)


def setting(world: int = 8, *, rates: DeviceRates | None = None, reference_passes: bool = False) -> Setting:
    training = training_costs(SEVEN, sharded=True, reference_passes=reference_passes)
    return Setting(SEVEN, training, Cluster(1, world, 300 * GIB, 1 << 40), rates or assumed_rates("h100", 2))


def step(num_groups: int = 8, *, updates: int = 1, prompt: int = 20_000) -> StepWork:
    group = PackedGroup(prompt, (1000,) * 8)
    return StepWork(((group,) * (num_groups // updates),) * updates, (HOUR,) * num_groups, RolloutLimits(8, 2048, 256), 64)


def test_phases_add_up_and_the_reference_is_apart():
    plain, with_reference = (plan_step(setting(reference_passes=passes), step()) for passes in (False, True))
    assert plain.seconds.reference == 0 < with_reference.seconds.reference < with_reference.seconds.update
    assert plain.seconds.total == pytest.approx(sum(seconds for _, seconds in plain.seconds.phases()))
    assert with_reference.seconds.reference + with_reference.seconds.update == pytest.approx(
        sum(plan.seconds for plan in with_reference.plans)
    )
    assert with_reference.seconds.update == pytest.approx(plain.seconds.update, rel=0.01)


def test_videos_are_divided_over_all_ranks():
    one, eight = (plan_step(setting(world), step()).seconds for world in (1, 8))
    assert one.decode == 8 * 2.5e9 / 2.5e8 and eight.decode == one.decode / 8
    assert eight.encode == pytest.approx(one.encode / 8, rel=0.02)  # 225 groups a rank, and kernels that every rank starts


def test_a_rollout_is_divided_by_groups():
    """Eight groups on eight ranks: one each. Nine: one rank decodes two together, and prefills both."""
    group = PackedGroup(20_000, (1000,) * 8)
    eight, nine = (plan_step(setting(), replace(step(), updates=((group,) * count,))).seconds for count in (8, 9))
    assert eight.prefill == prefill_seconds(setting(), group)
    assert nine.prefill == 2 * eight.prefill
    assert nine.sample == sample_seconds(setting(), [group, group]) < 2 * eight.sample


def test_every_update_has_its_own_plan_and_optimizer_step():
    one, two = (plan_step(setting(), step(16, updates=count)) for count in (1, 2))
    assert [len(found.plans) for found in (one, two)] == [1, 2]
    assert two.seconds.optimizer == 2 * one.seconds.optimizer
    assert two.bytes.peak <= one.bytes.peak


def test_bytes_of_the_phases():
    found = plan_step(setting(), step()).bytes
    assert found.peak == max(size.total for _, size in found.phases())
    assert found.encode.pixels > 0 == found.update.pixels
    assert found.rollout.keys_values > 20_000 * SEVEN.kv_bytes_per_token
    assert found.update.activations > 0 == found.optimizer.activations


# ---- errors of predictions


def plan(seconds: float, size: float = 100.0) -> Plan:
    layout = Layout(2, 1, True, False, ((MicroBatch((Piece(0, (0, 1)),)),),))
    return Plan((layout,), seconds, RankBytes(activations=size))


def test_errors_by_hand():
    errors = PredictionErrors()
    first = errors.metrics(plan(2.0), 3.0, 80.0)
    assert first["plan/seconds_error"] == 0.5 and first["plan/seconds_error_scaled"] == 0.5
    assert first["plan/bytes_error"] == pytest.approx(-0.2)
    # the second step is wrong by the same factor: nothing is left of the error
    second = errors.metrics([plan(1.0), plan(3.0)], 6.0)
    assert (second["plan/predicted_s"], second["plan/seconds_error"]) == (4.0, 0.5)
    assert second["plan/seconds_error_scaled"] == pytest.approx(0.0)
    assert "plan/bytes_error" not in second
    assert errors.metrics(plan(1.0), 6.0)["plan/seconds_error_scaled"] == pytest.approx(3.0)
    assert errors.scale == pytest.approx((1.5 * 1.5 * 6) ** (1 / 3))


def test_a_step_without_an_update_says_nothing():
    errors = PredictionErrors()
    assert errors.metrics([], 0.0, 10.0) == {"plan/predicted_s": 0.0, "plan/measured_s": 0.0}
    assert errors.scale == 1.0
    assert layout_metrics([]) == {"plan/layouts": 0.0}


def test_the_layout_is_logged_weighted_by_takes():
    small, large = (Layout(u, r, True, False, ((MicroBatch((Piece(0, tuple(range(takes))),)),),)) for u, r, takes in ((1, 1, 3), (4, 2, 1)))
    found = layout_metrics([Plan((small, large), 1.0, RankBytes())])
    assert found == {
        "plan/ulysses": 1.75,
        "plan/ring": 1.25,
        "plan/shared_prompt": 1.0,
        "plan/gradient_checkpointing": 0.0,
        "plan/layouts": 2.0,
        "plan/rounds": 2.0,
    }
    assert all(metric_for(name).pattern == "plan/*" and not metric_for(name).reproducible for name in found)


def test_a_real_plan_can_be_logged():
    found = plan_batch(setting(), [PackedGroup(100, (10,))] * 8)
    assert layout_metrics(found)["plan/ulysses"] == 1
    assert PredictionErrors().metrics(found, 1.0, 1.0)["plan/predicted_bytes"] > 0
