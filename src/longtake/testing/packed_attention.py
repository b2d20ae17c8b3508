"""Attention over a packed sequence by its definition, token by token: what everything fast is compared with. Shares no code with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.types import PackedGroup


def visible(groups: Sequence[PackedGroup]) -> Tensor:
    """bool [T, T], True where a query (row) sees a key: earlier tokens of its own segment, and the whole prompt of its group."""
    owner: list[tuple[int, int]] = []  # (group, take) of each token, take -1 for the prompt
    place: list[int] = []
    for index, group in enumerate(groups):
        for take, length in enumerate((group.prompt_length, *group.take_lengths), start=-1):
            owner += [(index, take)] * length
            place += range(length)
    seen = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for query, (group_index, take) in enumerate(owner):
        for key, (key_group, key_take) in enumerate(owner):
            if (group_index, take) == (key_group, key_take):
                seen[query, key] = place[key] <= place[query]
            else:
                seen[query, key] = group_index == key_group and key_take == -1
    return seen


def slow_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """query [T, N, H], key and value [T, K, H], seen bool [T, T] -> [T, N, H], differentiable."""
    repeats = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qnh,knh->nqk", query, keys) * scale
    return torch.einsum("nqk,knh->qnh", scores.masked_fill(~seen, float("-inf")).softmax(-1), values)
