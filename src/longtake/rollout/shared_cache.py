"""The KV cache of batched decoding: every prompt is held ONCE, whatever the number of its takes, and each take has only its own tokens.

A repeated cache costs G times the memory (131k prompt tokens of a 7B model: 7.5 GB each) and, in transformers, one concatenation, one
head repetition and one masked kernel per layer and token. Here a step reads each prompt once for all its takes, as one matrix product.

How it reaches an unmodified model: `update` stores the new keys and values and returns its layer's store in place of the tensors; the
model hands what it got to the attention function, and ours (`shared_prompt_attention`) knows what to do with it.

Shapes: U prompts held, S slots per prompt (the most live takes of one), M rows (live takes), N query heads, K KV heads, H head size,
P prompt tokens (padded), C own tokens allocated, t own tokens so far, B = N / K query heads per KV head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from longtake.errors import ModelError

ATTENTION_NAME = "longtake_shared_prompt"
_FIRST_CAPACITY = 64
_MASKED = -1e30
"""Added to the scores of prompt padding; finite, so that a row of padding alone gives weights and not nan."""


@dataclass(eq=False)
class RowMap:
    """Which row belongs to which held prompt. Rows of one prompt are neighbours."""

    slots: Tensor | None
    """int64 [M], row -> prompt * S + rank among the prompt's rows; None when every prompt has S rows (then the map is the identity)."""
    num_prompts: int
    slots_per_prompt: int
    prompt_bias: Tensor | None
    """[U, 1, 1, P] in the model's dtype, 0 on tokens and very negative on padding; None when no prompt is padded."""

    def to_slots(self, rows: Tensor) -> Tensor:
        """[M, K, B, H] -> [U, K, S * B, H]; slots without a row are zero."""
        if self.slots is not None:
            empty = rows.new_zeros(self.num_prompts * self.slots_per_prompt, *rows.shape[1:])
            rows = empty.index_copy_(0, self.slots, rows)
        kv_heads, heads_per_kv, size = rows.shape[1:]
        per_prompt = rows.view(self.num_prompts, self.slots_per_prompt, kv_heads, heads_per_kv, size)
        return per_prompt.transpose(1, 2).reshape(self.num_prompts, kv_heads, -1, size)

    def to_rows(self, slots: Tensor, heads_per_kv: int) -> Tensor:
        """[U, K, S * B, X] -> [M, K, B, X]."""
        kv_heads, width = slots.shape[1], slots.shape[3]
        per_prompt = slots.view(self.num_prompts, kv_heads, self.slots_per_prompt, heads_per_kv, width).transpose(1, 2)
        flat = per_prompt.reshape(self.num_prompts * self.slots_per_prompt, kv_heads, heads_per_kv, width)
        return flat if self.slots is None else flat.index_select(0, self.slots)


def row_map(prompt_of_row: Tensor, prompt_bias: Tensor | None, num_prompts: int) -> RowMap:
    """The map of sorted prompt indices int64 [M]."""
    counts = torch.bincount(prompt_of_row, minlength=num_prompts)
    slots_per_prompt = int(counts.max())
    if len(prompt_of_row) == num_prompts * slots_per_prompt:
        return RowMap(None, num_prompts, slots_per_prompt, prompt_bias)
    first_row = counts.cumsum(0) - counts
    rank = torch.arange(len(prompt_of_row), device=prompt_of_row.device) - first_row[prompt_of_row]
    return RowMap(prompt_of_row * slots_per_prompt + rank, num_prompts, slots_per_prompt, prompt_bias)


@dataclass(eq=False)
class LayerStore:
    """Keys and values of one layer."""

    rows: RowMap
    prompt_keys: Tensor
    """[U, K, P, H], position already rotated in."""
    prompt_values: Tensor
    own_keys: Tensor
    """[M, K, C, H]; the first `length` are filled."""
    own_values: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store one more token of every row, [M, K, 1, H]."""
        if self.length == self.own_keys.shape[2]:
            self.own_keys, self.own_values = _grown(self.own_keys), _grown(self.own_values)
        self.own_keys[:, :, self.length] = keys[:, :, 0]
        self.own_values[:, :, self.length] = values[:, :, 0]
        self.length += 1

    def select(self, keep_rows: Tensor, keep_prompts: Tensor | None, rows: RowMap) -> None:
        self.rows = rows
        self.own_keys, self.own_values = (_selected(own, keep_rows, self.length) for own in (self.own_keys, self.own_values))
        if keep_prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[keep_prompts], self.prompt_values[keep_prompts]


def _grown(own: Tensor) -> Tensor:
    rows, heads, capacity, size = own.shape
    larger = own.new_empty(rows, heads, 2 * capacity, size)
    larger[:, :, :capacity] = own
    return larger


def _selected(own: Tensor, keep: Tensor, length: int) -> Tensor:
    kept = own.new_empty(len(keep), *own.shape[1:])
    kept[:, :, :length] = own[:, :, :length].index_select(0, keep)
    return kept


@dataclass(eq=False)
class PromptKv:
    """What the prefill leaves: one entry per layer, and the length of each prompt."""

    keys: list[Tensor]
    """[U, K, P, H] per layer."""
    values: list[Tensor]
    lengths: Tensor
    """int64 [U]; keys past a prompt's length are padding."""

    def bias(self) -> Tensor | None:
        padded = self.keys[0].shape[2]
        is_padding = torch.arange(padded, device=self.lengths.device) >= self.lengths[:, None]
        if not bool(is_padding.any()):
            return None
        return (is_padding.to(self.keys[0].dtype) * _MASKED)[:, None, None]


@dataclass(eq=False)
class SharedPromptCache:
    """What the model sees as `past_key_values` while decoding. Made by `start`, thinned by `compact`."""

    layers: list[LayerStore]
    prompt_of_row: Tensor
    """int64 [M], ascending index into the prompts still held."""
    prompt_bias: Tensor | None
    num_prompts: int
    # transformers asks every cache for these; decoding uses neither.
    is_compileable: bool = field(default=False, init=False)

    @classmethod
    def start(cls, prompts: PromptKv, prompt_of_row: Tensor) -> SharedPromptCache:
        """A cache without own tokens, for rows int64 [M] in ascending order of their prompts."""
        num_prompts, bias = len(prompts.lengths), prompts.bias()
        rows = row_map(prompt_of_row, bias, num_prompts)
        layers = []
        for keys, values in zip(prompts.keys, prompts.values, strict=True):
            own = keys.new_empty(2, len(prompt_of_row), keys.shape[1], _FIRST_CAPACITY, keys.shape[3])
            layers.append(LayerStore(rows, keys, values, own[0], own[1]))
        return cls(layers, prompt_of_row, bias, num_prompts)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[LayerStore, LayerStore]:
        """Called by the model's attention layers; the stores go on to `shared_prompt_attention`."""
        store = self.layers[layer_idx]
        store.append(keys, values)
        return store, store

    def get_seq_length(self, layer_idx: int = 0) -> int:
        store = self.layers[layer_idx]
        return store.prompt_keys.shape[2] + store.length

    def compact(self, keep_rows: Tensor) -> None:
        """Keep only these rows int64 [m], ascending; prompts without rows are let go once a quarter of them has none."""
        prompt_of_row = self.prompt_of_row[keep_rows]
        alive, renumbered = torch.unique(prompt_of_row, return_inverse=True)
        keep_prompts = None
        if 4 * len(alive) <= 3 * self.num_prompts:
            keep_prompts, prompt_of_row, self.num_prompts = alive, renumbered, len(alive)
            self.prompt_bias = None if self.prompt_bias is None else self.prompt_bias[alive]
        self.prompt_of_row = prompt_of_row
        rows = row_map(prompt_of_row, self.prompt_bias, self.num_prompts)
        for store in self.layers:
            store.select(keep_rows, keep_prompts, rows)


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: LayerStore,
    value: LayerStore,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """One new token per row attends to its prompt and to its own tokens: query [M, N, 1, H] -> [M, 1, N, H].

    The two softmaxes are merged exactly by their log-sum-exp: out = w * out_prompt + (1 - w) * out_own, w = sigmoid(lse_prompt - lse_own).
    Raises ModelError for a layer with a sliding window: it would be ignored here and not in training.
    """
    if sliding_window is not None:
        raise ModelError(
            f"a layer with a sliding window of {sliding_window} tokens",
            rule="the embedded engine decodes with full attention",
            remedy="set use_sliding_window to false in the model's config.json, as the published checkpoints have it",
        )
    store, rows = key, key.rows
    num_rows, heads, _one, size = query.shape
    kv_heads = store.own_keys.shape[1]
    heads_per_kv = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    grouped = query.view(num_rows, kv_heads, heads_per_kv, size)
    own_out, own_lse = _attend(grouped, store.own_keys[:, :, : store.length], store.own_values[:, :, : store.length], None, scale)
    slot_out, slot_lse = _attend(rows.to_slots(grouped), store.prompt_keys, store.prompt_values, rows.prompt_bias, scale)
    prompt_out, prompt_lse = rows.to_rows(slot_out, heads_per_kv), rows.to_rows(slot_lse.unsqueeze(-1), heads_per_kv)
    prompt_weight = torch.sigmoid(prompt_lse - own_lse.unsqueeze(-1))
    merged = torch.lerp(own_out.to(prompt_weight.dtype), prompt_out.to(prompt_weight.dtype), prompt_weight)
    return merged.to(query.dtype).view(num_rows, 1, heads, size), None


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp, query [X, K, Q, H], keys [X, K, T, H], bias [X, 1, 1, T] -> [X, K, Q, H], [X, K, Q].

    Plain products in float32 and float64. Half precision goes through a kernel that keeps the scores in float32, because scores rounded to
    8 bits would be a sampler of another distribution than the trainer's.
    """
    if query.dtype in (torch.float32, torch.float64):
        scores = torch.matmul(query * scale, keys.transpose(2, 3))
        if bias is not None:
            scores += bias
        largest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(largest).exp_()  # one exponential per score: they are a good part of a small model's step
        total = weights.sum(-1, keepdim=True)
        return torch.matmul(weights, values).div_(total), total.log_().add_(largest).squeeze(-1)
    full_bias = None if bias is None else bias.expand(-1, query.shape[1], query.shape[2], -1)
    if query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, False, attn_mask=full_bias, scale=scale
        )
        return out, lse
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, keys, values, full_bias, True, scale=scale)
    return out, lse[..., : query.shape[2]]


AttentionInterface.register(ATTENTION_NAME, shared_prompt_attention)
