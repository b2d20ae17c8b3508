"""Intervals against values worked out by hand or by another route."""

import itertools
import math
from fractions import Fraction

import pytest

from longtake.evaluation.intervals import chance_interval, chi_square_p, cluster_bootstrap, mcnemar_exact, wilson


def test_wilson_at_hand_computed_values():
    # n = 10, k = 5, z^2 = 3.841459: centre 0.5, half = z / (n + z^2) * sqrt(2.5 + 0.9603647) = 1.959964 / 13.841459 * 1.860206
    low, high = wilson(5, 10)
    assert low == pytest.approx(0.236593, abs=1e-6) and high == pytest.approx(0.763407, abs=1e-6)
    # k = 0: high = z^2 / (n + z^2)
    assert wilson(0, 10) == (0.0, pytest.approx(3.8414588 / 13.8414588, abs=1e-8))
    assert wilson(10, 10) == (pytest.approx(1 - 3.8414588 / 13.8414588, abs=1e-8), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_is_the_set_of_shares_the_score_test_keeps():
    """The ends solve |p_hat - p| = z sqrt(p (1 - p) / n): the definition, not the formula."""
    for correct, total in ((3, 17), (441, 1000), (1, 500)):
        for p in wilson(correct, total):
            assert abs(correct / total - p) == pytest.approx(1.959963985 * math.sqrt(p * (1 - p) / total), rel=1e-9)


def test_mcnemar_equals_enumeration_of_all_coin_sequences():
    for only_first, only_second in ((0, 0), (1, 0), (0, 5), (3, 7), (6, 6), (2, 9)):
        total, least = only_first + only_second, abs(only_first - only_second)
        extreme = sum(abs(2 * sum(flips) - total) >= least for flips in itertools.product((0, 1), repeat=total))
        assert mcnemar_exact(only_first, only_second) == pytest.approx(extreme / 2**total, abs=1e-15)


def test_mcnemar_by_hand_and_at_sizes_floats_cannot_hold():
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(1, 9) == 22 / 1024
    assert mcnemar_exact(4000, 4000) == 1.0
    assert 0 < mcnemar_exact(100, 300) < 1e-23
    assert mcnemar_exact(100, 300) == mcnemar_exact(300, 100)


def exact_cdf(n: int, p: Fraction, count: int) -> Fraction:
    return sum((math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count + 1)), Fraction(0))


@pytest.mark.parametrize(("n", "p"), [(20, Fraction(1, 4)), (100, Fraction(1, 4)), (37, Fraction(1, 2)), (500, Fraction(1, 4))])
def test_chance_interval_holds_99_percent_and_no_end_can_be_moved_in(n, p):
    low, high = chance_interval(n, float(p), 0.99)
    first, last = round(low * n), round(high * n)
    tail = Fraction(1, 200)
    assert exact_cdf(n, p, first - 1) <= tail < exact_cdf(n, p, first)
    assert exact_cdf(n, p, last - 1) < 1 - tail <= exact_cdf(n, p, last)
    assert exact_cdf(n, p, last) - exact_cdf(n, p, first - 1) >= Fraction(99, 100)


def test_chance_interval_narrows_with_rows_and_has_plain_edges():
    assert chance_interval(500, 0.25) == (pytest.approx(0.202), pytest.approx(0.300))
    assert chance_interval(0, 0.25) == (0.0, 1.0)
    assert chance_interval(10, 0.0) == (0.0, 0.0)
    assert chance_interval(10, 1.0) == (1.0, 1.0)


def test_cluster_bootstrap_is_wider_when_rows_of_a_video_agree_and_equals_the_binomial_when_they_do_not():
    """60 videos x 4 rows, half right. All rows of a video equal: the standard error doubles (sqrt of 4 rows), so does the width."""
    agreeing = cluster_bootstrap([(4, 4)] * 30 + [(0, 4)] * 30)
    single = cluster_bootstrap([(1, 1)] * 120 + [(0, 1)] * 120)
    width, plain = agreeing[1] - agreeing[0], single[1] - single[0]
    assert width / plain == pytest.approx(2.0, abs=0.15)  # measured 1.98; an interval blind to clusters gives 1.0
    low, high = wilson(120, 240)
    assert plain == pytest.approx(high - low, abs=0.012)  # measured 0.0005 off a width of 0.126


def test_cluster_bootstrap_repeats_itself_and_has_plain_edges():
    clusters = [(1, 2), (2, 3), (0, 1), (4, 4)]
    assert cluster_bootstrap(clusters, seed=3) == cluster_bootstrap(clusters, seed=3)
    assert cluster_bootstrap([(2, 2)] * 5) == (1.0, 1.0)
    assert cluster_bootstrap([]) == (0.0, 1.0)


def test_chi_square_at_tabled_quantiles():
    """95 % points of the tables in every textbook: 3.841, 5.991, 7.815, 9.488, 16.919, 18.307."""
    points = {1: 3.841459, 2: 5.991465, 3: 7.814728, 4: 9.487729, 9: 16.918978, 10: 18.307038}
    for degrees, point in points.items():
        assert chi_square_p(point, degrees) == pytest.approx(0.05, abs=1e-7)
    assert chi_square_p(16.26623, 3) == pytest.approx(0.001, abs=1e-8)
    assert chi_square_p(0.0, 3) == 1.0 and chi_square_p(5.0, 0) == 1.0
    assert 0.0 <= chi_square_p(5_000.0, 3) < 1e-300
