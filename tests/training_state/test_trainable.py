"""What trains, what stays bit-identical, and that adapters and gradient checkpointing do what they say."""

from __future__ import annotations

import pytest
import torch

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.errors import ConfigError
from longtake.training.trainable import adapters_off, choose_trainable, lora_layers, parameter_counts, training_mode

IDS = torch.tensor([[5, 17, 80, 33, 120, 7]])


def _loss(model) -> torch.Tensor:
    return model.hf(input_ids=IDS).logits.float().log_softmax(-1)[0, :, 3].sum()


def test_the_tower_is_frozen_and_the_tied_head_is_one_parameter(new_model):
    model = new_model()
    named = choose_trainable(model, ModelConfig())
    assert named and all(name.startswith("model.language_model.") for name in named)  # the head goes by the embedding's name
    assert model.hf.lm_head.weight is model.hf.model.language_model.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in model.hf.model.visual.parameters())
    # by hand, D = 32, 2 heads of 16, 1 KV head, MLP 48, 2 layers, vocabulary as built
    attention = (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32
    layer = attention + 3 * 32 * 48 + 2 * 32
    vocabulary = model.hf.lm_head.weight.shape[0]
    assert parameter_counts(model)["trainable"] == 2 * layer + 32 + vocabulary * 32


def test_train_vision_adds_the_tower(new_model):
    named = choose_trainable(new_model(), ModelConfig(train_vision=True))
    assert {name.split(".")[1] for name in named} == {"visual", "language_model"}


def test_adapters_sit_on_the_language_model_only_and_start_as_nothing(new_model):
    model = new_model()
    before = model.hf(input_ids=IDS).logits
    tower = {name for name, _ in model.hf.model.visual.named_modules()}
    named = choose_trainable(model, ModelConfig(lora=LoraConfig(rank=4, target_modules=("q_proj", "down_proj"))))
    assert {name for name, _ in model.hf.model.visual.named_modules()} == tower  # its down_proj is not adapted
    assert len(named) == 2 * 2 * 2  # layers x targets x (A, B)
    assert all(".lora_" in name and name.startswith("model.language_model.layers.") for name in named)
    assert torch.equal(model.hf(input_ids=IDS).logits, before)  # B starts at zero


def test_adapters_off_is_the_base_and_leaves_them_trainable(new_model):
    model = new_model()
    before = model.hf(input_ids=IDS).logits
    named = choose_trainable(model, ModelConfig(lora=LoraConfig(rank=4)))
    for parameter in named.values():
        parameter.data.normal_(std=0.1)
    with adapters_off(model), torch.no_grad():
        assert torch.equal(model.hf(input_ids=IDS).logits, before)
    assert (model.hf(input_ids=IDS).logits - before).abs().max() > 0.1  # measured 1.5
    assert all(parameter.requires_grad for parameter in named.values())


def test_adapters_depend_on_the_seed_alone(new_model):
    def first(seed: int, draws: int) -> torch.Tensor:
        model = new_model()
        torch.rand(draws)
        before = torch.get_rng_state()
        choose_trainable(model, ModelConfig(lora=LoraConfig(rank=4)), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return next(iter(lora_layers(model).values())).lora_A["default"].weight

    assert torch.equal(first(3, 1), first(3, 7))
    assert not torch.equal(first(3, 1), first(4, 1))


def test_contradictions_and_unknown_targets_are_refused(new_model):
    with pytest.raises(ConfigError, match="train_vision"):
        choose_trainable(new_model(), ModelConfig(lora=LoraConfig(), train_vision=True))
    with pytest.raises(ConfigError, match=r"\['qkv'\].*q_proj"):  # a linear of the tower
        choose_trainable(new_model(), ModelConfig(lora=LoraConfig(target_modules=("q_proj", "qkv"))))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_gradient_checkpointing_recomputes_the_same_gradients(new_model, lora: LoraConfig | None):
    gradients = []
    for checkpointing in (False, True):
        model = new_model()
        named = choose_trainable(model, ModelConfig(gradient_checkpointing=checkpointing, lora=lora))
        layer = model.hf.model.language_model.layers[0]
        calls = []
        layer.input_layernorm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with training_mode(model):
            _loss(model).backward()
        assert len(calls) == (2 if checkpointing else 1)  # it really ran again
        gradients.append({name: parameter.grad for name, parameter in named.items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_sampling_is_in_eval_mode_and_keeps_its_cache(new_model):
    model = new_model()
    choose_trainable(model, ModelConfig(gradient_checkpointing=True, lora=LoraConfig(dropout=0.5)))
    with training_mode(model):
        assert model.hf.model.language_model.training and not model.hf.model.visual.training
        assert model.hf(input_ids=IDS, use_cache=True).past_key_values is None  # the trap `training_mode` is for
    assert not any(module.training for module in model.hf.modules())
    assert model.hf(input_ids=IDS, use_cache=True).past_key_values.get_seq_length() == 6
