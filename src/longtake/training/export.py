"""A trained model as a plain `transformers` directory: anything that loads the base loads it."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from longtake.errors import ModelError, PathError
from longtake.models.quiet import no_library_progress
from longtake.training.trainable import lora_layers

if TYPE_CHECKING:
    from longtake.models.family import Model

BESIDE_THE_WEIGHTS = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("generation_config.json", "LICENSE", "NOTICE"),
)
"""Training does not touch these: they are copied byte for byte from the directory the model was loaded from."""


def export_model(model: Model, out: Path, source: Path | None = None) -> Path:
    """Write config, weights (adapters merged, type kept, tied head stored once), tokenizer, processors and chat template to `out`.

    `source` is the checkpoint directory the model was loaded from (None: what transformers remembers of it). Written beside its
    place and renamed: `out` is whole or absent.
    Raises PathError when `out` exists and is not an empty folder or cannot be written, ModelError when `source` has no tokenizer.
    """
    _refuse_occupied(out)
    source = source or Path(model.hf.name_or_path)
    if not (source / "tokenizer_config.json").is_file():
        raise ModelError(
            f"{source} has no tokenizer_config.json",
            rule="the tokenizer and processors of the base go into an export",
            remedy="give the checkpoint directory the run was started from",
        )
    part = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with no_library_progress():
            model.hf.save_pretrained(part, state_dict=merged_weights(model), max_shard_size="5GB")
        for name in BESIDE_THE_WEIGHTS:
            if (source / name).is_file():
                shutil.copyfile(source / name, part / name)
        part.rename(out)
    except OSError as error:
        raise PathError(
            f"the export could not be written to {out}: {error}",
            rule="an export is whole or absent",
            remedy="free some disk space or choose a folder you may write to",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


@torch.no_grad()
def merged_weights(model: Model) -> dict[str, torch.Tensor]:
    """The state of the model under the base's own names, W + (alpha / rank) B A in place of each adapted W. The model stays as it is.

    The sum is taken in float32 and rounded once to the type of W.
    """
    adapted = lora_layers(model)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.hf.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = tensor
    for name, layer in adapted.items():
        weight = state[f"{name}.weight"]
        delta = layer.get_delta_weight(layer.active_adapters[0])  # type: ignore[attr-defined]  # of every subclass for linears
        state[f"{name}.weight"] = (weight.float() + delta.float()).to(weight.dtype)
    return state


def _refuse_occupied(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise PathError(f"{out} exists and is not an empty folder", rule="an export never overwrites", remedy="choose another `out`")
