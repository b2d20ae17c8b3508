"""Every pair of query and key is computed exactly once when it may be seen, and never otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.parallel.ring_plan import Piece, ring_plan
from longtake.parallel.sharding import shard


@dataclass(frozen=True)
class Lengths:
    """Stands for a PackedGroup."""

    prompt_length: int
    take_lengths: tuple[int, ...]


def visible(groups) -> torch.Tensor:
    """int64 [T, T], 1 where a query (row) sees a key: the definition, token by token."""
    owner, order = [], []  # (group, take or -1) and place in it, of each token
    for index, group in enumerate(groups):
        for take, length in enumerate((group.prompt_length, *group.take_lengths), start=-1):
            owner += [(index, take)] * length
            order += range(length)
    seen = torch.zeros(len(owner), len(owner), dtype=torch.int64)
    for query, (group, take) in enumerate(owner):
        for key, (other_group, other_take) in enumerate(owner):
            if (group, take) == (other_group, other_take):
                seen[query, key] = order[key] <= order[query]
            elif group == other_group:
                seen[query, key] = other_take == -1
    return seen


def computed(groups, ring: int) -> torch.Tensor:
    """int64 [T, T], how often the pieces of all ranks compute each pair."""
    shards = shard(groups, ring, 1)
    count = torch.zeros(shards.num_tokens, shards.num_tokens, dtype=torch.int64)
    plans = [ring_plan(shards, rank) for rank in range(ring)]
    held = [shards.ring_tokens(rank) for rank in range(ring)]
    buffers = [torch.cat([held[rank][prompt] for prompt in plans[rank].prompts]) for rank in range(ring)]
    for rank, plan in enumerate(plans):
        assert [len(buffer) for buffer in buffers] == list(plan.num_passing)
        for source, pieces in enumerate((plan.own_takes, *plan.passing), start=-1):
            for piece in pieces:
                queries, keys = held[rank][piece.queries], (held[rank] if source == -1 else buffers[source])[piece.keys]
                assert len(queries) and len(keys) and (len(queries) == len(keys) or not piece.causal)
                block = torch.ones(len(queries), len(keys), dtype=torch.int64)
                count[queries[:, None], keys[None, :]] += block.tril() if piece.causal else block
    return count


@given(
    st.lists(st.builds(Lengths, st.integers(1, 14), st.lists(st.integers(0, 4), max_size=4).map(tuple)), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3, 4]),
)
def test_every_visible_pair_is_computed_once(groups, ring):
    assert torch.equal(computed(groups, ring), visible(groups))


def test_pieces_by_hand():
    # Prompt of 8 over ring 2: rank 0 holds 0 1 6 7 and the take of 3, rank 1 holds 2 3 4 5 and the take of 1.
    shards = shard([Lengths(8, (3, 1))], ring=2, ulysses=1)
    plan = ring_plan(shards, 0)
    assert plan.prompts == (slice(0, 4),) and plan.num_passing == (4, 4)
    assert plan.own_takes == (Piece(slice(4, 7), slice(4, 7), True),)
    assert plan.passing[0] == (Piece(slice(0, 4), slice(0, 4), True), Piece(slice(4, 7), slice(0, 4), False))
    assert plan.passing[1] == (Piece(slice(2, 7), slice(0, 4), False),)  # tokens 6 and 7 and the take see 2-5
    plan = ring_plan(shards, 1)
    assert plan.passing[0] == (Piece(slice(0, 4), slice(0, 2), False), Piece(slice(4, 5), slice(0, 4), False))


def test_steps_cost_all_ranks_the_same():
    """Pairs per rank and step for 64 tokens on a ring of 4: the rank that has least has nine tenths of the one that has most."""
    shards = shard([Lengths(64, ())], ring=4, ulysses=1)
    plans = [ring_plan(shards, rank) for rank in range(4)]
    for step in range(4):
        pairs = [sum(_pairs(piece) for piece in plan.passing[(plan.rank - step) % 4]) for plan in plans]
        assert min(pairs) >= 0.9 * max(pairs)


def _pairs(piece: Piece) -> int:
    queries, keys = piece.queries.stop - piece.queries.start, piece.keys.stop - piece.keys.start
    return queries * (queries + 1) // 2 if piece.causal else queries * keys
