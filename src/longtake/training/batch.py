"""Prompts as right-padded rows, as the prefill of a rollout wants them. Pad, never drop. Legend: types.py.

What is trained on is packed instead: parallel.packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.types import Prompt, VideoTokens

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


def pad_prompts(prompts: Sequence[Prompt], device: torch.device, *, multiple: int = 1) -> PromptBatch:
    """Right-padded prompts; T is rounded up to a multiple."""
    token_ids, position_ids, lengths = padded_with_positions(prompts, [prompt.token_ids[:0] for prompt in prompts], multiple)
    return PromptBatch(token_ids.to(device), position_ids.to(device), lengths.to(device), videos_of(prompts))


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


def padded_with_positions(prompts: Sequence[Prompt], responses: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor, Tensor]:
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


def videos_of(prompts: Sequence[Prompt]) -> tuple[VideoAt, ...]:
    return tuple((row, span.start, span.tokens) for row, prompt in enumerate(prompts) for span in prompt.spans)
