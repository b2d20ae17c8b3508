"""The schedule and AdamW against hand-computed values; what a bad gradient does; a state by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longtake.config.sections import ModelConfig, OptimizerConfig
from longtake.errors import CheckpointError, LongtakeError
from longtake.training.optimizer import MAX_SKIPPED_IN_A_ROW, Optimizer, build_optimizer, lr_at, names_without_decay
from longtake.training.trainable import choose_trainable


def test_warm_up_reaches_the_peak_once_and_the_cosine_ends_at_its_floor():
    config = OptimizerConfig(lr=8.0, warmup_steps=3, schedule="cosine", min_lr_fraction=0.25)
    # w = 3: 8 * (1, 2, 3) / 4; update 3 is the peak; then 8 updates to the end: x = (step - 3) / 8
    assert [lr_at(step, 12, config) for step in range(4)] == [2.0, 4.0, 6.0, 8.0]
    # x = 1/2 (step 7): 8 * (0.25 + 0.75 * 0.5) = 5; x = 1/4 (step 5): 8 * (0.25 + 0.75 * (1 + cos 45 deg) / 2)
    assert lr_at(7, 12, config) == pytest.approx(5.0, abs=1e-12)
    assert lr_at(5, 12, config) == pytest.approx(2.0 + 3.0 * (1 + math.sqrt(0.5)), abs=1e-12)
    assert lr_at(11, 12, config) == pytest.approx(2.0, abs=1e-12)
    assert lr_at(500, 12, config) == pytest.approx(2.0, abs=1e-12)  # a run extended past its plan stays at the floor


def test_constant_schedule_and_runs_shorter_than_the_warm_up():
    config = OptimizerConfig(lr=3.0, warmup_steps=2, schedule="constant")
    assert [lr_at(step, 5, config) for step in range(5)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    short = OptimizerConfig(lr=3.0, warmup_steps=2, schedule="cosine")
    assert [lr_at(step, 3, short) for step in range(3)] == [1.0, 2.0, 3.0]
    assert lr_at(0, 1, OptimizerConfig(lr=3.0, schedule="cosine")) == 3.0


def _one(value: float, config: OptimizerConfig, no_decay: set[str] | None = None) -> tuple[nn.Parameter, Optimizer]:
    parameter = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    return parameter, Optimizer({"w": parameter}, no_decay or set(), config, total_steps=10)


def test_two_adamw_steps_by_hand():
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, betas=(0.5, 0.75), eps=1e-8, max_grad_norm=100.0, schedule="constant")
    parameter, optimizer = _one(2.0, config)
    parameter.grad = torch.tensor([4.0], dtype=torch.float64)
    assert optimizer.step() == 4.0
    # decay: 2 * (1 - 0.1 * 0.5) = 1.9; m/(1-0.5) = 4, v/(1-0.75) = 16: step 0.1 * 4 / 4
    assert parameter.item() == pytest.approx(1.8, abs=1e-9)  # eps 1e-8 shifts by 2.5e-10
    parameter.grad = torch.tensor([-2.0], dtype=torch.float64)
    optimizer.step()
    # decay: 1.8 * 0.95 = 1.71; m = 0.5*2 - 0.5*2 = 0: no step whatever v is
    assert parameter.item() == pytest.approx(1.71, abs=1e-9)
    assert parameter.grad is None
    assert optimizer.num_steps == 2


def test_no_decay_group_is_not_decayed():
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, schedule="constant")
    parameter, optimizer = _one(2.0, config, no_decay={"w"})
    parameter.grad = torch.tensor([0.0], dtype=torch.float64)
    optimizer.step()
    assert parameter.item() == 2.0


def test_clipping_is_by_the_global_norm():
    config = OptimizerConfig(lr=1.0, max_grad_norm=1.0, schedule="constant", weight_decay=0.0)
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = Optimizer({"a": first, "b": second}, set(), config, total_steps=2)
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert optimizer.step() == 5.0  # before clipping
    # exp_avg = 0.1 * clipped gradient (3/5, 4/5); torch divides by norm + 1e-6, relative 2e-7
    state = optimizer.state_dict()
    torch.testing.assert_close(state["exp_avg.a"], torch.tensor([0.06, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(state["exp_avg.b"], torch.tensor([0.08]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters(bad: float):
    parameter, optimizer = _one(2.0, OptimizerConfig(lr=0.1, weight_decay=0.5, schedule="constant"))
    parameter.grad = torch.tensor([1.0], dtype=torch.float64)
    optimizer.step()
    before = (parameter.item(), {name: tensor.clone() for name, tensor in optimizer.state_dict().items()})
    parameter.grad = torch.tensor([bad], dtype=torch.float64)
    assert not math.isfinite(optimizer.step())
    assert (parameter.item(), optimizer.skipped, optimizer.num_steps, parameter.grad) == (before[0], 1, 2, None)
    assert all(torch.equal(optimizer.state_dict()[name], before[1][name]) for name in ("exp_avg.w", "exp_avg_sq.w", "step.w"))


def test_gradients_that_stay_bad_end_the_run():
    parameter, optimizer = _one(2.0, OptimizerConfig(lr=0.1))

    def step(gradient: float) -> None:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()

    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        step(math.nan)
    step(1.0)  # a good one starts the count anew
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        step(math.nan)
    with pytest.raises(LongtakeError, match="not finite"):
        step(math.nan)


def test_decay_spares_norms_biases_and_the_tied_embedding(new_model):
    model = new_model()
    named = choose_trainable(model, ModelConfig())
    spared = names_without_decay(model.hf, named)
    decayed = {name.split(".")[-2] for name in named if name not in spared}
    assert decayed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert "model.language_model.embed_tokens.weight" in spared  # and with it the tied head
    assert "model.language_model.layers.0.self_attn.q_proj.bias" in spared
    assert "model.language_model.layers.1.input_layernorm.weight" in spared


def test_state_goes_by_name_whatever_the_order_of_parameters():
    torch.manual_seed(0)
    config = OptimizerConfig(lr=0.1, schedule="cosine", warmup_steps=1)

    def build(order: list[str]) -> tuple[dict[str, nn.Parameter], Optimizer]:
        named = {name: nn.Parameter(torch.ones(size)) for name, size in zip(["a.b", "c", "unused"], [2, 3, 1], strict=True)}
        return named, Optimizer({name: named[name] for name in order}, {"c"}, config, total_steps=6)

    def step(named: dict[str, nn.Parameter], optimizer: Optimizer, index: int) -> None:
        for name in ("a.b", "c"):
            named[name].grad = torch.sin(torch.arange(len(named[name])) + index)
        optimizer.step()

    named, optimizer = build(["a.b", "c", "unused"])
    for index in range(3):
        step(named, optimizer, index)
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    assert set(state) == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq", "step") for name in ("a.b", "c")} | {
        "counter.num_steps",
        "counter.skipped",
        "counter.skipped_in_a_row",
    }
    other_named, other = build(["unused", "c", "a.b"])
    other.load_state_dict(state)
    for name in named:
        other_named[name].data.copy_(named[name].data)
    for index in range(3, 6):
        step(named, optimizer, index)
        step(other_named, other, index)
    assert optimizer.lr == other.lr
    assert all(torch.equal(named[name], other_named[name]) for name in named)


@pytest.mark.parametrize(
    ("key", "tensor"),
    [("exp_avg.x", torch.zeros(2)), ("exp_avg.w", torch.zeros(2)), ("counter.__class__", torch.tensor(1)), ("junk.w", torch.zeros(1))],
)
def test_a_foreign_state_is_refused(key: str, tensor: torch.Tensor):
    _, optimizer = _one(1.0, OptimizerConfig())
    with pytest.raises(CheckpointError, match="belongs to the parameters"):
        optimizer.load_state_dict({key: tensor})


def test_a_model_with_nothing_to_train_is_refused(new_model):
    model = new_model()
    model.hf.requires_grad_(False)
    with pytest.raises(LongtakeError, match="no trainable parameter"):
        build_optimizer(model, OptimizerConfig(), total_steps=1)
