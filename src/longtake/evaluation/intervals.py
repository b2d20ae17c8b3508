"""Intervals and tests on counts of right answers. Pure Python and exact where it can be; needs no scipy."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def wilson(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson 1927): honest near 0 and 1, where the normal one leaves [0, 1].

    centre = (k + z^2/2) / (n + z^2);  half = z / (n + z^2) * sqrt(k (n - k) / n + z^2 / 4).  No rows: (0, 1).
    """
    if total == 0:
        return (0.0, 1.0)
    centre = (correct + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(correct * (total - correct) / total + z * z / 4)
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    return (low, 1.0 if correct == total else min(1.0, centre + half))


def cluster_bootstrap(clusters: Sequence[tuple[int, int]], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of accuracy when whole clusters (videos) are drawn anew.

    Several rows ask about one video and share its difficulty, so that the binomial interval is too narrow; this one is not.
    `clusters`: (right answers, rows) of each video. Deterministic by `seed`.
    """
    if not clusters:
        return (0.0, 1.0)
    draw = random.Random(seed)
    shares = sorted(_share(draw.choices(clusters, k=len(clusters))) for _ in range(resamples))
    return (shares[int(0.025 * resamples)], shares[min(resamples - 1, math.ceil(0.975 * resamples) - 1)])


def _share(clusters: Sequence[tuple[int, int]]) -> float:
    return sum(correct for correct, _ in clusters) / sum(total for _, total in clusters)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: under the null the discordant rows fall to either side like a fair coin.

    p = min(1, 2 * sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c)), in integers, so exact at any size.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1
    for k in range(1, fewer + 1):
        term = term * (total - k + 1) // k
        tail += term
    p: float = 2 * tail / (1 << total)
    return min(1.0, p)


def chi_square_p(statistic: float, degrees: int) -> float:
    """P(X >= statistic) of a chi-square variable with so many degrees of freedom, by the closed forms of the incomplete gamma function.

    Q(1/2, x) = erfc(sqrt(x)), Q(1, x) = exp(-x), Q(a + 1, x) = Q(a, x) + x^a exp(-x) / Gamma(a + 1); a = degrees / 2, x = statistic / 2.
    No degree of freedom: 1.
    """
    x = statistic / 2
    if degrees < 1 or x <= 0:
        return 1.0
    a = 0.5 if degrees % 2 else 1.0
    upper = math.erfc(math.sqrt(x)) if degrees % 2 else math.exp(-x)
    while 2 * a < degrees:
        upper += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return min(1.0, upper)


def chance_interval(n: int, p: float, level: float = 0.99) -> tuple[float, float]:
    """Shares of right answers that pure guessing stays within with probability >= `level`: central, exact binomial.

    The ends are counts / n: the lowest count with P(X <= count) > (1 - level) / 2 and the lowest with P(X <= count) >= (1 + level) / 2.
    For rows with different numbers of options pass the mean of 1 / options: the interval is then slightly too wide, never too narrow.
    """
    if n == 0 or not 0 < p < 1:
        return (0.0, 1.0) if n == 0 else (float(p >= 1), float(p >= 1))
    tail = (1 - level) / 2
    below, low = 0.0, None
    for count in range(n + 1):
        below += math.exp(_log_binomial(n, count) + count * math.log(p) + (n - count) * math.log1p(-p))
        if low is None and below > tail:
            low = count
        if below >= 1 - tail:
            return ((low or 0) / n, count / n)
    return ((low or 0) / n, 1.0)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
