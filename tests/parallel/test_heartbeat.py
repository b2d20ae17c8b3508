"""The rank that hangs or dies is named, in time; slow ranks and ranks that finish early are left alone."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longtake.config.env import Launch
from longtake.parallel.heartbeat import Heartbeat, Report, Seen, whereabouts, who_is_missing
from longtake.parallel.mesh import start_world
from longtake.testing.processes import ProcessError, run_processes

LIMIT_S = 10.0
WORKS = Report(ticks=5, beats=3, place="update of step 3", line="policy.py:7 in forward")
WAITS = replace(WORKS, waiting=True, line="distributed_c10d.py:9 in all_reduce")


def seen(report: Report, ticks_ago: float = 0.0, beats_ago: float = 0.0, waits_ago: float = 0.0) -> Seen:
    """At time 100 s."""
    return Seen(report, 100 - ticks_ago, 100 - beats_ago, 100 - waits_ago)


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ([seen(WORKS), seen(WORKS, beats_ago=99)], ""),  # long, but nobody waits
        ([seen(WAITS, waits_ago=9), seen(WORKS, beats_ago=9)], ""),  # waits, but not for long
        ([seen(WORKS, ticks_ago=9), seen(WORKS)], ""),
        ([seen(WORKS), seen(WORKS, ticks_ago=11)], "rank 1 gave no sign of life for 11 s; it was last seen at: update of step 3"),
        (
            [seen(WAITS, waits_ago=11), seen(WORKS, beats_ago=11), seen(WAITS, waits_ago=2)],
            "others have waited 11 s for rank 1 (at: update of step 3; policy.py:7 in forward)",
        ),
        (
            [seen(replace(WORKS, beats=4)), seen(WORKS, beats_ago=11)],
            "others went on without rank 1 (at: update of step 3; policy.py:7 in forward)",
        ),
        (
            [seen(WAITS, waits_ago=11), seen(replace(WAITS, line="distributed_c10d.py:5 in recv"))],
            "all ranks have waited 11 s for each other: rank 0 (at: update of step 3; distributed_c10d.py:9 in all_reduce), "
            "rank 1 (at: update of step 3; distributed_c10d.py:5 in recv)",
        ),
    ],
)
def test_who_is_missing_by_hand(ranks, says):
    assert who_is_missing(dict(enumerate(ranks)), LIMIT_S, now=100.0) == says


def test_nobody_is_missing_when_all_are_done():
    assert who_is_missing({}, LIMIT_S, now=100.0) == ""


def test_waiting_begins_anew_with_every_place():
    one = Seen(Report(), 0.0, 0.0, 0.0)
    one.update(WAITS, 10.0)
    one.update(replace(WAITS, ticks=6), 20.0)
    assert (one.ticks_since, one.beats_since, one.waits_since) == (20.0, 10.0, 10.0)
    one.update(replace(WAITS, ticks=7, beats=4), 30.0)  # waits for something else
    assert (one.ticks_since, one.beats_since, one.waits_since) == (30.0, 30.0, 30.0)
    one.update(replace(WORKS, ticks=7, beats=4), 40.0)
    one.update(replace(WAITS, ticks=8, beats=4), 50.0)
    assert (one.ticks_since, one.beats_since, one.waits_since) == (50.0, 30.0, 50.0)


def test_where_a_thread_is():
    waiting, line = whereabouts(threading.get_ident(), own=0)
    assert not waiting and line.endswith("in whereabouts")
    ended = threading.Thread(target=time.sleep, args=(0,))
    ended.start()
    ended.join()
    assert ended.ident is not None
    assert whereabouts(ended.ident, own=0) == (False, "its main thread has ended")


def threads_of_groups() -> list[str]:
    """Names of this process's threads that gloo started."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def join_watch_and_leave():
    """Counts of gloo's threads while the groups are in use and after they were left, with the collection of garbage off."""
    gc.disable()

    def run() -> int:
        with start_world(torch.device("cpu"), timeout_s=60) as world, Heartbeat(world.launch, LIMIT_S, interval_s=0.05) as heartbeat:
            for step in range(8):
                heartbeat.beat(f"step {step}")
                dist.all_reduce(torch.ones(4))
                time.sleep(0.05)
            return len(threads_of_groups())

    return run(), len(threads_of_groups())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the names of threads from /proc")
def test_no_group_outlives_the_run():
    """One that lived until the interpreter ends aborted the process there, once in a few hundred starts."""
    for during, after in run_processes(join_watch_and_leave, 2):
        assert during > 0 and after == 0


def lose_rank_1(how: str):
    with start_world(torch.device("cpu"), timeout_s=100) as world, Heartbeat(world.launch, LIMIT_S, interval_s=0.3) as heartbeat:
        for step in range(3):
            heartbeat.beat(f"update of step {step}")
            if world.rank == 1 and step == 1:
                time.sleep(90 if how == "hang" else 2)
                os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)
            dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("hang", r"rank [012] stops: others have waited \d+ s for rank 1 \(at: update of step 1; test_heartbeat.py:\d+ in lose_rank_1\)"),
        ("die", r"rank [02] stops: rank 1 is gone; it was last seen at: update of step 1"),
        pytest.param(
            "stop", r"rank [02] stops: (rank 1 gave no sign of life for \d+ s|others have waited \d+ s for rank 1)", marks=pytest.mark.long
        ),
    ],
)
def test_the_rank_that_is_lost_is_named(how, says):
    with pytest.raises(ProcessError, match=says):
        run_processes(lose_rank_1, 3, how, timeout_s=80.0)


def uneven_pace():
    """Rank 0 is slow; rank 2 leaves early."""
    with start_world(torch.device("cpu"), timeout_s=60) as world, Heartbeat(world.launch, LIMIT_S, interval_s=0.2) as heartbeat:
        for step in range(3):
            heartbeat.beat(f"step {step}")
            time.sleep(0.5 if world.rank == 0 else 0.0)
            dist.all_reduce(torch.ones(1))
        if world.rank != 2:
            time.sleep(1.0)
    return world.rank


def test_slow_ranks_and_early_leavers_are_left_alone():
    assert run_processes(uneven_pace, 3) == [0, 1, 2]


def test_one_process_needs_no_store():
    with Heartbeat(Launch(), timeout_s=1.0) as heartbeat:
        heartbeat.beat("step 0")
