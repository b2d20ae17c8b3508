"""The order of the data: a permutation per epoch, keyed by (seed, epoch) and never by rank, so that the data position is ONE integer."""

from __future__ import annotations

import random
from functools import lru_cache


@lru_cache(maxsize=8)
def epoch_order(num: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of 0..num-1. Python's own shuffle: its stream is stable over versions, which numpy's and torch's do not promise."""
    order = list(range(num))
    random.Random(f"longtake data order {seed} {epoch}").shuffle(order)
    return tuple(order)


def positions(start: int, count: int, num: int, seed: int, front: tuple[int, ...] = ()) -> list[int]:
    """Indices of the rows at data positions start..start+count-1, running across epochs of `num` rows.

    Position p is row `epoch_order(num, seed, p // num)[p % num]`: a resumed run needs to know `start` and nothing else.
    `front`: rows with which the first epoch begins; its others follow in their order.
    Raises ValueError when num < 1, start < 0 or count < 0.
    """
    if num < 1 or start < 0 or count < 0:
        raise ValueError(f"need num >= 1, start >= 0, count >= 0; got {num}, {start}, {count}")
    epochs = {epoch: epoch_order(num, seed, epoch) for epoch in {position // num for position in range(start, start + count)}}
    if front and 0 in epochs:
        epochs[0] = (*front, *(row for row in epochs[0] if row not in set(front)))
    return [epochs[position // num][position % num] for position in range(start, start + count)]
