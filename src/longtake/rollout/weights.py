"""The trainer's weights on their way to an engine: whole tensors under a checkpoint's names, a few at a time.

Never a second copy of the model: a sharded tensor is gathered when its turn comes, adapters are merged one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from longtake.models.family import Model
from longtake.parallel.sharded_tensors import whole
from longtake.training.trainable import lora_layers

BUCKET_BYTES = 256 << 20
"""Tensors are handed over when so many bytes have come together."""
TOWER = "model.visual."

Bucket = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Described:
    """A tensor before it is gathered."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the whole."""


@torch.no_grad()
def language_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the language model in its compute type, adapters merged, a tied head left out; the tower is not for engines.

    Where weights are sharded every rank must run through it, in step: each tensor is gathered as it is asked for.
    """
    for name, tensor, adapter in _named(model):
        full = whole(tensor.detach())
        if adapter is not None:
            full = full.float() + _delta(adapter)
        yield name, full.to(model.dtype)


def described_weights(model: Model) -> list[Described]:
    """What `language_weights` will give, in its order; nothing is gathered."""
    return [Described(name, model.dtype, tuple(tensor.shape)) for name, tensor, _ in _named(model)]


def _named(model: Model) -> Iterator[tuple[str, Tensor, LoraLayer | None]]:
    """(name in a checkpoint, tensor as the trainer holds it, the adapter to be merged into it)."""
    adapted = lora_layers(model)
    tied = bool(model.hf.config.get_text_config().tie_word_embeddings)
    for name, tensor in model.hf.state_dict().items():
        if name.startswith(TOWER) or ".lora_" in name or (tied and name == "lm_head.weight"):
            continue
        plain, is_adapted, kind = name.partition(".base_layer.")
        yield (f"{plain}.{kind}" if is_adapted else name), tensor, adapted[plain] if is_adapted and kind == "weight" else None


def buckets(weights: Iterable[tuple[str, Tensor]], max_bytes: int = BUCKET_BYTES) -> Iterator[Bucket]:
    """The tensors in their order, as many together as `max_bytes` hold; a larger one goes alone."""
    held: Bucket = []
    for name, tensor in weights:
        if held and num_bytes(held) + tensor.nbytes > max_bytes:
            yield held
            held = []
        held.append((name, tensor))
    if held:
        yield held


def num_bytes(bucket: Bucket) -> int:
    """Bytes of the tensors."""
    return sum(tensor.nbytes for _, tensor in bucket)


def _delta(layer: LoraLayer) -> Tensor:
    """(alpha / rank) B A in float32."""
    (name,) = layer.active_adapters
    down, up = (whole(cast(nn.Linear, part[name]).weight.detach()) for part in (layer.lora_A, layer.lora_B))
    return (up.float() @ down.float()) * layer.scaling[name]
