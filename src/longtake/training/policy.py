"""Log-probs of takes under the weights being trained, and their comparison with what the sampler reported. Legend: types.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.algorithms.logprobs import chunked_token_logprobs, scoring_temperature
from longtake.errors import MismatchError
from longtake.models.family import Model
from longtake.training.batch import SftBatch

CHUNK_ROWS = 2048
"""Response tokens scored at a time: 1.2 GB of float32 logits at a vocabulary of 152k."""


@dataclass(frozen=True)
class LogprobComparison:
    """How far the policy is from the sampler on the sampled tokens, in nats."""

    mean: float
    """Mean of |sampler - policy| over the tokens."""
    max: float
    """Largest |sampler - policy| of one token."""
    kl: float
    """KL(sampler || policy) per token, estimator k3: mean of exp(d) - 1 - d with d = policy - sampler (Schulman, approximating KL)."""


def take_logprobs(model: Model, batch: SftBatch, temperature: float, *, chunk_rows: int = CHUNK_ROWS) -> tuple[Tensor, Tensor]:
    """Log-probs [M, R] of the batch's response tokens with gradient, and entropies [M, R] without; float32 (float64 for a float64 model),
    0 on padding.

    One pass through embedding and decoder; the head sees the hidden rows of response tokens only, a chunk at a time, so the
    [M, T, W] logits never exist. The distribution is the sampler's: `processed_logits` at the sampling temperature.
    """
    embeds = model.embed(batch.token_ids, batch.videos)
    # No mask: rows are right-padded and attention is causal, so no token sees padding, and the fast causal kernel is used.
    hidden = model.decoder(embeds, batch.position_ids, None, None)
    mask = batch.response_mask
    num_rows, width, _ = hidden.shape
    flat_index = (torch.arange(num_rows, device=mask.device)[:, None] * width + batch.predictor_index)[mask]
    scored, entropy = chunked_token_logprobs(
        hidden.flatten(0, 1).index_select(0, flat_index),
        model.head,
        batch.target_ids[mask],
        scoring_temperature(temperature),
        model.banned_ids,
        chunk_rows,
    )
    empty = scored.new_zeros(mask.shape)
    return empty.masked_scatter(mask, scored), empty.masked_scatter(mask, entropy)


def compare_logprobs(
    sampler: Tensor, policy: Tensor, mask: Tensor, *, max_difference: float | None = None, max_mean_difference: float | None = None
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
            remedy="check that sampler and trainer hold the same weights, positions and videos; only then raise the threshold",
        )
    return found
