"""Rows laid out for one forward: prompt then response, right-padded, with explicit positions. Pad, never drop.

`TakeBatch` is the single place that knows the layout of takes: one row per take. Legend: types.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.types import Prompt, Take, VideoTokens

VideoAt = tuple[int, int, VideoTokens]
"""(row, index of the first placeholder token, what stands there)."""


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts alone, as the prefill wants them."""

    token_ids: Tensor
    """int64 [M, T]."""
    position_ids: Tensor
    """int64 [A, M, T]."""
    lengths: Tensor
    """int64 [M]."""
    videos: tuple[VideoAt, ...]


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


def pad_prompts(prompts: Sequence[Prompt], device: torch.device, *, multiple: int = 1) -> PromptBatch:
    """Right-padded prompts; T is rounded up to a multiple."""
    token_ids, position_ids, lengths = _padded(prompts, [prompt.token_ids[:0] for prompt in prompts], multiple)
    return PromptBatch(token_ids.to(device), position_ids.to(device), lengths.to(device), _videos(prompts))


def sft_batch(prompts: Sequence[Prompt], responses: Sequence[Tensor], device: torch.device) -> SftBatch:
    """Rows of `prompts` [M] with `responses` [M] of int64 [R]; an empty response is allowed and weighs nothing.

    Raises ValueError when there are no rows, not one response per prompt, or prompts with different numbers of position axes.
    """
    token_ids, position_ids, lengths = _padded(prompts, responses, multiple=1)
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
        videos=_videos(prompts),
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


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices into `lengths`, split so that rows x longest row <= max_tokens in each part. A longer row is a part of its own.

    Parts hold rows of like length, to pad little; equal lengths keep their order, so the split is a function of `lengths` alone.
    Use the indices to put results back in order. Raises ValueError for max_tokens < 1.

    >>> split_by_tokens([5, 90, 6, 100], 200)
    [[0, 2], [1, 3]]
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1; got {max_tokens}")
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if parts and (len(parts[-1]) + 1) * lengths[index] <= max_tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def _padded(prompts: Sequence[Prompt], responses: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [M, T], position ids [A, M, T] and lengths [M] of prompt + response rows, on the CPU."""
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"need as many responses as prompts, at least one; got {len(prompts)} prompts, {len(responses)} responses")
    if len({prompt.position_ids.shape[0] for prompt in prompts}) > 1:
        raise ValueError("prompts of one batch must have the same number of position axes")
    pairs = list(zip(prompts, responses, strict=True))
    lengths = [len(prompt.token_ids) + len(response) for prompt, response in pairs]
    width = -(-max(lengths) // multiple) * multiple
    token_ids = torch.empty(len(pairs), width, dtype=torch.int64)
    position_ids = torch.zeros(prompts[0].position_ids.shape[0], len(pairs), width, dtype=torch.int64)
    for row, (prompt, response) in enumerate(pairs):
        start, stop = len(prompt.token_ids), lengths[row]
        token_ids[row, :start] = prompt.token_ids
        token_ids[row, start:stop] = response
        token_ids[row, stop:] = token_ids[row, stop - 1]
        position_ids[:, row, :start] = prompt.position_ids
        position_ids[:, row, start:stop] = prompt.next_position + torch.arange(stop - start)
    return token_ids, position_ids, torch.tensor(lengths)


def _videos(prompts: Sequence[Prompt]) -> tuple[VideoAt, ...]:
    return tuple((row, span.start, span.tokens) for row, prompt in enumerate(prompts) for span in prompt.spans)
