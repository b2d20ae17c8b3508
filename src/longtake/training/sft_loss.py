"""Cross-entropy on the response only. Legend: types.py."""

from __future__ import annotations

from torch import Tensor

from longtake.models.family import Model
from longtake.training.batch import SftBatch
from longtake.training.policy import take_logprobs


def sft_loss(model: Model, batch: SftBatch, num_tokens: int) -> Tensor:
    """`-(1 / num_tokens) * sum of log pi(response token)` over the response tokens of the batch, a scalar with gradient.

    `num_tokens` counts the response tokens of the WHOLE optimizer step, all micro-batches and ranks: then adding up the losses of the
    micro-batches weighs every token once, however they were cut. (A mean per micro-batch, averaged, would not.)
    Raises ValueError for num_tokens < 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1; got {num_tokens}")
    logprobs, _ = take_logprobs(model, batch, temperature=1.0)
    return -logprobs.sum() / num_tokens
