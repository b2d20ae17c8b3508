"""Ulysses (arXiv 2309.14509): for attention, ranks change from holding all heads of some tokens to holding some heads of all tokens.

KV heads are sent to every rank whose query heads read them; where several ranks need the same one it is replicated, and its gradients
come back summed.

Shapes: U Ulysses ranks, L slots of one rank, N query heads, K KV heads, n and k those of one rank, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd

import torch
from torch import Tensor

from longtake.errors import ConfigError
from longtake.parallel.attention import PackedAttention
from longtake.parallel.collectives import exchange
from longtake.parallel.mesh import Axis, divisors


@dataclass(frozen=True)
class HeadSplit:
    """Which heads each of U ranks attends with. Rank u has query heads u * n to (u + 1) * n; its KV head j serves n / k of them."""

    num_ranks: int
    query_heads: int
    """n of each rank."""
    kv_heads: tuple[int, ...]
    """[U * k], the KV head that each rank gets, rank by rank."""

    @property
    def kv_per_rank(self) -> int:
        return len(self.kv_heads) // self.num_ranks

    def replicated(self, tokens: Tensor) -> Tensor:
        """[L, K, H] -> [L, U * k, H], each KV head as often as it is sent."""
        return tokens if self.kv_heads == tuple(range(tokens.shape[1])) else tokens.index_select(1, _index(self.kv_heads, tokens.device))


@cache
def split_heads(heads: int, kv_heads: int, num_ranks: int) -> HeadSplit:
    """Raises ConfigError when the query heads do not divide, naming the degrees that would do.

    >>> split_heads(28, 4, 4).kv_heads, split_heads(28, 4, 14).kv_per_rank
    ((0, 1, 2, 3), 1)
    """
    if heads % num_ranks:
        raise ConfigError(
            f"Ulysses {num_ranks} for a model of {heads} query heads",
            rule="the Ulysses degree divides the number of query heads",
            remedy=f"choose one of {', '.join(map(str, divisors(heads)))}, and a ring for the rest of the ranks",
        )
    each, group = heads // num_ranks, heads // kv_heads
    # The largest blocks of query heads that neither a rank nor a KV head cuts: each block reads one KV head.
    block = gcd(each, group)
    return HeadSplit(num_ranks, each, tuple(head // group for head in range(0, heads, block)))


def to_heads(query: Tensor, key: Tensor, value: Tensor, axis: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """query [L, N, H], key and value [L, K, H] of this rank's tokens -> [U * L, n, H], [U * L, k, H] twice: of all ranks' tokens, in the
    order of ranks, this rank's heads. One exchange. Every rank has the same L. Raises ConfigError as `split_heads`."""
    if axis.size == 1:
        return query, key, value
    length, heads, _ = query.shape
    split = split_heads(heads, key.shape[1], axis.size)
    by_rank = [part.unflatten(1, (axis.size, -1)).transpose(0, 1) for part in (query, split.replicated(key), split.replicated(value))]
    mixed = exchange(torch.cat(by_rank, dim=2).flatten(0, 1), [length] * axis.size, [length] * axis.size, axis)
    ours = mixed.split([split.query_heads, split.kv_per_rank, split.kv_per_rank], dim=1)
    return ours[0], ours[1], ours[2]


@cache
def _index(heads: tuple[int, ...], device: torch.device) -> Tensor:
    """Made once: sending it to a GPU in every layer would wait for it."""
    return torch.tensor(heads, device=device)


def to_sequence(out: Tensor, axis: Axis) -> Tensor:
    """[U * L, n, H] -> [L, N, H]: all heads of this rank's tokens again."""
    if axis.size == 1:
        return out
    length = len(out) // axis.size
    by_rank = exchange(out, [length] * axis.size, [length] * axis.size, axis)
    return by_rank.unflatten(0, (axis.size, length)).transpose(0, 1).flatten(1, 2)


class UlyssesAttention:
    """A strategy (`attention.PackedAttention`) around another: exchanges, lets `inner` attend to all tokens with this rank's heads, and
    exchanges back. Each rank has as many slots; what lies in them past `num_tokens`, the padding, is seen by nobody and gets 0."""

    def __init__(self, inner: PackedAttention, axis: Axis, num_tokens: int) -> None:
        self._inner, self._axis, self._num_tokens = inner, axis, num_tokens

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        token_major = [part[0].transpose(0, 1) for part in (query, key, value)]
        parts = to_heads(token_major[0], token_major[1], token_major[2], self._axis)
        ours = [part[: self._num_tokens].transpose(0, 1).unsqueeze(0) for part in parts]
        out = self._inner.attend(ours[0], ours[1], ours[2], layer=layer, scale=scale)[0].transpose(0, 1)
        num_padding = len(parts[0]) - self._num_tokens
        padded = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, num_padding)) if num_padding else out
        return to_sequence(padded, self._axis).transpose(0, 1).unsqueeze(0)
