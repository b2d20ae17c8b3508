"""Phases add up, never overlap, and survive errors; memory peaks are those of this process."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from longtake.observe import timing
from longtake.observe.timing import Phases, memory_metrics, peak_cuda_bytes, peak_memory_bytes


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(time, "perf_counter", fake)
    return fake


def test_seconds_per_phase_add_up_and_are_taken_once(clock: Clock) -> None:
    phases = Phases()
    for name, seconds in (("decode", 0.5), ("encode", 2.0), ("decode", 0.25)):
        with phases(name):
            clock.now += seconds
        clock.now += 10.0  # outside all phases: charged to none
    assert phases.seconds == {"decode": 0.75, "encode": 2.0}
    assert phases.take() == {"decode": 0.75, "encode": 2.0}
    assert phases.take() == {}


def test_nesting_is_an_error_and_leaves_the_outer_phase_intact(clock: Clock) -> None:
    phases = Phases()
    with phases("rollout"):
        clock.now += 1.0
        with pytest.raises(RuntimeError, match="'decode' was opened inside 'rollout'"), phases("decode"):
            pytest.fail("entered")
        with pytest.raises(RuntimeError, match=r"take\(\) inside phase 'rollout'"):
            phases.take()
        clock.now += 1.0
    assert phases.take() == {"rollout": 2.0}


def test_an_error_inside_a_phase_is_charged_and_the_phase_ends(clock: Clock) -> None:
    phases = Phases()
    with pytest.raises(KeyError), phases("decode"):
        clock.now += 3.0
        raise KeyError
    with phases("encode"):
        clock.now += 1.0
    assert phases.take() == {"decode": 3.0, "encode": 1.0}


def test_the_device_is_waited_for_before_the_clock_is_read(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait() -> None:
        clock.now += 5.0

    monkeypatch.setattr(timing, "_wait_for_device", wait)
    phases = Phases()
    with phases("encode"):
        clock.now += 1.0
    assert phases.take() == {"encode": 6.0}


def test_peak_memory_grows_by_what_is_touched() -> None:
    before = peak_memory_bytes()
    block = np.ones(before + 64_000_000, dtype=np.uint8)  # more than ever was resident
    assert peak_memory_bytes() - before >= 64_000_000 * 0.9  # other memory may have been freed meanwhile
    del block
    assert memory_metrics()["memory/peak_host_bytes"] == float(peak_memory_bytes())


def test_peak_memory_of_a_child_is_its_own() -> None:
    """ru_maxrss survives exec and shows the parent's peak; ours must not where /proc tells better."""
    block = np.ones(300_000_000, dtype=np.uint8)
    code = "from longtake.observe.timing import peak_memory_bytes, peak_cuda_bytes; print(peak_memory_bytes(), peak_cuda_bytes())"
    child, cuda = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert 5_000_000 < int(child) < block.nbytes
    assert cuda == "None"


def test_no_cuda_peak_on_a_machine_that_does_not_use_it() -> None:
    import torch

    assert (peak_cuda_bytes() is None) == (not torch.cuda.is_initialized())
