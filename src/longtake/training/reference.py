"""The reference policy: the weights RL started from. Made only when a KL term needs it (beta > 0)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor

from longtake.models.family import Model
from longtake.parallel.fsdp import gathered, shard_model
from longtake.parallel.mesh import SequenceMesh, World
from longtake.training.packed_policy import Passes, group_logprobs
from longtake.training.shard_loading import fill
from longtake.training.trainable import adapters_off, language_model, lora_layers, vision_tower
from longtake.types import Prompt


class Reference:
    """Log-probs under the starting weights.

    With LoRA these are the same weights with the adapters switched off, at no memory. Otherwise a frozen copy of the language model (head
    included, tied if it was tied) is made here; the vision tower is shared, its tokens come with the batch.
    """

    def __init__(self, model: Model) -> None:
        self._adapted = model if lora_layers(model) else None
        self._model = model if self._adapted else _frozen_copy(model)

    def shard(self, world: World, folder: Path) -> None:
        """Cut the copy's weights over all ranks and read them from `folder` (training.shard_loading); adapters have none of their own.

        After the same was done with the model: the tower is shared.
        """
        if self._adapted is None:
            fill(shard_model(self._model, world), folder)

    def gathered(self) -> AbstractContextManager[None]:
        """Whole weights inside, so that ranks may ask for unequally many log-probs; every rank enters and leaves."""
        return gathered(self._model)

    def logprobs(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[Tensor]],
        temperature: float,
        *,
        max_tokens: int | None = None,
        mesh: SequenceMesh | None = None,
        passes: Passes | None = None,
    ) -> list[Tensor]:
        """float32 [R] on the CPU for each response, group by group: `group_logprobs` of the starting weights."""
        with adapters_off(self._adapted) if self._adapted is not None else nullcontext():
            return group_logprobs(self._model, prompts, responses, temperature, max_tokens=max_tokens, mesh=mesh, passes=passes)


def _frozen_copy(model: Model) -> Model:
    frozen = copy.copy(model)
    frozen.train_vision = False  # the tower is the policy's
    tower = vision_tower(model)
    frozen.hf = copy.deepcopy(model.hf, memo={id(tower): tower})
    shared = {id(parameter) for parameter in tower.parameters()}
    for parameter in frozen.hf.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    language_model(frozen).eval()
    return frozen
