"""Ring attention over packed groups (after arXiv 2310.01889): keys and values of prompt chunks pass from rank to rank while each rank's
queries stay; what they find is merged by log-sum-exp.

Exact, forward and backward: in backward the chunks pass again, and their gradients travel one step behind them until they are home.
Sending overlaps with computing: the next chunk is under way while the present one is attended to.
Sums over pieces are kept in float32 (float64 for float64), whatever the dtype of the model.

Shapes: T tokens of this ring rank, n and k query and KV heads of this rank, H head size, B tokens of a passing buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.parallel.kernels import attention_backward, attention_forward, lse_dtype, merge_
from longtake.parallel.mesh import Axis
from longtake.parallel.ring_plan import Piece, RingPlan, ring_plan
from longtake.parallel.segments import RunBatch, batch_runs
from longtake.parallel.sharding import Shards

Context = Any
"""Of an autograd.Function."""
Layers = Mapping[int, tuple[Tensor, Tensor]]
"""Keys and values of each layer."""


class RingAttention:
    """A strategy (`attention.PackedAttention`): this rank holds the tokens `shards.ring_tokens(axis.rank)` of the packed sequence.

    With `held`, the sequence is takes alone, and `prompt_of_layer` gives this rank's share of the prompts' keys and values [1, k, P', H],
    laid out by `held`; gradients reach them. Every rank of the ring must attend, one without a token too.
    """

    def __init__(self, shards: Shards, axis: Axis, device: torch.device, held: Shards | None = None, prompt_of_layer: Layers | None = None):
        self._axis = axis
        self._plan = ring_plan(shards, axis.rank, held)
        self._runs = tuple(batch_runs(self._plan.runs, device))
        self._prompt_of_layer = prompt_of_layer

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scale: float) -> Tensor:
        prompt = (key, value) if self._prompt_of_layer is None else self._prompt_of_layer[layer]
        apart = self._prompt_of_layer is not None
        out: Tensor = _Ring.apply(query, key, value, *prompt, apart, self._plan, self._runs, self._axis, scale)
        return out


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        apart: bool,
        plan: RingPlan,
        runs: tuple[RunBatch, ...],
        axis: Axis,
        scale: float,
    ) -> Tensor:
        q, k, v, prompt_k, prompt_v = (_token_major(part) for part in (query, key, value, prompt_key, prompt_value))
        out = q.new_empty(q.shape, dtype=lse_dtype(q.dtype))
        lse = q.new_empty(q.shape[:2], dtype=lse_dtype(q.dtype))
        for batch in runs:
            part_out, part_lse = attention_forward(batch.read(q), batch.read(k), batch.read(v), causal=True, scale=scale)
            batch.write_(out, part_out.to(out.dtype))
            batch.write_(lse, part_lse)
        for source, passing in _around(_buffer(prompt_k, prompt_v, plan), plan, axis):
            for piece in plan.pieces[source]:
                more, more_lse = attention_forward(*_of_piece(piece, q, passing), causal=False, scale=scale)
                merge_(out[piece.queries], lse[piece.queries], _token_major(more), more_lse[0].transpose(0, 1))
        merged = out.to(q.dtype)
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, merged, lse)
        ctx.apart, ctx.plan, ctx.runs, ctx.axis, ctx.scale = apart, plan, runs, axis, scale
        return _head_major(merged)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, lse = ctx.saved_tensors
        plan, axis = ctx.plan, ctx.axis
        q, k, v, prompt_k, prompt_v = (_token_major(part) for part in inputs)
        grad = _token_major(gradients[0])
        whole = _Whole(grad if grad.stride(-1) == 1 else grad.contiguous(), q, out, lse, ctx.scale)
        dq, dk, dv = (part.new_empty(part.shape, dtype=lse.dtype) for part in (q, k, v))
        for batch in ctx.runs:
            found = attention_backward(*whole.of_runs(batch, k, v), causal=True, scale=ctx.scale)
            for total, part in zip((dq, dk, dv), found, strict=True):
                batch.write_(total, part.to(total.dtype))
        arriving: _Passing | None = None
        for source, passing in _around(_buffer(prompt_k, prompt_v, plan), plan, axis):
            d_passing = passing.new_zeros(passing.shape, dtype=lse.dtype)
            for piece in plan.pieces[source]:
                whole.add_piece_(piece, passing, dq, d_passing)
            if arriving is not None:
                d_passing += arriving.wait()
            arriving = _pass_gradients_on(d_passing, plan.num_passing[source - 1], axis)
        assert arriving is not None
        homes = [part.new_zeros(part.shape, dtype=lse.dtype) for part in (prompt_k, prompt_v)] if ctx.apart else [dk, dv]
        _add_home_(homes[0], homes[1], arriving.wait(), plan)
        gradients_apart = [_head_major(home.to(k.dtype)) for home in homes] if ctx.apart else [None, None]
        own = [_head_major(total.to(q.dtype)) for total in (dq, dk, dv)]
        return *own, *gradients_apart, None, None, None, None, None


@dataclass(frozen=True)
class _Whole:
    """What backward knows of the whole softmax, token-major: gradient, query and output [T, n, H], log-sum-exp [T, n]."""

    grad: Tensor
    query: Tensor
    out: Tensor
    lse: Tensor
    scale: float

    def of_runs(self, batch: RunBatch, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """What `attention_backward` wants for a batch of runs."""
        parts = (batch.read(part) for part in (self.grad, self.query, key, value, self.out))
        return *parts, batch.read_lse(self.lse)

    def add_piece_(self, piece: Piece, passing: Tensor, dq: Tensor, d_passing: Tensor) -> None:
        """Add to the gradients of the piece's queries [T, n, H], and of its keys and values [2, B, k, H]."""
        rows = piece.queries
        found = attention_backward(
            _head_major(self.grad[rows]),
            *_of_piece(piece, self.query, passing),
            _head_major(self.out[rows]),
            self.lse[rows].transpose(0, 1)[None],
            causal=False,
            scale=self.scale,
        )
        for total, part in zip((dq[rows], d_passing[0, piece.keys], d_passing[1, piece.keys]), found, strict=True):
            total += _token_major(part)


def _of_piece(piece: Piece, query: Tensor, passing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _head_major(query[piece.queries]), _head_major(passing[0, piece.keys]), _head_major(passing[1, piece.keys])


def _token_major(tensor: Tensor) -> Tensor:
    """[1, heads, T, H] -> [T, heads, H], a view."""
    return tensor[0].transpose(0, 1)


def _head_major(tensor: Tensor) -> Tensor:
    """[T, heads, H] -> [1, heads, T, H], a view."""
    return tensor.transpose(0, 1)[None]


def _buffer(key: Tensor, value: Tensor, plan: RingPlan) -> Tensor:
    """[2, B, k, H], keys and values of this rank's prompt chunks. Never empty, so that every rank sends and receives in every step."""
    buffer = key.new_zeros(2, max(1, plan.num_passing[plan.rank]), *key.shape[1:])
    at = 0
    for prompt in plan.prompts:
        part = buffer[:, at : at + prompt.stop - prompt.start]
        part[0], part[1] = key[prompt], value[prompt]
        at += part.shape[1]
    return buffer


def _add_home_(dk: Tensor, dv: Tensor, arrived: Tensor, plan: RingPlan) -> None:
    """What the ring found for this rank's own buffer [2, B, k, H], to the gradients [T, k, H] of its tokens."""
    at = 0
    for prompt in plan.prompts:
        stop = at + prompt.stop - prompt.start
        dk[prompt] += arrived[0, at:stop]
        dv[prompt] += arrived[1, at:stop]
        at = stop


def _around(own: Tensor, plan: RingPlan, axis: Axis) -> Iterator[tuple[int, Tensor]]:
    """(source, its buffer) for every rank of the ring, this one first; while one is in use the next is on its way."""
    buffer = own
    for step in range(axis.size):
        source = (plan.rank - step) % axis.size
        arriving = _pass_on(buffer, plan.num_passing[source - 1], axis) if step < axis.size - 1 else None
        yield source, buffer
        if arriving is not None:
            buffer = arriving.wait()


@dataclass(frozen=True)
class _Passing:
    sent: Tensor
    """Held until it is gone."""
    received: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.received


def _pass_on(buffer: Tensor, num_arriving: int, axis: Axis) -> _Passing:
    """Start sending to the next rank of the ring, and receiving from the one before. A ring of one keeps what it has.

    An all-to-all in which every rank has something for one other alone. On NCCL that is the same send and receive; gloo's own send and
    receive keep a thread spinning on one rank for as long as the other computes, which takes a CPU rank's core from it.
    """
    if axis.group is None:
        return _Passing(buffer, buffer, None)
    received = buffer.new_empty(2, max(1, num_arriving), *buffer.shape[2:])
    sends, receives = [0] * axis.size, [0] * axis.size
    sends[(axis.rank + 1) % axis.size], receives[axis.rank - 1] = buffer.numel(), received.numel()
    work = dist.all_to_all_single(received.view(-1), buffer.view(-1), receives, sends, group=axis.group, async_op=True)
    return _Passing(buffer, received, work)


def _pass_gradients_on(buffer: Tensor, num_arriving: int, axis: Axis) -> _Passing:
    """The same for the gradients of keys and values, one step behind them."""
    return _pass_on(buffer, num_arriving, axis)
