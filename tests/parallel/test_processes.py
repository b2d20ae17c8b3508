"""The helper that all tests of several processes stand on: results in the order of ranks, and no failure goes unseen."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from longtake.config.env import launch
from longtake.testing.processes import ProcessError, run_processes


@dataclass(frozen=True, eq=False)
class Record:
    tensor: torch.Tensor
    name: str


def sum_over_ranks(record: Record):
    this = launch()
    dist.init_process_group("gloo")
    total = record.tensor * (this.rank + 1)
    dist.all_reduce(total)
    assert torch.get_num_threads() == 1
    return {"rank": this.rank, "total": Record(total, record.name), "empty": (torch.empty(0, 3, dtype=torch.bfloat16),)}


def fail_on(rank: int, how: str):
    dist.init_process_group("gloo")
    if launch().rank == rank:
        if how == "raise":
            raise ValueError("a fault of its own")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    dist.barrier()


def scalar_of_its_own():
    return torch.tensor(2.5, dtype=torch.float64)


def test_results_come_back_in_the_order_of_ranks():
    found = run_processes(sum_over_ranks, 3, Record(torch.tensor([1.0, 2.0]), "ones"))
    assert [one["rank"] for one in found] == [0, 1, 2]
    for one in found:
        assert one["total"].tensor.tolist() == [6.0, 12.0] and one["total"].name == "ones"  # 1 + 2 + 3 times
        assert one["empty"][0].shape == (0, 3) and one["empty"][0].dtype == torch.bfloat16
    assert run_processes(scalar_of_its_own, 1)[0].item() == 2.5


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", r"(?s)^rank 1 of 2: died with exit code 1\n.*in fail_on.*ValueError: a fault of its own"),
        ("die", "^rank 1 of 2: died with exit code -9"),
    ],
)
def test_a_process_that_fails_is_named_first(how, says):
    with pytest.raises(ProcessError, match=says):
        run_processes(fail_on, 2, 1, how)


def test_a_process_that_hangs_is_named_and_shows_where():
    started = time.monotonic()
    with pytest.raises(ProcessError, match=r"(?s)rank 0 of 2: still running after 2 s.*in barrier.*rank 1 of 2: still running.*in fail_on"):
        run_processes(fail_on, 2, 1, "hang", timeout_s=2.0)
    assert time.monotonic() - started < 30
