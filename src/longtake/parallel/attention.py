"""How a packed sequence reaches the attention of an unmodified transformers model, through transformers' own registry.

`packed_hidden` hands a strategy through the forward's keyword arguments down to every attention layer, where `_attention` calls it. The
strategy travels with each layer's arguments, so it is there again when gradient checkpointing runs a layer anew in backward. The model's
text config names our attention from its first packed forward on, for good: were the name put back after the forward, that second run
would silently use the plain attention. Without a strategy ours IS the attention the model had.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longtake.errors import ModelError
from longtake.models.family import Model
from longtake.parallel.shared_prompt import plan_groups, shared_prompt_attention
from longtake.types import PackedGroup

PREFIX = "longtake_packed_"
"""Before the name of the attention that a model uses otherwise."""
_packed_forward: ContextVar[bool] = ContextVar("packed_forward", default=False)
"""Set while a model runs a packed forward: no mask is made then."""


class PackedAttention(Protocol):
    """A strategy: computes the attention of every layer over a packed sequence, or over this rank's part of one.

    Made for one forward and its backward. `attend` may be called again for the same layer with the same tensors (gradient checkpointing)
    and must then do the same, exchanges between ranks included.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        """query [1, N, L, H], key and value [1, K, L, H], positions rotated in, L tokens here -> [1, N, L, H]."""
        ...


class LocalAttention:
    """The default: the whole packed sequence and all heads are here."""

    def __init__(self, groups: Sequence[PackedGroup], device: torch.device) -> None:
        self._plan = plan_groups(groups, device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        return shared_prompt_attention(query, key, value, self._plan, scale)


def packed_hidden(model: Model, embeds: Tensor, position_ids: Tensor, attention: PackedAttention) -> Tensor:
    """Final hidden states [1, L, D] of the tokens whose embeddings [1, L, D] and positions int64 [A, L] are given.

    Raises ModelError for a model whose layers use a sliding window, dropout on attention weights or other extras of attention.
    """
    install(model)
    with _without_mask():
        return model.decoder(embeds, position_ids[:, None], None, None, packed=attention)


def install(model: Model) -> None:
    """Let the language model's layers find `_attention`, for good; the tower keeps its own. Raises ModelError where that cannot be."""
    config = model.hf.config.get_text_config()
    before: str = config._attn_implementation
    if before.startswith(PREFIX):
        return
    if PREFIX + before not in ALL_ATTENTION_FUNCTIONS:
        raise ModelError(
            f"a language model that uses {before} attention",
            rule=f"training replaces {' or '.join(_BASES)}",
            remedy="set model.attention to sdpa",
        )
    config._attn_implementation = PREFIX + before


@contextmanager
def _without_mask() -> Iterator[None]:
    token = _packed_forward.set(True)
    try:
        yield
    finally:
        _packed_forward.reset(token)


def _attention(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, Tensor | None]:
        """query [M, N, T, H], key and value [M, K, T, H] -> [M, T, N, H]."""
        strategy: PackedAttention | None = given.pop("packed", None)
        if strategy is None:
            own_eager = sys.modules[type(module).__module__].__dict__.get("eager_attention_forward", _no_eager)  # every modeling file's
            plain = ALL_ATTENTION_FUNCTIONS.get_interface(base, own_eager)
            found: tuple[Tensor, Tensor | None] = plain(module, query, key, value, attention_mask, **given)
            return found
        _refuse_extras(query, key, attention_mask, given)
        scale = query.shape[3] ** -0.5 if given.get("scaling") is None else given["scaling"]
        layer: Any = module.layer_idx
        out = strategy.attend(query, key, value, layer=layer, scale=scale)
        return out.transpose(1, 2), None

    return attention


def _no_eager(*_: Any, **__: Any) -> tuple[Tensor, None]:
    raise ModelError("eager attention of a model whose file defines none", rule="training falls back on the model's own", remedy="use sdpa")


def _refuse_extras(query: Tensor, key: Tensor, attention_mask: Tensor | None, given: dict[str, Any]) -> None:
    """A packed sequence is attended to in one way; whatever would ask for another must not be ignored."""
    faults = [name for name in ("sliding_window", "softcap", "s_aux", "head_mask") if given.get(name) is not None]
    faults += ["dropout"] if given.get("dropout") else []
    faults += ["a mask"] if attention_mask is not None else []
    faults += [f"{query.shape[0]} rows"] if query.shape[0] != 1 else []
    faults += ["a cache"] if key.shape[2] != query.shape[2] else []
    if faults:
        raise ModelError(
            f"attention with {', '.join(faults)} over a packed sequence",
            rule="full causal attention inside each prompt and take, one packed row, no mask, no window, no dropout on attention weights",
            remedy="set use_sliding_window to false and attention_dropout to 0 in the model's config.json, as it is published",
        )


def _mask(base: str) -> Callable[..., Tensor | None]:
    def mask(*args: Any, **given: Any) -> Tensor | None:
        """None inside a packed forward, whose strategy knows who sees whom; otherwise what `base` makes."""
        made: Tensor | None = None if _packed_forward.get() else ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **given)
        return made

    return mask


_BASES = ("sdpa", "eager")
for _base in _BASES:
    AttentionInterface.register(PREFIX + _base, _attention(_base))
    AttentionMaskInterface.register(PREFIX + _base, _mask(_base))
