"""Take log-probs against the slow forward, and the comparison of sampler and policy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from longtake.errors import MismatchError
from longtake.testing.rows import take_batch, take_logprobs
from longtake.testing.takes import random_prompt, random_take, score_slowly
from longtake.training.policy import compare_logprobs


def rows_of(model):
    """Text only, one video, two videos, an odd grid; takes of 6, 1, 9 and 0 tokens."""
    grids = [(), ((4, 4, 4),), ((4, 2, 4), (5, 4, 4)), ((3, 2, 6),)]
    prompts = [random_prompt(model, 9 + 3 * index, own, seed=index) for index, own in enumerate(grids)]
    return prompts, [random_take(model, count, seed=index) for index, count in enumerate((6, 1, 9, 0))]


def slow_rows(model, prompts, takes, temperature):
    scored = [score_slowly(model, prompt, take.token_ids, temperature) for prompt, take in zip(prompts, takes, strict=True)]
    return [logprobs for logprobs, _ in scored], [entropy for _, entropy in scored]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_padded_rows_score_as_single_rows_in_float64(exact_model, temperature):
    prompts, takes = rows_of(exact_model)
    batch = take_batch(prompts, takes, exact_model.device)
    logprobs, entropy = take_logprobs(exact_model, batch, temperature)
    slow_logprobs, slow_entropy = slow_rows(exact_model, prompts, takes, temperature)
    for row, (slow, slow_row_entropy) in enumerate(zip(slow_logprobs, slow_entropy, strict=True)):
        count = len(slow)
        # Measured 4e-15; the log-probs are -6 on average and differ by 6 within a row of the softmax.
        assert torch.allclose(logprobs[row, :count], slow, rtol=0, atol=1e-12)
        assert torch.allclose(entropy[row, :count], slow_row_entropy, rtol=0, atol=1e-12)
        assert logprobs[row, count:].eq(0).all()
        assert entropy[row, count:].eq(0).all()
    assert not entropy.requires_grad


def test_padded_rows_score_as_single_rows_in_float32(model):
    prompts, takes = rows_of(model)
    with torch.no_grad():
        logprobs, _ = take_logprobs(model, take_batch(prompts, takes, model.device), 1.0)
        slow, _ = slow_rows(model, prompts, takes, 1.0)
    assert logprobs.dtype == torch.float32
    for row, expected in enumerate(slow):
        assert torch.allclose(logprobs[row, : len(expected)], expected, rtol=0, atol=1e-5)  # measured 1e-6


def test_every_gradient_equals_that_of_single_rows(exact_model):
    prompts, takes = rows_of(exact_model)
    weights = torch.randn(4, 9, dtype=torch.float64)
    (take_logprobs(exact_model, take_batch(prompts, takes, exact_model.device), 0.8)[0] * weights).sum().backward()
    fast = gradients(exact_model)
    slow_logprobs, _ = slow_rows(exact_model, prompts, takes, 0.8)
    sum((slow * weights[row, : len(slow)]).sum() for row, slow in enumerate(slow_logprobs)).backward()
    slow = gradients(exact_model)
    assert len(fast) == len(slow) > 20
    assert worst_relative(fast, slow) < 1e-10  # measured 2e-15


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.hf.named_parameters() if parameter.grad is not None}
    model.hf.zero_grad()
    return found


def worst_relative(found, expected) -> float:
    """Largest over the tensors of max|difference| / max|expected|; key biases are left out, a softmax does not see them."""
    named = [name for name in expected if not name.endswith("k_proj.bias")]
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in named)


@pytest.mark.parametrize("fault", ["predictor", "position", "video", "token"])
def test_a_wrong_layout_shows(exact_model, fault):
    """Negative control: each fault moves some log-prob by more than 1e-3, nine orders over the tolerance above."""
    prompts, takes = rows_of(exact_model)
    batch = take_batch(prompts, takes, exact_model.device)
    with torch.no_grad():
        right, _ = take_logprobs(exact_model, batch, 1.0)
        if fault == "predictor":
            batch = replace(batch, predictor_index=batch.predictor_index + batch.response_mask)
        elif fault == "position":
            positions = torch.where(batch.attention_mask, torch.arange(batch.token_ids.shape[1]), 0)
            batch = replace(batch, position_ids=positions.expand(3, -1, -1))
        elif fault == "video":
            row, start, tokens = batch.videos[0]
            swapped = replace(tokens, embeddings=tokens.embeddings.flip(0))
            batch = replace(batch, videos=((row, start, swapped), *batch.videos[1:]))
        else:  # a prompt token is another
            shifted = [replace(prompt, token_ids=prompt.token_ids.clone()) for prompt in prompts]
            shifted[0].token_ids[0] += 1
            batch = take_batch(shifted, takes, exact_model.device)
        wrong, _ = take_logprobs(exact_model, batch, 1.0)
    assert (wrong - right).abs().max() > 1e-3


def test_what_stands_in_the_padding_does_not_matter(exact_model):
    prompts, takes = rows_of(exact_model)
    batch = take_batch(prompts, takes, exact_model.device)
    padding = ~batch.attention_mask
    other_tokens = torch.where(padding, 41, batch.token_ids)
    other_positions = torch.where(padding, 1000, batch.position_ids)
    assert not torch.equal(other_tokens, batch.token_ids)
    with torch.no_grad():
        one, _ = take_logprobs(exact_model, batch, 1.0)
        two, _ = take_logprobs(exact_model, replace(batch, token_ids=other_tokens, position_ids=other_positions), 1.0)
        # and the mask that is left out would have changed nothing
        hidden = exact_model.decoder(exact_model.embed(batch.token_ids, batch.videos), batch.position_ids, batch.attention_mask, None)
        unmasked = exact_model.decoder(exact_model.embed(batch.token_ids, batch.videos), batch.position_ids, None, None)
    assert torch.equal(one, two)
    assert (hidden - unmasked)[batch.attention_mask].abs().max() < 1e-12  # measured 1e-14; hidden states are of order 1


def test_the_head_sees_response_tokens_only_and_few_at_a_time(model):
    prompts, takes = rows_of(model)
    batch = take_batch(prompts, takes, model.device)
    plain, seen = model.head, []

    def counting(hidden):
        seen.append(tuple(hidden.shape[:-1]))
        return plain(hidden)

    model.head = counting
    with torch.no_grad():
        chunked, _ = take_logprobs(model, batch, 1.0, chunk_rows=5)
    assert seen == [(5,), (5,), (5,), (1,)]
    model.head = plain
    with torch.no_grad():
        whole, _ = take_logprobs(model, batch, 1.0)
    assert torch.allclose(chunked, whole, atol=1e-6)


def test_embedding_and_decoder_run_once(model):
    batch = take_batch(*rows_of(model), model.device)
    calls = []
    for name in ("embed", "decoder"):
        plain = getattr(model, name)
        setattr(model, name, lambda *given, plain=plain, name=name: calls.append(name) or plain(*given))
    take_logprobs(model, batch, 1.0)
    assert calls == ["embed", "decoder"]


def test_a_batch_without_any_response_token_still_has_a_gradient(model):
    prompts, takes = rows_of(model)
    logprobs, _ = take_logprobs(model, take_batch(prompts[3:], takes[3:], model.device), 1.0)
    assert logprobs.tolist() == [[0.0]]
    logprobs.sum().backward()


def test_media_tokens_have_no_probability_in_training_either(model):
    prompts, takes = rows_of(model)
    media = replace(takes[0], token_ids=torch.full((6,), model.placeholder_ids["video"]))
    with torch.no_grad():
        slow = score_slowly(model, prompts[0], takes[0].token_ids)[0]
        logprobs, _ = take_logprobs(model, take_batch(prompts[:1], takes[:1], model.device), 1.0)
        assert torch.allclose(logprobs[0], slow, atol=1e-5)
        model.embed = lambda ids, videos, plain=model.embed: plain(torch.where(ids == model.placeholder_ids["video"], 41, ids), videos)
        assert take_logprobs(model, take_batch(prompts[:1], [media], model.device), 1.0)[0].eq(-math.inf).all()


def test_comparison_by_hand():
    sampler = torch.tensor([[-1.0, -2.0, 5.0], [-3.0, 7.0, 7.0]])
    policy = torch.tensor([[-1.5, -2.0, 0.0], [-2.9, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = compare_logprobs(sampler, policy, mask)
    assert math.isclose(found.mean, 0.2, rel_tol=1e-6)
    assert math.isclose(found.max, 0.5, rel_tol=1e-6)
    # exp(-0.5) - 1 + 0.5 = 0.1065307, 0, exp(0.1) - 1 - 0.1 = 0.0051709; a third of their sum
    assert math.isclose(found.kl, 0.0372339, rel_tol=1e-4)
    assert compare_logprobs(sampler, policy, torch.zeros_like(mask)).max == 0.0


def test_a_mismatch_is_refused():
    # FACTS 6.15: a mismatch must not go unseen.
    sampler, mask = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    policy = torch.tensor([[0.0, 0.0, 0.0, 0.4]])
    assert compare_logprobs(sampler, policy, mask, max_difference=0.41, max_mean_difference=0.11).max < 0.41
    with pytest.raises(MismatchError, match=r"0\.4 at most and 0\.1 in the mean over 4 tokens"):
        compare_logprobs(sampler, policy, mask, max_difference=0.39)
    with pytest.raises(MismatchError):
        compare_logprobs(sampler, policy, mask, max_mean_difference=0.09)
    for broken in (math.nan, -math.inf):
        with pytest.raises(MismatchError):
            compare_logprobs(sampler, torch.full((1, 4), broken), mask, max_difference=0.5)
