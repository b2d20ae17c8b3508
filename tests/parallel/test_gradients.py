"""Gradients summed over ranks, by hand."""

from __future__ import annotations

import torch

from longtake.parallel import gradients
from longtake.parallel.gradients import sum_gradients
from longtake.parallel.mesh import Axis, start_world
from longtake.testing.processes import run_processes


def sums_of_two(bucket_bytes: int):
    gradients.BUCKET_BYTES = bucket_bytes
    with start_world(torch.device("cpu"), timeout_s=20) as world:
        names = ("both", "one", "none", "half", "double", "frozen")
        made = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in names}
        made["half"] = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        made["double"] = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        made["frozen"].requires_grad_(False)
        made["both"].grad = torch.full((2, 2), 1.0 + world.rank)
        made["half"].grad = torch.tensor([256.0, 1.0, 0.0], dtype=torch.bfloat16) if world.rank == 0 else torch.ones(3).bfloat16()
        made["double"].grad = torch.tensor([2**-40 + world.rank], dtype=torch.float64)
        if world.rank == 1:
            made["one"].grad = torch.arange(4.0).view(2, 2).t()  # not contiguous
        sum_gradients(made.values(), world.axis)
        return {name: parameter.grad for name, parameter in made.items()}


def test_sums_by_hand():
    for bucket_bytes in (1, 1 << 20):
        for found in run_processes(sums_of_two, 2, bucket_bytes):
            assert found["both"].tolist() == [[3.0, 3.0], [3.0, 3.0]]
            assert found["one"].tolist() == [[0.0, 2.0], [1.0, 3.0]]
            assert found["none"] is None and found["frozen"] is None
            assert found["half"].tolist() == [256.0, 2.0, 1.0]  # 257 is no bfloat16
            assert found["double"].tolist() == [1 + 2**-39]  # lost in float32


def test_a_rank_alone_keeps_its_gradients():
    parameter = torch.nn.Parameter(torch.zeros(1))
    sum_gradients([parameter], Axis((0,), 0, None))
    assert parameter.grad is None
