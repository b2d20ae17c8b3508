"""The one distribution: hand-computed values, bans, temperature, chunking that never holds [R, W]."""

import math

import pytest
import torch

from longtake.algorithms.logprobs import chunked_token_logprobs, processed_logits, scoring_temperature, token_logprobs


def test_processed_logits_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    processed = processed_logits(logits, 0.5, [3])
    assert processed.tolist() == [[2.0, 4.0, 6.0, -math.inf]]
    assert logits.tolist() == [[1.0, 2.0, 3.0, 4.0]], "the caller's logits stay as they are"


def test_token_logprobs_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4, 0 with the last token banned.
    processed = processed_logits(torch.tensor([[math.log(2.0), 0.0, 0.0, 9.0]]), 1.0, [3]).expand(2, 4)
    logprobs, entropy = token_logprobs(processed, torch.tensor([0, 2]))
    # fp32 against exact values near 1: measured 6e-8
    torch.testing.assert_close(logprobs, torch.tensor([math.log(1 / 2), math.log(1 / 4)]), atol=5e-7, rtol=0)
    torch.testing.assert_close(entropy, torch.full((2,), 1.5 * math.log(2.0)), atol=5e-7, rtol=0)


def test_banned_token_scores_minus_infinity_and_entropy_stays_finite() -> None:
    logprobs, entropy = token_logprobs(processed_logits(torch.randn(3, 7), 1.0, torch.tensor([2, 5])), torch.tensor([2, 5, 0]))
    assert logprobs[:2].tolist() == [-math.inf, -math.inf]
    assert logprobs[2].isfinite() and entropy.isfinite().all()


def test_a_banned_token_can_never_be_sampled() -> None:
    """FACTS fault 7: a sampled media placeholder. The banned token has by far the largest logit."""
    torch.manual_seed(0)
    probabilities = processed_logits(torch.tensor([0.0, 50.0, 1.0]), 1.0, [1]).softmax(-1)
    assert probabilities[1] == 0.0
    assert 1 not in torch.multinomial(probabilities, 10_000, replacement=True)
    unbanned = processed_logits(torch.tensor([0.0, 50.0, 1.0]), 1.0, []).softmax(-1)
    assert 1 in torch.multinomial(unbanned, 10, replacement=True), "negative control: without the ban it is sampled"


def test_bfloat16_is_cast_before_the_division() -> None:
    logits = torch.tensor([[1.0, 1.2421875, 3.015625]], dtype=torch.bfloat16)
    processed = processed_logits(logits, 0.7, [])
    assert processed.dtype == torch.float32
    assert torch.equal(processed, logits.float() / 0.7)
    assert not torch.equal(processed, (logits / 0.7).float()), "negative control: the other order rounds differently"


def test_float64_stays() -> None:
    assert processed_logits(torch.zeros(2, 3, dtype=torch.float64), 1.0, []).dtype == torch.float64


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0"):
        processed_logits(torch.zeros(1, 3), temperature, [])


def test_greedy_takes_are_scored_at_temperature_1() -> None:
    assert scoring_temperature(0.0) == 1.0
    assert scoring_temperature(0.6) == 0.6


def test_wrong_banned_id_is_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        processed_logits(torch.zeros(1, 3), 1.0, [3])


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
def test_chunked_equals_whole_with_gradients(chunk_rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    token_ids = torch.tensor([0, 1, 2, 3, 4, 8, 8])
    row_weights = torch.randn(7, dtype=torch.float64, generator=generator)

    logprobs, entropy = chunked_token_logprobs(hidden, lambda rows: rows @ weight.T, token_ids, 0.7, [9, 10], chunk_rows)
    gradients = torch.autograd.grad((logprobs * row_weights).sum(), (hidden, weight))

    # An independent oracle: the banned columns simply do not exist.
    whole = ((hidden @ weight.T)[:, :9] / 0.7).softmax(-1)
    expected = whole[torch.arange(7), token_ids].log()
    expected_gradients = torch.autograd.grad((expected * row_weights).sum(), (hidden, weight))

    # fp64: measured 2e-15 on values of size 1 to 10
    torch.testing.assert_close(logprobs, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, -(whole * whole.log()).sum(-1).detach(), atol=1e-12, rtol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert want.abs().max() > 0.1
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_entropy_carries_no_gradient() -> None:
    hidden = torch.randn(3, 2, requires_grad=True)
    logprobs, entropy = chunked_token_logprobs(hidden, lambda rows: rows, torch.tensor([0, 1, 0]), 1.0, [], 2)
    assert logprobs.requires_grad and not entropy.requires_grad


def test_the_matrix_of_all_rows_never_exists() -> None:
    """The head is called on at most chunk_rows rows, forward and backward, and autograd saves nothing of width W."""
    num_words, chunk_rows = 1000, 4
    sizes: list[int] = []
    saved: list[int] = []

    def head(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(rows.shape[0])
        return rows @ weight.T

    weight = torch.randn(num_words, 3, requires_grad=True)
    hidden = torch.randn(18, 3, requires_grad=True)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs, _ = chunked_token_logprobs(hidden, head, torch.zeros(18, dtype=torch.int64), 1.0, [], chunk_rows)
        forward_calls = len(sizes)
        assert max(saved, default=0) < num_words, "nothing of width W is kept for backward"
        logprobs.sum().backward()
    assert sizes[:forward_calls] == [4, 4, 4, 4, 2]
    assert sorted(sizes[forward_calls:]) == [2, 4, 4, 4, 4], "each chunk is computed once more in backward"


def test_empty_take_calls_the_head_once_and_backpropagates() -> None:
    """An idle rank must enter a sharded head as often as the others."""
    calls = 0

    def head(rows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return rows @ weight.T

    weight = torch.randn(5, 3, requires_grad=True)
    logprobs, entropy = chunked_token_logprobs(torch.zeros(0, 3), head, torch.zeros(0, dtype=torch.int64), 1.0, [1], 4)
    assert calls == 1 and logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert weight.grad is not None and (weight.grad == 0).all()


@pytest.mark.parametrize(("rows", "ids", "chunk_rows"), [(3, 2, 1), (3, 3, 0)])
def test_shapes_are_checked(rows: int, ids: int, chunk_rows: int) -> None:
    with pytest.raises(ValueError, match="need hidden"):
        chunked_token_logprobs(torch.zeros(rows, 2), lambda x: x, torch.zeros(ids, dtype=torch.int64), 1.0, [], chunk_rows)
