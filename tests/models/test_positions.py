"""Positions, hand-computed, against a slow reference, and against transformers where transformers is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.errors import ModelError
from longtake.models.positions import media_spans, mrope_positions, time_step
from longtake.testing.takes import media_shape

V, P, T = 9, 8, 1  # the placeholders of videos and of images, a text token


def positions(ids, grids=(), seconds=(), tokens_per_second=2.0):
    media = [media_shape(grid, one) for grid, one in zip(grids, seconds, strict=True)]
    found, following = mrope_positions(ids, media, placeholder_ids={"video": V, "image": P}, merge=2, tokens_per_second=tokens_per_second)
    assert found.dtype == torch.int64
    return found.tolist(), following


def test_text_alone_counts_up_on_all_axes():
    assert positions([T] * 4) == ([[0, 1, 2, 3]] * 3, 4)


def test_empty_prompt():
    assert positions([]) == ([[], [], []], 0)


def test_one_video_between_texts():
    # 3 groups, 4 x 6 patches = 2 x 3 tokens; 1 s per group at 2 tokens a second: time 0, 2, 4 from start 2; largest position 6
    found, following = positions([T, T] + [V] * 18 + [T, T], [(3, 4, 6)], [1.0])
    assert found[0] == [0, 1] + [2] * 6 + [4] * 6 + [6] * 6 + [7, 8]
    assert found[1] == [0, 1] + [2, 2, 2, 3, 3, 3] * 3 + [7, 8]
    assert found[2] == [0, 1] + [2, 3, 4] * 6 + [7, 8]
    assert following == 9


def test_a_wide_video_ends_at_its_last_column_and_a_second_one_follows_text():
    # A: 1 group, 1 x 5 tokens from 1: columns to 5, so text 6, 7. B: 2 groups, 3 x 1 tokens from 8, 0.5 s * 2 = 1 step: rows to 10.
    found, following = positions([T] + [V] * 5 + [T, T] + [V] * 6 + [T], [(1, 2, 10), (2, 6, 2)], [3.0, 0.5])
    assert found[0] == [0] + [1] * 5 + [6, 7] + [8] * 3 + [9] * 3 + [11]
    assert found[1] == [0] + [1] * 5 + [6, 7] + [8, 9, 10] * 2 + [11]
    assert found[2] == [0] + [1, 2, 3, 4, 5] + [6, 7] + [8] * 6 + [11]
    assert following == 12


def test_three_videos_each_with_its_own_spacing():
    # one token per group; starts 0, then 0+4+1 = 5 -> text 5, video 6 .. 6+1, text 8, video 9 .. 9+6
    found, following = positions([V] * 3 + [T] + [V] * 2 + [T] + [V] * 2, [(3, 2, 2), (2, 2, 2), (2, 2, 2)], [1.0, 0.5, 3.0])
    assert found[0] == [0, 2, 4, 5, 6, 7, 8, 9, 15]
    assert found[1] == found[2] == [0, 0, 0, 5, 6, 6, 8, 9, 9]
    assert following == 16


def test_odd_grid_drops_no_token():
    # 5 x 3 merged patches
    found, following = positions([V] * 15, [(1, 10, 6)], [1.0])
    assert found[1] == [row for row in range(5) for _ in range(3)]
    assert found[2] == [0, 1, 2] * 5
    assert following == 5


def test_fractional_steps_are_floored():
    # 0.6 s * 2 = 1.2 a group: 0, 1.2, 2.4, 3.6, 4.8, 6.0000002 (float32 of 0.6 is a little more)
    found, _ = positions([V] * 6, [(6, 2, 2)], [float(np.float32(0.6))])
    assert found[0] == [0, 1, 2, 3, 4, 6]


def test_spacing_is_rounded_to_float32_and_multiplied_in_float64():
    """float32(0.7) = 0.69999998..., so group 5 is at 6.9999998: 6 in float64 (as vLLM does), 7 in float32 and in exact numbers."""
    seconds, _ = time_step(np.arange(12) * 0.35, 2)
    assert seconds == float(np.float32(0.7)) != 0.7
    found, _ = positions([V] * 6, [(6, 2, 2)], [seconds])
    assert found[0] == [0, 1, 2, 4, 5, 6]
    assert int(torch.tensor(5.0) * torch.tensor(seconds, dtype=torch.float32) * 2) == 7


def test_tokens_per_second_scales_time_only():
    found, _ = positions([V] * 3, [(3, 2, 2)], [1.0], tokens_per_second=4)
    assert found == [[0, 4, 8], [0, 0, 0], [0, 0, 0]]


def test_hour_long_video_keeps_exact_times():
    # 3,600 groups of 2 s at 2 tokens per second
    found, following = positions([V] * 3600, [(3600, 2, 2)], [2.0])
    assert found[0] == list(range(0, 14400, 4))
    assert following == 14397


def slow_positions(items, tokens_per_second):
    """The rule once more, one token at a time. items: a number of text tokens, or (grid, seconds)."""
    rows, largest = [], -1
    for item in items:
        start = largest + 1
        if isinstance(item, int):
            new = [(start + i, start + i, start + i) for i in range(item)]
        else:
            (groups, height, width), seconds = item
            new = [
                (start + int(g * (seconds * tokens_per_second)), start + y, start + x)
                for g in range(groups)
                for y in range(height // 2)
                for x in range(width // 2)
            ]
        rows += new
        largest = max([largest, *(value for row in new for value in row)])
    return rows, largest + 1


grids = st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 4).map(lambda n: 2 * n))
videos = st.tuples(grids, st.floats(0, 20, width=32))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), videos), max_size=4), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_equal_to_the_rule_written_token_by_token(pairs, tail, tokens_per_second):
    items = [item for pair in pairs for item in pair] + [tail]
    ids = [token for item in items for token in ([T] * item if isinstance(item, int) else [V] * (int(np.prod(item[0])) // 4))]
    wanted, following = slow_positions(items, tokens_per_second)
    seen = [item for item in items if not isinstance(item, int)]
    found, next_position = positions(ids, [grid for grid, _ in seen], [seconds for _, seconds in seen], tokens_per_second)
    assert list(zip(*found, strict=True)) == wanted
    assert next_position == following


@pytest.mark.parametrize(
    ("ids", "grids"),
    [
        ([T, V, V, T], [(1, 4, 4)]),  # 4 tokens, 2 placeholders
        ([T, V, V, V, V, V, T], [(1, 4, 4)]),  # one too many
        ([T, T], [(1, 4, 4)]),  # none
        ([V, T], []),  # a placeholder without a video
        ([V, T, V], [(1, 2, 2)]),  # two placeholders, one video
        ([V, V, T], [(1, 2, 2), (1, 2, 2)]),  # two videos in one run
    ],
)
def test_placeholders_that_do_not_fit_are_refused(ids, grids):
    with pytest.raises(ModelError, match="placeholders"):
        positions(ids, grids, [1.0] * len(grids))


def test_spans():
    assert media_spans([T, V, V, T, V], [media_shape((2, 2, 2)), media_shape((1, 2, 2))], {"video": V, "image": P}, 2) == [(1, 3), (4, 5)]


def test_time_step_is_the_mean_spacing_and_tells_the_deviation():
    # spacings 1, 1, 4: mean 2; equal spacing would be 0, 2, 4, 6: off by 0, 1, 2, 0
    assert time_step(np.array([10.0, 11.0, 12.0, 16.0]), 2) == (4.0, 2.0)
    assert time_step(np.array([0.0, 0.5, 1.0]), 2) == (1.0, 0.0)
    assert time_step(np.array([3.0]), 2) == (0.0, 0.0)


def transformers_positions(tiny, ids, grid, seconds):
    token_ids = torch.tensor([ids])
    kinds = (token_ids == tiny.placeholder_ids["video"]).int() * 2
    found, _ = tiny.hf.model.get_rope_index(
        token_ids, kinds, video_grid_thw=torch.tensor([grid]), second_per_grid_ts=torch.tensor([seconds], dtype=torch.float64)
    )
    return found[:, 0]


@pytest.mark.parametrize(("grid", "seconds"), [((3, 4, 6), 1.0), ((5, 8, 4), 0.6), ((1, 10, 6), 2.0), ((7, 2, 2), 3.7)])
def test_agrees_with_transformers_up_to_the_end_of_the_first_video(tiny, grid, seconds):
    ids = [5, 6, 7] + [tiny.placeholder_ids["video"]] * tiny.num_video_tokens(grid)
    ours, _ = tiny.position_ids(ids, [media_shape(grid, seconds)])
    assert torch.equal(ours, transformers_positions(tiny, ids, grid, seconds))


def test_transformers_puts_the_text_behind_a_video_into_the_video(tiny):
    """Why positions are ours. Video from 2, times 2..8: text must start at 9; transformers says 2 + max(4, 4) / 2 = 4."""
    grid = (4, 4, 4)
    ids = [5, 6] + [tiny.placeholder_ids["video"]] * 16 + [7]
    ours, following = tiny.position_ids(ids, [media_shape(grid)])
    assert ours[:, -1].tolist() == [9, 9, 9]
    assert following == 10
    assert transformers_positions(tiny, ids, grid, 1.0)[:, -1].tolist() == [4, 4, 4]
