"""Runs of tokens in batches: each once, padding that reaches nothing, few batches."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.parallel.segments import LONG_RUN, Run, batch_runs

CPU = torch.device("cpu")


def test_runs_behind_each_other_are_not_copied():
    (batch,) = batch_runs([Run(2, 3), Run(5, 3)], CPU)
    tokens = torch.arange(20.0).view(10, 2, 1)
    assert batch.slots is None
    assert batch.read(tokens).shape == (2, 2, 3, 1)
    assert batch.read(tokens).data_ptr() == tokens[2].data_ptr()
    assert batch.read(tokens)[1, 0, :, 0].tolist() == [10.0, 12.0, 14.0]


def test_shorter_runs_are_padded_with_their_last_token_which_weighs_nothing():
    (batch,) = batch_runs([Run(4, 1), Run(0, 3)], CPU)
    tokens, lse = torch.arange(6.0).view(6, 1, 1), torch.arange(6.0).view(6, 1)
    assert batch.read(tokens)[:, 0, :, 0].tolist() == [[0.0, 1.0, 2.0], [4.0, 4.0, 4.0]]
    assert batch.read_lse(lse)[:, 0].tolist() == [[0.0, 1.0, 2.0], [4.0, math.inf, math.inf]]
    written = torch.full((6, 1), -1.0)
    batch.write_(written, torch.tensor([[[10.0, 11, 12]], [[13.0, 14, 15]]]))
    assert written[:, 0].tolist() == [10.0, 11.0, 12.0, -1.0, 13.0, -1.0]


def test_like_lengths_share_a_batch_and_long_runs_do_not():
    runs = [Run(0, 60), Run(100, 80), Run(200, 300), Run(1000, LONG_RUN), Run(1000 + LONG_RUN, LONG_RUN), Run(9000, LONG_RUN), Run(9, 0)]
    batches = batch_runs(runs, CPU)
    assert [(batch.count, batch.length, batch.slots is None) for batch in batches] == [
        (2, 80, False),
        (1, 300, True),
        (2, LONG_RUN, True),
        (1, LONG_RUN, True),
    ]
    assert batch_runs([], CPU) == []


@given(st.lists(st.integers(0, 1500), max_size=30))
def test_every_token_is_read_and_written_once(lengths):
    runs, at = [], 0
    for length in lengths:
        runs.append(Run(at, length))
        at += length + 1  # a token between that belongs to none
    count = torch.zeros(at + 1, 1)
    for batch in batch_runs(runs, CPU):
        again = torch.zeros_like(count)
        batch.write_(again, batch.read(torch.ones_like(count)[..., None])[..., 0])
        count += again
        assert batch.count * batch.length <= 1.25 * again.sum() + 16 * batch.count
    wanted = torch.zeros_like(count)
    for run in runs:
        wanted[run.tokens] = 1
    assert torch.equal(count, wanted)
