"""Saving weights that are cut over ranks: together, and never by one that waits for ranks that do not come."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.config.env import launch
from longtake.config.stages import SftConfig
from longtake.errors import LongtakeError, StopRequested
from longtake.stages import sft, team, training_run
from longtake.testing.processes import run_processes
from longtake.training.checkpoint import CheckpointStore

MakeSft = Callable[..., SftConfig]
SAID: list[str] = []


class OddError(Exception):
    """What nobody thought of."""


def outcome(values: dict[str, Any], fault: str, rank: int) -> tuple[str, str]:
    """What left the run on this rank, and what was said, when `fault` befalls one rank in step 2."""
    started = time.monotonic()
    honest, save = training_run.evaluate_examples, CheckpointStore._write
    own = launch().rank
    calls = [0]

    def evaluate(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3 and own == rank and fault in FAULTS:  # the starting weights', step 1's, step 2's
            raise FAULTS[fault]
        if calls[0] == 3 and own == rank and fault == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(*given, **more)

    def write(store: CheckpointStore, part: Path, step: int, *given: Any) -> None:
        if fault == "disk" and step == 2:
            raise OSError("no space left on device")
        save(store, part, step, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "evaluate_examples", evaluate)
        patch.setattr(CheckpointStore, "_write", write)
        for module in (training_run, team):
            patch.setattr(module, "say", lambda text, style=None: SAID.append(text))
        try:
            sft.run(SftConfig.model_validate(values))
            left = "nothing"
        except (LongtakeError, StopRequested, OddError, KeyboardInterrupt, RuntimeError) as error:
            left = f"{type(error).__name__}: {error}"
    assert time.monotonic() - started < 60
    return left, "\n".join(SAID)


FAULTS: dict[str, BaseException] = {"odd": OddError("odd"), "Ctrl-C": KeyboardInterrupt()}


def befall(sft: MakeSft, rows: Path, fault: str, rank: int) -> tuple[list[tuple[str, str]], int | None]:
    """Outcomes of both ranks, and the step of the newest checkpoint; a regular one is due at step 1 only."""
    validation = {"data": {"rows": rows}, "num_rows": 4, "every": 1, "max_new_tokens": 2}
    config = sft("run", max_steps=4, validation=validation, checkpoint={"every": 100 if fault != "disk" else 1})
    values = config.model_dump(mode="json")
    values["parallel"] |= {"sharded": True, "timeout_s": 40, "heartbeat_s": 30}
    found = run_processes(outcome, 2, values, fault, rank, timeout_s=120)
    newest = CheckpointStore(config.out).latest()
    return found, None if newest is None else newest.step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_on_one_rank_is_told_and_the_step_saved(sft: MakeSft, rows: Path, rank: int) -> None:
    found, newest = befall(sft, rows, "odd", rank)
    assert found[rank][0] == "OddError: odd" and found[1 - rank][0].startswith("OtherRankFailedError")
    assert newest == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_leaves_at_once_takes_the_step_with_it(sft: MakeSft, rows: Path, rank: int) -> None:
    """Neither waits for the other; the last regular checkpoint stays, and both know that step 2 is not saved."""
    found, newest = befall(sft, rows, "Ctrl-C", rank)
    assert found[rank][0].startswith("KeyboardInterrupt") and "RuntimeError" in found[1 - rank][0]
    assert all("step 2 is NOT saved" in said and "the newest checkpoint is of step 0" in said for _, said in found)
    assert newest == 0


def test_a_signal_to_one_rank_saves_on_all(sft: MakeSft, rows: Path) -> None:
    found, newest = befall(sft, rows, "SIGTERM", 1)
    assert all(left.startswith("StopRequested: ") and "saved step 2" in left for left, _ in found) and newest == 2


def test_a_full_disk_ends_all_ranks(sft: MakeSft, rows: Path) -> None:
    found, newest = befall(sft, rows, "disk", 0)
    assert "no space left" in found[0][0] and found[1][0] != "nothing" and newest == 1
