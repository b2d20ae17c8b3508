"""Sharded weights against whole ones: log-probs, loss and every gradient, through the functions that score and split whole models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from longtake.config.env import launch
from longtake.config.sections import LoraConfig, ModelConfig
from longtake.parallel.fsdp import cast_parameters, gathered, shard_model, units
from longtake.parallel.mesh import Axis, World, start_world
from longtake.parallel.sharded_tensors import whole
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.testing import sequence as updates
from longtake.testing.encoding import UNEVEN, encoder, noise_videos, weights
from longtake.testing.models import random_tiny
from longtake.testing.packed import gradients, random_groups, worst_relative
from longtake.testing.processes import ProcessError, run_processes
from longtake.testing.sequence import GROUPED, SHAPES, Case, errors_of, model_of
from longtake.training.packed_policy import packed_logprobs, score_groups
from longtake.training.trainable import adapters_off, choose_trainable

CPU = torch.device("cpu")
# Measured: fp64 6e-15, fp32 2.7e-6 (gradients); log-probs a tenth of that.
BOUNDS = {"float64": 1e-10, "float32": 1e-5}
CASES = {
    "2 data ranks": (2, 1, 1, [Case(packed=False), Case(packed=False, dtype="float32", checkpointing=True), Case(lora=True, packed=False)]),
    "Ulysses 2": (
        *(2, 1, 2),
        [
            Case(shapes=SHAPES["two_videos"], checkpointing=True, train_vision=True),
            Case(room=6, checkpointing=True),
            Case("naive", lora=True, checkpointing=True),
        ],
    ),
    "ring 2": (2, 2, 1, [Case(shapes=SHAPES["text"], room=1, dtype="float32"), Case(shapes=SHAPES["tiny"])]),
}
LONG = {
    "Ulysses 4": (4, 1, 4, [Case(checkpointing=True), Case(shapes=SHAPES["empty_takes"]), Case(lora=True, dtype="float32")]),
    "ring 2 x Ulysses 2": (4, 2, 2, [Case(room=6, checkpointing=True, train_vision=True), Case(dtype="float32"), Case(lora=True, room=6)]),
    "2 data x ring 2": (4, 2, 1, [Case(packed=False, checkpointing=True), Case(packed=False, dtype="float32")]),
    "4 data ranks": (4, 1, 1, [Case(packed=False), Case("naive", packed=False)]),
}
"""(processes, ring, Ulysses, cases)."""


def errors(model_folder, num_processes: int, ring: int, ulysses: int, cases, timeout_s: float = 200.0) -> list[dict[str, float]]:
    placed = [(replace(case, ring=ring, ulysses=ulysses, sharded=True), fault) for case, fault in cases]
    return run_processes(errors_of, num_processes, model_folder, placed, timeout_s=timeout_s)[0]


def assert_same(model_folder, num_processes: int, ring: int, ulysses: int, cases: list[Case]) -> None:
    found = errors(model_folder, num_processes, ring, ulysses, [(case, None) for case in cases])
    for case, one in zip(cases, found, strict=True):
        assert max(one.values()) < BOUNDS[case.dtype], (case, one)


@pytest.mark.parametrize("mesh", CASES)
def test_sharded_updates_equal_whole_ones(model_folder, mesh):
    assert_same(model_folder, *CASES[mesh])


@pytest.mark.long
@pytest.mark.parametrize("mesh", LONG)
def test_four_processes(model_folder, mesh):
    assert_same(model_folder, *LONG[mesh])


def means(patch):
    """What FSDP does if it is not told otherwise."""
    patch.setattr(FSDPModule, "set_gradient_divide_factor", lambda unit, factor: None)
    patch.setattr(FSDPModule, "set_force_sum_reduction_for_comms", lambda unit, on: None)


def every_rank_counted(patch):
    """The sum of gradients of sharded weights, taken twice."""
    patch.setattr(updates, "sum_gradients", doubled)


def doubled(parameters, axis):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad * 2


def prompt_learns_nothing(patch):
    patch.setattr("longtake.parallel.split.HeldPrompt.collect", lambda held: None)


FAULTS = [(Case(packed=False), means), (Case(), every_rank_counted), (Case(room=6), prompt_learns_nothing)]


def test_a_fault_shows(model_folder):
    """Negative control: each moves a gradient by more than a hundredth of the largest."""
    for broken, found in zip(FAULTS, errors(model_folder, 2, 1, 2, FAULTS), strict=True):
        assert max(found.values()) > 1e-2, (broken, found)


def not_hooked(model_folder):
    """A split group of which FSDP does not know where backward starts."""
    with start_world(CPU, timeout_s=10) as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr("longtake.parallel.split.HeldPrompt.graph_tensors", lambda held: [])
        return errors_in(world, model_folder, Case(room=6, ring=1, ulysses=2))


def errors_in(world: World, model_folder, case: Case) -> dict[str, float]:
    model, norm = model_of(model_folder, case)
    groups = random_groups(model, case.shapes, case.seed)
    with norm:
        wanted = updates.single_update(model, groups, case)
        shard_model(model, world)
        return updates.distances(updates.spread_update(model, groups, case, world), wanted)


def test_backward_needs_to_know_where_it_starts(model_folder):
    """Negative control of `graph_tensors`: freed weights are read, which shows as an error or as wrong gradients."""
    try:
        found = run_processes(not_hooked, 2, model_folder, timeout_s=40)
    except ProcessError:
        return
    assert max(max(one.values()) for one in found) > 1e-2


def one_rank(model_folder):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    world = World(launch(), CPU, Axis((0,), 0, None), init_device_mesh("cpu", (1,)))
    return [errors_in(world, model_folder, case) for case in (Case(checkpointing=True), Case(room=6), Case(lora=True, dtype="float32"))]


def test_one_process(model_folder):
    (found,) = run_processes(one_rank, 1, model_folder)
    assert max(found[0].values()) < 1e-10 and max(found[1].values()) < 1e-10 and max(found[2].values()) < 1e-5


def parts(model_folder, train_vision: bool):
    """On each rank: share of the elements, whether the head is tied, names as before, and what a tower that stays whole is."""
    with start_world(CPU, timeout_s=20) as world:
        model = random_tiny(model_folder, sizes=GROUPED, train_vision=train_vision)
        choose_trainable(model, ModelConfig(train_vision=train_vision))
        names = [name for name, _ in model.hf.named_parameters()]
        shard_model(model, world)
        cut = {name: parameter for name, parameter in model.hf.named_parameters() if isinstance(parameter, DTensor)}
        held = sum(parameter.to_local().numel() for parameter in cut.values()) / sum(parameter.numel() for parameter in cut.values())
        tied = model.hf.lm_head.weight is model.hf.model.language_model.embed_tokens.weight
        tower_cut = any(".visual." in name for name in cut)
        return held, tied, names == [name for name, _ in model.hf.named_parameters()], tower_cut, len(cut)


@pytest.mark.parametrize("train_vision", [False, True])
def test_each_rank_holds_its_part_and_the_head_stays_tied(model_folder, train_vision):
    found = run_processes(parts, 2, model_folder, train_vision)
    assert [one[1:4] for one in found] == [(True, True, train_vision)] * 2
    assert all(0.48 < held < 0.52 for held, *_ in found) and sum(held for held, *_ in found) == pytest.approx(1.0)
    assert all(one[4] > 30 for one in found)


def decoder_alone(model_folder):
    """What sharding the decoder without the head does."""
    with start_world(CPU, timeout_s=20) as world:
        model = random_tiny(model_folder, sizes=GROUPED)
        fully_shard(model.hf.model.language_model, mesh=world.device_mesh)
        return model.hf.lm_head.weight is model.hf.model.language_model.embed_tokens.weight


def test_the_decoder_alone_would_untie_the_head(model_folder):
    assert run_processes(decoder_alone, 2, model_folder) == [False, False]


def untied(model_folder):
    """A head of its own; rank 1 scores nothing in a sequence of few tokens, and is idle in another."""
    with start_world(CPU, timeout_s=30) as world:
        found = []
        for ring, shapes in ((2, SHAPES["tiny"]), (1, SHAPES["text"])):
            case = Case(shapes=shapes, ring=ring)
            model, norm = model_of(model_folder, case)
            model.hf.lm_head.weight = torch.nn.Parameter(model.hf.lm_head.weight.detach().flip(0))
            groups = random_groups(model, case.shapes)
            with norm:
                wanted = updates.single_update(model, groups, case)
                shard_model(model, world)
                found.append(updates.distances(updates.spread_update(model, groups, case, world), wanted))
                assert "lm_head.weight" in wanted.gradients
        return found


def test_a_head_of_its_own_learns_where_some_ranks_score_nothing(model_folder):
    for one in (case for rank in run_processes(untied, 2, model_folder) for case in rank):
        assert max(one.values()) < 1e-10


def tower(folder: str, hold_graphs: bool):
    """Encode, score what the videos say, and go back through both roots; three chunks on two ranks."""
    with start_world(CPU, timeout_s=60) as world:
        sharded, alone = (random_tiny(folder, sizes=GROUPED, train_vision=True) for _ in range(2))
        choose_trainable(sharded, ModelConfig(train_vision=True, gradient_checkpointing=not hold_graphs))
        shard_model(sharded, world)
        found = []
        for model, axis in ((sharded, world.axis), (alone, Axis((0,), 0, None))):
            batch = encoder(model, axis, 2, hold_graphs=hold_graphs, equal_calls=True).encode(noise_videos(UNEVEN[2:]))
            (tokens,) = batch.gather()
            wanted = [weights(rank, 1, tokens.embeddings.shape, torch.float32) for rank in range(world.size)]
            batch.backward([[(wanted[world.rank] if axis.group else sum(wanted),)]])
            found.append((tokens.embeddings, {name: one for name, one in gradients(model).items() if ".visual." in name}))
        return torch.equal(found[0][0], found[1][0]), worst_relative(found[0][1], found[1][1]), len(found[0][1])


@pytest.mark.parametrize("hold_graphs", [True, False])
def test_a_tower_that_trains(model_folder, hold_graphs):
    for same, error, number in run_processes(tower, 2, model_folder, hold_graphs):
        assert same and error < 1e-5 and number > 15


def rollouts(model_folder, num_prompts: list[int]):
    """Takes under gathered weights, of so many prompts on each rank, then an update; against whole weights."""
    with start_world(CPU, timeout_s=60) as world:
        model, plain = (random_tiny(model_folder, sizes=GROUPED) for _ in range(2))
        shard_model(model, world)
        groups = random_groups(plain, SHAPES["several"])
        requests = [RolloutRequest(index, prompt) for index, prompt in enumerate(groups.prompts)][: num_prompts[world.rank]]
        params = SamplingParams(num_takes=2, max_new_tokens=4 + 3 * world.rank, temperature=1.0, seed=0, step=0)
        wanted = TransformersEngine(plain).generate(requests, params)
        for _ in range(2):
            with gathered(model):
                takes = TransformersEngine(model).generate(requests, params)
            same = [
                torch.equal(one.token_ids, two.token_ids) and torch.equal(one.sampler_logprobs, two.sampler_logprobs)
                for left, right in zip(takes, wanted, strict=True)
                for one, two in zip(left, right, strict=True)
            ]
            score_groups(model, groups.prompts, groups.responses, 1.0, lambda part: part.logprobs.sum() / world.size)
        sharded_again = all(isinstance(parameter, DTensor) for parameter in model.root.parameters())
        score_groups(plain, groups.prompts, groups.responses, 1.0, lambda part: part.logprobs.sum() * 2)
        return same, sharded_again, worst_relative(gradients(model), gradients(plain)), len(units(model))


@pytest.mark.parametrize("num_prompts", [[1, 2], [0, 3]])
def test_rollouts_from_sharded_weights(model_folder, num_prompts):
    """Each unit once: three layers and the root."""
    found = run_processes(rollouts, 2, model_folder, num_prompts)
    for (same, sharded_again, error, number), prompts in zip(found, num_prompts, strict=True):
        assert all(same) and len(same) == 2 * prompts and sharded_again and error < 1e-5 and number == 4


def scored_before_a_step(model_folder):
    """Log-probs before and after the weights moved, without gradients, as many ranks score what teaches nothing."""
    with start_world(CPU, timeout_s=30) as world:
        model, plain = (random_tiny(model_folder, sizes=GROUPED) for _ in range(2))
        shard_model(model, world)
        groups = random_groups(plain, SHAPES["text"])
        packed = updates.pack_groups(groups.prompts, groups.responses, model.device)
        found = []
        for one in (model, plain):
            parameters = list(one.hf.parameters())  # as an optimizer holds them
            with torch.no_grad():
                before = packed_logprobs(one, packed, 1.0)[0]
                for parameter in parameters:
                    parameter.mul_(0.9)
                found.append((before, packed_logprobs(one, packed, 1.0)[0]))
        (before, after), (plain_before, plain_after) = found
        return float((before - plain_before).abs().max()), float((after - plain_after).abs().max()), float((after - before).abs().max())


def test_weights_gathered_before_a_step_do_not_stay(model_folder):
    for before, after, moved in run_processes(scored_before_a_step, 2, model_folder):
        assert before < 1e-5 and after < 1e-5 and moved > 1e-2


def without_adapters(model_folder):
    """Adapters switched off in the FIRST pass, as for a reference, then an update."""
    with start_world(CPU, timeout_s=30) as world:
        found = []
        for sharded in (True, False):
            model, _ = model_of(model_folder, Case(lora=True, dtype="float32"))
            groups = random_groups(model, SHAPES["text"])
            if sharded:
                shard_model(model, world)
            packed = updates.pack_groups(groups.prompts, groups.responses, model.device)
            with torch.no_grad(), adapters_off(model):
                base = packed_logprobs(model, packed, 1.0)[0]
            adapted = packed_logprobs(model, packed, 1.0)[0]
            (adapted.sum() / (world.size if sharded else 1)).backward()
            found.append((base, adapted.detach(), gradients(model)))
        (base, adapted, learned), (plain_base, plain_adapted, plain_learned) = found
        far = float((plain_base - plain_adapted).abs().max())
        close = max(float((base - plain_base).abs().max()), float((adapted - plain_adapted).abs().max()))
        return far, close, worst_relative(learned, plain_learned)


def test_adapters_that_were_off_for_a_moment_train(model_folder):
    for far, close, error in run_processes(without_adapters, 2, model_folder):
        assert far > 0.1 and close < 1e-4 and error < 1e-5


def half(model_folder, lora: bool):
    """Computed in bfloat16, kept in float32: against a model that is bfloat16 altogether."""
    with start_world(CPU, timeout_s=30) as world:
        model, plain = (random_tiny(model_folder, sizes=GROUPED) for _ in range(2))
        settings = ModelConfig(lora=LoraConfig(rank=4)) if lora else ModelConfig()
        for one in (model, plain):
            choose_trainable(one, settings)
            updates.wake_adapters(one)
        cast_parameters(plain.hf, torch.bfloat16)
        plain.dtype = torch.bfloat16
        shard_model(model, world, compute_dtype=torch.bfloat16)
        groups = random_groups(plain, SHAPES["two_videos"])
        scored = []
        for one, share in ((model, world.size), (plain, 1)):
            score_groups(
                one, groups.prompts, groups.responses, 1.0, lambda part, share=share: scored.append(part) or part.logprobs.sum() / share
            )
        kept = {parameter.dtype for _, parameter in model.hf.named_parameters() if parameter.requires_grad}
        learned = gradients(model)
        error = worst_relative({name: one.bfloat16() for name, one in learned.items()}, gradients(plain))
        return (
            torch.equal(scored[0].logprobs, scored[1].logprobs),
            str(kept),
            {str(one.dtype) for one in learned.values()} == {"torch.float32"},
            error,
        )


@pytest.mark.parametrize("lora", [False, True])
def test_computed_in_half_precision_and_kept_in_single(model_folder, lora):
    """The very log-probs of a bfloat16 model; gradients as near as bfloat16 (2^-8) lets them be."""
    for same, kept, single, error in run_processes(half, 2, model_folder, lora):
        assert same and kept == "{torch.float32}" and single and error < 0.02


def half_base(model_folder):
    """A bfloat16 checkpoint with adapters in float32, as choose_trainable makes them."""
    with start_world(CPU, timeout_s=30) as world:
        model, plain = (random_tiny(model_folder, sizes=GROUPED, dtype="bfloat16") for _ in range(2))
        for one in (model, plain):
            choose_trainable(one, ModelConfig(lora=LoraConfig(rank=4)))
            updates.wake_adapters(one)
        shard_model(model, world)
        groups = random_groups(plain, SHAPES["text"])
        scored = []
        for one, share in ((model, world.size), (plain, 1)):
            score_groups(
                one, groups.prompts, groups.responses, 1.0, lambda part, share=share: scored.append(part) or part.logprobs.sum() / share
            )
        return torch.equal(scored[0].logprobs, scored[1].logprobs), worst_relative(gradients(model), gradients(plain))


def test_single_precision_adapters_on_a_half_precision_base(model_folder):
    for same, error in run_processes(half_base, 2, model_folder):
        assert same and error < 0.02


def outside(model_folder):
    with start_world(CPU, timeout_s=20) as world:
        model = shard_model(random_tiny(model_folder, sizes=GROUPED), world)
        with pytest.raises(RuntimeError):
            model.embed(torch.zeros(1, 3, dtype=torch.int64), ())
        return whole(model.hf.lm_head.weight).shape[0]


def test_a_part_called_outside_of_the_root_is_an_error(model_folder):
    assert run_processes(outside, 2, model_folder)[0] > 100
