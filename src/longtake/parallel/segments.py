"""Runs of tokens that attend causally to themselves alone, brought into few batches: every prompt, and every take among its own tokens.

A kernel call has a price of its own; 128 takes of 60 tokens one by one cost several times what they cost as a padded batch. Runs of like
length share a batch; a long run is a batch of its own, since a call's price vanishes in it and padding would not.

Shapes: C runs of a batch, R tokens of its longest, T tokens of the packed sequence, any trailing dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONG_RUN = 1024
"""Tokens from which a run is not padded into a batch with others."""


@dataclass(frozen=True)
class Run:
    """Tokens start to start + length of the packed sequence."""

    start: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True, eq=False)
class RunBatch:
    """Runs attended to in one call. Build them with `batch_runs`."""

    count: int
    """C."""
    length: int
    """R."""
    start: int
    """First token, when the runs have one length and lie behind each other."""
    slots: Tensor | None = None
    """int64 [C * R], the token in each slot, a run's last one again on padding. None: the runs lie behind each other; nothing is copied."""
    filled: Tensor | None = None
    """int64, the slots that are not padding; None: all."""

    def read(self, tokens: Tensor) -> Tensor:
        """[T, heads, H] -> [C, heads, R, H]; a view where the runs lie behind each other."""
        return self._rows(tokens).transpose(1, 2)

    def read_lse(self, lse: Tensor) -> Tensor:
        """[T, heads] -> [C, heads, R], +inf on padding, which then adds nothing to any gradient."""
        rows = self._rows(lse)
        if self.filled is not None:
            padding = torch.ones(self.count * self.length, dtype=torch.bool, device=lse.device).index_fill_(0, self.filled, False)
            rows = rows.masked_fill(padding.view(self.count, self.length, 1), math.inf)
        return rows.transpose(1, 2)

    def write_(self, tokens: Tensor, values: Tensor) -> None:
        """Put values [C, heads, R, ...] in their places of tokens [T, heads, ...]; padding is left out."""
        flat = values.transpose(1, 2).flatten(0, 1)
        if self.slots is None:
            tokens[self.start : self.start + len(flat)] = flat
        elif self.filled is None:
            tokens.index_copy_(0, self.slots, flat)
        else:
            tokens.index_copy_(0, self.slots[self.filled], flat[self.filled])

    def _rows(self, tokens: Tensor) -> Tensor:
        together = slice(self.start, self.start + self.count * self.length)
        flat = tokens[together] if self.slots is None else tokens.index_select(0, self.slots)
        return flat.unflatten(0, (self.count, self.length))


def batch_runs(runs: Sequence[Run], device: torch.device) -> list[RunBatch]:
    """All runs but empty ones, each in one batch, like lengths together: a batch is padded to at most 5/4 of its shortest run + 16."""
    batches: list[list[Run]] = []
    for run in sorted((run for run in runs if run.length), key=lambda run: (run.length, run.start)):
        if batches and _belongs(run, batches[-1]):
            batches[-1].append(run)
        else:
            batches.append([run])
    return [_run_batch(sorted(batch, key=lambda run: run.start), device) for batch in batches]


def _belongs(run: Run, batch: Sequence[Run]) -> bool:
    shortest, last = batch[0].length, batch[-1]
    if run.length >= LONG_RUN:  # only where it costs no copy
        return run.length == shortest and run.start == last.start + last.length
    return run.length <= shortest * 5 // 4 + 16


def _run_batch(runs: Sequence[Run], device: torch.device) -> RunBatch:
    length = max(run.length for run in runs)
    start = runs[0].start
    if all(run == Run(start + number * length, length) for number, run in enumerate(runs)):
        return RunBatch(len(runs), length, start)
    lengths = torch.tensor([run.length for run in runs])[:, None]
    starts = torch.tensor([run.start for run in runs])[:, None]
    step = torch.arange(length)
    slots = (starts + torch.minimum(step, lengths - 1)).flatten()
    filled = (step < lengths).flatten().nonzero().squeeze(1)
    all_filled = len(filled) == len(slots)
    return RunBatch(len(runs), length, start, slots.to(device), None if all_filled else filled.to(device))
