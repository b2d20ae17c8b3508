"""Importance weights of takes that were sampled by something else than the policy being trained: another engine, or older weights.

Shapes: losses.py. M takes, R tokens, S = R for a weight per token, 1 for a weight per take.

pi is the trainer's distribution before the step's first update (the proximal policy: arXiv 2110.00641), mu the sampler's, both of the
sampled tokens. The surrogate's ratio is then between the policy and pi, and the loss is multiplied by a constant w:

token      r_t = pi(y_t) / mu(y_t)       biased: the tokens before y_t keep the sampler's distribution; varies little
sequence   r = prod_t r_t                exact for a sampler that can say whatever the policy can; varies more with every token
truncate   w = min(r, cap)               truncated importance sampling: Ionides, J. Comput. Graph. Stat. 17 (2008) 295
mask       w = r if low <= r <= cap, else 0     IcePop per token, arXiv 2510.18855
"""

from __future__ import annotations

import torch
from torch import Tensor

from longtake.algorithms.kl import MAX_LOG_RATIO
from longtake.config.sections import ImportanceConfig


def importance_weights(proximal_lp: Tensor, sampler_lp: Tensor, mask: Tensor, config: ImportanceConfig) -> tuple[Tensor, Tensor]:
    """(w [M, S], where r was truncated or masked: bool [M, S]) from log-probs [M, R] where mask bool [M, R]; w carries no gradient.

    log r is held within +-MAX_LOG_RATIO. A token or take that is nothing but padding has w = 1.
    Raises ValueError for a kind that is not decided yet: `RlConfig.importance` decides it.
    """
    log_ratio = torch.where(mask, proximal_lp - sampler_lp, 0.0).detach()
    if config.level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if config.kind == "truncate":
        return ratio.clamp(max=config.cap), ratio > config.cap
    if config.kind == "mask":
        outside = (ratio < config.low) | (ratio > config.cap)
        return torch.where(outside, 0.0, ratio), outside
    raise ValueError(f"importance.kind is {config.kind}: truncate or mask is needed here")


def effective_share(mean_weight: float, mean_square: float) -> float:
    """Effective sample size over sample size, (sum w)^2 / (n sum w^2), from the means of w and w^2; 0 when every weight is 0.

    Kish's: so large a share of unweighted samples would tell as much. 1 when all weights are equal.
    """
    return mean_weight**2 / mean_square if mean_square > 0 else 0.0
