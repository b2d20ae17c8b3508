"""Ring attention against attention by its definition: outputs and gradients of every token, in 1, 2 and 4 processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longtake.parallel import ring
from longtake.parallel.mesh import start_world
from longtake.parallel.ring import RingAttention
from longtake.parallel.sharding import shard
from longtake.testing.packed_attention import slow_attention, visible
from longtake.testing.processes import run_processes
from longtake.types import PackedGroup

HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 8, 0.3


ONE = (PackedGroup(9, (3, 5, 1)),)
SEVERAL = (PackedGroup(13, (4, 0, 2)), PackedGroup(1, (3,)), PackedGroup(6, ()), PackedGroup(17, (0,)))
IDLE = (PackedGroup(2, ()),)
"""Shorter than twice the ring: some ranks hold nothing at all."""


def tensors(groups, dtype=torch.float64) -> tuple[list[Tensor], Tensor]:
    """query, key, value of the packed sequence, and weights of the outputs in the loss."""
    generator = torch.Generator().manual_seed(0)
    length = sum(group.prompt_length + sum(group.take_lengths) for group in groups)
    made = [torch.randn(length, heads, SIZE, generator=generator, dtype=torch.float64).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return made, torch.randn(length, HEADS, SIZE, generator=generator, dtype=torch.float64).to(dtype)


def attend(groups, dtype: str, fault: str) -> list[Tensor]:
    """Output and gradients of this rank's tokens."""
    with start_world(torch.device("cpu"), timeout_s=30) as world:
        shards = shard(groups, world.size, 1)
        own = shards.ring_tokens(world.rank)
        whole, weights = tensors(groups, getattr(torch, dtype))
        parts = [tensor[own].clone().requires_grad_() for tensor in whole]
        if fault == "nothing arrives":
            ring._pass_on = lambda buffer, *_: ring._Passing(buffer, buffer, None)
        if fault == "gradients stay away":
            ring._pass_gradients_on = lambda buffer, *rest: ring._pass_on(torch.zeros_like(buffer), *rest)
        if fault == "mask":
            # Every piece sees the whole buffer of its source, other groups and later chunks included.
            there_plan = ring.ring_plan
            ring.ring_plan = lambda *given: everything_seen(there_plan(*given))
        if fault == "merge":
            ring.merge_ = lambda out, lse, more_out, more_lse: out.add_(more_out).mul_(0.5)
        if fault == "position":
            parts[1] = parts[1].roll(1, 0).detach().requires_grad_()
        strategy = RingAttention(shards, world.axis, world.device)
        out = strategy.attend(*(part.transpose(0, 1)[None] for part in parts), layer=0, scale=SCALE)[0].transpose(0, 1)
        (out * weights[own]).sum().backward()
        return [own, out.detach(), *(part.grad for part in parts)]


def everything_seen(plan):
    pieces = [[replace(piece, keys=slice(0, plan.num_passing[source])) for piece in found] for source, found in enumerate(plan.pieces)]
    return replace(plan, pieces=tuple(map(tuple, pieces)))


def worst_error(num_processes: int, groups, dtype: str = "float64", fault: str = "") -> float:
    """Largest over output and gradients of max|difference| / max|reference|."""
    found = run_processes(attend, num_processes, groups, dtype, fault)
    held = torch.cat([one[0] for one in found])
    assert held.sort().values.tolist() == list(range(len(held)))
    whole, weights = tensors(groups)
    leaves = [tensor.requires_grad_() for tensor in whole]
    out = slow_attention(*leaves, visible(groups), SCALE)
    (out * weights).sum().backward()
    errors = []
    for index, reference in enumerate((out.detach(), *(leaf.grad for leaf in leaves)), start=1):
        packed = torch.empty_like(reference)
        packed[held] = torch.cat([one[index] for one in found]).double()
        errors.append(float((packed - reference).abs().max() / reference.abs().max()))
    return max(errors)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize("groups", [ONE, SEVERAL, IDLE], ids=["one", "several", "idle"])
def test_ring_attention_is_attention(num_processes, groups):
    assert worst_error(num_processes, groups) < 1e-13  # measured 7e-16


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_in_lower_precision(dtype, bound):
    assert worst_error(2, SEVERAL, dtype) < bound  # measured 2e-7 and 6e-3


@pytest.mark.parametrize("fault", ["nothing arrives", "gradients stay away", "mask", "position", "merge"])
def test_a_broken_ring_shows(fault):
    """Negative control: each fault moves something by more than a tenth of the largest value."""
    assert worst_error(2, SEVERAL, fault=fault) > 0.1


def order_of_calls() -> list[str]:
    events = []
    with start_world(torch.device("cpu"), timeout_s=30) as world:
        shards = shard(ONE, world.size, 1)
        whole, _ = tensors(ONE)
        parts = [tensor[shards.ring_tokens(world.rank)].requires_grad_().transpose(0, 1)[None] for tensor in whole]
        honest = {name: getattr(ring, name) for name in ("_pass_on", "attention_forward", "attention_backward")}
        for name, function in honest.items():
            setattr(ring, name, lambda *given, name=name, function=function, **named: events.append(name) or function(*given, **named))
        wait = ring._Passing.wait
        ring._Passing.wait = lambda self: events.append("wait") or wait(self)
        out = RingAttention(shards, world.axis, world.device).attend(*parts, layer=0, scale=SCALE)
        events.append("backward")
        out.sum().backward()
    return events


def test_the_next_chunk_is_under_way_while_the_present_one_is_attended_to():
    for events in run_processes(order_of_calls, 2):
        shortened = [event for event, before in zip(events, ["", *events], strict=False) if event != before]
        forward, backward = "attention_forward", "attention_backward"
        assert shortened == [
            *(forward, "_pass_on", forward, "wait", forward),
            # Gradients of a buffer leave when its pieces are done, and are waited for after those of the next.
            *("backward", backward, "_pass_on", backward, "_pass_on", "wait", backward, "wait", "_pass_on", "wait"),
        ]
