"""The reference policy stays where RL started, and costs what it must."""

from __future__ import annotations

import torch

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.testing.rows import sft_batch, take_logprobs
from longtake.testing.takes import random_prompt, random_take
from longtake.training.packed_policy import score_groups
from longtake.training.reference import Reference
from longtake.training.trainable import choose_trainable, language_model, training_mode, vision_tower


def groups_of(model):
    """Prompts, and the responses to each: two to the first, one to the second."""
    prompts = [random_prompt(model, 8, ((2, 4, 4),), seed=1), random_prompt(model, 9, seed=2)]
    takes = [random_take(model, length, seed=length).token_ids for length in (5, 2, 3)]
    return prompts, [takes[:2], takes[2:]]


def policy(model, groups, temperature) -> torch.Tensor:
    """What the model itself says of all tokens, one after the other."""
    found = []
    with torch.no_grad():
        score_groups(model, *groups, temperature, lambda scored: found.append(scored.logprobs[scored.mask]))
    return torch.cat(found)


def test_it_scores_as_one_row_per_take_does(model):
    """Against the padded rows, whole groups and take by take."""
    prompts, responses = groups_of(model)
    batch = sft_batch([prompts[0], prompts[0], prompts[1]], [*responses[0], *responses[1]], model.device)
    with torch.no_grad():
        wanted = take_logprobs(model, batch, 0.9)[0][batch.response_mask]
    reference = Reference(model)
    whole = reference.logprobs(prompts, responses, 0.9)
    assert [len(row) for row in whole] == [5, 2, 3]
    parts = [row for prompt, own in zip(prompts, responses, strict=True) for row in reference.logprobs([prompt], [own], 0.9, max_tokens=1)]
    for found in (whole, parts):
        assert (torch.cat(found) - wanted).abs().max() < 1e-5  # measured 1e-6; log-probs are -7 in the mean
    swapped = torch.cat(reference.logprobs(prompts[::-1], responses, 0.9))
    assert (swapped - wanted).abs().max() > 0.05


def move(parameters) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.05)


def test_a_copy_stays_while_the_model_moves(model):
    parameters = choose_trainable(model, ModelConfig())
    groups = groups_of(model)
    start = policy(model, groups, 0.9)
    reference = Reference(model)
    assert torch.equal(torch.cat(reference.logprobs(*groups, 0.9)), start)
    move(parameters.values())
    with training_mode(model):
        moved = policy(model, groups, 0.9)
        kept = torch.cat(reference.logprobs(*groups, 0.9))
    assert torch.equal(kept, start)
    assert (moved - start).abs().max() > 0.05
    assert not kept.requires_grad
    assert all(parameter.requires_grad for parameter in parameters.values())


def test_the_copy_shares_the_tower_and_nothing_else(model):
    choose_trainable(model, ModelConfig(train_vision=True))
    copied = Reference(model)._model
    assert vision_tower(copied) is vision_tower(model)
    assert all(parameter.requires_grad for parameter in vision_tower(model).parameters())
    own = {parameter.data_ptr() for parameter in language_model(model).parameters()}
    assert not own & {parameter.data_ptr() for parameter in language_model(copied).parameters()}
    assert not any(parameter.requires_grad for parameter in language_model(copied).parameters())
    # The head was tied to the embeddings, and is tied to the copied ones.
    assert model.hf.lm_head.weight is language_model(model).embed_tokens.weight
    assert copied.hf.lm_head.weight is language_model(copied).embed_tokens.weight


def test_with_lora_the_reference_is_the_model_without_its_adapters(model):
    groups = groups_of(model)
    base = policy(model, groups, 1.0)
    parameters = choose_trainable(model, ModelConfig(lora=LoraConfig(rank=4)))
    reference = Reference(model)
    assert reference._model is model  # no second copy of the weights
    move(parameters.values())
    adapted = policy(model, groups, 1.0)
    assert (adapted - base).abs().max() > 0.01
    assert (torch.cat(reference.logprobs(*groups, 1.0)) - base).abs().max() < 1e-6  # measured 0
    assert torch.equal(policy(model, groups, 1.0), adapted)  # the adapters are on again
