"""Attention over a packed sequence the slow, obvious way: who sees whom is asked token by token, and the softmax is written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.types import PackedGroup


def plain_attention(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """query [B, N, Q, H], key and value [B, K, S, H], sees bool [Q, S] -> out [B, N, Q, H], log-sum-exp [B, N, Q]."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~sees, float("-inf"))
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def who_sees_whom(groups: Sequence[PackedGroup]) -> Tensor:
    """bool [T, T]: row t is True for the tokens that token t attends to."""
    owner: list[tuple[int, int]] = []
    """(group, take) of each token, take -1 for the prompt."""
    for number, group in enumerate(groups):
        owner += [(number, -1)] * group.prompt_length
        for take, length in enumerate(group.take_lengths):
            owner += [(number, take)] * length
    sees = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for one, (group_of, take_of) in enumerate(owner):
        for other in range(one + 1):
            sees[one, other] = owner[other] in ((group_of, -1), (group_of, take_of))
    return sees
