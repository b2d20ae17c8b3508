"""Random numbers per take, and tokens from them."""

from __future__ import annotations

import numpy as np
import torch

from longtake.rollout.sampling import greedy_tokens, sample_tokens, take_uniforms


def test_uniforms_depend_on_each_of_seed_step_key_and_take():
    names = {"seed": 3, "step": 5, "key": 7, "take": 2}
    base = take_uniforms(**names, count=8)
    assert np.array_equal(base, take_uniforms(**names, count=8))
    for name in names:
        other = take_uniforms(**{**names, name: names[name] + 1}, count=8)
        assert not np.intersect1d(base, other).size, name


def test_a_longer_draw_starts_with_the_shorter_one():
    # max_new_tokens must not change what is drawn.
    assert np.array_equal(take_uniforms(0, 0, 0, 0, 100)[:10], take_uniforms(0, 0, 0, 0, 10))


def test_swapping_step_and_take_or_seed_and_key_gives_other_numbers():
    assert not np.array_equal(take_uniforms(0, 1, 0, 2, 4), take_uniforms(0, 2, 0, 1, 4))
    assert not np.array_equal(take_uniforms(1, 0, 2, 0, 4), take_uniforms(2, 0, 1, 0, 4))


def test_uniforms_are_uniform_within_and_across_takes():
    across = np.array([take_uniforms(0, 0, key, take, 1)[0] for key in range(250) for take in range(8)])
    within = take_uniforms(0, 0, 0, 0, 2000)
    for drawn in (across, within):
        grid = np.arange(1, len(drawn) + 1) / len(drawn)
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is the 99.9 % quantile; 2,000 draws notice a shift of 4 %.
        assert np.abs(np.sort(drawn) - grid).max() < 1.95 / np.sqrt(len(drawn))
    # Neighbouring takes are not correlated: |r| < 4 / sqrt(1000).
    pairs = np.array([[take_uniforms(0, 0, key, take, 1)[0] for take in (0, 1)] for key in range(1000)])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.13


def test_inverse_cdf_by_hand():
    # p = 0.1, 0.2, 0.7: cdf 0.1, 0.3, 1.0. The token is the first whose cdf is ABOVE u.
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(5, 3)
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.0, 0.09, 0.11, 0.31, 0.99], dtype=torch.float64))
    assert tokens.tolist() == [0, 0, 1, 2, 2]
    expected = torch.tensor([0.1, 0.1, 0.2, 0.7, 0.7]).log()
    assert torch.allclose(logprobs, expected, atol=1e-6)  # measured 6e-8; the log-probs are 0.4 to 2.3


def test_a_token_of_probability_zero_is_never_drawn():
    # Banned tokens first, last and between, and the extreme uniforms that would land on them.
    logits = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]).expand(4, 5)
    below_one = np.nextafter(1.0, 0.0)
    tokens, _ = sample_tokens(logits, torch.tensor([0.0, 0.5, np.nextafter(0.5, 0.0), below_one], dtype=torch.float64))
    assert tokens.tolist() == [1, 3, 1, 3]


def test_the_largest_uniform_stays_inside_a_large_vocabulary():
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    logits[:, 49_000:] = float("-inf")
    tokens, logprobs = sample_tokens(logits, torch.full((3,), np.nextafter(1.0, 0.0), dtype=torch.float64))
    assert (tokens < 49_000).all()
    assert logprobs.isfinite().all()


def test_empirical_distribution_is_the_softmax():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, generator=generator) * 1.5
    uniforms = torch.tensor([take_uniforms(0, step, 1, 2, 1)[0] for step in range(20_000)])
    tokens, logprobs = sample_tokens(logits.expand(20_000, 12), uniforms)
    counts = torch.bincount(tokens, minlength=12).double()
    expected = logits.double().softmax(0) * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 31.26  # 99.9 % quantile of chi-square with 11 degrees of freedom
    # Negative control: the softmax at a temperature 5 % off does not fit.
    wrong = (logits.double() / 1.05).softmax(0) * 20_000
    assert ((counts - wrong) ** 2 / wrong).sum() > 31.26
    assert torch.allclose(logprobs, logits.log_softmax(0)[tokens], atol=1e-6)  # measured 2e-7


def test_greedy_takes_the_largest_and_scores_it_at_its_own_distribution():
    tokens, logprobs = greedy_tokens(torch.tensor([[0.0, 1.0, 0.0], [2.0, float("-inf"), 0.0]]))
    assert tokens.tolist() == [1, 0]
    # 1 - log(2 + e) and 2 - log(e^2 + 1)
    assert torch.allclose(logprobs, torch.tensor([-0.5514447, -0.1269280]), atol=1e-6)
