"""From the rewards of a batch of groups to advantages: pure functions, one number per take.

Shapes: G takes of a group. Rewards in, advantages out: float tensors [G], one per group; statistics are taken in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.config.sections import AlgorithmConfig

UNIFORM_TOLERANCE = 1e-6
"""Rewards closer than this (times the largest of 1 and |reward|) are equal: weighted float32 sums of equal parts can differ in a bit,
and dividing by their standard deviation would turn that into a signal."""


def is_uniform(rewards: Tensor, valid: Tensor | None = None) -> bool:
    """Whether a group has nothing to compare: fewer than two valid takes, or all of them with the same reward."""
    kept = rewards if valid is None else rewards[valid]
    if kept.numel() < 2:
        return True
    return bool(kept.max() - kept.min() <= UNIFORM_TOLERANCE * kept.abs().max().clamp(min=1.0))


def advantages(rewards: Sequence[Tensor], config: AlgorithmConfig, valid: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Advantages of every take of a batch of groups, each [G] like its rewards.

    grpo          A_i = (R_i - mean R) / (std R + eps)            DeepSeekMath, arXiv 2402.03300, eq. 3
    dr_grpo       A_i = R_i - mean R                              arXiv 2503.20783
    rloo          A_i = R_i - mean of the OTHER takes' rewards    arXiv 2402.14740
    reinforce_pp  A_i = (R_i - mean R) / (std over the batch of all R_j - mean R + eps)    REINFORCE++-baseline, arXiv 2501.03262

    `std R` is the unbiased one (divisor G - 1), as in the published training code; the batch's is the root mean square over
    all valid takes, whose mean is 0 by construction. A uniform group gets exactly 0. Takes with `valid` False (bool [G]) get 0 and enter
    no mean and no standard deviation. Raises ValueError for rewards that are not finite, or shapes that disagree.
    """
    masks = [torch.ones_like(group, dtype=torch.bool) for group in rewards] if valid is None else list(valid)
    for group, mask in zip(rewards, masks, strict=True):
        if group.ndim != 1 or mask.shape != group.shape or not bool(group[mask].isfinite().all()):
            raise ValueError(f"rewards must be finite [G] with valid [G]; got {group.tolist()} and {mask.tolist()}")
    estimates = [group_advantages(group, mask, config) for group, mask in zip(rewards, masks, strict=True)]
    if config.advantage == "reinforce_pp":
        num_valid = sum(int(mask.sum()) for mask in masks)
        mean_square = sum(float(estimate.square().sum()) for estimate in estimates) / max(num_valid, 1)
        estimates = [estimate / (mean_square**0.5 + config.std_epsilon) for estimate in estimates]
    return [estimate.to(group.dtype) for estimate, group in zip(estimates, rewards, strict=True)]


def group_advantages(rewards: Tensor, valid: Tensor, config: AlgorithmConfig) -> Tensor:
    """What one group says by itself, float64 [G]; 0 where invalid, and everywhere in a uniform group."""
    estimate = torch.zeros_like(rewards, dtype=torch.float64)
    if is_uniform(rewards, valid):
        return estimate
    kept = rewards[valid].double()
    centred = kept - kept.mean()
    if config.advantage == "grpo":
        centred = centred / (kept.std(unbiased=True) + config.std_epsilon)
    elif config.advantage == "rloo":  # R_i - (sum - R_i) / (n - 1) = (R_i - mean) * n / (n - 1)
        centred = centred * (len(kept) / (len(kept) - 1))
    estimate[valid] = centred
    return estimate
