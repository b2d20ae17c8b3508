"""The reference policy stays where RL started, and costs what it must."""

from __future__ import annotations

import torch

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.testing.takes import random_prompt, random_take
from longtake.training.batch import take_batch
from longtake.training.policy import take_logprobs
from longtake.training.reference import Reference
from longtake.training.trainable import choose_trainable, language_model, training_mode, vision_tower


def batch_of(model):
    prompts = [random_prompt(model, 8, ((2, 4, 4),), seed=1), random_prompt(model, 9, seed=2)]
    return take_batch(prompts, [random_take(model, 5, seed=1), random_take(model, 3, seed=2)], model.device)


def move(parameters) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.05)


def test_a_copy_stays_while_the_model_moves(model):
    parameters = choose_trainable(model, ModelConfig())
    batch = batch_of(model)
    with torch.no_grad():
        start, _ = take_logprobs(model, batch, 0.9)
    reference = Reference(model)
    assert torch.equal(reference.logprobs(batch, 0.9), start)
    move(parameters.values())
    with training_mode(model):
        moved, _ = take_logprobs(model, batch, 0.9)
        kept = reference.logprobs(batch, 0.9)
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
    batch = batch_of(model)
    with torch.no_grad():
        base, _ = take_logprobs(model, batch, 1.0)
    parameters = choose_trainable(model, ModelConfig(lora=LoraConfig(rank=4)))
    reference = Reference(model)
    assert reference._model is model  # no second copy of the weights
    move(parameters.values())
    with torch.no_grad():
        adapted, _ = take_logprobs(model, batch, 1.0)
    assert (adapted - base).abs().max() > 0.01
    assert (reference.logprobs(batch, 1.0) - base).abs().max() < 1e-6  # measured 0
    with torch.no_grad():
        assert torch.equal(take_logprobs(model, batch, 1.0)[0], adapted)  # the adapters are on again
