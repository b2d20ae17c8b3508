"""The prefill of a long prompt by all ranks together, each its part of the sequence; the rank that decodes gets the keys and values.

A step of one hour-long video has one prompt: prefilled by the rank that samples its takes, all others would wait for it.

Shapes: P prompt tokens, L slots of a rank, K KV heads, H head size, D model width, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.models.family import Model
from longtake.parallel.attention import packed_hidden
from longtake.parallel.collectives import all_to_all
from longtake.parallel.fsdp import one_forward
from longtake.parallel.mesh import Axis, SequenceMesh, World, divisors
from longtake.parallel.packed import pack_groups
from longtake.parallel.sequence import embed_here, sequence_attention, tokens_here
from longtake.parallel.sequence_split import KeepingAttention
from longtake.parallel.sharding import Shards, shard
from longtake.rollout.shared_cache import PromptKv
from longtake.rollout.transformers_engine import evaluating
from longtake.types import Prompt

MIN_TOKENS = 1024
"""A shorter prompt is prefilled by its own rank: what is exchanged for every layer would cost more."""


def is_spread(prompts: Sequence[Prompt], world_size: int) -> bool:
    """Whether the ranks prefill these prompts together, one after the other: fewer than ranks, and long. The same on all ranks."""
    return 0 < len(prompts) < world_size and all(len(prompt.token_ids) >= MIN_TOKENS for prompt in prompts)


def prefill_mesh(model: Model, world: World) -> SequenceMesh:
    """All ranks as one sequence axis: as many over heads as there are heads for, the rest a ring."""
    heads = model.hf.config.get_text_config().num_attention_heads
    ulysses = max(degree for degree in divisors(world.size) if heads % degree == 0)
    return world.sequence_mesh(world.size // ulysses, ulysses)


@torch.no_grad()
@one_forward
def spread_prefill(model: Model, prompt: Prompt, owner: int, mesh: SequenceMesh) -> tuple[PromptKv, Tensor] | None:
    """Keys and values of the prompt and the logits [1, W] behind it, on the rank `owner` of the sequence axis; None on the others.

    Every rank of the axis must call it with the same prompt, whose video it needs as far as its own part of the sequence goes.
    """
    packed = pack_groups([prompt], [[]], model.device)
    shards = shard(packed.groups, mesh.ring.size, mesh.ulysses.size)
    here = tokens_here(packed, shards.tokens[mesh.sequence.rank], model.pad_id)
    keeping = KeepingAttention(sequence_attention(shards, mesh, model.device))
    with evaluating(model.hf):
        hidden = packed_hidden(model, embed_here(model, here), here.position_ids, keeping)[0]
    pairs = []
    for layer in sorted(keeping.kept):
        key, value = keeping.kept.pop(layer)
        pairs.append(_to_owner(torch.stack([key[0], value[0]]).permute(2, 0, 1, 3), shards, owner, mesh.sequence))
    last = _last_to_owner(hidden, shards, owner, mesh.sequence)
    if mesh.sequence.rank != owner:
        return None
    keys, values = ([pair[:, place].transpose(0, 1)[None].contiguous() for pair in pairs] for place in (0, 1))
    return PromptKv(keys, values, torch.tensor([shards.num_tokens], device=model.device)), model.head(last)


def _to_owner(rows: Tensor, shards: Shards, owner: int, axis: Axis) -> Tensor:
    """[L, 2, K, H] of each rank -> [P, 2, K, H] in the order of the tokens on `owner`, nothing on the others."""
    slots = [len(tokens) for tokens in shards.tokens]
    sends, receives = [0] * axis.size, [0] * axis.size
    sends[owner] = slots[axis.rank]
    if axis.rank == owner:
        receives = slots
    found = all_to_all(rows, sends, receives, axis)
    if axis.rank != owner:
        return found
    first = torch.tensor([0, *slots[:-1]]).cumsum(0)
    ranks, places = shards.locations
    return found[(first[ranks] + places).to(found.device)]


def _last_to_owner(hidden: Tensor, shards: Shards, owner: int, axis: Axis) -> Tensor:
    """[L, D] of each rank -> [1, D] on `owner`: the hidden state of the prompt's last token."""
    holder, slot = (int(where[-1]) for where in shards.locations)
    sends, receives = [0] * axis.size, [0] * axis.size
    sends[owner] = int(axis.rank == holder)
    receives[holder] = int(axis.rank == owner)
    return all_to_all(hidden[slot : slot + 1] if axis.rank == holder else hidden[:0], sends, receives, axis)
