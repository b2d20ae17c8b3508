"""Every surrogate and every mean: by hand, against a naive loop over tokens, by finite differences, cut into any micro-batches."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from longtake.algorithms.losses import LossDenominator, Mean, PolicyLoss, add_metrics, policy_loss
from longtake.config.sections import AlgorithmConfig

LOSSES = ("clip", "gspo", "cispo")
AGGREGATIONS = ("take_mean", "token_mean", "constant")
LENGTHS = (1, 7, 3, 12, 5, 2)


def config(loss: str = "clip", aggregation: str = "take_mean", beta: float = 0.0, **fields: object) -> AlgorithmConfig:
    kl = {"coefficient": beta, "estimator": fields.pop("estimator", "k3")}
    return AlgorithmConfig.model_validate({"loss": loss, "aggregation": aggregation, "kl": kl, **fields})


def one_token(ratio: float, advantage: float, **fields: object) -> tuple[PolicyLoss, float]:
    """The loss of one token whose policy is `ratio` times the sampler, and d loss / d policy log-prob."""
    policy = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    sampler = torch.full((1, 1), -1.0, dtype=torch.float64)
    gain = torch.tensor([advantage], dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = policy_loss(policy, sampler, gain, mask, config(**fields), denominator=LossDenominator(1, 1, 1))
    (gradient,) = torch.autograd.grad(result.loss, policy)
    return result, gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # clip range 0.8 .. 1.3, dual clip 3; d/d log pi of r A is r A
        (1.0, 2.0, -2.0, -2.0, None),
        (1.2, 2.0, -2.4, -2.4, None),
        (1.5, 2.0, -2.6, 0.0, "clipped_high"),
        (0.5, 2.0, -1.0, -1.0, None),
        (0.5, -2.0, 1.6, 0.0, "clipped_low"),
        (1.2, -2.0, 2.4, 2.4, None),
        (2.5, -2.0, 5.0, 5.0, None),
        (4.0, -2.0, 6.0, 0.0, "clipped_dual"),
        (4.0, 2.0, -2.6, 0.0, "clipped_high"),
        (1.7, 0.0, 0.0, 0.0, None),
    ],
)
@pytest.mark.parametrize("kind", ["clip", "gspo"])
def test_clip_by_hand(kind: str, ratio: float, advantage: float, loss: float, gradient: float, clipped: str | None) -> None:
    """With one token a take, GSPO's ratio of the sequence is the token's."""
    result, got = one_token(ratio, advantage, loss=kind)
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert got == pytest.approx(gradient, abs=1e-12)
    counts = {name: result.metrics[name].value() for name in ("clipped_low", "clipped_high", "clipped_dual")}
    assert counts == {name: float(name == clipped) for name in counts}
    assert result.metrics["ratio"].value() == pytest.approx(ratio, abs=1e-12)


def test_dual_clip_off() -> None:
    result, gradient = one_token(4.0, -2.0, dual_clip=None)
    assert result.loss.item() == pytest.approx(8.0) and gradient == pytest.approx(8.0)
    assert result.metrics["clipped_dual"].value() == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [(1.1, 2.0, 1.1), (1.5, 2.0, 1.3), (0.5, 2.0, 0.8), (0.5, -2.0, 0.8), (5.0, -2.0, 1.3)],
)
def test_cispo_by_hand(ratio: float, advantage: float, weight: float) -> None:
    """The weight is a constant: the gradient is -weight A, never zero, also where the weight is clipped."""
    result, gradient = one_token(ratio, advantage, loss="cispo")
    assert result.loss.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 1.0), abs=1e-12)
    assert gradient == pytest.approx(-weight * advantage, abs=1e-12)
    assert result.metrics["clipped_high"].value() == float(ratio > 1.3)
    assert result.metrics["clipped_low"].value() == float(ratio < 0.8)


def test_gspo_is_length_normalised() -> None:
    policy, sampler = torch.tensor([[0.3, -0.1, 0.1, 9.0]], dtype=torch.float64), torch.zeros(1, 4).double()
    mask = torch.tensor([[True, True, True, False]])
    result = policy_loss(policy, sampler, torch.ones(1).double(), mask, config("gspo"), denominator=LossDenominator(1, 3, 8))
    assert result.loss.item() == pytest.approx(-math.exp(0.1), abs=1e-12)
    assert result.metrics["ratio"].value() == pytest.approx(math.exp(0.1), abs=1e-12)
    assert result.metrics["ratio"].count.item() == 1.0, "one ratio per take"


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(policy, sampler, ref) [M, R], advantages [M], mask [M, R] of takes of unequal length, ratios from about 0.3 to 4."""
    generator = torch.Generator().manual_seed(seed)
    policy, sampler, ref = (-torch.rand(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64) * 1.5 for _ in range(3))
    gain = torch.tensor([1.5, -0.7, 0.4, -1.2, 0.0, 1.0], dtype=torch.float64)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    return policy, sampler, ref, gain, mask


def naive_loss(policy: Tensor, sampler: Tensor, ref: Tensor, gain: Tensor, cfg: AlgorithmConfig, max_new_tokens: int) -> float:
    """The formulas with Python floats, one token at a time, nothing shared with the code under test."""
    total, num_tokens = 0.0, sum(LENGTHS)
    for take, length in enumerate(LENGTHS):
        p, q, f, a = policy[take].tolist(), sampler[take].tolist(), ref[take].tolist(), gain[take].item()
        sequence_ratio = math.exp(sum(p[t] - q[t] for t in range(length)) / length)
        take_sum = 0.0
        for t in range(length):
            ratio = sequence_ratio if cfg.loss == "gspo" else math.exp(p[t] - q[t])
            low, high = 1 - cfg.clip_low, 1 + cfg.clip_high
            clipped = low if ratio < low else high if ratio > high else ratio
            if cfg.loss == "cispo":
                token = -clipped * a * p[t]
            else:
                token = -min(ratio * a, clipped * a)
                if a < 0 and cfg.dual_clip is not None:
                    token = min(token, -cfg.dual_clip * a)
            d = p[t] - f[t]
            take_sum += token + cfg.kl.coefficient * {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[cfg.kl.estimator]
        if cfg.aggregation == "take_mean":
            total += take_sum / length / len(LENGTHS)
        elif cfg.aggregation == "token_mean":
            total += take_sum / num_tokens
        else:
            total += take_sum / (len(LENGTHS) * max_new_tokens)
    return total


@pytest.mark.parametrize(("loss", "aggregation", "estimator"), list(product(LOSSES, AGGREGATIONS, ("k1", "k2", "k3"))))
def test_against_the_naive_loop(loss: str, aggregation: str, estimator: str) -> None:
    cfg = config(loss, aggregation, beta=0.3, estimator=estimator, dual_clip=1.5)
    policy, sampler, ref, gain, mask = batch()
    result = policy_loss(policy, sampler, gain, mask, cfg, ref, denominator=LossDenominator.of_lengths(LENGTHS, 16))
    want = naive_loss(policy, sampler, ref, gain, cfg, 16)
    # fp64: measured at most 1e-16 of values from 0.02 to 0.5
    assert abs(want) > 0.01
    assert result.loss.item() == pytest.approx(want, abs=1e-13)
    assert (result.policy_term + result.kl_term).item() == pytest.approx(want, abs=1e-13)
    assert result.kl_term.item() != 0.0


@pytest.mark.parametrize(("loss", "aggregation"), list(product(LOSSES, AGGREGATIONS)))
@pytest.mark.parametrize("cut", [(1, 1, 1, 1, 1, 1), (2, 4), (4, 1, 1), (5, 1)])
def test_micro_batches_add_up_to_the_batch(loss: str, aggregation: str, cut: tuple[int, ...]) -> None:
    """FACTS fault 13. Value, gradient and metrics, takes of 1 to 12 tokens; padding of each micro-batch cut to its own longest take."""
    cfg = config(loss, aggregation, beta=0.3)
    denominator = LossDenominator.of_lengths(LENGTHS, 16)
    policy, sampler, ref, gain, mask = batch()
    policy.requires_grad_()
    whole = policy_loss(policy, sampler, gain, mask, cfg, ref, denominator=denominator)
    (whole_gradient,) = torch.autograd.grad(whole.loss, policy)

    parts, shares, start = [], [], 0
    for size in cut:
        rows = slice(start, start + size)
        width = max(LENGTHS[rows])
        cells = (rows, slice(0, width))
        part = policy_loss(policy[cells], sampler[cells], gain[rows], mask[cells], cfg, ref[cells], denominator=denominator)
        parts.append(part)
        shares.append(part.loss)
        start += size
    (gradient,) = torch.autograd.grad(torch.stack(shares).sum(), policy)
    # fp64: measured 6e-17 of losses of size 0.02 to 0.5, 3e-17 of gradients of size 0.1
    assert sum(share.item() for share in shares) == pytest.approx(whole.loss.item(), abs=1e-14)
    assert whole_gradient.abs().max() > 0.005
    torch.testing.assert_close(gradient, whole_gradient, atol=1e-14, rtol=0)
    added = add_metrics([part.metrics for part in parts])
    assert added.keys() == whole.metrics.keys() and "kl" in added
    for name, mean in whole.metrics.items():
        assert added[name].value() == pytest.approx(mean.value(), abs=1e-14), name

    # Negative control: the mean of each micro-batch by itself, averaged, is another loss (where takes are of unequal length).
    alone = []
    start = 0
    for size in cut:
        rows, own = slice(start, start + size), LossDenominator.of_lengths(LENGTHS[start : start + size], 16)
        alone.append(policy_loss(policy[rows], sampler[rows], gain[rows], mask[rows], cfg, ref[rows], denominator=own).loss.item())
        start += size
    if aggregation == "token_mean" or len(set(cut)) > 1:
        assert abs(sum(alone) / len(alone) - whole.loss.item()) > 1e-3


@pytest.mark.parametrize(("loss", "aggregation"), list(product(LOSSES, AGGREGATIONS)))
def test_gradient_by_finite_differences(loss: str, aggregation: str) -> None:
    """Away from the corners of the clip (none within 1e-3 for this seed), which gradcheck could not pass."""
    cfg = config(loss, aggregation, beta=0.3, dual_clip=1.5)
    policy, sampler, ref, gain, mask = batch()
    ratio = (policy - sampler)[mask].exp()
    for corner in (0.8, 1.3, 1.5):
        assert (ratio - corner).abs().min() > 1e-3
    denominator = LossDenominator.of_lengths(LENGTHS, 16)
    if loss == "cispo":  # its weight is a constant to autograd: hold it constant in the differences too
        weight = (policy - sampler).exp().clamp(0.8, 1.3)

        def cispo_by_hand(lp: Tensor) -> Tensor:
            values = torch.where(mask, -weight * gain.unsqueeze(1) * lp + 0.3 * ((ref - lp).exp() - (ref - lp) - 1), 0.0)
            per_take = {"take_mean": values.sum(1) / torch.tensor(LENGTHS) / 6, "token_mean": values.sum(1) / 30}
            return per_take.get(aggregation, values.sum(1) / 96).sum()

        policy.requires_grad_()
        (got,) = torch.autograd.grad(policy_loss(policy, sampler, gain, mask, cfg, ref, denominator=denominator).loss, policy)
        (want,) = torch.autograd.grad(cispo_by_hand(policy), policy)
        torch.testing.assert_close(got, want, atol=1e-14, rtol=0)
        return

    def of_policy(lp: Tensor) -> Tensor:
        return policy_loss(lp, sampler, gain, mask, cfg, ref, denominator=denominator).loss

    assert torch.autograd.gradcheck(of_policy, policy.requires_grad_(), eps=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_stands_at_padding_changes_nothing(loss: str) -> None:
    cfg = config(loss, beta=0.3)
    denominator = LossDenominator.of_lengths(LENGTHS, 16)
    policy, sampler, ref, gain, mask = batch()
    results = []
    for filler in (0.0, math.nan, -math.inf, 1e30):
        lp = torch.where(mask, policy, filler).requires_grad_()
        result = policy_loss(
            lp, torch.where(mask, sampler, filler), gain, mask, cfg, torch.where(mask, ref, filler), denominator=denominator
        )
        result.loss.backward()
        assert lp.grad is not None and (lp.grad[~mask] == 0).all()
        results.append((result.loss.detach(), lp.grad, {name: mean.value() for name, mean in result.metrics.items()}))
    for value, gradient, metrics in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1]) and metrics == results[0][2]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_masked_take_is_as_if_it_were_not_there(loss: str, aggregation: str) -> None:
    cfg = config(loss, aggregation)
    policy, sampler, _, gain, mask = batch()
    lengths = [0 if take == 3 else length for take, length in enumerate(LENGTHS)]
    mask[3] = False
    others = torch.tensor([0, 1, 2, 4, 5])
    got = policy_loss(policy, sampler, gain, mask, cfg, denominator=LossDenominator.of_lengths(lengths, 16))
    rest = [length for length in lengths if length]
    want = policy_loss(policy[others], sampler[others], gain[others], mask[others], cfg, denominator=LossDenominator.of_lengths(rest, 16))
    assert got.loss.item() == pytest.approx(want.loss.item(), abs=1e-15)
    assert got.metrics["ratio"].value() == pytest.approx(want.metrics["ratio"].value(), abs=1e-15)


def test_on_policy_loss_is_minus_the_mean_advantage_and_its_gradient_the_policy_gradient() -> None:
    policy, _, _, gain, mask = batch()
    policy.requires_grad_()
    result = policy_loss(policy, policy.detach(), gain, mask, config(), denominator=LossDenominator.of_lengths(LENGTHS, 16))
    assert result.loss.item() == pytest.approx(-gain.mean().item(), abs=1e-15)
    (gradient,) = torch.autograd.grad(result.loss, policy)
    want = torch.where(mask, -gain.unsqueeze(1) / (len(LENGTHS) * torch.tensor(LENGTHS).unsqueeze(1)), 0.0)
    torch.testing.assert_close(gradient, want, atol=1e-16, rtol=0)
    assert result.metrics["sampler_kl"].value() == 0.0


def test_empty_batch_gives_zero_with_a_gradient() -> None:
    """An idle rank: takes without a token, nothing to divide by."""
    policy = torch.zeros(2, 0, requires_grad=True)
    result = policy_loss(
        policy, torch.zeros(2, 0), torch.ones(2), torch.zeros(2, 0, dtype=torch.bool), config(), denominator=LossDenominator(0, 0, 16)
    )
    assert result.loss.item() == 0.0 and result.loss.requires_grad
    assert result.metrics["ratio"].value() == 0.0


def test_an_absurd_ratio_stays_finite() -> None:
    policy = torch.tensor([[0.0, -1e4]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for gain in (1.0, -1.0, 0.0):
        result = policy_loss(
            policy, torch.tensor([[-1e4, 0.0]]), torch.tensor([gain]), mask, config(dual_clip=None), denominator=LossDenominator(1, 2, 2)
        )
        (gradient,) = torch.autograd.grad(result.loss, policy)
        assert result.loss.isfinite() and gradient.isfinite().all()


def test_kl_in_the_reward_leaves_the_loss_alone() -> None:
    policy, sampler, ref, gain, mask = batch()
    denominator = LossDenominator.of_lengths(LENGTHS, 16)
    in_reward = AlgorithmConfig.model_validate({"kl": {"coefficient": 0.3, "place": "reward"}})
    got = policy_loss(policy, sampler, gain, mask, in_reward, ref, denominator=denominator)
    want = policy_loss(policy, sampler, gain, mask, config(), denominator=denominator)
    assert torch.equal(got.loss, want.loss) and got.kl_term.item() == 0.0
    assert got.metrics["kl"].value() > 0.0, "but it is still measured"


def test_wrong_calls_are_refused() -> None:
    policy, sampler, _, gain, mask = batch()
    denominator = LossDenominator.of_lengths(LENGTHS, 16)
    with pytest.raises(ValueError, match="ref_lp is needed"):
        policy_loss(policy, sampler, gain, mask, config(beta=0.1), denominator=denominator)
    for bad in ((policy[:, :3], sampler, gain, mask), (policy, sampler, gain[:2], mask), (policy, sampler, gain, mask.double())):
        with pytest.raises(ValueError, match="need log-probs"):
            policy_loss(*bad, config(), denominator=denominator)


def test_mean_adds_and_divides_once() -> None:
    first = Mean.of(torch.tensor([1.0, 5.0, math.nan]), torch.tensor([True, True, False]))
    second = Mean.of(torch.tensor([9.0]), torch.tensor([True]))
    assert (first + second).value() == 5.0  # the mean of the means would be 6
    assert Mean.of(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).value() == 0.0
