"""What trains: the language model, optionally the vision tower, or low-rank adapters on the language model's linears."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from longtake.errors import ConfigError
from longtake.models.on_meta import linears_seem_here

if TYPE_CHECKING:
    from longtake.config.sections import LoraConfig, ModelConfig
    from longtake.models.family import Model

logger = logging.getLogger(__name__)


def choose_trainable(model: Model, config: ModelConfig, seed: int = 0) -> dict[str, nn.Parameter]:
    """Freeze what stays, add adapters if asked, and return the trainable parameters by name (a tied head appears once).

    The model is left in eval mode, so that sampling is never touched by dropout or gradient checkpointing; `training_mode`
    switches both on around an update. Call once, before the optimizer is built. `seed` makes the adapters' initial weights
    independent of whatever drew random numbers before.

    Raises ConfigError when adapters and `train_vision` are asked for together, or a target names no linear layer.
    """
    if config.lora and config.train_vision:
        raise ConfigError(
            "model.lora and model.train_vision are both set",
            rule="adapters train alone, the tower is untouched",
            remedy="set model.train_vision to false or remove model.lora",
        )
    model.hf.requires_grad_(config.lora is None)
    vision_tower(model).requires_grad_(config.train_vision)
    if config.lora:
        _add_adapters(language_model(model), config.lora, seed)
    if config.gradient_checkpointing:
        # Non-reentrant: the inputs need no gradient of their own, as when the embeddings are frozen (LoRA).
        language_model(model).gradient_checkpointing_enable({"use_reentrant": False})
        # transformers then hooks the embeddings to require gradients; the videos are written into them in place, which such a leaf forbids.
        language_model(model).disable_input_require_grads()
        if config.train_vision:
            model.hf.model.visual.gradient_checkpointing_enable({"use_reentrant": False})
    model.hf.eval()
    counts = parameter_counts(model)
    logger.info("trainable: %d of %d parameters (%d tensors)", counts["trainable"], counts["total"], counts["tensors"])
    return trainable_parameters(model)


def language_model(model: Model) -> PreTrainedModel:
    """The decoder, embeddings included."""
    decoder: PreTrainedModel = model.hf.model.language_model
    return decoder


def vision_tower(model: Model) -> nn.Module:
    """The vision tower, its projector (merger) included."""
    tower: nn.Module = model.hf.model.visual
    return tower


def trainable_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Trainable parameters by name in the order of the modules; `named_parameters` lists a tied tensor once."""
    return {name: parameter for name, parameter in model.hf.named_parameters() if parameter.requires_grad}


def parameter_counts(model: Model) -> dict[str, int]:
    """`total` and `trainable` elements, and the number of trainable `tensors`."""
    trainable = trainable_parameters(model).values()
    total = sum(parameter.numel() for parameter in model.hf.parameters())
    return {"total": total, "trainable": sum(parameter.numel() for parameter in trainable), "tensors": len(trainable)}


@contextmanager
def training_mode(model: Model) -> Iterator[None]:
    """Train mode (dropout of adapters, gradient checkpointing) inside, eval mode after; a frozen tower stays in eval mode.

    Needed around forward AND backward of an update, and never around sampling: transformers drops the key-value cache of a
    layer that checkpoints.
    """
    model.hf.train()
    tower = vision_tower(model)
    tower.train(any(parameter.requires_grad for parameter in tower.parameters()))
    try:
        yield
    finally:
        model.hf.eval()


@contextmanager
def adapters_off(model: Model) -> Iterator[None]:
    """The base model without its adapters: the reference policy of a LoRA run costs no second copy of the weights."""
    layers = lora_layers(model)
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


def lora_layers(model: Model) -> dict[str, LoraLayer]:
    """The adapted linear layers by name; empty when the model has no adapters."""
    return {name: module for name, module in model.hf.named_modules() if isinstance(module, LoraLayer)}


def _add_adapters(decoder: nn.Module, config: LoraConfig, seed: int) -> None:
    """Inject adapters into the decoder only: the tower's own gate_proj, up_proj, down_proj have the same names."""
    linears = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(config.target_modules) - linears)
    if unknown or not config.target_modules:
        raise ConfigError(
            f"model.lora.target_modules has {unknown or 'no names'}",
            rule="each name is a linear layer of the language model",
            remedy=f"choose from {sorted(linears)}",
        )
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
    )
    with torch.random.fork_rng(), linears_seem_here(decoder):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, decoder)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # in bfloat16 a step of 1e-5 is rounded away for 84 % of the weights
