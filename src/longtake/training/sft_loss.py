"""Cross-entropy on the response only. Legend: types.py."""

from __future__ import annotations

from torch import Tensor

from longtake.models.family import Model
from longtake.parallel.mesh import SequenceMesh
from longtake.training.packed_policy import packed_logprobs
from longtake.types import PackedGroups


def sft_loss(model: Model, rows: PackedGroups, num_tokens: int, *, mesh: SequenceMesh | None = None) -> Tensor:
    """`-(1 / num_tokens) * sum of log pi(response token)` over the responses of rows (parallel.packed.pack_rows), a scalar with gradient.

    `num_tokens` counts the response tokens of the WHOLE optimizer step, all micro-batches and ranks: then adding up the losses of the
    micro-batches weighs every token once, however they were cut. (A mean per micro-batch, averaged, would not.)
    With a `mesh`: see `packed_policy.packed_logprobs`. Raises ValueError for num_tokens < 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1; got {num_tokens}")
    logprobs, _ = packed_logprobs(model, rows, temperature=1.0, mesh=mesh)
    return -logprobs.sum() / num_tokens
