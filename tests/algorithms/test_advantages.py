"""Advantages by hand, one value at a time."""

import math

import pytest
import torch

from longtake.algorithms.advantages import advantages, is_uniform
from longtake.config.sections import AlgorithmConfig


def config(name: str, **fields: object) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate({"advantage": name, "std_epsilon": 1e-12, **fields})


def close(got: torch.Tensor, want: list[float]) -> bool:
    """fp32 results of fp64 arithmetic: half a unit in the last place of values near 1."""
    return torch.allclose(got, torch.tensor(want, dtype=got.dtype), atol=2e-7, rtol=0)


REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])  # mean 0.4; sum of squares 2 * 0.36 + 3 * 0.16 = 1.2


def test_grpo_uses_the_unbiased_standard_deviation() -> None:
    std = math.sqrt(1.2 / 4)
    (got,) = advantages([REWARDS], config("grpo"))
    assert close(got, [0.6 / std, -0.4 / std, -0.4 / std, 0.6 / std, -0.4 / std])
    population = math.sqrt(1.2 / 5)
    assert not close(got, [0.6 / population, -0.4 / population, -0.4 / population, 0.6 / population, -0.4 / population])


def test_grpo_epsilon_is_added_to_the_standard_deviation() -> None:
    (got,) = advantages([torch.tensor([1.0, -1.0])], config("grpo", std_epsilon=1.0))
    assert close(got, [1 / (math.sqrt(2) + 1), -1 / (math.sqrt(2) + 1)])


def test_dr_grpo_is_the_mean_only() -> None:
    (got,) = advantages([REWARDS], config("dr_grpo"))
    assert close(got, [0.6, -0.4, -0.4, 0.6, -0.4])


def test_rloo_leaves_one_out() -> None:
    (got,) = advantages([torch.tensor([1.0, 0.5, 0.0, 0.1])], config("rloo"))
    assert close(got, [1.0 - 0.6 / 3, 0.5 - 1.1 / 3, 0.0 - 1.6 / 3, 0.1 - 1.5 / 3])


def test_reinforce_pp_normalises_over_the_batch() -> None:
    # Centred: (0.5, -0.5), (2, -1, -1), uniform (0, 0). Mean square (0.5 + 6) / 7.
    scale = math.sqrt(6.5 / 7)
    groups = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.3, 0.3])]
    got = advantages(groups, config("reinforce_pp"))
    assert close(got[0], [0.5 / scale, -0.5 / scale])
    assert close(got[1], [2 / scale, -1 / scale, -1 / scale])
    assert got[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.7, 1e6])
def test_uniform_group_is_exactly_zero(name: str, value: float) -> None:
    """FACTS fault 8: 0.1 summed seven times is not 0.7, and a division by the standard deviation would turn the rest into a signal."""
    (got,) = advantages([torch.full((7,), value)], config(name))
    assert got.tolist() == [0.0] * 7


def test_rounding_differences_are_no_signal() -> None:
    almost = torch.tensor([0.1, 0.1 + 8e-9, 0.1, 0.1])
    assert almost.unique().numel() == 2, "the float32 values do differ"
    (got,) = advantages([almost], config("grpo"))
    assert got.tolist() == [0.0] * 4
    (real,) = advantages([torch.tensor([0.1, 0.1001, 0.1, 0.1])], config("grpo"))
    assert real[1] > 1.0, "negative control: a small but real difference is a signal"


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_masked_takes_enter_no_statistics(name: str) -> None:
    rewards, valid = torch.tensor([1.0, 99.0, 0.0, 0.25]), torch.tensor([True, False, True, True])
    (got,) = advantages([rewards], config(name), [valid])
    (alone,) = advantages([rewards[valid]], config(name))
    assert got[1] == 0.0
    assert torch.equal(got[valid], alone)
    (unmasked,) = advantages([rewards], config(name))
    assert not torch.allclose(unmasked[valid], alone), "negative control: unmasked, 99 changes everybody"


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
@pytest.mark.parametrize("num_valid", [0, 1])
def test_group_with_nobody_to_compare_is_zero(name: str, num_valid: int) -> None:
    valid = torch.arange(3) < num_valid
    (got,) = advantages([torch.tensor([5.0, 1.0, 0.0])], config(name), [valid])
    assert got.tolist() == [0.0, 0.0, 0.0]


def test_a_failed_masked_take_may_have_any_reward() -> None:
    (got,) = advantages([torch.tensor([1.0, math.nan, 0.0])], config("dr_grpo"), [torch.tensor([True, False, True])])
    assert got.tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize("rewards", [torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 0.0]), torch.zeros(2, 2)])
def test_rewards_that_are_none_are_refused(rewards: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite"):
        advantages([rewards], config("grpo"))


def test_groups_of_unequal_size_and_empty_batch() -> None:
    got = advantages([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0, 0.5])], config("dr_grpo"))
    assert [one.tolist() for one in got] == [[0.5, -0.5], [0.5, -0.5, 0.0]]
    assert advantages([], config("reinforce_pp")) == []


def test_is_uniform() -> None:
    assert is_uniform(torch.tensor([0.9, 0.9, 0.9]))
    assert not is_uniform(torch.tensor([0.9, 0.9, 1.0]))
    assert is_uniform(torch.tensor([0.9, 0.9, 1.0]), torch.tensor([True, True, False]))
    assert is_uniform(torch.tensor([])) and is_uniform(torch.tensor([1.0]))
