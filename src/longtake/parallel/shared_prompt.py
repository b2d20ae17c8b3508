"""Exact attention over a packed sequence in which every prompt is computed once (DESIGN 3.4).

Prompt tokens attend causally to their prompt. A take's tokens attend to all of its prompt's keys and causally to their own; the two
outputs are merged by their log-sum-exps. Backward runs the kernels' own backward on each part with the merged output and log-sum-exp.

Shapes: N query heads, K KV heads (any subset of the model's, as after a Ulysses exchange), T tokens of the packed sequence, H head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.parallel.kernels import attention_backward, attention_forward, lse_dtype, merge_
from longtake.parallel.packed import take_starts, with_starts
from longtake.parallel.segments import Run, RunBatch, batch_runs
from longtake.types import PackedGroup

Context = Any
"""Of an autograd.Function."""


@dataclass(frozen=True)
class Reading:
    """The take tokens of one group and the prompt that they read."""

    takes: Run
    prompt: Run
    """In the packed sequence, or among the keys and values handed in apart."""


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Which kernel calls a packed sequence needs. Build it once per sequence: `plan_groups` or `plan_takes`."""

    own: tuple[RunBatch, ...]
    """Causal attention of prompts, and of takes to themselves."""
    readings: tuple[Reading, ...]
    """Attention of takes to their prompt."""


def plan_groups(groups: Sequence[PackedGroup], device: torch.device) -> AttentionPlan:
    """For a packed sequence that holds the prompts too."""
    runs, readings = [], []
    for start, group in with_starts(groups):
        prompt = Run(start, group.prompt_length)
        runs += [prompt, *_take_runs(start, group)]
        if group.num_take_tokens:
            readings.append(Reading(Run(start + group.prompt_length, group.num_take_tokens), prompt))
    return AttentionPlan(tuple(batch_runs(runs, device)), tuple(readings))


def plan_takes(prompt_length: int, take_lengths: Sequence[int], device: torch.device) -> AttentionPlan:
    """For takes alone, whose prompt's keys and values are handed in apart."""
    group = PackedGroup(prompt_length, tuple(take_lengths))
    runs = _take_runs(-prompt_length, group)
    readings = [Reading(Run(0, group.num_take_tokens), Run(0, prompt_length))] if group.num_take_tokens else []
    return AttentionPlan(tuple(batch_runs(runs, device)), tuple(readings))


def _take_runs(start: int, group: PackedGroup) -> list[Run]:
    return [Run(first, length) for first, length in zip(take_starts(start, group), group.take_lengths, strict=True)]


def shared_prompt_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float, prompt: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """query [1, N, T, H], key and value [1, K, T, H] -> [1, N, T, H].

    `prompt`: keys and values [1, K, P, H] that the takes read instead of some in the sequence; gradients reach them too.
    """
    held = (key, value) if prompt is None else prompt
    out: Tensor = _SharedPrompt.apply(query, key, value, *held, prompt is not None, plan, scale)
    return out


class _SharedPrompt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        apart: bool,
        plan: AttentionPlan,
        scale: float,
    ) -> Tensor:
        q, k, v, prompt_k, prompt_v = (_token_major(part) for part in (query, key, value, prompt_key, prompt_value))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty(q.shape[:2], dtype=lse_dtype(q.dtype))
        for batch in plan.own:
            part_out, part_lse = attention_forward(batch.read(q), batch.read(k), batch.read(v), causal=True, scale=scale)
            batch.write_(out, part_out)
            batch.write_(lse, part_lse)
        for reading in plan.readings:
            takes, keys = reading.takes.tokens, reading.prompt.tokens
            rows, held_k, held_v = (_head_major(part) for part in (q[takes], prompt_k[keys], prompt_v[keys]))
            more, more_lse = attention_forward(rows, held_k, held_v, causal=False, scale=scale)
            merge_(out[takes], lse[takes], _token_major(more), more_lse[0].transpose(0, 1))
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, out, lse)
        ctx.apart, ctx.plan, ctx.scale = apart, plan, scale
        return _head_major(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, lse = ctx.saved_tensors
        grad = _token_major(gradients[0])
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        q, k, v, prompt_k, prompt_v = (_token_major(part) for part in inputs)
        dq, dk, dv = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in (q, k, v))
        for batch in ctx.plan.own:
            d_out, rows, own_k, own_v, merged = (batch.read(part) for part in (grad, q, k, v, out))
            found = attention_backward(d_out, rows, own_k, own_v, merged, batch.read_lse(lse), causal=True, scale=ctx.scale)
            for whole, part in zip((dq, dk, dv), found, strict=True):
                batch.write_(whole, part)
        d_prompt_k, d_prompt_v = (torch.zeros_like(prompt_k), torch.zeros_like(prompt_v)) if ctx.apart else (dk, dv)
        for reading in ctx.plan.readings:
            takes, keys = reading.takes.tokens, reading.prompt.tokens
            d_out, rows, merged = (_head_major(part[takes]) for part in (grad, q, out))
            held_k, held_v = _head_major(prompt_k[keys]), _head_major(prompt_v[keys])
            merged_lse = lse[takes].transpose(0, 1)[None]
            found = attention_backward(d_out, rows, held_k, held_v, merged, merged_lse, causal=False, scale=ctx.scale)
            for whole, where, part in zip((dq, d_prompt_k, d_prompt_v), (takes, keys, keys), found, strict=True):
                whole[where] += _token_major(part)
        apart = (_head_major(d_prompt_k), _head_major(d_prompt_v)) if ctx.apart else (None, None)
        return _head_major(dq), _head_major(dk), _head_major(dv), *apart, None, None, None


def _token_major(tensor: Tensor) -> Tensor:
    """[1, heads, T, H] -> [T, heads, H], a view."""
    return tensor[0].transpose(0, 1)


def _head_major(tensor: Tensor) -> Tensor:
    """[T, heads, H] -> [1, heads, T, H], a view."""
    return tensor.transpose(0, 1)[None]
