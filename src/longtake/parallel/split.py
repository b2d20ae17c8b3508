"""A group too large for one forward: its prompt once, then its takes in chunks that read the prompt's keys and values as leaves.

Each chunk's backward adds to the leaves' gradients; the prompt's own backward runs once, at the end, from those sums. So the prompt's
graph and one chunk's are all that lives at a time, and the result is that of the whole group (up to the order of sums).

Shapes: N query heads, K KV heads, P prompt tokens, L tokens of a chunk, H head size, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.models.family import Model
from longtake.parallel.attention import packed_hidden
from longtake.parallel.kernels import lse_dtype
from longtake.parallel.shared_prompt import plan_groups, plan_takes, shared_prompt_attention
from longtake.types import PackedGroup


class PromptAttention:
    """Strategy of the prompt's own forward: keeps each layer's keys and values. See attention.PackedAttention."""

    def __init__(self, prompt_length: int, device: torch.device) -> None:
        self._plan = plan_groups([PackedGroup(prompt_length, ())], device)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values [1, K, P, H] of each layer, with their graph."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        self.kept.setdefault(layer, (key, value))  # a layer run anew in backward is the same layer
        return shared_prompt_attention(query, key, value, self._plan, scale)


class TakesAttention:
    """Strategy of a chunk: takes attend to the held prompt and causally to themselves. See attention.PackedAttention."""

    def __init__(self, held: HeldPrompt, take_lengths: Sequence[int]) -> None:
        self._held = held
        self._plan = plan_takes(held.length, take_lengths, held.last.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        return shared_prompt_attention(query, key, value, self._plan, scale, self._held.layers[layer])


class HeldPrompt:
    """What takes need of a prompt that went forward once: keys and values of each layer, and its last hidden state."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]], last: Tensor) -> None:
        self.length = layers[0][0].shape[2]
        """P."""
        self._computed = [last, *(part for layer in sorted(layers) for part in layers[layer])]
        self._leaves = [part.detach().requires_grad_(part.requires_grad) for part in self._computed]
        self._gradients: list[Tensor | None] = [None] * len(self._leaves)
        self.last = self._leaves[0]
        """[1, D], the hidden state that predicts the first token of every take; a leaf, as are the keys and values."""
        pairs = zip(self._leaves[1::2], self._leaves[2::2], strict=True)
        self.layers = dict(zip(sorted(layers), pairs, strict=True))

    def graph_tensors(self) -> list[Tensor]:
        """What `backward` starts from (parallel.fsdp)."""
        return self._computed

    def collect(self) -> None:
        """Add what a chunk's backward left on the leaves to the sums, which half precision keeps in float32. After each chunk."""
        for index, leaf in enumerate(self._leaves):
            if leaf.grad is not None:
                gradient, before = leaf.grad.to(lse_dtype(leaf.dtype)), self._gradients[index]
                self._gradients[index] = gradient if before is None else before.add_(gradient)
                leaf.grad = None

    def backward(self, *, idle: bool = False) -> None:
        """The prompt's backward, from the sums of all chunks. Once, at the end.

        A part of which no chunk on this rank asked anything gets 0: where the prompt is spread over ranks, all go back the same way.
        `idle`: even where none asked anything at all, so that sharded weights are entered.
        """
        found = [(part, sum_) for part, sum_ in zip(self._computed, self._gradients, strict=True) if part.requires_grad]
        if not found or (not idle and all(sum_ is None for sum_ in self._gradients)):
            return
        sums = [torch.zeros_like(part) if sum_ is None else sum_.to(part.dtype) for part, sum_ in found]
        torch.autograd.backward([part for part, _ in found], sums)


def hold_prompt(model: Model, embeds: Tensor, position_ids: Tensor) -> HeldPrompt:
    """One forward of a prompt alone: embeddings [1, P, D], positions int64 [A, P]."""
    attention = PromptAttention(embeds.shape[1], embeds.device)
    hidden = packed_hidden(model, embeds, position_ids, attention)
    return HeldPrompt(attention.kept, hidden[0, -1:])


def chunk_hidden(model: Model, held: HeldPrompt, embeds: Tensor, position_ids: Tensor, take_lengths: Sequence[int]) -> Tensor:
    """Hidden states [1 + L, D]: the prompt's last, then those of a chunk's take tokens, embeddings [1, L, D], positions int64 [A, L]."""
    hidden = packed_hidden(model, embeds, position_ids, TakesAttention(held, take_lengths))
    return torch.cat([held.last, hidden[0]])


def split_takes(take_lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of takes, in order, in chunks of at most `max_tokens` tokens; a longer take is a chunk of its own, and no chunk has empty
    takes only while another has tokens.

    >>> split_takes([3, 4, 9, 0, 1], 8)
    [[0, 1], [2, 3], [4]]
    """
    chunks: list[list[int]] = []
    used = 0
    for index, length in enumerate(take_lengths):
        if not chunks or (used and length and used + length > max_tokens):
            chunks.append([])
            used = 0
        chunks[-1].append(index)
        used += length
    return chunks
