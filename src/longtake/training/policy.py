"""Log-probs under the weights being trained, compared with what the sampler reported. Legend: types.py."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longtake.errors import MismatchError

CHUNK_ROWS = 2048
"""Response tokens scored at a time: 1.2 GB of float32 logits at a vocabulary of 152k."""

CHECK = "check that sampler and trainer hold the same weights, positions and videos; only then raise the threshold"
"""What to do about a mismatch."""


@dataclass(frozen=True)
class LogprobComparison:
    """How far the policy is from the sampler on the sampled tokens, in nats."""

    mean: float
    """Mean of |sampler - policy| over the tokens."""
    max: float
    """Largest |sampler - policy| of one token."""
    kl: float
    """KL(sampler || policy) per token, estimator k3: mean of exp(d) - 1 - d with d = policy - sampler (Schulman, approximating KL)."""


def compare_logprobs(
    sampler: Tensor,
    policy: Tensor,
    mask: Tensor,
    *,
    max_difference: float | None = None,
    max_mean_difference: float | None = None,
    remedy: str = CHECK,
) -> LogprobComparison:
    """Compare sampler and policy log-probs [M, R] where mask bool [M, R] is True; all zero when it is True nowhere.

    Raises MismatchError when one token differs by more than `max_difference`, or the mean by more than `max_mean_difference`, or a
    difference is not a number: then sampler and trainer do not compute the same policy, and importance ratios mean nothing.
    """
    difference = (policy.detach().double() - sampler.double())[mask]
    if difference.numel() == 0:
        return LogprobComparison(0.0, 0.0, 0.0)
    size = difference.abs()
    found = LogprobComparison(mean=float(size.mean()), max=float(size.max()), kl=float((difference.expm1() - difference).mean()))
    # Written as "not <=", so that nan is a mismatch too.
    too_far = max_difference is not None and not found.max <= max_difference
    if too_far or (max_mean_difference is not None and not found.mean <= max_mean_difference):
        raise MismatchError(
            f"sampler and policy log-probs differ by {found.max:.4g} at most and {found.mean:.4g} in the mean over {len(size)} tokens",
            rule=f"at most {max_difference} for one token and {max_mean_difference} in the mean",
            remedy=remedy,
        )
    return found
