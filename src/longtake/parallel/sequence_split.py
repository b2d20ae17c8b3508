"""A group too large for one forward, spread over the ranks of a mesh: as `split`, each rank holding its share of the prompt.

The prompt goes forward once, spread like any packed sequence, and each rank keeps the keys and values that its attention was given: its
heads (Ulysses) of its chunks (ring). A chunk of takes is spread by itself and reads them there; its backward adds to their gradients.

Shapes: P prompt tokens, L slots of this rank, M takes of R tokens, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.models.family import Model
from longtake.parallel.attention import LocalAttention, PackedAttention, packed_hidden
from longtake.parallel.fsdp import one_forward
from longtake.parallel.mesh import SequenceMesh
from longtake.parallel.ring import RingAttention
from longtake.parallel.sequence import embed_here, score_rows, scored_rows, tokens_here
from longtake.parallel.sharding import PADDING, Shards, shard
from longtake.parallel.split import HeldPrompt, TakesAttention
from longtake.parallel.ulysses import UlyssesAttention
from longtake.types import PackedGroups


class KeepingAttention:
    """A strategy (`attention.PackedAttention`) around another: keeps copies of the keys and values of each layer, with their graph."""

    def __init__(self, inner: PackedAttention) -> None:
        self._inner = inner
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        key, value = key.clone(), value.clone()  # not views of what was exchanged, in which the queries are most of the bytes
        self.kept.setdefault(layer, (key, value))  # a layer run anew in backward is the same layer
        return self._inner.attend(query, key, value, layer=layer, scale=scale)


@dataclass(frozen=True, eq=False)
class SpreadPrompt:
    """A prompt that went forward once."""

    held: HeldPrompt
    """This rank's share; after each chunk's backward `held.collect()`, at the end `held.backward()`, on every rank."""
    shards: Shards
    """Where its tokens lie."""
    last_rank: int
    """The rank that holds the last hidden state; that of other ranks is not used, but takes part in backward."""

    def graph_tensors(self) -> list[Tensor]:
        """What `held.backward` starts from (parallel.fsdp)."""
        return self.held.graph_tensors()


@one_forward
def hold_spread_prompt(model: Model, prompt: PackedGroups, mesh: SequenceMesh) -> SpreadPrompt:
    """One forward of a packed sequence of one prompt without takes. Every rank of the sequence axis must call it."""
    shards = shard(prompt.groups, mesh.ring.size, mesh.ulysses.size)
    here = tokens_here(prompt, shards.tokens[mesh.sequence.rank], model.pad_id)
    device = prompt.token_ids.device
    whole = mesh.ring.size == 1
    keeping = KeepingAttention(LocalAttention(prompt.groups, device) if whole else RingAttention(shards, mesh.ring, device))
    attention = UlyssesAttention(keeping, mesh.ulysses, shards.ring_length(mesh.ring.rank))
    hidden = packed_hidden(model, embed_here(model, here), here.position_ids, attention)[0]
    rank, slot = (int(where[-1]) for where in shards.locations)
    row = slot if mesh.sequence.rank == rank else 0
    return SpreadPrompt(HeldPrompt(keeping.kept, hidden[row : row + 1]), shards, rank)


@one_forward
def spread_chunk_logprobs(
    model: Model, prompt: SpreadPrompt, packed: PackedGroups, mesh: SequenceMesh, temperature: float, *, chunk_rows: int
) -> tuple[Tensor, Tensor]:
    """Log-probs [M, R] with gradient and entropies [M, R] of a chunk of takes, on every rank, as `sequence.sequence_logprobs`.

    `packed`: the takes behind the prompt's last token alone, whose hidden state is held; that token does not go through the model again.
    """
    shards = shard(packed.groups, mesh.ring.size, mesh.ulysses.size, takes_alone=True)
    tokens = shards.tokens[mesh.sequence.rank]
    here = tokens_here(packed, torch.where(tokens == PADDING, PADDING, tokens + 1), model.pad_id)
    attention = UlyssesAttention(_takes_attention(prompt, packed, shards, mesh), mesh.ulysses, shards.ring_length(mesh.ring.rank))
    hidden = packed_hidden(model, embed_here(model, here), here.position_ids, attention)[0]
    ranks, slots = shards.locations
    locations = torch.cat([torch.tensor([prompt.last_rank]), ranks]), torch.cat([torch.tensor([0]), slots + 1])
    rows = scored_rows(packed, locations, mesh.sequence)
    return score_rows(model, torch.cat([prompt.held.last, hidden]), rows, packed, temperature, chunk_rows, mesh.sequence)


def _takes_attention(prompt: SpreadPrompt, packed: PackedGroups, shards: Shards, mesh: SequenceMesh) -> PackedAttention:
    if mesh.ring.size == 1:
        return TakesAttention(prompt.held, packed.groups[0].take_lengths)
    return RingAttention(shards, mesh.ring, packed.token_ids.device, held=prompt.shards, prompt_of_layer=prompt.held.layers)
