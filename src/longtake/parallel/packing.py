"""Units of work into rounds of micro-batches: which run at the same time on the data ranks, which one after the other. Pure.

Every unit fits a rank by itself. Few units are packed by trying everything (branch and bound), many by LPT into as few rounds as memory
allows: a round more never makes the ranks' sums smaller, and costs its fixed part.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from longtake.parallel.balance import longest_first

EXACT_UNITS = 7
"""Up to so many units everything is tried."""
MORE_ROUNDS = 2
"""Rounds beyond the fewest that are tried too."""


@dataclass(frozen=True)
class Unit:
    """Work that is not divided among data ranks, on the fullest rank of its sequence group; or the sum of several."""

    seconds: float = 0.0
    bytes: float = 0.0
    """Activations."""
    tokens: float = 0.0
    scored: float = 0.0
    """Rows of logits."""

    def __add__(self, other: Unit) -> Unit:
        return Unit(self.seconds + other.seconds, self.bytes + other.bytes, self.tokens + other.tokens, self.scored + other.scored)


Bin = tuple[int, ...]
"""Indices of the units of one micro-batch."""
Rounds = tuple[tuple[Bin, ...], ...]
"""[round][data rank]."""
Loads = Sequence[Sequence[float | None]]
"""Seconds of each micro-batch, [round][data rank]; None for an empty one."""


@dataclass(frozen=True)
class Packer:
    """The units and what bounds and prices a packing of them."""

    units: Sequence[Unit]
    num_ranks: int
    """Data ranks."""
    fits: Callable[[Unit], bool]
    """Whether several units of this sum may share a micro-batch."""
    seconds: Callable[[Loads], float]
    """Of rounds of micro-batches; never falls when a load grows."""

    def pack(self) -> Rounds:
        """The rounds found best, each with one micro-batch per data rank, the ones that need the most memory first."""
        if not self.units:
            return ()
        best = self._by_load()
        if len(self.units) <= EXACT_UNITS:
            best = _Search(self, best).run()
        needs = [max(self.sum_of(part).bytes for part in one) for one in best]
        return tuple(best[place] for place in longest_first(needs))

    def sum_of(self, part: Bin) -> Unit:
        return sum((self.units[index] for index in part), Unit())

    def price(self, rounds: Rounds) -> float:
        return self.seconds([[self.sum_of(part).seconds if part else None for part in one] for one in rounds])

    def _by_load(self) -> Rounds:
        """LPT, in the smallest number of rounds that works, or a few more where that is cheaper."""
        most = ceil(len(self.units) / self.num_ranks)
        tried: list[Rounds] = []
        count = self._fewest_rounds(most)
        while len(tried) <= MORE_ROUNDS and count < most:
            rounds = self._lpt(count)
            tried += [] if rounds is None else [rounds]
            count += 1 if tried else max(1, count // 8)
        singles = self._lpt(most)
        assert singles is not None  # as many bins as units
        return min([*tried, singles], key=self.price)

    def _fewest_rounds(self, most: int) -> int:
        """No packing has fewer: so many bins could hold the units if they were liquid."""
        total = sum(self.units, Unit())
        for count in range(1, most):
            share = count * self.num_ranks
            if self.fits(Unit(0.0, total.bytes / share, total.tokens / share, total.scored / share)):
                return count
        return most

    def _lpt(self, num_rounds: int) -> Rounds | None:
        """Longest first into the lightest bin that takes it; None when one finds no place."""
        bins: list[list[int]] = [[] for _ in range(num_rounds * self.num_ranks)]
        sums = [Unit()] * len(bins)
        heap = [(0.0, place) for place in range(len(bins))]
        for index in longest_first([unit.seconds for unit in self.units]):
            place = self._lightest(heap, bins, sums, self.units[index])
            if place is None:
                return None
            bins[place].append(index)
            sums[place] += self.units[index]
            heapq.heappush(heap, (sums[place].seconds, place))
        return self._in_rounds([tuple(part) for part in bins], [unit.seconds for unit in sums])

    def _in_rounds(self, bins: Sequence[Bin], loads: Sequence[float]) -> Rounds:
        """Micro-batches of like length at the same time, and in each round the longest to the rank that has done the least so far."""
        order = longest_first(loads)
        done = [0.0] * self.num_ranks
        rounds: list[tuple[Bin, ...]] = []
        for start in range(0, len(order), self.num_ranks):
            ranks = sorted(range(self.num_ranks), key=done.__getitem__)
            one: list[Bin] = [()] * self.num_ranks
            for rank, place in zip(ranks, order[start : start + self.num_ranks], strict=True):
                one[rank] = bins[place]
                done[rank] += loads[place]
            rounds.append(tuple(one))
        return tuple(one for one in rounds if any(one))

    def _lightest(self, heap: list[tuple[float, int]], bins: list[list[int]], sums: list[Unit], unit: Unit) -> int | None:
        """Take the lightest bin with room off the heap; the fuller ones that were looked at go back."""
        passed: list[tuple[float, int]] = []
        found = None
        while heap and found is None:
            entry = heapq.heappop(heap)
            if not bins[entry[1]] or self.fits(sums[entry[1]] + unit):
                found = entry[1]
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(heap, entry)
        return found


class _Search:
    """Branch and bound over all packings, units longest first. Of micro-batches with equal loads in one round the first is tried alone."""

    def __init__(self, packer: Packer, start: Rounds) -> None:
        self.packer, self.best = packer, start
        self.best_price = packer.price(start)
        self.order = longest_first([unit.seconds for unit in packer.units])

    def run(self) -> Rounds:
        self._place(0, ())
        return self.best

    def _place(self, depth: int, rounds: Rounds) -> None:
        price = self.packer.price(rounds)
        if price >= self.best_price * (1 - 1e-12):
            return
        if depth == len(self.order):
            self.best, self.best_price = rounds, price
            return
        for nearby in self._choices(rounds, self.order[depth]):
            self._place(depth + 1, nearby)

    def _choices(self, rounds: Rounds, index: int) -> list[Rounds]:
        choices: list[Rounds] = []
        for place, one in enumerate(rounds):
            for rank, part in enumerate(one):
                if part in one[:rank] or (part and not self.packer.fits(self.packer.sum_of((*part, index)))):
                    continue
                changed = (*one[:rank], (*part, index), *one[rank + 1 :])
                choices.append((*rounds[:place], changed, *rounds[place + 1 :]))
        return [*choices, (*rounds, ((index,), *((),) * (self.packer.num_ranks - 1)))]
