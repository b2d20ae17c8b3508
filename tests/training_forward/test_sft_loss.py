"""Every response token weighs once, whatever the micro-batching."""

from __future__ import annotations

import pytest
import torch

from longtake.parallel.packed import pack_rows
from longtake.testing.takes import random_prompt, random_take, score_slowly
from longtake.training.sft_loss import sft_loss

RESPONSE_LENGTHS = (1, 12, 3, 7, 2, 9, 5, 4)


def rows_of(model):
    prompts = [random_prompt(model, 6 + index, ((2, 4, 4),) if index % 2 else (), seed=index) for index in range(8)]
    return prompts, [random_take(model, count, seed=index).token_ids for index, count in enumerate(RESPONSE_LENGTHS)]


def accumulated(model, micro_batch: int, *, naive: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of 8 rows in micro-batches; `naive` averages the means of the micro-batches."""
    prompts, responses = rows_of(model)
    total = 0.0
    for start in range(0, 8, micro_batch):
        part = slice(start, start + micro_batch)
        batch = pack_rows(prompts[part], responses[part], model.device)
        loss = sft_loss(model, batch, int(batch.response_mask.sum()) * (8 // micro_batch) if naive else sum(RESPONSE_LENGTHS))
        loss.backward()
        total += float(loss.detach())
    found = {name: parameter.grad.clone() for name, parameter in model.hf.named_parameters() if parameter.grad is not None}
    model.hf.zero_grad()
    return total, found


def worst_relative(found, expected) -> float:
    named = [name for name in expected if not name.endswith("k_proj.bias")]  # a softmax does not see them: rounding only
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in named)


def test_the_loss_is_the_mean_cross_entropy_of_all_response_tokens(exact_model):
    prompts, responses = rows_of(exact_model)
    with torch.no_grad():
        scored = [score_slowly(exact_model, prompt, response)[0] for prompt, response in zip(prompts, responses, strict=True)]
        loss = sft_loss(exact_model, pack_rows(prompts, responses, exact_model.device), sum(RESPONSE_LENGTHS))
    assert len(torch.cat(scored)) == 43
    assert abs(float(loss + torch.cat(scored).mean())) < 1e-12
    assert loss > 1


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_gradients_do_not_depend_on_the_micro_batch(exact_model, micro_batch):
    whole_loss, whole = accumulated(exact_model, 8)
    loss, found = accumulated(exact_model, micro_batch)
    assert abs(loss - whole_loss) < 1e-12
    assert worst_relative(found, whole) < 1e-10  # measured 1.4e-15
    # Negative control (FACTS 6.13): a mean per micro-batch weighs the tokens of short responses more.
    naive_loss, naive = accumulated(exact_model, micro_batch, naive=True)
    assert abs(naive_loss - whole_loss) > 1e-3
    assert worst_relative(naive, whole) > 0.05  # measured 1.7 and 0.23


def test_a_count_below_one_is_refused(model):
    prompts, responses = rows_of(model)
    with pytest.raises(ValueError, match="num_tokens"):
        sft_loss(model, pack_rows(prompts[:1], responses[:1], model.device), 0)
