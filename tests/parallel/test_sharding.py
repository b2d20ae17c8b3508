"""Where each token of a packed sequence lies: by hand, and that nothing is lost, doubled or unbalanced for any lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.parallel.sharding import PADDING, local_videos, prompt_chunk, runs, shard, video_pieces
from longtake.types import PackedGroup, VideoTokens

LENGTHS = st.lists(st.builds(PackedGroup, st.integers(1, 40), st.lists(st.integers(0, 12), max_size=5).map(tuple)), min_size=1, max_size=4)
DEGREES = st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 1), (3, 1), (2, 2), (4, 2), (2, 7)])


def test_a_ring_of_two_by_hand():
    # Prompt 0 is tokens 0-7, its takes 8-10 and 11; prompt 1 is tokens 12-16, no takes.
    shards = shard([PackedGroup(8, (3, 1)), PackedGroup(5, ())], ring=2, ulysses=1)
    # Chunks of prompt 0: 0 1 | 2 3 | 4 5 | 6 7; of prompt 1: 12 | 13 | 14 | 15 16. Rank 0: first and last, 7 tokens; rank 1: 6 tokens.
    # The longest take goes to rank 1, the other one to rank 0 (7 against 9).
    assert shards.tokens[0].tolist() == [0, 1, 6, 7, 11, 12, 15, 16]
    assert shards.tokens[1].tolist() == [2, 3, 4, 5, 8, 9, 10, 13, 14]
    assert shards.parts[1][0].takes == (0,) and shards.parts[1][0].take_lengths == (3,) and shards.parts[1][0].prompt_length == 4
    ranks, slots = shards.locations
    assert ranks.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0]
    assert slots.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 6, 4, 5, 7, 8, 6, 7]


def test_ulysses_cuts_evenly_and_pads_the_end():
    shards = shard([PackedGroup(4, (2, 1))], ring=1, ulysses=4)
    assert [tokens.tolist() for tokens in shards.tokens] == [[0, 1], [2, 3], [4, 5], [6, PADDING]]
    assert shards.locations[0].tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_a_rank_without_tokens_holds_one_slot_of_padding():
    shards = shard([PackedGroup(1, ())], ring=2, ulysses=2)
    # Chunks of a prompt of one token: 0-0, 0-0, 0-0, 0-1: the last chunk is rank 0's.
    assert [tokens.tolist() for tokens in shards.tokens] == [[0], [PADDING], [PADDING], [PADDING]]


def test_what_cannot_be_sharded_is_refused():
    for groups, ring, ulysses in (([], 1, 1), ([PackedGroup(1, ())], 0, 1), ([PackedGroup(1, ())], 1, 0)):
        with pytest.raises(ValueError, match="at least one group"):
            shard(groups, ring, ulysses)


@given(LENGTHS, DEGREES)
def test_every_token_lies_in_one_place(groups, degrees):
    shards = shard(groups, *degrees)
    assert len(shards.tokens) == shards.num_ranks
    held = torch.cat(shards.tokens)
    assert held[held != PADDING].sort().values.tolist() == list(range(shards.num_tokens))
    ranks, slots = shards.locations
    assert [int(shards.tokens[rank][slot]) for rank, slot in zip(ranks.tolist(), slots.tolist(), strict=True)] == list(range(len(ranks)))
    for ring_rank in range(shards.ring):
        lengths = {len(shards.tokens[ring_rank * shards.ulysses + rank]) for rank in range(shards.ulysses)}
        assert lengths == {shards.num_slots(ring_rank)}
        # No more padding than cutting evenly needs.
        padding = shards.ulysses * shards.num_slots(ring_rank) - shards.ring_length(ring_rank)
        assert padding < shards.ulysses or shards.ring_length(ring_rank) == 0


@given(LENGTHS, DEGREES)
def test_order_is_kept_and_takes_stay_whole(groups, degrees):
    shards = shard(groups, *degrees)
    for ring_rank in range(shards.ring):
        held = shards.ring_tokens(ring_rank)
        assert held.diff().gt(0).all()  # causal attention inside a rank can go by the order of its slots
    start = 0
    for index, group in enumerate(groups):
        assert sorted(take for parts in shards.parts for take in parts[index].takes) == list(range(len(group.take_lengths)))
        start += group.prompt_length
        for take, length in enumerate(group.take_lengths):
            owners = {int(rank) // shards.ulysses for rank in shards.locations[0][start : start + length]}
            assert len(owners) == min(1, length)
            assert all(take in shards.parts[owner][index].takes for owner in owners)
            start += length


@given(st.integers(1, 200), st.integers(1, 8))
def test_zigzag_gives_every_rank_the_same_causal_work(length, ring):
    chunks = [prompt_chunk(length, ring, chunk) for chunk in range(2 * ring)]
    assert [token for chunk in chunks for token in chunk] == list(range(length))
    # Token t attends to t + 1 keys. A chunk of c tokens may be one longer than another: that is worth at most `length` keys each.
    work = [sum(token + 1 for chunk in (chunks[rank], chunks[2 * ring - 1 - rank]) for token in chunk) for rank in range(ring)]
    assert max(work) - min(work) <= 2 * length
    straight = [sum(token + 1 for chunk in (chunks[2 * rank], chunks[2 * rank + 1]) for token in chunk) for rank in range(ring)]
    if ring >= 2 and length >= 64:  # and cutting it straight would not
        assert max(straight) - min(straight) > max(work) - min(work)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=24))
def test_takes_are_balanced(lengths):
    shards = shard([PackedGroup(16, tuple(lengths))], ring=4, ulysses=1)
    held = [shards.ring_length(rank) for rank in range(4)]
    assert max(held) - min(held) <= max(lengths)  # as the longest goes first to the rank with least


def test_runs_by_hand():
    assert runs(torch.tensor([4, 5, 9, PADDING, 10])) == [(0, range(4, 6)), (2, range(9, 10)), (4, range(10, 11))]
    assert runs(torch.tensor([PADDING, 0, 1])) == [(1, range(0, 2))]
    assert runs(torch.tensor([PADDING])) == []


@given(LENGTHS, DEGREES, st.integers(0, 30), st.integers(1, 40))
def test_each_video_token_is_needed_by_one_rank_at_its_place(groups, degrees, start, count):
    shards = shard(groups, *degrees)
    stop = min(start + count, shards.num_tokens)
    if start >= stop:
        return
    seen = []
    for tokens in shards.tokens:
        for slot, piece in video_pieces(tokens, start, stop - start):
            assert tokens[slot : slot + len(piece)].tolist() == [start + token for token in piece]
            seen.extend(piece)
    assert sorted(seen) == list(range(stop - start))


def test_local_videos_are_views_with_gradients():
    embeddings = torch.arange(12.0).view(6, 2).requires_grad_()
    video = VideoTokens(embeddings, (3, 2, 4), 1.0, "v", deepstack=(10 * embeddings.detach(),))
    shards = shard([PackedGroup(8, ())], ring=2, ulysses=1)  # 0 1 6 7 | 2 3 4 5; the video is tokens 1-6
    here = local_videos([(0, 1, video)], shards.tokens[0])
    assert [(row, slot, part.embeddings.tolist()) for row, slot, part in here] == [(0, 1, [[0.0, 1.0]]), (0, 2, [[10.0, 11.0]])]
    assert here[1][2].deepstack[0].tolist() == [[100.0, 110.0]] and here[0][2].digest == "v"
    here[1][2].embeddings.sum().backward()
    assert embeddings.grad is not None and embeddings.grad.sum(1).tolist() == [0, 0, 0, 0, 0, 2]
    whole = local_videos([(0, 2, video)], torch.arange(10))
    assert whole[0][2] is video
