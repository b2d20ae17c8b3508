"""KL estimators: by hand, their expectation under the policy, their gradients, and KL in the reward."""

import math

import pytest
import torch

from longtake.algorithms.kl import MAX_LOG_RATIO, kl_per_token, subtract_kl
from longtake.config.sections import KlConfig

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REF = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


@pytest.mark.parametrize(
    ("estimator", "want"),
    [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) + 0.5 - 1)],
)
def test_by_hand(estimator: str, want: float) -> None:
    got = kl_per_token(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64), estimator)
    assert got.item() == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased(estimator: str) -> None:
    """The sum over tokens weighted by the policy is the KL itself: measured difference 0 to 6e-17 of 0.36."""
    kl = (POLICY * (POLICY / REF).log()).sum()
    assert kl > 0.3
    torch.testing.assert_close((POLICY * kl_per_token(POLICY.log(), REF.log(), estimator)).sum(), kl, atol=1e-14, rtol=0)


def test_k2_is_biased_but_its_gradient_is_that_of_the_kl() -> None:
    logits = POLICY.log().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    (true,) = torch.autograd.grad((logprobs.exp() * (logprobs - REF.log())).sum(), logits, retain_graph=True)
    (k2,) = torch.autograd.grad((POLICY * kl_per_token(logprobs, REF.log(), "k2")).sum(), logits, retain_graph=True)
    (k1,) = torch.autograd.grad((POLICY * kl_per_token(logprobs, REF.log(), "k1")).sum(), logits)
    assert true.abs().max() > 0.1
    torch.testing.assert_close(k2, true, atol=1e-14, rtol=0)
    torch.testing.assert_close(k1, torch.zeros(3, dtype=torch.float64), atol=1e-14, rtol=0)  # why k1 belongs in the reward


def test_k3_keeps_its_digits_near_zero() -> None:
    """exp(-d) + d - 1 of d = 1e-4 is 5e-9: computed term by term in fp32 it would be 0 or 6e-8."""
    got = kl_per_token(torch.tensor([1e-4]), torch.tensor([0.0]), "k3")
    assert 0 <= got.item() < 2e-8


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_an_absurd_token_stays_finite(estimator: str) -> None:
    policy = torch.tensor([-1000.0, -math.inf, 0.0], requires_grad=True)
    got = kl_per_token(policy, torch.tensor([0.0, 0.0, -1000.0]), estimator)
    got.sum().backward()
    assert got.isfinite().all() and policy.grad is not None and policy.grad.isfinite().all()
    assert got.abs().max() <= math.exp(MAX_LOG_RATIO)


def test_subtract_kl_by_hand() -> None:
    policy = torch.tensor([[-1.0, -1.0, math.nan], [-2.0, math.nan, math.nan]])
    ref = torch.tensor([[-1.5, -0.5, math.nan], [-2.25, math.nan, math.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rewards = torch.tensor([1.0, 0.0])
    assert subtract_kl(rewards, policy, ref, mask, KlConfig(coefficient=0.5, estimator="k1")).tolist() == [1.0, -0.125]
    assert subtract_kl(rewards, policy, ref, mask, KlConfig(coefficient=2.0, estimator="k2")).tolist() == [0.5, -0.0625]
