"""Exchanges between the ranks of an axis, with gradients. Every rank of the axis must call them in the same order.

All are built on `all_to_all_single`, because it takes pieces of unequal length on gloo as well as on NCCL (gloo's all_gather refuses them).
On an axis of one rank they return what they were given.

Rows are counted along dimension 0; whatever follows it travels along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longtake.observe.metrics import metric_for
from longtake.parallel.mesh import Axis

Context = Any
"""Of an autograd.Function."""


def exchange(rows: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int], axis: Axis) -> Tensor:
    """Send the first send_sizes[0] rows to rank 0 of the axis, the next to rank 1, ...; returns what the ranks sent here, in their order.

    rows [sum(send_sizes), ...] -> [sum(receive_sizes), ...]; `receive_sizes[i]` is what rank i sends here. Gradients travel back the same
    way. Raises ValueError for sizes that do not fit.
    """
    if len(send_sizes) != axis.size or len(receive_sizes) != axis.size or sum(send_sizes) != len(rows):
        raise ValueError(f"{len(rows)} rows, {axis.size} ranks; got send_sizes {list(send_sizes)}, receive_sizes {list(receive_sizes)}")
    return _Exchange.apply(rows, list(send_sizes), list(receive_sizes), axis)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, rows: Tensor, send_sizes: list[int], receive_sizes: list[int], axis: Axis) -> Tensor:
        ctx.sizes, ctx.axis = (receive_sizes, send_sizes), axis
        return all_to_all(rows, send_sizes, receive_sizes, axis)

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(gradients[0], ctx.sizes[0], ctx.sizes[1], ctx.axis), None, None, None


def all_to_all(rows: Tensor, send_sizes: list[int], receive_sizes: list[int], axis: Axis) -> Tensor:
    """`exchange` without gradients."""
    if axis.group is None:
        return rows.view_as(rows)
    received = rows.new_empty(sum(receive_sizes), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), receive_sizes, send_sizes, group=axis.group)
    return received


def all_gather(rows: Tensor, sizes: Sequence[int], axis: Axis) -> Tensor:
    """The rows of all ranks, sizes[i] of rank i, [sizes[own], ...] -> [sum(sizes), ...].

    The gradient of a row is the SUM of what all ranks ask of it: for ranks that go on to compute different things.
    """
    return exchange(rows.repeat(axis.size, *[1] * (rows.ndim - 1)), [sizes[axis.rank]] * axis.size, sizes, axis)


def all_gather_for_same_use(rows: Tensor, sizes: Sequence[int], axis: Axis) -> Tensor:
    """As `all_gather`, for ranks that go on to compute the SAME thing: the gradient of a row is what its own rank asks of it, and nothing
    travels in backward. Summing over ranks would count it U times."""
    return _GatherForSameUse.apply(rows, list(sizes), axis)


class _GatherForSameUse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, rows: Tensor, sizes: list[int], axis: Axis) -> Tensor:
        start = sum(sizes[: axis.rank])
        ctx.own = slice(start, start + sizes[axis.rank])
        return all_gather(rows, sizes, axis)

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own], None, None


def reduce_scatter(rows: Tensor, sizes: Sequence[int], axis: Axis) -> Tensor:
    """Sum over ranks, each keeping its part: [sum(sizes), ...] -> [sizes[own], ...]. Summed in the order of ranks, so the bits repeat."""
    own = sizes[axis.rank]
    parts = exchange(rows, sizes, [own] * axis.size, axis)
    return parts.view(axis.size, own, *rows.shape[1:]).sum(0)


def sum_over_ranks(values: Sequence[float], axis: Axis) -> list[float]:
    """The sum of each number over the ranks, in float64: token counts of a whole step, parts of a loss."""
    if axis.group is None:
        return [float(value) for value in values]
    totals = torch.tensor([float(value) for value in values], dtype=torch.float64)
    dist.all_reduce(totals, group=axis.group)
    return [float(total) for total in totals]


def gather_texts(text: str, axis: Axis) -> list[str]:
    """A text of every rank, in their order. For small records as JSON; nothing is pickled."""
    if axis.group is None:
        return [text]
    encoded = text.encode()
    one = torch.tensor([len(encoded)])
    sizes = all_to_all(one.repeat(axis.size), [1] * axis.size, [1] * axis.size, axis).tolist()
    letters = torch.tensor(list(encoded), dtype=torch.uint8)
    return [bytes(part.tolist()).decode() for part in all_gather(letters, sizes, axis).split(sizes)]


def reduce_metrics(metrics: Mapping[str, float], axis: Axis) -> dict[str, float]:
    """Metrics of all ranks as one, each name by its rule in `observe.metrics.METRICS`, over the ranks that have it; equal on every rank."""
    return reduced_metrics([json.loads(text) for text in gather_texts(json.dumps(dict(metrics)), axis)])


def reduced_metrics(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`reduce_metrics` of what each rank has told."""
    names = list(dict.fromkeys(name for one in by_rank for name in one))
    return {name: _reduced(name, [one[name] for one in by_rank if name in one]) for name in names}


def _reduced(name: str, values: Sequence[float]) -> float:
    rule = metric_for(name).reduce
    if rule == "max":
        return max(values)
    return sum(values) / (len(values) if rule == "mean" else 1)
