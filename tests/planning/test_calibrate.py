"""Measured rates: real, alike on all ranks, and good enough to predict a real update."""

from __future__ import annotations

import time
from math import isfinite
from pathlib import Path

import pytest
import torch

from longtake.config.sections import ModelConfig
from longtake.errors import CheckpointError
from longtake.models import load_model
from longtake.models.costs import model_costs
from longtake.parallel.calibrate import calibrate, kept_rates
from longtake.parallel.layouts import predict
from longtake.parallel.mesh import start_world
from longtake.parallel.packed import pack_groups, pack_rows
from longtake.parallel.setting import GIB, Cluster, DeviceRates, Setting, training_costs
from longtake.testing.processes import run_processes
from longtake.testing.takes import random_prompt, random_take
from longtake.training.packed_policy import packed_logprobs
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import Layout, MicroBatch, PackedGroup, Piece

CPU = torch.device("cpu")


def test_rates_are_those_of_a_computer():
    rates = calibrate(model_costs("tiny", "float32"), CPU, torch.float32)
    # a core of any age and load: 0.1 GFLOP/s to 10 TFLOP/s, 0.1 GB/s to 10 TB/s, 0.1 to 1,000 microseconds a kernel
    assert 1e8 < rates.matmul_flops < 1e13 and 1e8 < rates.attention_flops < 1e13
    assert 1e8 < rates.memory_bytes < 1e13
    assert 1e-7 < rates.call_s < 1e-3
    assert not isfinite(rates.link_bytes) and rates.collective_s == 0


def rates_of_a_rank() -> list[float]:
    with start_world(CPU, timeout_s=60) as world:
        rates = calibrate(model_costs("tiny", "float32"), CPU, torch.float32, world.axis)
    return [rates.matmul_flops, rates.attention_flops, rates.memory_bytes, rates.call_s, rates.link_bytes, rates.collective_s]


def test_all_ranks_get_the_same_rates_and_links():
    first, second = run_processes(rates_of_a_rank, 2, timeout_s=120)
    assert first == second  # to the bit: each rank plans by itself
    *_, link_bytes, collective_s = first
    assert 1e6 < link_bytes < 1e12 and 1e-6 < collective_s < 1


def test_rates_are_kept_for_a_resumed_run(tmp_path: Path):
    rates = DeviceRates("somewhere", 1e9, 2e9, 3e9, 1e-6)
    path = tmp_path / "run" / "rates.json"
    assert kept_rates(path, lambda: rates) == rates
    assert kept_rates(path, lambda: pytest.fail("measured again")) == rates  # an unlimited link too
    path.write_text('{"name": "other"}')
    with pytest.raises(CheckpointError, match="remove it"):
        kept_rates(path, lambda: rates)


def kept_by_a_rank(folder: str) -> list[float]:
    """Each rank measures something else; only the first rank's folder has a file."""
    with start_world(CPU, timeout_s=60) as world:
        path = Path(folder) / str(world.rank) / "rates.json"
        found = [kept_rates(path, lambda: DeviceRates("own", 1.0 + world.rank, 1.0, 1.0, 1.0), world.axis) for _ in range(2)]
    return [rates.matmul_flops for rates in found] + [float(path.exists())]


def test_all_ranks_take_the_first_ones_rates(tmp_path: Path):
    first, second = run_processes(kept_by_a_rank, 2, str(tmp_path), timeout_s=120)
    # what was measured differs on purpose; what was kept is the first rank's
    assert first == [1.0, 1.0, 1.0] and second == [2.0, 1.0, 0.0]


def setting_here(rates: DeviceRates) -> Setting:
    costs = model_costs("tiny", "float32")
    return Setting(costs, training_costs(costs), Cluster(1, 1, 100 * GIB, 100 * GIB, device="cpu"), rates)


@pytest.mark.long
def test_a_real_update_takes_about_what_is_predicted():
    """In processor seconds of one thread, so that other work on the machine counts little."""
    model = load_model(ModelConfig(path="tiny"))
    choose_trainable(model, ModelConfig())
    rates = calibrate(model_costs("tiny", "float32"), CPU, torch.float32, clock=time.process_time)
    prompt, takes = random_prompt(model, 1200), [random_take(model, 60, seed=seed).token_ids for seed in range(4)]
    shape = PackedGroup(1200, (60,) * 4)
    measured, predicted = {}, {}
    for shared in (True, False):
        packed = pack_groups([prompt], [takes], CPU) if shared else pack_rows([prompt] * 4, takes, CPU)
        pieces = (Piece(0, (0, 1, 2, 3)),) if shared else tuple(Piece(0, (take,)) for take in range(4))
        layout = Layout(1, 1, shared, False, ((MicroBatch(pieces),),))
        measured[shared] = update_seconds(model, packed)
        predicted[shared] = predict(setting_here(rates), [shape], layout).seconds
    # Measured over predicted: 0.7 to 1.3 on a machine with five times more work than cores.
    assert 0.4 < measured[True] / predicted[True] < 2.5
    # What decides between layouts is how they compare. Were one predicted for the other, this would be off by 3 x 3.
    gain = (measured[False] / measured[True]) / (predicted[False] / predicted[True])
    assert 0.6 < gain < 1.6
    assert predicted[False] / predicted[True] > 2.5


def update_seconds(model, packed) -> float:
    """The median of three, after one to warm up."""
    seconds = []
    for _ in range(4):
        start = time.process_time()
        with training_mode(model):
            packed_logprobs(model, packed, 1.0)[0].sum().backward()
        seconds.append(time.process_time() - start)
    return sorted(seconds[1:])[1]
