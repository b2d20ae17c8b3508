"""Log-probs of sampled tokens: ONE function makes the distribution that the sampler, the policy, the reference and letter scoring all use.

Shapes: R take tokens, D model width, W vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BannedIds = Sequence[int] | Tensor
"""Token ids that can never be sampled (media placeholders, padded vocabulary): ints, or int64 [B] on the logits' device."""


def scoring_temperature(temperature: float) -> float:
    """Temperature at which tokens sampled at `temperature` are scored.

    Greedy decoding (0) is a rule for choosing, not a distribution: its log-probs are those of the model itself, at temperature 1.
    """
    return temperature if temperature > 0 else 1.0


def processed_logits(logits: Tensor, temperature: float, banned_ids: BannedIds) -> Tensor:
    """`logits / temperature` with banned ids at -inf, [..., W] -> [..., W] float32 (float64 stays float64).

    The cast comes first, so that bfloat16 logits of sampler and policy are divided with the same rounding.
    Raises ValueError for a temperature that is not positive: 0 (greedy) belongs to the sampler alone, see `scoring_temperature`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}. Score greedy takes at scoring_temperature(0) = 1")
    processed = logits if logits.dtype == torch.float64 else logits.float()
    banned = torch.as_tensor(banned_ids, dtype=torch.int64, device=logits.device)
    if banned.numel():
        processed = processed.index_fill(-1, banned, float("-inf"))
    return processed if temperature == 1.0 else processed / temperature


def token_logprobs(processed: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob of each token and the entropy of each row (nats), [..., W] and int64 [...] -> [...] and [...].

    Log-probs carry gradients; the entropy is a metric and carries none. A banned token scores -inf; banned entries add 0 to the entropy.
    """
    logprobs = processed.log_softmax(-1)
    chosen = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = torch.special.entr(logprobs.exp()).sum(-1)  # entr(0) = 0, where p * log p would be 0 * -inf = nan
    return chosen, entropy


def chunked_token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    token_ids: Tensor,
    temperature: float,
    banned_ids: BannedIds,
    chunk_rows: int,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of `head(hidden)` without the [R, W] matrix: at most [chunk_rows, W] lives at a time, backward included.

    hidden [R, D], head [C, D] -> [C, W], token_ids int64 [R] -> (log-probs [R] with gradients, entropy [R] without).
    Each chunk is recomputed in backward. R = 0 still calls the head once, so that a sharded head is entered by every rank.
    Raises ValueError when hidden and token_ids disagree on R, or chunk_rows < 1.
    """
    if hidden.ndim != 2 or token_ids.shape != hidden.shape[:1] or chunk_rows < 1:
        raise ValueError(f"need hidden [R, D], token_ids [R], chunk_rows >= 1; got {hidden.shape}, {token_ids.shape}, {chunk_rows}")

    def score(hidden_chunk: Tensor, ids_chunk: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(processed_logits(head(hidden_chunk), temperature, banned_ids), ids_chunk)

    chunks = zip(torch.split(hidden, chunk_rows), torch.split(token_ids, chunk_rows), strict=True)
    scored: list[tuple[Tensor, Tensor]] = [checkpoint(score, hidden_chunk, ids, use_reentrant=False) for hidden_chunk, ids in chunks]
    return torch.cat([logprobs for logprobs, _ in scored]), torch.cat([entropy for _, entropy in scored])
