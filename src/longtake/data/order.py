"""The order of the data: a permutation per epoch, keyed by (seed, epoch) and never by rank, so that the data position is ONE integer.

A mixture: position p belongs to the source whose share of a circle the point (offset + p * STEP) mod 2^64 falls into. The step is the
golden ratio, whose points lie as evenly as any: every stretch of positions has each source's share of them, within a few rows (of a
thousand: three). How many positions before p belong to a source is a sum that needs no loop over them: that is the place in the source's
own epochs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from longtake.observe.digest import digest_of

CIRCLE = 1 << 64
STEP = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: the points come back to none before all others."""


@lru_cache(maxsize=64)
def epoch_order(num: int, seed: int, epoch: int, source: str = "") -> tuple[int, ...]:
    """A permutation of 0..num-1. Python's own shuffle: its stream is stable over versions, which numpy's and torch's do not promise."""
    order = list(range(num))
    random.Random(f"longtake data order {seed} {epoch}{source and f' {source}'}").shuffle(order)
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


@dataclass(frozen=True)
class Mixture:
    """Which row of which source stands at each data position. Keyed by seed and position alone."""

    sizes: Mapping[str, int]
    """Rows of each source, at least 1."""
    weights: Mapping[str, float]
    """Shares of the positions, relative to each other."""
    seed: int

    def at(self, start: int, count: int, front: tuple[int, ...] = ()) -> list[int]:
        """Rows at positions start..start+count-1, as indices into the rows of all sources one behind the other.

        `front`: rows that are drawn before the first position of the mixture, beside their turn in it.
        """
        first = max(start, len(front))
        drawn = [self._row(position - len(front)) for position in range(first, start + count)]
        return [*front[start : start + count], *drawn]

    def _row(self, position: int) -> int:
        point = (self._offset + position * STEP) % CIRCLE
        start = 0
        for (name, size), (low, high) in zip(self.sizes.items(), self._shares(), strict=True):
            if low <= point < high:
                epoch, place = divmod(num_between(position, self._offset, low, high), size)
                return start + epoch_order(size, self.seed, epoch, name)[place]
            start += size
        raise AssertionError("the shares cover the circle")

    @property
    def _offset(self) -> int:
        return int(digest_of("longtake mixture 1", self.seed)[:16], 16)

    def _shares(self) -> list[tuple[int, int]]:
        """[low, high) of each source; together they are the circle."""
        weights = [Fraction(self.weights[name]) for name in self.sizes]
        ends = [round(CIRCLE * end / sum(weights)) for end in accumulate(weights)]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def num_between(count: int, offset: int, low: int, high: int) -> int:
    """How many of the points (offset + p * STEP) mod CIRCLE, p = 0..count-1, lie in low..high-1.

    x mod m < t exactly when floor(x / m) - floor((x - t) / m) is 1, for 0 <= t <= m; the sums of floors have a closed form.
    """
    below_low, below_high = (floor_sum(count, CIRCLE, STEP, offset + CIRCLE - bound) for bound in (low, high))
    return below_low - below_high


def floor_sum(count: int, modulus: int, step: int, offset: int) -> int:
    """Sum of floor((offset + i * step) / modulus) over i = 0..count-1, by Euclid's algorithm; step and offset at least 0."""
    total = 0
    while count > 0:
        total += (count - 1) * count // 2 * (step // modulus) + count * (offset // modulus)
        step, offset = step % modulus, offset % modulus
        last = step * count + offset
        if last < modulus:
            break
        count, offset, modulus, step = last // modulus, last % modulus, step, modulus
    return total
