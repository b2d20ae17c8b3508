"""KL divergence estimated on sampled tokens (John Schulman, "Approximating KL divergence", 2020), and KL taken from the reward.

With d = log pi(y) - log pi_ref(y), y sampled from pi:
k1 = d                     unbiased, can be negative; as a LOSS its gradient is 0 in expectation: use it in the reward
k2 = d^2 / 2               biased, never negative; its gradient as a loss is that of the true KL
k3 = exp(-d) + d - 1       unbiased, never negative (DeepSeekMath, arXiv 2402.03300, eq. 4)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from longtake.config.sections import KlConfig

Estimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Log ratios are held within this before `exp`, which then stays below 5e8: a single absurd token must not become inf or nan."""


def kl_per_token(policy_lp: Tensor, ref_lp: Tensor, estimator: Estimator) -> Tensor:
    """The estimate at each token, shapes as given; gradients flow through `policy_lp` (not where MAX_LOG_RATIO holds d)."""
    difference = (policy_lp - ref_lp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference


def subtract_kl(rewards: Tensor, policy_lp: Tensor, ref_lp: Tensor, mask: Tensor, kl: KlConfig) -> Tensor:
    """R_i - beta * sum_t KL_it: rewards [M], log-probs and mask [M, R] -> [M], without gradients.

    `policy_lp` is that of the policy which sampled (the sampler's own log-probs will do). Uniform groups are to be looked for before this.
    """
    with torch.no_grad():
        difference = kl_per_token(torch.where(mask, policy_lp, 0.0), torch.where(mask, ref_lp, 0.0), kl.estimator)
        return rewards - kl.coefficient * torch.where(mask, difference, 0.0).sum(1)
