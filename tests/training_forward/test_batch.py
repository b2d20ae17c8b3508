"""The layout of rows, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.testing.rows import sft_batch, take_batch
from longtake.training.batch import pad_prompts, split_by_tokens
from longtake.types import Prompt, Take, VideoSpan, VideoTokens

CPU = torch.device("cpu")
VIDEO = VideoTokens(torch.zeros(2, 4), (1, 2, 4), 1.0, "v")
# One text token, a video of two tokens (time 1, columns 1 and 2), one text token: the positions stand still inside the video.
WITH_VIDEO = Prompt(
    token_ids=torch.tensor([7, 99, 99, 8]),
    position_ids=torch.tensor([[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]),
    spans=(VideoSpan(1, 3, VIDEO),),
    next_position=4,
    digest="a",
)
TEXT = Prompt(torch.tensor([5, 6]), torch.tensor([[0, 1]] * 3), (), 2, "b")


def take_of(*tokens: int) -> Take:
    return Take(torch.tensor(tokens, dtype=torch.int64), -torch.arange(1.0, len(tokens) + 1), "stop", "", 0)


def test_rows_are_prompt_then_response_with_positions_going_on_where_the_prompt_says():
    batch = sft_batch([WITH_VIDEO, TEXT], [torch.tensor([11, 12]), torch.tensor([21, 22, 23])], CPU)
    assert batch.token_ids.tolist() == [[7, 99, 99, 8, 11, 12], [5, 6, 21, 22, 23, 23]]
    assert batch.attention_mask.tolist() == [[True] * 6, [True] * 5 + [False]]
    # FACTS 6.1: right-padded prompts made response positions restart; here they go on from next_position on every axis.
    assert batch.position_ids[:, 0].tolist() == [[0, 1, 1, 3, 4, 5], [0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert batch.position_ids[:, 1, :5].tolist() == [[0, 1, 2, 3, 4]] * 3
    assert [(row, start, tokens.digest) for row, start, tokens in batch.videos] == [(0, 1, "v")]
    assert batch.num_response_tokens == 5


def test_each_response_token_is_predicted_by_the_token_before_it():
    # FACTS 6.3: the prompt's last token predicts the first response token.
    batch = sft_batch([WITH_VIDEO, TEXT], [torch.tensor([11, 12]), torch.tensor([21, 22, 23])], CPU)
    assert batch.target_ids.tolist() == [[11, 12, 0], [21, 22, 23]]
    assert batch.response_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.predictor_index.tolist() == [[3, 4, 0], [1, 2, 3]]


def test_takes_bring_their_sampler_logprobs_along():
    batch = take_batch([TEXT, TEXT], [take_of(21), take_of(31, 32)], CPU)
    assert batch.sampler_logprobs.tolist() == [[-1.0, 0.0], [-1.0, -2.0]]
    assert batch.target_ids.tolist() == [[21, 0], [31, 32]]
    assert batch.token_ids.tolist() == [[5, 6, 21, 21], [5, 6, 31, 32]]


def test_an_empty_response_keeps_its_row_and_weighs_nothing():
    batch = sft_batch([TEXT, TEXT], [torch.tensor([], dtype=torch.int64), torch.tensor([9])], CPU)
    assert batch.response_mask.tolist() == [[False], [True]]
    assert batch.token_ids.tolist() == [[5, 6, 6], [5, 6, 9]]
    only = sft_batch([TEXT], [torch.tensor([], dtype=torch.int64)], CPU)
    assert only.response_mask.tolist() == [[False]]
    assert only.num_response_tokens == 0


def test_padding_is_never_a_media_placeholder():
    # A padded placeholder would be counted as a video token by the model.
    batch = pad_prompts([WITH_VIDEO, TEXT], CPU, multiple=3)
    assert batch.token_ids.tolist() == [[7, 99, 99, 8, 8, 8], [5, 6, 6, 6, 6, 6]]
    assert batch.lengths.tolist() == [4, 2]
    assert batch.position_ids[:, 0, :4].tolist() == WITH_VIDEO.position_ids.tolist()


def test_what_does_not_fit_together_is_refused():
    flat = Prompt(torch.tensor([5, 6]), torch.tensor([[0, 1]]), (), 2, "c")
    with pytest.raises(ValueError, match="as many responses as prompts"):
        sft_batch([TEXT], [], CPU)
    with pytest.raises(ValueError, match="at least one"):
        sft_batch([], [], CPU)
    with pytest.raises(ValueError, match="position axes"):
        sft_batch([TEXT, flat], [torch.tensor([1]), torch.tensor([1])], CPU)


def test_splitting_by_hand():
    assert split_by_tokens([5, 90, 6, 100], 200) == [[0, 2], [1, 3]]
    assert split_by_tokens([5, 90, 6, 100], 100) == [[0, 2], [1], [3]]
    assert split_by_tokens([7, 7, 7], 14) == [[0, 1], [2]]
    assert split_by_tokens([300], 10) == [[0]]  # too long alone: kept, not cut
    assert split_by_tokens([], 10) == []
    with pytest.raises(ValueError, match="max_tokens"):
        split_by_tokens([1], 0)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_splitting_drops_nothing_and_keeps_the_bound(lengths, max_tokens):
    parts = split_by_tokens(lengths, max_tokens)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[index] for index in part) <= max_tokens
    flat = [lengths[index] for part in parts for index in part]
    assert flat == sorted(flat)
