"""Takes as right-padded rows, one per take, the prompt repeated, and their log-probs by the model's own attention. Legend: types.py.

What was there before prompts were shared: the oracle that packed sequences are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.algorithms.logprobs import chunked_token_logprobs, scoring_temperature
from longtake.models.family import Model
from longtake.training.batch import VideoAt, padded_with_positions, videos_of
from longtake.training.policy import CHUNK_ROWS
from longtake.types import Prompt, Take


@dataclass(frozen=True, eq=False)
class SftBatch:
    """Rows of prompt and response. A row's padding repeats its last token (never a media placeholder) and is never scored."""

    token_ids: Tensor
    """int64 [M, T]."""
    position_ids: Tensor
    """int64 [A, M, T]; response token r of a row is at `prompt.next_position + r` on every axis."""
    attention_mask: Tensor
    """bool [M, T], True on tokens. Rows are right-padded, so causal attention needs no mask to keep padding out of the tokens."""
    videos: tuple[VideoAt, ...]
    target_ids: Tensor
    """int64 [M, R], the response tokens, 0 on padding."""
    response_mask: Tensor
    """bool [M, R], True on response tokens."""
    predictor_index: Tensor
    """int64 [M, R], the hidden row that predicts each response token: `P - 1 + r`, so the prompt's last token predicts r = 0."""

    @property
    def num_response_tokens(self) -> int:
        return int(self.response_mask.sum())


@dataclass(frozen=True, eq=False)
class TakeBatch(SftBatch):
    """Takes as rows, one prompt per row; R tokens of a take are its response."""

    sampler_logprobs: Tensor
    """float32 [M, R], 0 on padding."""


def sft_batch(prompts: Sequence[Prompt], responses: Sequence[Tensor], device: torch.device) -> SftBatch:
    """Rows of `prompts` [M] with `responses` [M] of int64 [R]; an empty response is allowed and weighs nothing.

    Raises ValueError when there are no rows, not one response per prompt, or prompts with different numbers of position axes.
    """
    token_ids, position_ids, lengths = padded_with_positions(prompts, responses, multiple=1)
    prompt_lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts])
    response_lengths = lengths - prompt_lengths
    steps = torch.arange(max(1, int(response_lengths.max())))
    response_mask = steps < response_lengths[:, None]
    predictor_index = torch.where(response_mask, prompt_lengths[:, None] - 1 + steps, 0)
    targets = token_ids.gather(1, predictor_index + response_mask)
    return SftBatch(
        token_ids=token_ids.to(device),
        position_ids=position_ids.to(device),
        attention_mask=(torch.arange(token_ids.shape[1]) < lengths[:, None]).to(device),
        videos=videos_of(prompts),
        target_ids=torch.where(response_mask, targets, 0).to(device),
        response_mask=response_mask.to(device),
        predictor_index=predictor_index.to(device),
    )


def take_batch(prompts: Sequence[Prompt], takes: Sequence[Take], device: torch.device) -> TakeBatch:
    """Rows of `takes` [M], each with its own prompt (repeat a group's prompt for each of its takes). Raises as `sft_batch`."""
    rows = sft_batch(prompts, [take.token_ids for take in takes], device)
    sampler_logprobs = torch.zeros(rows.target_ids.shape, dtype=torch.float32)
    for row, take in enumerate(takes):
        sampler_logprobs[row, : len(take.sampler_logprobs)] = take.sampler_logprobs
    return TakeBatch(**vars(rows), sampler_logprobs=sampler_logprobs.to(device))


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
