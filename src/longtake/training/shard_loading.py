"""Weights of a checkpoint directory into a model on `meta`: each rank reads the rows that it holds, and no model is ever whole.

model = load_model(config, on_meta=True)
choose_trainable(model, config)             # adapters get their values here
shard_model(model, world)
fill(model, model_folder(config))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from longtake.errors import ModelError
from longtake.models.family import Model
from longtake.models.on_meta import restore_buffers, stored_names
from longtake.parallel.fsdp import wake
from longtake.training.tensor_files import TensorFiles, layout_of
from longtake.training.trainable import vision_tower


@torch.no_grad()
def fill(model: Model, folder: Path) -> None:
    """Memory on the model's device and the weights of `folder` for what is on `meta`; the rest, adapters, stays. A tied head stays tied.

    Call it on every rank. Raises ModelError when the files lack a weight or have it in another shape.
    """
    empty = {name: parameter for name, parameter in model.hf.named_parameters() if parameter.is_meta}
    stored = stored_names(TensorFiles(folder), model.renamings)
    sources = {name: stored.get(name.replace(".base_layer.", "."), "") for name in empty}
    _check(folder, sources, empty)
    tied = model.hf.lm_head.weight is model.hf.get_input_embeddings().weight
    for tree in (model.hf,) if model.root is None else (model.root, vision_tower(model)):
        _allocate(tree, model.device)
    if tied:
        model.hf.lm_head.weight = model.hf.get_input_embeddings().weight
    files = TensorFiles(folder)
    for name, parameter in model.hf.named_parameters():
        if name in sources:
            files.read_into(parameter, sources[name])
    restore_buffers(model.hf)
    if model.root is not None:
        wake(model)


def _check(folder: Path, sources: Mapping[str, str], empty: Mapping[str, Tensor]) -> None:
    layout = layout_of(folder)
    wrong = [name for name, stored in sources.items() if stored not in layout or layout[stored][0] != tuple(empty[name].shape)]
    if wrong:
        name, stored = wrong[0], sources[wrong[0]]
        found = layout[stored][0] if stored in layout else "nothing"
        raise ModelError(
            f"{folder} has {found} for {name} {tuple(empty[name].shape)} ({len(wrong)} such weights)",
            rule="a checkpoint directory holds every weight of its model",
            remedy="download or export it again, whole",
        )


def _allocate(tree: nn.Module, device: torch.device) -> None:
    if not any(parameter.is_meta for parameter in tree.parameters()):
        return
    kept = {name: parameter.detach().clone() for name, parameter in tree.named_parameters() if not parameter.is_meta}
    tree.to_empty(device=device)
    for name, parameter in tree.named_parameters():
        if name in kept:
            parameter.copy_(kept[name])
