"""The reference policy: the weights RL started from. Made only when a KL term needs it (beta > 0)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from longtake.models.family import Model
from longtake.training.batch import SftBatch
from longtake.training.policy import take_logprobs
from longtake.training.trainable import adapters_off, language_model, lora_layers, vision_tower


class Reference:
    """Log-probs under the starting weights.

    With LoRA these are the same weights with the adapters switched off, at no memory. Otherwise a frozen copy of the language model (head
    included, tied if it was tied) is made here; the vision tower is shared, its tokens come with the batch.
    """

    def __init__(self, model: Model) -> None:
        self._adapted = model if lora_layers(model) else None
        self._model = model if self._adapted else _frozen_copy(model)

    @torch.no_grad()
    def logprobs(self, batch: SftBatch, temperature: float) -> Tensor:
        """[M, R] as `take_logprobs`, without gradient."""
        if self._adapted is None:
            return take_logprobs(self._model, batch, temperature)[0]
        with adapters_off(self._adapted):
            return take_logprobs(self._adapted, batch, temperature)[0]


def _frozen_copy(model: Model) -> Model:
    frozen = copy.copy(model)
    tower = vision_tower(model)
    frozen.hf = copy.deepcopy(model.hf, memo={id(tower): tower})
    shared = {id(parameter) for parameter in tower.parameters()}
    for parameter in frozen.hf.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    language_model(frozen).eval()
    return frozen
