"""One update over several processes, and the same one in a single process with one padded row per take: how far are they apart?

Everything here runs inside the processes of `testing.processes.run_processes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from longtake.config.sections import LoraConfig, ModelConfig, OptimizerConfig
from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.parallel.collectives import sum_over_ranks
from longtake.parallel.fsdp import shard_model
from longtake.parallel.gradients import sum_gradients
from longtake.parallel.mesh import SequenceMesh, World, start_world
from longtake.parallel.packed import pack_groups, pack_rows
from longtake.testing.models import SIZES, norm_in_own_dtype, random_tiny
from longtake.testing.packed import RandomGroups, Shape, gradients, random_groups, row_by_row, worst_relative
from longtake.testing.training import largest_difference
from longtake.training.optimizer import build_optimizer
from longtake.training.packed_policy import Learn, ScoredTakes, idle_pass, packed_logprobs, score_groups
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import Prompt

GROUPED = replace(SIZES, hidden=128, layers=3, heads=4, kv_heads=2)
"""Four query heads on two KV heads: fewer than ranks where Ulysses is 4."""
TWO_VIDEOS = ((4, 2, 4), (5, 4, 4))
SHAPES: dict[str, tuple[Shape, ...]] = {
    "text": ((12, (), (6, 1, 9)),),
    "two_videos": ((14, TWO_VIDEOS, (6, 0, 9, 3)),),
    "several": ((9, (), (4, 4)), (12, ((4, 4, 4),), (7, 1)), (15, TWO_VIDEOS, (2,))),
    "images": ((10, ((4, 6),), (5, 2)), (16, ((4, 4, 4), (2, 6), (2, 2)), (3, 0, 8)), (9, (), (4,))),
    "empty_takes": ((9, (), (0, 0)), (8, ((3, 2, 6),), (3,))),
    "tiny": ((2, (), (1,)),),  # fewer tokens than chunks of a ring of four: some ranks hold nothing
}
Layout = Literal["shared", "naive"]
TEMPERATURE = 0.9


@dataclass(frozen=True)
class Case:
    """One update. World size = data ranks x ring x ulysses."""

    layout: Layout = "shared"
    packed: bool = True
    """All groups (or rows) as one sequence, or each a sequence of its own."""
    shapes: tuple[Shape, ...] = SHAPES["several"]
    dtype: Literal["float32", "float64"] = "float64"
    checkpointing: bool = False
    train_vision: bool = False
    """Gradients of the videos' embeddings too, as a tower that trains would want them."""
    room: int | None = None
    """Tokens of takes in a chunk: every group goes by itself, its prompt once, its takes in such chunks."""
    lora: bool = False
    sharded: bool = False
    """Weights cut over all ranks, as `parallel.fsdp`."""
    seed: int = 0
    ring: int = 1
    ulysses: int = 1


@dataclass(frozen=True, eq=False)
class Update:
    """What an update found: log-probs and entropies [M, R] of all takes, the loss, and every gradient summed over the ranks."""

    logprobs: Tensor
    entropy: Tensor
    loss: float
    gradients: dict[str, Tensor]


Fault = Callable[[pytest.MonkeyPatch], None]
"""Breaks something for one update."""


def errors_of(folder: Path, cases: list[tuple[Case, Fault | None]]) -> list[dict[str, float]]:
    """On rank 0, for each case max|difference| / max|reference| of log-probs, entropies, loss and the worst gradient; elsewhere nothing."""
    found = []
    with start_world(torch.device("cpu"), timeout_s=300) as world:
        for case, fault in cases:
            model, norm = model_of(folder, case)
            groups = random_groups(model, case.shapes, case.seed)
            wanted = reference_update(folder, model, groups, case) if world.rank == 0 else None
            with norm, pytest.MonkeyPatch.context() as patch:
                if fault is not None:
                    fault(patch)
                if case.sharded:
                    shard_model(model, world)
                update = spread_update(model, groups, case, world)
                if wanted is not None:
                    found.append(distances(update, wanted))
    return found


def model_of(folder: Path, case: Case) -> tuple[Qwen2_5VL, AbstractContextManager[None]]:
    model = random_tiny(folder, dtype=case.dtype, sizes=GROUPED)
    lora = LoraConfig(rank=4, alpha=8.0) if case.lora else None
    choose_trainable(model, ModelConfig(gradient_checkpointing=case.checkpointing, lora=lora))
    wake_adapters(model)
    model.train_vision = case.train_vision
    return model, norm_in_own_dtype(model) if case.dtype == "float64" else nullcontext()


def wake_adapters(model: Qwen2_5VL) -> None:
    """Fresh adapters have B = 0, so that A would get no gradient."""
    for name, parameter in model.hf.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)), std=0.3)


def passes(model: Qwen2_5VL, groups: RandomGroups, case: Case, mesh: SequenceMesh) -> list[Callable[[Learn], None]]:
    """Each scores some of the takes, all together each take once."""
    shared = list(zip(groups.prompts, groups.responses, strict=True))
    units = shared if case.layout == "shared" else [(prompt, [take]) for prompt, takes in shared for take in takes]
    ends = list(itertools.accumulate(len(takes) for _, takes in units))
    numbers = [tuple(range(end - len(takes), end)) for end, (_, takes) in zip(ends, units, strict=True)]
    if case.room is not None:
        return [
            partial(_split_pass, model, prompt, takes, own, case.room, mesh) for (prompt, takes), own in zip(units, numbers, strict=True)
        ]
    parts = [units] if case.packed else [[unit] for unit in units]
    takes_of_parts = [sum(numbers, ())] if case.packed else numbers
    return [partial(_packed_pass, model, part, own, case, mesh) for part, own in zip(parts, takes_of_parts, strict=True)]


def _packed_pass(
    model: Qwen2_5VL, units: list[tuple[Prompt, list[Tensor]]], takes: tuple[int, ...], case: Case, mesh: SequenceMesh, learn: Learn
) -> None:
    prompts = [prompt for prompt, _ in units]
    if case.layout == "naive":
        packed = pack_rows(prompts, [own[0] for _, own in units], model.device)
    else:
        packed = pack_groups(prompts, [own for _, own in units], model.device)
    logprobs, entropy = packed_logprobs(model, packed, TEMPERATURE, mesh=mesh, chunk_rows=7)
    loss = learn(ScoredTakes(takes, logprobs, entropy, packed.response_mask))
    assert loss is not None
    loss.backward()


def _split_pass(
    model: Qwen2_5VL, prompt: Prompt, takes: list[Tensor], numbers: tuple[int, ...], room: int, mesh: SequenceMesh, learn: Learn
) -> None:
    def renumbered(part: ScoredTakes) -> Tensor | None:
        return learn(replace(part, takes=tuple(numbers[take] for take in part.takes)))

    score_groups(model, [prompt], [takes], TEMPERATURE, renumbered, max_tokens=len(prompt.token_ids) + room, mesh=mesh)


def spread_update(model: Qwen2_5VL, groups: RandomGroups, case: Case, world: World) -> Update:
    """Passes are dealt to the data ranks; one that has fewer than another is idle in its place."""
    mesh = world.sequence_mesh(case.ring, case.ulysses)
    videos = leaves(groups) if case.train_vision else {}
    dealt = passes(model, groups, case, mesh)
    mine = dealt[mesh.data_rank :: mesh.num_data]
    num_idle = -(-len(dealt) // mesh.num_data) - len(mine)
    logprobs, entropy, losses = torch.zeros_like(groups.weights), torch.zeros_like(groups.weights), [0.0]
    num_tokens = sum(len(take) for takes in groups.responses for take in takes)

    def learn(part: ScoredTakes) -> Tensor:
        takes, width = list(part.takes), part.logprobs.shape[1]
        logprobs[takes, :width], entropy[takes, :width] = part.logprobs.detach(), part.entropy
        loss = (part.logprobs * groups.weights[takes, :width]).sum() / num_tokens
        losses.append(float(loss.detach()))
        return loss

    with training_mode(model):
        for one in mine:
            one(learn)
        for _ in range(num_idle):
            idle_pass(model, mesh)
    sum_gradients([*model.hf.parameters(), *videos.values()], world.axis)
    return collected(model, logprobs, entropy, sum(losses), videos, mesh)


def collected(
    model: Qwen2_5VL, logprobs: Tensor, entropy: Tensor, loss: float, videos: dict[str, torch.nn.Parameter], mesh: SequenceMesh
) -> Update:
    """Put together what the data ranks found; all ranks of a sequence found the same."""
    flat = [*logprobs.flatten().tolist(), *entropy.flatten().tolist(), loss]
    *values, loss = (value / mesh.sequence.size for value in sum_over_ranks(flat, mesh.world))
    both = torch.tensor(values, dtype=torch.float64).view(2, *logprobs.shape)
    return Update(both[0], both[1], loss, gradients(model) | {name: leaf.grad for name, leaf in videos.items() if leaf.grad is not None})


def leaves(groups: RandomGroups) -> dict[str, torch.nn.Parameter]:
    """The embeddings of every video, made parameters."""
    found = {}
    for prompt in groups.prompts:
        for span in prompt.spans:
            leaf = torch.nn.Parameter(span.tokens.embeddings)
            object.__setattr__(span.tokens, "embeddings", leaf)
            found[f"video {span.tokens.digest}"] = leaf
    return found


def reference_update(folder: Path, model: Qwen2_5VL, groups: RandomGroups, case: Case) -> Update:
    """`single_update` with the weights of `model`, always computed in float64.

    In float32 a reference would lack digits itself: adding one vector to all keys hardly changes a softmax, so the gradient of a key's bias
    is what is left of terms that cancel. In a sequence of three tokens both sides were off by 7e-6 and 8e-6, in opposite directions.
    """
    exact, norm = model_of(folder, replace(case, dtype="float64"))
    exact.hf.load_state_dict(model.hf.state_dict())
    with norm:
        return single_update(exact, groups, case)


def single_update(model: Qwen2_5VL, groups: RandomGroups, case: Case) -> Update:
    """The reference: one process, one padded row per take, the model's own attention."""
    videos = leaves(groups) if case.train_vision else {}
    logprobs, entropy = row_by_row(model, groups, TEMPERATURE)
    loss = (logprobs * groups.weights).sum() / sum(len(take) for takes in groups.responses for take in takes)
    loss.backward()
    found = gradients(model) | {name: leaf.grad for name, leaf in videos.items() if leaf.grad is not None}
    return Update(logprobs.detach().double(), entropy.double(), float(loss.detach()), found)


def distances(found: Update, wanted: Update) -> dict[str, float]:
    assert len(wanted.gradients) > 20
    return {
        "logprobs": relative(found.logprobs, wanted.logprobs),
        "entropy": relative(found.entropy, wanted.entropy),
        "loss": abs(found.loss - wanted.loss) / abs(wanted.loss),
        "gradients": worst_relative(found.gradients, wanted.gradients),
    }


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def drift_of(folder: Path, case: Case, num_updates: int, lr: float) -> tuple[float, float]:
    """On rank 0: the largest difference of a weight from that of a single process after some AdamW updates of the same takes, and the
    largest way that a weight went."""
    with start_world(torch.device("cpu"), timeout_s=300) as world:
        model, norm = model_of(folder, case)
        config = OptimizerConfig(lr=lr, schedule="constant")
        start = weights_of(model)
        with norm:
            optimizer = build_optimizer(model, config, num_updates)
            for number in range(num_updates):
                groups = random_groups(model, case.shapes, seed=number)
                give(model, spread_update(model, groups, case, world).gradients)
                optimizer.step()
            if world.rank != 0:
                return 0.0, 0.0
            alone, _ = model_of(folder, case)
            optimizer = build_optimizer(alone, config, num_updates)
            for number in range(num_updates):
                groups = random_groups(alone, case.shapes, seed=number)
                give(alone, single_update(alone, groups, case).gradients)
                optimizer.step()
        return largest_difference(weights_of(model), weights_of(alone)), largest_difference(start, weights_of(alone))


def weights_of(model: Qwen2_5VL) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.hf.named_parameters() if parameter.requires_grad}


def give(model: Qwen2_5VL, found: dict[str, Tensor]) -> None:
    for name, parameter in model.hf.named_parameters():
        parameter.grad = found.get(name)
