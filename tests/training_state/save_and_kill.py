"""Run by test_checkpoint.py: fork a child that saves without end, kill it with SIGKILL, and check what it left. Usage: DIR KILLS

Weights, moments and position all hold the number of the step, so that a mixture of two checkpoints cannot pass for one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from longtake.config.sections import OptimizerConfig
from longtake.training.checkpoint import CheckpointStore
from longtake.training.optimizer import Optimizer

CONFIG = OptimizerConfig(lr=0.0 + 1e-9)


def parts() -> tuple[SimpleNamespace, Optimizer]:
    hf = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    optimizer = Optimizer(dict(hf.named_parameters()), set(), CONFIG, total_steps=10)
    for parameter in hf.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return SimpleNamespace(hf=hf), optimizer


def fill(model: SimpleNamespace, optimizer: Optimizer, step: int) -> None:
    for parameter in model.hf.parameters():
        parameter.data.fill_(step)
        optimizer.adamw.state[parameter]["exp_avg"].fill_(step)


def check(store: CheckpointStore, at_least: int) -> int:
    """The step of the newest whole checkpoint, after loading it; raises when anything in it is of another step."""
    found = store.latest()
    assert found is not None and found.step >= at_least, f"went back from {at_least} to {found and found.step}"
    model, optimizer = parts()
    store.load(found, model, optimizer)
    values = {float(value) for p in model.hf.parameters() for value in (p.min(), p.max(), optimizer.adamw.state[p]["exp_avg"].max())}
    assert values == {float(found.step)} and found.position == 16 * found.step, (values, found.step)
    return found.step


def save_for_ever(store: CheckpointStore, step: int) -> None:
    model, optimizer = parts()
    while True:
        step += 1
        fill(model, optimizer, step)
        store.save(step, model, optimizer, CONFIG, position=16 * step, best=step % 3 == 0)


def main(run_dir: Path, kills: int) -> None:
    torch.set_num_threads(1)
    store = CheckpointStore(run_dir, keep_last=1)
    model, optimizer = parts()
    fill(model, optimizer, 1)
    store.save(1, model, optimizer, CONFIG, position=16)
    step, inside = 1, 0
    for trial in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(store, step)
        wait_for(store, step + 1)
        time.sleep(0.0037 * trial)  # past the first save, spread over the next ones
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        inside += any(path.name.startswith(".") for path in store.folder.iterdir())
        step = check(store, step)
    print(json.dumps({"kills": kills, "inside_a_save": inside, "last_step": step}))


def wait_for(store: CheckpointStore, step: int, timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not (store.folder / f"step-{step:08d}").exists() and time.monotonic() < until:
        time.sleep(0.0005)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
