"""Optimizer steps, clipping and checkpoints of sharded weights against whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from longtake.config.sections import DataConfig, OptimizerConfig
from longtake.config.stages import RlConfig
from longtake.parallel.fsdp import shard_model
from longtake.parallel.mesh import World, start_world
from longtake.parallel.sharded_tensors import clip_grad_norm, cut, full_state, rows_here, whole
from longtake.testing import sequence as updates
from longtake.testing.packed import random_groups
from longtake.testing.processes import run_processes
from longtake.testing.sequence import Case, give, model_of, single_update, spread_update
from longtake.testing.training import largest_difference
from longtake.training.checkpoint import CheckpointStore
from longtake.training.optimizer import Optimizer, build_optimizer
from longtake.training.tensor_files import read_tensors

CPU = torch.device("cpu")
CONFIG = RlConfig(out=Path("run"), data=DataConfig(rows=Path("rows.jsonl")))
CLIPPED = OptimizerConfig(lr=1e-3, schedule="constant", max_grad_norm=0.01)
NUM_STEPS = 3


def by_hand():
    """A weight of 5 x 2 on three ranks: 2, 2 and 1 rows; another of one row: two ranks have none."""
    with start_world(CPU, timeout_s=20) as world:
        module = nn.Linear(2, 5)
        with torch.no_grad():
            module.weight.copy_(torch.arange(10.0).view(5, 2))
            module.bias.copy_(torch.arange(5.0))
        fully_shard(module, mesh=world.device_mesh)
        short = nn.Linear(1, 1, bias=False)
        fully_shard(short, mesh=world.device_mesh)
        weight, one = module.weight, short.weight
        here = [[rows_here(tensor).start, rows_here(tensor).stop] for tensor in (weight, one)]
        again = cut(whole(weight.detach()), weight)
        weight.grad = cut(torch.full((5, 2), 3.0), weight)
        module.bias.grad = cut(torch.tensor([1.0, 2.0, 1.0, 0.0, 2.0]), module.bias)
        norm = clip_grad_norm(module.parameters(), 5.0)
        same = torch.equal(again.to_local(), weight.to_local()) and again.shape == weight.shape
        return here, same, norm, whole(weight.grad)[0, 0].item(), {name: full.shape for name, full in full_state({"w": weight}).items()}


def test_rows_and_norms_by_hand():
    found = run_processes(by_hand, 3)
    assert [one[0] for one in found] == [[[0, 2], [0, 1]], [[2, 4], [1, 1]], [[4, 5], [1, 1]]]
    for _, same, norm, clipped, _ in found:  # 10 * 9 + 1 + 4 + 1 + 0 + 4 = 100
        assert same and norm == pytest.approx(10.0) and clipped == pytest.approx(1.5)
    assert [one[4] for one in found] == [{"w": (5, 2)}, {}, {}]


def step(model, optimizer: Optimizer, case: Case, number: int, world: World | None) -> float:
    groups = random_groups(model, case.shapes, seed=number)
    if world is None:
        give(model, single_update(model, groups, case).gradients)
    else:
        updates_of_ranks(model, groups, case, world)
    return optimizer.step()


def updates_of_ranks(model, groups, case: Case, world: World) -> None:
    """As `spread_update`, leaving the gradients where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "gradients", lambda model: {})
        spread_update(model, groups, case, world)


def own_rows(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained(model_folder, case: Case, local_norm: bool):
    """Norms of three clipped steps and the largest difference of a weight, on rank 0 against a single process."""
    with start_world(CPU, timeout_s=60) as world, pytest.MonkeyPatch.context() as patch:
        if local_norm:
            honest = nn.utils.get_total_norm
            patch.setattr(nn.utils, "get_total_norm", lambda grads, **given: honest([own_rows(grad) for grad in grads], **given))
        model, norm = model_of(model_folder, case)
        alone, _ = model_of(model_folder, case)
        before = updates.weights_of(alone)
        shard_model(model, world)
        with norm:
            optimizer, plain = build_optimizer(model, CLIPPED, NUM_STEPS), build_optimizer(alone, CLIPPED, NUM_STEPS)
            assert {one["weight_decay"]: len(one["params"]) for one in optimizer.adamw.param_groups} == {
                one["weight_decay"]: len(one["params"]) for one in plain.adamw.param_groups
            }
            norms = [step(model, optimizer, case, number, world) for number in range(NUM_STEPS)]
            wanted = [step(alone, plain, case, number, None) for number in range(NUM_STEPS)]
        cut_states = all(isinstance(state["exp_avg"], DTensor) for state in optimizer.adamw.state.values())
        now = {name: whole(parameter.detach()) for name, parameter in model.hf.named_parameters() if parameter.requires_grad}
        after = updates.weights_of(alone)
        return norms, wanted, largest_difference(now, after), largest_difference(before, after), cut_states


STEPS = {
    "data": (Case(packed=False), 1e-10, 1e-10),
    "Ulysses": (Case(ulysses=2, dtype="float32", checkpointing=True), 1e-5, 1e-4),
    "adapters": (Case(lora=True), 1e-10, 1e-10),
}


@pytest.mark.parametrize("name", STEPS)
def test_three_clipped_steps(model_folder, name):
    """In float32 AdamW makes steps of the rounding of gradients near 0."""
    case, norm_bound, weight_bound = STEPS[name]
    for norms, wanted, drift, moved, cut_states in run_processes(trained, 2, model_folder, case, False, timeout_s=120):
        assert norms == pytest.approx(wanted, rel=norm_bound) and min(wanted) > 1.5 * CLIPPED.max_grad_norm
        assert drift < weight_bound and moved > 2e-3 and cut_states


def test_a_norm_of_the_own_rows_is_noticed(model_folder):
    """Negative control."""
    for norms, wanted, *_ in run_processes(trained, 2, model_folder, Case(packed=False), True, timeout_s=120):
        assert norms[0] != pytest.approx(wanted[0], rel=1e-2)


def run_of(model_folder, run: Path, lora: bool, saves: bool, local: bool = False):
    """Two steps, saved by rank 0; or the checkpoint loaded and a third step. What every rank has then: weights and moments."""
    case = Case(packed=False, lora=lora)
    with start_world(CPU, timeout_s=60) as world:
        model, norm = model_of(model_folder, case)
        shard_model(model, world)
        optimizer = build_optimizer(model, CLIPPED, NUM_STEPS)
        store = CheckpointStore(run)
        with norm:
            if saves:
                for number in range(2):
                    step(model, optimizer, case, number, world)
                if world.rank == 0:
                    store.save(2, model, optimizer, CONFIG)
                else:
                    store.take_part(model, optimizer)
            else:
                checkpoint = store.latest()
                assert checkpoint is not None
                with torch.no_grad():
                    for parameter in optimizer.named.values():
                        parameter.zero_()
                store.load(checkpoint, model, optimizer)
            step(model, optimizer, case, 2, world)
        state = {name: parameter.detach() for name, parameter in optimizer.named.items()} | optimizer.state_dict()
        return {name: whole(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_checkpoint_of_some_processes_loads_on_others(model_folder, tmp_path, before, after, lora):
    """And goes on as the run that wrote it, measured 3e-16 (weights of about 0.5)."""
    wanted = run_processes(run_of, before, model_folder, tmp_path, lora, True, timeout_s=120)[0]
    for found in run_processes(run_of, after, model_folder, tmp_path, lora, False, timeout_s=120):
        assert found.keys() == wanted.keys() and len(found) > 60
        assert largest_difference(found, wanted) < 1e-10


def test_a_checkpoint_of_sharded_weights_is_that_of_whole_ones(model_folder, tmp_path):
    """Names, shapes, types and, as both made the same steps, values."""
    for number in (1, 2):
        run_processes(run_of, number, model_folder, tmp_path / str(number), False, True, timeout_s=120)
    alone, sharded = (
        {part: read_tensors(CheckpointStore(tmp_path / str(number)).latest().path / part) for part in ("weights", "optimizer")}
        for number in (1, 2)
    )
    for part in ("weights", "optimizer"):
        assert {name: (one.shape, one.dtype) for name, one in alone[part].items()} == {
            name: (one.shape, one.dtype) for name, one in sharded[part].items()
        }
        assert largest_difference(alone[part], sharded[part]) < 1e-10
