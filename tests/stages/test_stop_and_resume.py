"""A run that is killed, told to stop or interrupted ends, once resumed, as the run that never was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.cli import main
from longtake.config.stages import RlConfig, SftConfig
from longtake.stages import rl as rl_stage
from longtake.stages import sft as sft_stage
from longtake.testing.training import assert_same_run, metrics_of, write_config
from longtake.training.checkpoint import CheckpointStore

Make = Callable[..., RlConfig]


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "longtake", "rl", str(config)], stderr=subprocess.PIPE, text=True)


def last_step(run: Path) -> int:
    """Step of the newest take on the disk; 0 while there is none."""
    path = run / "takes.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return int(lines[-1].split(b",", 1)[0].split(b": ")[1]) if lines and lines[-1].startswith(b'{"step": ') else 0


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool], timeout_s: float = 120.0) -> None:
    until = time.monotonic() + timeout_s
    while not reached() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)


LEFT_ALONE = 6
"""Steps."""


def kill_at_random(config: RlConfig, path: Path, num_kills: int, draw: random.Random) -> list[int]:
    """Start the run again and again and kill it: every fifth time anywhere from its start on, else at a step and some milliseconds.

    The steps are spread over the run, whose last ones are left alone: on a fast machine it ends before a kill that is meant for them.
    Returns the step that had been reached at each kill.
    """
    last = config.steps - LEFT_ALONE
    reached = []
    for kill in range(num_kills):
        process = start(path)
        if kill % 5 == 4:
            wait_for(process, lambda: last_step(config.out) >= last, draw.uniform(0.0, 6.0))
        else:
            target = round((kill + draw.random()) * last / num_kills)
            stamp = time.time_ns()
            begun = lambda: (config.out / "config.json").exists() and (config.out / "config.json").stat().st_mtime_ns > stamp  # noqa: B023, E731
            wait_for(process, begun)
            wait_for(process, lambda: last_step(config.out) >= target)  # noqa: B023
            time.sleep(draw.uniform(0.0, 0.12))
        assert process.poll() is None, f"kill {kill} came too late: {process.communicate()[1]}"
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached.append(last_step(config.out))
    return reached


def settings(rows: Path, steps: int) -> dict:
    """Everything that has a state: adapters' moments, validation and its best, two updates per step, rows that come again."""
    validation = {"data": {"rows": rows}, "num_rows": 2, "every": 4, "max_new_tokens": 3}
    algorithm = {"dynamic_sampling": {"max_rounds": 2}, "kl": {"coefficient": 0.01}}
    optimizer = {"warmup_steps": 3, "schedule": "cosine"}
    return {"steps": steps, "checkpoint": {"every": 2}, "validation": validation, "algorithm": algorithm, "optimizer": optimizer}


def killed_is_uninterrupted(rl: Make, rows: Path, tmp_path: Path, steps: int, num_kills: int) -> list[int]:
    whole, killed = rl("whole", **settings(rows, steps)), rl("killed", **settings(rows, steps))
    rl_stage.run(whole)
    path = write_config(killed, tmp_path / "killed.json")
    reached = kill_at_random(killed, path, num_kills, random.Random(1))
    process = start(path)
    error = process.communicate(timeout=280)[1]
    assert process.returncode == 0, error
    assert_same_run(whole.out, killed.out)
    assert len(metrics_of(killed.out)) == steps + 1
    return reached


@pytest.mark.timeout(200)
def test_two_kills(rl: Make, rows: Path, tmp_path: Path) -> None:
    killed_is_uninterrupted(rl, rows, tmp_path, steps=10, num_kills=2)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_twenty_kills(rl: Make, rows: Path, tmp_path: Path) -> None:
    """At seeded moments over the life of the run; they fall on at least six different steps."""
    reached = killed_is_uninterrupted(rl, rows, tmp_path, steps=40, num_kills=20)
    print("killed at steps", reached)
    assert len(set(reached)) >= 6 and reached[-1] > 10


SIGNALLING = """
import os, signal
from pathlib import Path

CALLS = Path(__file__).with_suffix(".calls")

def parity(example, text):
    calls = int(CALLS.read_text()) + 1 if CALLS.exists() else 1
    CALLS.write_text(str(calls))
    if calls == {call}:
        os.kill(os.getpid(), signal.{name})
    return float(len(text) % 2)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signal_saves_and_leaves(rl: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, code: int) -> None:
    """The signal comes in the middle of step 2 (call 12 x 1 + 5); no checkpoint was due; the command says what it saved."""
    file = tmp_path / "signalling.py"
    file.write_text(SIGNALLING.format(call=17, name=name))
    rewards = {"weights": {"parity": 1.0}, "functions": {"parity": f"{file}:parity"}}
    config = rl("stopped", steps=4, checkpoint={"every": 100}, rewards=rewards)
    path = write_config(config, tmp_path / "config.json")
    assert main(["rl", str(path)]) == code
    assert "stopped: rl saved step 2 in" in capfd.readouterr().err
    found = CheckpointStore(config.out).latest()
    assert found is not None and found.step == 2
    assert main(["rl", str(path)]) == 0
    rl_stage.run(rl("whole", steps=4, checkpoint={"every": 100}, rewards=rewards))
    assert_same_run(rl("whole").out, config.out)


def test_signal_between_a_step_and_its_check_loses_nothing(
    sft: Callable[..., SftConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives after the step has decided not to save: "saved step 2" must still be true."""
    config = sft("stopped", max_steps=5, checkpoint={"every": 100})
    path = write_config(config, tmp_path / "config.json")
    honest = sft_stage.TrainingRun.end_step

    def end_step(self, *args: object, **shown: float) -> None:
        honest(self, *args, **shown)
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(sft_stage.TrainingRun, "end_step", end_step)
        assert main(["sft", str(path)]) == 143
    found = CheckpointStore(config.out).latest()
    assert found is not None and found.step == 2
    assert main(["sft", str(path)]) == 0
    sft_stage.run(sft("whole", max_steps=5, checkpoint={"every": 100}))
    assert_same_run(sft("whole").out, config.out)
