"""Importance correction: every weight by hand, and that it makes the estimator of the gradient the right one."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from longtake.algorithms.importance import effective_share, importance_weights
from longtake.algorithms.kl import MAX_LOG_RATIO
from longtake.algorithms.losses import LossDenominator, PolicyLoss, add_metrics, metric_values, policy_loss
from longtake.config.sections import AlgorithmConfig, ImportanceConfig

LOSSES = ("clip", "gspo", "cispo")
WAYS = tuple(product(("token", "sequence"), ("truncate", "mask")))
RATIOS = ((0.4, 1.5, 3.0), (0.5, 2.0, 0.9), (1.5, 1.6, None), (1.0, None, None))
"""Trainer over sampler of each token; None: padding. Products over the takes: 1.8, 0.9, 2.4, 1."""


def setting(level: str, kind: str, **fields: float) -> ImportanceConfig:
    return ImportanceConfig.model_validate({"level": level, "kind": kind, **fields})


def ratios() -> tuple[Tensor, Tensor]:
    """(log ratio [M, R] with rubbish at padding, mask) of RATIOS, float64."""
    mask = torch.tensor([[ratio is not None for ratio in take] for take in RATIOS])
    return torch.tensor([[math.nan if ratio is None else math.log(ratio) for ratio in take] for take in RATIOS]).double(), mask


@pytest.mark.parametrize(
    ("level", "kind", "weights", "touched"),
    [
        ("token", "truncate", [[0.4, 1.5, 2.0], [0.5, 2.0, 0.9], [1.5, 1.6, 1.0], [1.0, 1.0, 1.0]], 1 / 9),
        ("token", "mask", [[0.0, 1.5, 0.0], [0.5, 2.0, 0.9], [1.5, 1.6, 1.0], [1.0, 1.0, 1.0]], 2 / 9),
        ("sequence", "truncate", [[1.8], [0.9], [2.0], [1.0]], 1 / 4),
        ("sequence", "mask", [[1.8], [0.9], [0.0], [1.0]], 1 / 4),
    ],
)
def test_weights_by_hand(level: str, kind: str, weights: list[list[float]], touched: float) -> None:
    """cap 2, low 0.5, both inside (but for the rounding of a logarithm, given here)."""
    log_ratio, mask = ratios()
    config = setting(level, kind, cap=2.0 + 1e-6, low=0.5 - 1e-6)
    found, outside = importance_weights(log_ratio, torch.zeros_like(log_ratio), mask, config)
    torch.testing.assert_close(found, torch.tensor(weights).double(), atol=2e-6, rtol=0)
    counted = mask if level == "token" else mask.any(1, keepdim=True)
    assert outside[counted].double().mean().item() == pytest.approx(touched)
    assert not outside[~mask].any() if level == "token" else outside.shape == (4, 1)


def test_low_is_for_the_mask_alone() -> None:
    lp, mask = torch.tensor([[math.log(0.1)]]), torch.ones(1, 1, dtype=torch.bool)
    for kind, wanted in (("truncate", 0.1), ("mask", 0.0)):
        found, outside = importance_weights(lp, torch.zeros(1, 1), mask, setting("token", kind))
        assert found.item() == pytest.approx(wanted) and outside.item() is (kind == "mask")


def test_an_absurd_ratio_stays_finite() -> None:
    lp, mask = torch.tensor([[1e4, -1e4], [1e4, 1e4]]), torch.ones(2, 2, dtype=torch.bool)
    for level in ("token", "sequence"):
        found, _ = importance_weights(lp, torch.zeros(2, 2), mask, setting(level, "truncate", cap=1e30))
        assert found.isfinite().all() and found.max().item() == pytest.approx(math.exp(MAX_LOG_RATIO))


@pytest.mark.parametrize("kind", ["auto", "off"])
def test_a_kind_that_is_not_decided_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"importance.kind is {kind}"):
        importance_weights(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), setting("token", kind))


@pytest.mark.parametrize(
    ("weights", "share"),
    [([1.0, 1.0, 1.0], 1.0), ([2.0, 2.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([3.0, 1.0], 0.8), ([0.0, 0.0], 0.0)],
)
def test_effective_share_by_hand(weights: list[float], share: float) -> None:
    """(3 + 1)^2 / (2 (9 + 1)) = 0.8."""
    values = torch.tensor(weights)
    assert effective_share(values.mean().item(), values.square().mean().item()) == pytest.approx(share)


def corrected(loss: str, level: str, kind: str, beta: float = 0.0, moved: float = 0.0) -> tuple[PolicyLoss, Tensor, Tensor]:
    """(loss, its gradient, mask) of takes with RATIOS, advantages 1, -2, 0.5, 1, log-probs of -1 before the step's first update, which have
    `moved` since (0: this is the first)."""
    log_ratio, mask = ratios()
    before = torch.full_like(log_ratio, -1.0)
    policy = (before + moved).requires_grad_()
    gain = torch.tensor([1.0, -2.0, 0.5, 1.0]).double()
    config = AlgorithmConfig.model_validate({"loss": loss, "aggregation": "constant", "kl": {"coefficient": beta, "estimator": "k2"}})
    result = policy_loss(
        policy,
        before - log_ratio,
        gain,
        mask,
        config,
        ref_lp=torch.full_like(before, -1.5),
        denominator=LossDenominator(1, 1, 1),
        importance=setting(level, kind, cap=2.0 + 1e-6, low=0.5 - 1e-6),
        proximal_lp=before if moved else None,
    )
    (gradient,) = torch.autograd.grad(result.loss, policy)
    return result, gradient, mask


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("level", "kind"), WAYS)
def test_the_first_update_has_the_weighted_policy_gradient(loss: str, level: str, kind: str) -> None:
    """Ratio 1 for every loss, so d loss / d log pi is -w A of a token (GSPO: of the take's mean of w, as its ratio is shared)."""
    result, gradient, mask = corrected(loss, level, kind)
    log_ratio, _ = ratios()
    weights, _ = importance_weights(log_ratio, torch.zeros_like(log_ratio), mask, setting(level, kind, cap=2.0 + 1e-6, low=0.5 - 1e-6))
    weights = torch.where(mask, weights.expand_as(mask), 0.0)
    if loss == "gspo":
        weights = torch.where(mask, weights.sum(1, keepdim=True) / mask.sum(1, keepdim=True), 0.0)
    wanted = -weights * torch.tensor([[1.0], [-2.0], [0.5], [1.0]])
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)
    assert result.metrics["ratio"].value() == 1.0
    assert [result.metrics[name].value() for name in ("clipped_low", "clipped_high", "clipped_dual")] == [0.0] * 3


def test_a_later_update_clips_what_it_moved_and_not_what_the_sampler_differs_by() -> None:
    """exp(0.1) = 1.105 lies inside 0.8..1.3 though trainer / sampler is 0.4 to 3; exp(0.5) = 1.65 does not, and only there is a clip."""
    inside, gradient, mask = corrected("clip", "token", "truncate", moved=0.1)
    assert inside.metrics["ratio"].value() == pytest.approx(math.exp(0.1))
    assert gradient[0, :3].tolist() == pytest.approx([-math.exp(0.1) * w for w in (0.4, 1.5, 2.0)], abs=3e-6)
    beyond, gradient, _ = corrected("clip", "token", "truncate", moved=0.5)
    assert beyond.metrics["clipped_high"].value() == pytest.approx(6 / 9)  # of tokens, those with an advantage above 0
    assert (gradient[torch.tensor([0, 2, 3])] == 0).all() and gradient[1].abs().min() > 0.5
    assert mask.sum() == 9


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_masked_takes_no_gradient_and_keeps_its_place(loss: str, level: str) -> None:
    """Not from the KL term either. The sums are divided by the same counts as with a weight of 1, by hand: beta d^2/2 with d = 0.5."""
    result, gradient, mask = corrected(loss, level, "mask", beta=0.1)
    if loss != "gspo" or level == "sequence":  # a GSPO ratio is the whole take's: its other tokens move it
        masked = torch.tensor([[0, 0], [0, 2]]) if level == "token" else torch.tensor([[2, 0], [2, 1]])
        assert (gradient[masked[:, 0], masked[:, 1]] == 0).all()
    assert (gradient != 0).sum() >= 5
    total = {"token": 1.5 + (0.5 + 2.0 + 0.9) + (1.5 + 1.6) + 1.0, "sequence": 3 * 1.8 + 3 * 0.9 + 0.0 + 1.0}[level]
    assert result.kl_term.item() == pytest.approx(0.1 * 0.125 * total, abs=1e-6)
    assert result.metrics["importance_masked"].count.item() == (9 if level == "token" else 4)
    assert result.metrics["kl"].value() == pytest.approx(0.125), "measured over all tokens alike"
    assert not gradient[~mask].any()


@pytest.mark.parametrize(("level", "kind"), WAYS)
def test_metrics_by_hand(level: str, kind: str) -> None:
    weights = {
        ("token", "truncate"): [0.4, 1.5, 2.0, 0.5, 2.0, 0.9, 1.5, 1.6, 1.0],
        ("token", "mask"): [0.0, 1.5, 0.0, 0.5, 2.0, 0.9, 1.5, 1.6, 1.0],
        ("sequence", "truncate"): [1.8, 0.9, 2.0, 1.0],
        ("sequence", "mask"): [1.8, 0.9, 0.0, 1.0],
    }[level, kind]
    values = metric_values(corrected("clip", level, kind)[0].metrics)
    assert values["importance_weight"] == pytest.approx(sum(weights) / len(weights), abs=2e-6)
    assert values["importance_ess"] == pytest.approx(sum(weights) ** 2 / len(weights) / sum(w * w for w in weights), abs=2e-6)
    name = {"truncate": "importance_truncated", "mask": "importance_masked"}[kind]
    assert values[name] == pytest.approx({"token": 1 if kind == "truncate" else 2, "sequence": 1}[level] / len(weights))
    assert "importance_square" not in values


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("level", "kind"), WAYS)
def test_micro_batches_add_up(loss: str, level: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 7, 3, 5)
    policy, sampler, before, ref = (-torch.rand(4, 7, generator=generator, dtype=torch.float64) for _ in range(4))
    gain, mask = torch.tensor([1.5, -0.7, 0.4, -1.2]).double(), torch.arange(7) < torch.tensor(lengths)[:, None]
    config = AlgorithmConfig.model_validate({"loss": loss, "kl": {"coefficient": 0.3}})

    def part(rows: slice) -> PolicyLoss:
        cells = (rows, slice(0, max(lengths[rows])))
        return policy_loss(
            policy[cells],
            sampler[cells],
            gain[rows],
            mask[cells],
            config,
            ref[cells],
            denominator=LossDenominator.of_lengths(lengths, 16),
            importance=setting(level, kind, cap=1.2, low=0.8),
            proximal_lp=before[cells],
        )

    whole, parts = part(slice(0, 4)), [part(slice(0, 1)), part(slice(1, 4))]
    assert sum(each.loss.item() for each in parts) == pytest.approx(whole.loss.item(), abs=1e-14)
    added = metric_values(add_metrics([each.metrics for each in parts]))
    assert added == pytest.approx(metric_values(whole.metrics), abs=1e-14)
    assert 0.0 < added["importance_ess"] < 1.0


@pytest.mark.parametrize("loss", LOSSES)
def test_without_it_nothing_of_it_is_there(loss: str) -> None:
    """Off: the ratio is to the sampler, and the numbers are those of a call that knows no correction."""
    log_ratio, mask = ratios()
    policy, gain = torch.full_like(log_ratio, -1.0), torch.ones(4).double()
    config, denominator = AlgorithmConfig.model_validate({"loss": loss}), LossDenominator(4, 9, 16)
    plain = policy_loss(policy, policy - log_ratio, gain, mask, config, denominator=denominator)
    off = policy_loss(policy, policy - log_ratio, gain, mask, config, denominator=denominator, importance=None)
    on = policy_loss(policy, policy - log_ratio, gain, mask, config, denominator=denominator, importance=setting("token", "truncate"))
    assert torch.equal(plain.loss, off.loss) and not torch.equal(plain.loss, on.loss)
    assert not any(name.startswith("importance") for name in off.metrics)
    assert off.metrics["ratio"].value() != 1.0 == on.metrics["ratio"].value()


WORDS, LENGTH = 3, 2
"""All nine responses of two words, the second depending on the first: small enough to add up over all of them."""


def exact_tables(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a first word [3], and of a second after each first [3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(WORDS, generator=generator).double(), torch.randn(WORDS, WORDS, generator=generator).double()


def logprobs_of_all(first: Tensor, second: Tensor) -> Tensor:
    """[9, 2]: log-probs of both words of every response."""
    rows = [torch.stack([first.log_softmax(0)[a], second.log_softmax(1)[a, b]]) for a in range(WORDS) for b in range(WORDS)]
    return torch.stack(rows)


def gradients(loss: str, importance: ImportanceConfig | None, decoupled: bool = True) -> tuple[Tensor, Tensor]:
    """(expected gradient of minus the loss over what the SAMPLER says, gradient of the policy's expected advantage), [12] each.

    The loss is linear in the advantage where its ratio is 1, so mu(y) A(y) in its place gives the expectation over y.
    """
    first, second = (table.requires_grad_() for table in exact_tables(0))
    advantage = torch.randn(WORDS**LENGTH, generator=torch.Generator().manual_seed(7)).double()
    policy, sampler = logprobs_of_all(first, second), logprobs_of_all(*exact_tables(1)).detach()
    config = AlgorithmConfig.model_validate({"loss": loss, "aggregation": "constant", "dual_clip": None, "clip_low": 1.0, "clip_high": 1e9})
    result = policy_loss(
        policy,
        sampler if importance is not None or not decoupled else policy.detach(),
        sampler.sum(1).exp() * advantage,
        torch.ones(WORDS**LENGTH, LENGTH, dtype=torch.bool),
        config,
        denominator=LossDenominator(1, 1, 1),
        importance=importance,
    )
    found = torch.autograd.grad(-result.loss, (first, second), retain_graph=True)
    exact = torch.autograd.grad((policy.sum(1).exp() * advantage).sum(), (first, second))
    return torch.cat([each.flatten() for each in found]), torch.cat([each.flatten() for each in exact])


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("loss", LOSSES)
def test_weighted_by_the_sequence_the_sampler_gives_the_policys_gradient(loss: str) -> None:
    """E_mu[w grad log pi A] = E_pi[grad log pi A] with no truncation. Measured 2e-16 (float64)."""
    found, exact = gradients(loss, setting("sequence", "truncate", cap=1e9))
    assert exact.abs().max() > 0.1
    assert relative(found, exact) < 1e-13
    found, exact = gradients(loss, setting("sequence", "mask", cap=1e9, low=0.0))
    assert relative(found, exact) < 1e-13


@pytest.mark.parametrize("loss", LOSSES)
def test_without_weights_it_does_not(loss: str) -> None:
    """Negative controls: the sampler's takes taken for the policy's; ratios to the sampler token by token, as without correction; weights
    per token; weights cut at 1."""
    wrong = {
        "as if on-policy": gradients(loss, None),
        "off": gradients(loss, None, decoupled=False),
        "per token": gradients(loss, setting("token", "truncate", cap=1e9)),
        "truncated": gradients(loss, setting("sequence", "truncate", cap=1.0)),
    }
    errors = {name: relative(*pair) for name, pair in wrong.items()}
    assert all(error > 0.05 for error in errors.values()), errors
