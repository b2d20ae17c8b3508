"""Packing: groups of a prompt and its takes as one sequence. Pure index arithmetic on the CPU, then moved to the device.

    prompt 0 | take 0 | take 1 | ... | prompt 1 | take 0 | ...

Legend: types.py. M takes in all, T tokens of the packed sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longtake.types import PackedGroup, PackedGroups, Prompt

__all__ = ["PackedGroup", "PackedGroups", "pack_groups", "pack_rows", "padded_rows"]


def pack_groups(prompts: Sequence[Prompt], responses: Sequence[Sequence[Tensor]], device: torch.device) -> PackedGroups:
    """Each of `prompts` once, followed by the tokens of its takes, `responses[i]`: int64 [R] each, empty ones allowed.

    Raises ValueError for no prompt, not one list of responses per prompt, or prompts with different numbers of position axes.
    """
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"need one list of responses per prompt, at least one; got {len(prompts)} prompts, {len(responses)} lists")
    if len({prompt.position_ids.shape[0] for prompt in prompts}) > 1:
        raise ValueError("packed prompts must have the same number of position axes")
    groups = [
        PackedGroup(len(prompt.token_ids), tuple(len(take) for take in takes)) for prompt, takes in zip(prompts, responses, strict=True)
    ]
    takes = [take for group in responses for take in group]
    target_ids, response_mask = padded_rows(takes)
    predictor_index, _ = padded_rows([index for start, group in with_starts(groups) for index in _predictors(start, group)])
    videos = [
        (0, start + span.start, span.tokens)
        for prompt, (start, _) in zip(prompts, with_starts(groups), strict=True)
        for span in prompt.spans
    ]
    return PackedGroups(
        groups=tuple(groups),
        token_ids=torch.cat([ids for prompt, own in zip(prompts, responses, strict=True) for ids in (prompt.token_ids, *own)]).to(device),
        position_ids=torch.cat([_positions(prompt, own) for prompt, own in zip(prompts, responses, strict=True)], dim=1).to(device),
        videos=tuple(videos),
        target_ids=target_ids.to(device),
        response_mask=response_mask.to(device),
        predictor_index=predictor_index.to(device),
    )


def pack_rows(prompts: Sequence[Prompt], responses: Sequence[Tensor], device: torch.device) -> PackedGroups:
    """One row per response, prompt and response as one causal sequence: nothing is shared. Raises as `pack_groups`.

    The tokens are those of groups with one take each; only the layout of the attention differs.
    """
    packed = pack_groups(prompts, [[response] for response in responses], device)
    return replace(packed, groups=tuple(PackedGroup(group.num_tokens, ()) for group in packed.groups))


def padded_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors [R] of any lengths as right-padded rows: values [M, R], 0 on padding, and bool [M, R], True on values. R is at least 1."""
    width = max([1, *map(len, rows)])
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    mask = torch.arange(width) < lengths[:, None]
    if not rows:
        return torch.zeros(0, width, dtype=torch.int64), mask
    values = pad_sequence(list(rows), batch_first=True)
    return torch.nn.functional.pad(values, (0, width - values.shape[1])), mask


def with_starts(groups: Sequence[PackedGroup]) -> list[tuple[int, PackedGroup]]:
    """(index of its first token in the packed sequence, group).

    >>> [start for start, _ in with_starts([PackedGroup(5, (2, 0)), PackedGroup(3, ())])]
    [0, 7]
    """
    starts, at = [], 0
    for group in groups:
        starts.append((at, group))
        at += group.num_tokens
    return starts


def take_starts(start: int, group: PackedGroup) -> list[int]:
    """Index of the first token of each take of a group that begins at `start`.

    >>> take_starts(10, PackedGroup(5, (2, 0, 3)))
    [15, 17, 17]
    """
    firsts, at = [], start + group.prompt_length
    for length in group.take_lengths:
        firsts.append(at)
        at += length
    return firsts


def _predictors(start: int, group: PackedGroup) -> list[Tensor]:
    """Of each take of the group, int64 [R]: the token before each of its tokens; the prompt's last token before the first."""
    last = torch.tensor([start + group.prompt_length - 1])
    return [
        torch.cat([last, torch.arange(first, first + length - 1)]) if length else last[:0]
        for first, length in zip(take_starts(start, group), group.take_lengths, strict=True)
    ]


def _positions(prompt: Prompt, takes: Sequence[Tensor]) -> Tensor:
    """int64 [A, P + all R]: the prompt's own, then each take from `next_position` on, equal on all axes."""
    axes = prompt.position_ids.shape[0]
    return torch.cat([prompt.position_ids, *((prompt.next_position + torch.arange(len(take))).expand(axes, -1) for take in takes)], dim=1)
