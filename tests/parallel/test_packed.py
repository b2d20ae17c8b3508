"""The layout of packed sequences, by hand."""

from __future__ import annotations

import pytest
import torch

from longtake.parallel.packed import pack_groups, pack_rows
from longtake.types import PackedGroup, Prompt, VideoSpan, VideoTokens

CPU = torch.device("cpu")
VIDEO = VideoTokens(torch.zeros(2, 4), (1, 2, 4), 1.0, "v")
# One text token, a video of two tokens (time 1, columns 1 and 2), one text token; the response starts at 4.
WITH_VIDEO = Prompt(
    torch.tensor([7, 99, 99, 8]), torch.tensor([[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]), (VideoSpan(1, 3, VIDEO),), 4, "a"
)
TEXT = Prompt(torch.tensor([5, 6]), torch.tensor([[0, 1]] * 3), (), 2, "b")


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def test_groups_are_prompt_then_takes_each_prompt_once():
    packed = pack_groups([TEXT, WITH_VIDEO], [[ids(21, 22, 23), ids(), ids(31)], [ids(41, 42)]], CPU)
    assert packed.groups == (PackedGroup(2, (3, 0, 1)), PackedGroup(4, (2,)))
    assert packed.num_tokens == 12 == sum(group.num_tokens for group in packed.groups)
    assert packed.token_ids.tolist() == [5, 6, 21, 22, 23, 31, 7, 99, 99, 8, 41, 42]
    # every take starts at its prompt's next position again, on every axis (FACTS 6.1)
    assert packed.position_ids.tolist() == [
        [0, 1, 2, 3, 4, 2, 0, 1, 1, 3, 4, 5],
        [0, 1, 2, 3, 4, 2, 0, 1, 1, 3, 4, 5],
        [0, 1, 2, 3, 4, 2, 0, 1, 2, 3, 4, 5],
    ]
    assert [(row, start, tokens.digest) for row, start, tokens in packed.videos] == [(0, 7, "v")]


def test_the_prompts_last_token_predicts_the_first_token_of_every_take():
    # FACTS 6.3
    packed = pack_groups([TEXT, WITH_VIDEO], [[ids(21, 22, 23), ids(), ids(31)], [ids(41, 42)]], CPU)
    assert packed.target_ids.tolist() == [[21, 22, 23], [0, 0, 0], [31, 0, 0], [41, 42, 0]]
    assert packed.response_mask.tolist() == [[True] * 3, [False] * 3, [True, False, False], [True, True, False]]
    assert packed.predictor_index.tolist() == [[1, 2, 3], [0, 0, 0], [1, 0, 0], [9, 10, 0]]


def test_rows_share_nothing():
    packed = pack_rows([TEXT, TEXT, WITH_VIDEO], [ids(21, 22), ids(), ids(41)], CPU)
    assert packed.groups == (PackedGroup(4, ()), PackedGroup(2, ()), PackedGroup(5, ()))
    assert packed.token_ids.tolist() == [5, 6, 21, 22, 5, 6, 7, 99, 99, 8, 41]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 1, 3, 4]
    assert packed.target_ids.tolist() == [[21, 22], [0, 0], [41, 0]]
    assert packed.predictor_index.tolist() == [[1, 2], [0, 0], [9, 0]]


def test_prompts_without_takes_and_takes_without_tokens():
    alone = pack_groups([TEXT], [[]], CPU)
    assert alone.target_ids.shape == alone.predictor_index.shape == alone.response_mask.shape == (0, 1)
    empty = pack_groups([TEXT], [[ids(), ids()]], CPU)
    assert empty.token_ids.tolist() == [5, 6] and empty.response_mask.tolist() == [[False], [False]]


def test_what_does_not_fit_together_is_refused():
    flat = Prompt(torch.tensor([5, 6]), torch.tensor([[0, 1]]), (), 2, "c")
    with pytest.raises(ValueError, match="one list of responses per prompt"):
        pack_groups([TEXT], [], CPU)
    with pytest.raises(ValueError, match="at least one"):
        pack_groups([], [], CPU)
    with pytest.raises(ValueError, match="position axes"):
        pack_groups([TEXT, flat], [[], []], CPU)
    for lengths in ((0, (1,)), (3, (1, -1))):
        with pytest.raises(ValueError, match="a prompt of at least 1 token"):
            PackedGroup(*lengths)
