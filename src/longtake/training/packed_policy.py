"""Log-probs of takes on packed sequences: every prompt is computed once for all its takes. Legend: types.py.

`score_groups` is what an update calls: it packs, scores and takes the gradient, whole groups at once or one group in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from longtake.algorithms.logprobs import chunked_token_logprobs, scoring_temperature
from longtake.models.family import Model
from longtake.parallel.attention import LocalAttention, PackedAttention, packed_hidden
from longtake.parallel.packed import pack_groups
from longtake.parallel.split import HeldPrompt, chunk_hidden, hold_prompt, split_takes
from longtake.training.policy import CHUNK_ROWS
from longtake.types import PackedGroups, Prompt


@dataclass(frozen=True, eq=False)
class ScoredTakes:
    """What the policy says of some takes."""

    takes: tuple[int, ...]
    """Which: indices into the takes of all groups handed in, group by group. M of them."""
    logprobs: Tensor
    """[M, R] with gradient, 0 on padding."""
    entropy: Tensor
    """[M, R] without, 0 on padding."""
    mask: Tensor
    """bool [M, R], True on tokens."""


Learn = Callable[[ScoredTakes], Tensor | None]
"""Is shown all takes, once each, in one or several parts; returns a part's share of the loss, or None where nothing is to be learned."""


def packed_logprobs(
    model: Model, packed: PackedGroups, temperature: float, *, attention: PackedAttention | None = None, chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Log-probs [M, R] of the takes' tokens with gradient, and entropies [M, R] without; the values of `policy.take_logprobs`.

    `attention` defaults to the whole sequence in this process. The head sees the hidden states that predict take tokens only, a chunk at a
    time. Raises as `attention.packed_hidden`.
    """
    local = attention or LocalAttention(packed.groups, packed.token_ids.device)
    hidden = packed_hidden(model, model.embed(packed.token_ids[None], packed.videos), packed.position_ids, local)
    return score_hidden(model, hidden[0], packed, temperature, chunk_rows)


def score_hidden(
    model: Model, hidden: Tensor, packed: PackedGroups, temperature: float, chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [M, R] from hidden states [T, D] of the tokens that `packed.predictor_index` counts."""
    mask = packed.response_mask
    scored, entropy = chunked_token_logprobs(
        hidden.index_select(0, packed.predictor_index[mask]),
        model.head,
        packed.target_ids[mask],
        scoring_temperature(temperature),
        model.banned_ids,
        chunk_rows,
    )
    empty = scored.new_zeros(mask.shape)
    return empty.masked_scatter(mask, scored), empty.masked_scatter(mask, entropy)


def score_groups(
    model: Model,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Tensor]],
    temperature: float,
    learn: Learn,
    *,
    max_tokens: int | None = None,
) -> None:
    """Score `responses[i]`, int64 [R] each, behind `prompts[i]` and add the gradient of the losses that `learn` returns.

    A single group of more than `max_tokens` tokens is split: its prompt goes forward once and backward once, its takes in chunks, each
    shown to `learn` and differentiated by itself. Several groups always go together. Raises ValueError as `pack_groups`.
    """
    if max_tokens is not None and len(prompts) == 1 and _too_large(prompts[0], responses[0], max_tokens):
        split_group(model, prompts[0], responses[0], temperature, learn, max_tokens=max_tokens)
        return
    packed = pack_groups(prompts, responses, model.device)
    logprobs, entropy = packed_logprobs(model, packed, temperature)
    _backward(learn(ScoredTakes(tuple(range(len(logprobs))), logprobs, entropy, packed.response_mask)))


def split_group(model: Model, prompt: Prompt, responses: Sequence[Tensor], temperature: float, learn: Learn, *, max_tokens: int) -> None:
    """As `score_groups` for one group, in chunks of takes: `max_tokens` with the prompt counted in, one take at least."""
    videos = [(0, span.start, span.tokens) for span in prompt.spans]
    held = hold_prompt(model, model.embed(prompt.token_ids[None].to(model.device), videos), prompt.position_ids.to(model.device))
    for chunk in split_takes([len(take) for take in responses], max_tokens - len(prompt.token_ids)):
        logprobs, entropy, mask = _chunk_logprobs(model, held, prompt, [responses[index] for index in chunk], temperature)
        _backward(learn(ScoredTakes(tuple(chunk), logprobs, entropy, mask)))
        held.collect()
    held.backward()


def _chunk_logprobs(
    model: Model, held: HeldPrompt, prompt: Prompt, responses: Sequence[Tensor], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    # Packed behind the prompt's last token alone, whose hidden state is held; that token itself does not go through the model again.
    last = replace(prompt, token_ids=prompt.token_ids[-1:], position_ids=prompt.position_ids[:, -1:], spans=())
    packed = pack_groups([last], [responses], model.device)
    embeds = model.embed(packed.token_ids[None, 1:], ())
    hidden = chunk_hidden(model, held, embeds, packed.position_ids[:, 1:], packed.groups[0].take_lengths)
    return *score_hidden(model, hidden, packed, temperature), packed.response_mask


def _too_large(prompt: Prompt, responses: Sequence[Tensor], max_tokens: int) -> bool:
    take_tokens = sum(len(take) for take in responses)
    return take_tokens > 0 and len(prompt.token_ids) + take_tokens > max_tokens


def _backward(loss: Tensor | None) -> None:
    if loss is not None:
        loss.backward()
