"""Every pair of query and key is computed exactly once when it may be seen, and never otherwise."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.parallel.ring_plan import Piece, ring_plan
from longtake.parallel.segments import Run
from longtake.parallel.sharding import shard
from longtake.testing.packed_attention import visible
from longtake.types import PackedGroup


def computed(groups, ring: int) -> torch.Tensor:
    """int64 [T, T], how often all ranks together compute each pair."""
    shards = shard(groups, ring, 1)
    count = torch.zeros(shards.num_tokens, shards.num_tokens, dtype=torch.int64)
    held = [shards.ring_tokens(rank) for rank in range(ring)]
    count_plans([ring_plan(shards, rank) for rank in range(ring)], held, held, count)
    return count


def count_plans(plans, held, held_prompts, count) -> None:
    """Add to `count` [T, T]; `held` and `held_prompts`: of each rank, the tokens it has queries of, and those it has passing keys of."""
    buffers = [torch.cat([own[prompt] for prompt in plan.prompts]) for plan, own in zip(plans, held_prompts, strict=True)]
    for plan, own in zip(plans, held, strict=True):
        assert [len(buffer) for buffer in buffers] == list(plan.num_passing)
        for run in plan.runs:
            tokens = own[run.tokens]
            assert len(tokens) == run.length > 0
            count[tokens[:, None], tokens[None, :]] += torch.ones(len(tokens), len(tokens), dtype=torch.int64).tril()
        for source, pieces in enumerate(plan.pieces):
            for piece in pieces:
                queries, keys = own[piece.queries], buffers[source][piece.keys]
                assert len(queries) and len(keys)
                count[queries[:, None], keys[None, :]] += 1


GROUPS = st.builds(PackedGroup, st.integers(1, 14), st.lists(st.integers(0, 4), max_size=4).map(tuple))
RINGS = st.sampled_from([1, 2, 3, 4])


@given(st.lists(GROUPS, min_size=1, max_size=3), RINGS)
def test_every_visible_pair_is_computed_once(groups, ring):
    assert torch.equal(computed(groups, ring), visible(groups).long())


@given(GROUPS, RINGS)
def test_takes_alone_read_a_prompt_that_went_before(group, ring):
    """The prompt first, spread by itself, then its takes: together every pair once."""
    prompt, takes = shard([PackedGroup(group.prompt_length, ())], ring, 1), shard([group], ring, 1, takes_alone=True)
    assert takes.num_tokens == group.num_take_tokens
    held_prompts = [prompt.ring_tokens(rank) for rank in range(ring)]
    held = [takes.ring_tokens(rank) + group.prompt_length for rank in range(ring)]
    count = torch.zeros(group.num_tokens, group.num_tokens, dtype=torch.int64)
    count_plans([ring_plan(prompt, rank) for rank in range(ring)], held_prompts, held_prompts, count)
    count_plans([ring_plan(takes, rank, prompt) for rank in range(ring)], held, held_prompts, count)
    assert torch.equal(count, visible([group]).long())


def test_pieces_by_hand():
    # Prompt of 8 over ring 2: rank 0 holds 0 1 6 7 and the take of 3, rank 1 holds 2 3 4 5 and the take of 1.
    shards = shard([PackedGroup(8, (3, 1))], ring=2, ulysses=1)
    plan = ring_plan(shards, 0)
    assert plan.prompts == (slice(0, 4),) and plan.num_passing == (4, 4)
    assert plan.runs == (Run(0, 4), Run(4, 3))
    assert plan.pieces[0] == (Piece(slice(4, 7), slice(0, 4)),)  # the take sees the own chunks
    assert plan.pieces[1] == (Piece(slice(2, 7), slice(0, 4)),)  # tokens 6 and 7 and the take see 2-5
    plan = ring_plan(shards, 1)
    assert plan.runs == (Run(0, 4), Run(4, 1))
    assert plan.pieces[0] == (Piece(slice(0, 4), slice(0, 2)), Piece(slice(4, 5), slice(0, 4)))


def test_steps_cost_all_ranks_the_same():
    """Pairs per rank and step for 64 tokens on a ring of 4: the rank that has least has nine tenths of the one that has most."""
    shards = shard([PackedGroup(64, ())], ring=4, ulysses=1)
    plans = [ring_plan(shards, rank) for rank in range(4)]
    assert [plan.runs for plan in plans] == [(Run(0, 16),)] * 4
    for step in range(1, 4):
        pairs = [sum(_pairs(piece) for piece in plan.pieces[(plan.rank - step) % 4]) for plan in plans]
        assert min(pairs) >= 0.9 * max(pairs)


def _pairs(piece: Piece) -> int:
    return (piece.queries.stop - piece.queries.start) * (piece.keys.stop - piece.keys.start)
