"""Policy losses: pure functions on right-padded log-probs. The sum over micro-batches IS the loss of the batch, however it is cut.

Shapes: M takes of a micro-batch, R tokens of the longest one, S = R for losses with a ratio per token, 1 with a ratio per take.
`lp` are log-probs of the sampled tokens: `policy_lp` carries gradients, `sampler_lp` and `ref_lp` none. Whatever stands at
padding (mask False), nan included, changes neither value nor gradient.

r_t = pi(y_t) / pi_sampler(y_t), A the advantage of the take, eps- and eps+ the clip ranges, c the dual clip:

clip    l_t = -min(r_t A, clamp(r_t, 1 - eps-, 1 + eps+) A)                       PPO, arXiv 1707.06347, eq. 7; eps- < eps+: DAPO
        and for A < 0: l_t = min(l_t, -c A)                                       dual clip, arXiv 1912.09729, eq. 5
gspo    the same with s = exp(mean over the take's tokens of log r_t) for r_t     GSPO, arXiv 2507.18071, eq. 5 and 7
cispo   l_t = -stop_gradient(clamp(r_t, 1 - eps-, 1 + eps+)) A log pi(y_t)        CISPO, arXiv 2506.13585, eq. 4 and 5

With importance correction (importance.py) r_t = pi(y_t) / pi_proximal(y_t), the proximal policy being the one before the step's first
update, and w_t l_t in place of l_t; the KL term's tokens are weighted alike. What is masked has w = 0 and stays in every denominator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.algorithms.importance import effective_share, importance_weights
from longtake.algorithms.kl import MAX_LOG_RATIO, kl_per_token
from longtake.config.sections import AlgorithmConfig, ImportanceConfig


@dataclass(frozen=True)
class LossDenominator:
    """What the loss of a whole batch is divided by, counted over ALL its micro-batches and ranks (FACTS fault: means per micro-batch)."""

    num_takes: int
    """Takes with at least one trained token."""
    num_tokens: int
    """Trained tokens."""
    max_new_tokens: int
    """The constant length of Dr. GRPO."""

    @classmethod
    def of_lengths(cls, lengths: Iterable[int], max_new_tokens: int) -> LossDenominator:
        """From the number of trained tokens of every take of the batch; 0 for a take whose gradient is not taken."""
        trained = [length for length in lengths if length > 0]
        return cls(num_takes=len(trained), num_tokens=sum(trained), max_new_tokens=max_new_tokens)


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean in two parts, so that it can be added up over micro-batches and ranks and divided once. Scalars, float64, detached."""

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, values: Tensor, mask: Tensor) -> Mean:
        """Over the entries of `values` where `mask`."""
        return cls(torch.where(mask, values, 0.0).detach().double().sum(), mask.detach().double().sum())

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """total / count; 0 where nothing was counted."""
        return float(self.total / self.count) if float(self.count) > 0 else 0.0


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    loss: Tensor
    """Scalar with gradients: this micro-batch's share of the batch's loss. Add the shares, never average them."""
    metrics: dict[str, Mean]
    """ratio, clipped_low, clipped_high, clipped_dual (shares of tokens, of takes for gspo), sampler_kl (k3, policy to sampler), kl (to the
    reference) when there is one, and those of `importance_metrics` with a correction; see `add_metrics` and `metric_values`."""
    policy_term: Tensor
    """The surrogate's part of `loss`, detached; adds up like it."""
    kl_term: Tensor
    """beta x KL, the rest of `loss`, detached."""


def policy_loss(
    policy_lp: Tensor,
    sampler_lp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: AlgorithmConfig,
    ref_lp: Tensor | None = None,
    *,
    denominator: LossDenominator,
    importance: ImportanceConfig | None = None,
    proximal_lp: Tensor | None = None,
) -> PolicyLoss:
    """The configured loss of a micro-batch: policy_lp, sampler_lp, ref_lp [M, R]; advantages [M]; mask bool [M, R].

    With `kl.place == "loss"` and a coefficient, beta x KL(policy, reference) per token is added, aggregated like the surrogate.
    With `importance`, proximal_lp [M, R] are the policy's log-probs before the step's first update; None: there was none since, they are
    its log-probs now. Raises ValueError when shapes disagree, or when the KL term is asked for without ref_lp.
    """
    check_shapes(policy_lp, sampler_lp, advantages, mask, ref_lp, proximal_lp)
    has_kl = config.kl.place == "loss" and config.kl.coefficient > 0
    if has_kl and ref_lp is None:
        raise ValueError("kl.place is loss and kl.coefficient > 0: ref_lp is needed")
    policy_lp = torch.where(mask, policy_lp, 0.0)  # before any exp, so that what stands at padding has no gradient either
    sampler_lp = torch.where(mask, sampler_lp, 0.0).detach()
    before_lp, weights, weight_metrics = sampler_lp, None, {}
    if importance is not None:
        before_lp = (policy_lp if proximal_lp is None else torch.where(mask, proximal_lp, 0.0)).detach()
        weights, outside = importance_weights(before_lp, sampler_lp, mask, importance)
        weight_metrics = importance_metrics(weights, outside, mask, importance)
    losses, ratio = surrogate(policy_lp, before_lp, advantages, mask, config)
    policy_term = aggregate(weighted(losses, weights), mask, config, denominator)
    metrics = ratio_metrics(ratio, advantages, mask, config) | weight_metrics
    metrics["sampler_kl"] = Mean.of(kl_per_token(policy_lp.detach(), sampler_lp, "k3"), mask)
    kl_term = torch.zeros_like(policy_term)
    if ref_lp is not None:
        kl = kl_per_token(policy_lp, torch.where(mask, ref_lp, 0.0).detach(), config.kl.estimator)
        metrics["kl"] = Mean.of(kl, mask)
        if has_kl:
            kl_term = config.kl.coefficient * aggregate(weighted(kl, weights), mask, config, denominator)
    return PolicyLoss(policy_term + kl_term, metrics, policy_term.detach(), kl_term.detach())


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """`values` [M, R] times `weights` [M, S]; as they are without."""
    return values if weights is None else values * weights


def surrogate(policy_lp: Tensor, before_lp: Tensor, advantages: Tensor, mask: Tensor, config: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """(losses [M, R], ratio [M, S]) of the formulas at the top of this file; log r is held within +-MAX_LOG_RATIO.

    before_lp [M, R] is what the ratio is taken to: the sampler, with importance correction the proximal policy.
    """
    log_ratio = policy_lp - before_lp
    if config.loss == "gspo":
        log_ratio = take_means(log_ratio, mask)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clamped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    gain = advantages.unsqueeze(1)
    if config.loss == "cispo":
        return -clamped.detach() * gain * policy_lp, ratio.detach()
    losses = -torch.minimum(ratio * gain, clamped * gain)
    if config.dual_clip is not None:
        losses = torch.where(gain < 0, torch.minimum(losses, -config.dual_clip * gain), losses)
    return losses.expand_as(policy_lp), ratio.detach()


def aggregate(values: Tensor, mask: Tensor, config: AlgorithmConfig, denominator: LossDenominator) -> Tensor:
    """This micro-batch's share of the batch's mean of `values` [M, R] (T_i trained tokens of take i, N takes, all of the BATCH):

    take_mean   1/N sum_i 1/T_i sum_t v_it      GRPO, arXiv 2402.03300, eq. 3
    token_mean  1/(sum_i T_i) sum_i sum_t v_it  DAPO, arXiv 2503.14476, eq. 8
    constant    1/(N max_new_tokens) sum_i sum_t v_it   Dr. GRPO, arXiv 2503.20783
    """
    values = torch.where(mask, values, 0.0)
    if config.aggregation == "take_mean":
        return take_means(values, mask).sum() / max(denominator.num_takes, 1)
    if config.aggregation == "token_mean":
        return values.sum() / max(denominator.num_tokens, 1)
    return values.sum() / (max(denominator.num_takes, 1) * denominator.max_new_tokens)


def take_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each take's own tokens, [M, R] -> [M, 1]; 0 for a take without any."""
    return torch.where(mask, values, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def ratio_metrics(ratio: Tensor, advantages: Tensor, mask: Tensor, config: AlgorithmConfig) -> dict[str, Mean]:
    """How far the policy has moved from what the ratio is taken to, and where the clip took the gradient away. ratio [M, S]."""
    counted = counted_entries(ratio, mask)
    gain = advantages.unsqueeze(1)
    is_cispo = config.loss == "cispo"  # its weight is clipped whatever the sign of the advantage
    below, above = ratio < 1.0 - config.clip_low, ratio > 1.0 + config.clip_high
    clipped = {
        "clipped_low": below if is_cispo else below & (gain < 0),
        "clipped_high": above if is_cispo else above & (gain > 0),
        "clipped_dual": (ratio > config.dual_clip) & (gain < 0) if config.dual_clip is not None and not is_cispo else ratio.isnan(),
    }
    return {"ratio": Mean.of(ratio, counted)} | {name: Mean.of(hit.double(), counted) for name, hit in clipped.items()}


def importance_metrics(weights: Tensor, outside: Tensor, mask: Tensor, config: ImportanceConfig) -> dict[str, Mean]:
    """Mean and mean square of the weights [M, S], and the share of those that were truncated or masked: of tokens, or of takes."""
    counted = counted_entries(weights, mask)
    touched = {"truncate": "importance_truncated", "mask": "importance_masked"}[config.kind]
    return {
        "importance_weight": Mean.of(weights, counted),
        "importance_square": Mean.of(weights.double().square(), counted),
        touched: Mean.of(outside.double(), counted),
    }


def counted_entries(values: Tensor, mask: Tensor) -> Tensor:
    """Which entries of `values` [M, S] stand for something: tokens, or takes with at least one. bool [M, S]."""
    return mask if values.shape == mask.shape else mask.any(1, keepdim=True)


def add_metrics(parts: Sequence[dict[str, Mean]]) -> dict[str, Mean]:
    """The metrics of micro-batches added up name by name."""
    total: dict[str, Mean] = {}
    for part in parts:
        for name, mean in part.items():
            total[name] = total[name] + mean if name in total else mean
    return total


def metric_values(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """The metrics of a whole batch as numbers. In place of the weights' mean square stands what it is measured for, `importance_ess`: the
    effective sample size of the weights as a share of their number."""
    values = {name: mean.value() for name, mean in metrics.items()}
    if "importance_square" in values:
        values["importance_ess"] = effective_share(values["importance_weight"], values.pop("importance_square"))
    return values


def check_shapes(policy_lp: Tensor, sampler_lp: Tensor, advantages: Tensor, mask: Tensor, *optional: Tensor | None) -> None:
    shapes = {tuple(each.shape) for each in (policy_lp, sampler_lp, mask, *optional) if each is not None}
    if policy_lp.ndim != 2 or len(shapes) != 1 or advantages.shape != policy_lp.shape[:1] or mask.dtype != torch.bool:
        raise ValueError(f"need log-probs and bool mask [M, R], advantages [M]; got {shapes}, {tuple(advantages.shape)}, mask {mask.dtype}")
