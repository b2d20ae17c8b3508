"""Groups of random prompts and takes, and the update that everything packed is compared with: one padded row per take, plain attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.models.family import Model
from longtake.models.positions import Grid
from longtake.parallel.sharded_tensors import whole
from longtake.testing.rows import sft_batch, take_logprobs
from longtake.testing.takes import ImageGrid, random_prompt, random_take
from longtake.training.packed_policy import ScoredTakes
from longtake.types import Prompt

Shape = tuple[int, tuple[Grid | ImageGrid, ...], tuple[int, ...]]
"""(text tokens of the prompt, grids of its videos and images, tokens of each take)."""


@dataclass(frozen=True, eq=False)
class RandomGroups:
    """Prompts, the token ids of their takes, and a weight for each token's log-prob: the loss is their weighted sum."""

    prompts: list[Prompt]
    responses: list[list[Tensor]]
    weights: Tensor
    """[M, R], not 0 anywhere: an error of any log-prob shows."""

    @property
    def num_takes(self) -> int:
        return len(self.weights)


def random_groups(model: Model, shapes: Sequence[Shape], seed: int = 0) -> RandomGroups:
    prompts = [random_prompt(model, text, grids, seed=seed + number) for number, (text, grids, _) in enumerate(shapes)]
    lengths = [list(takes) for _, _, takes in shapes]
    responses = [
        [random_take(model, length, seed=100 * number + take).token_ids for take, length in enumerate(takes)]
        for number, takes in enumerate(lengths)
    ]
    flat = [length for takes in lengths for length in takes]
    weights = torch.randn(len(flat), max([1, *flat]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return RandomGroups(prompts, responses, weights.to(model.dtype))


def row_by_row(model: Model, groups: RandomGroups, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs [M, R] with gradient and entropies [M, R]: one padded row per take, the prompt repeated, the model's own attention."""
    prompts = [prompt for prompt, takes in zip(groups.prompts, groups.responses, strict=True) for _ in takes]
    batch = sft_batch(prompts, [take for takes in groups.responses for take in takes], model.device)
    return take_logprobs(model, batch, temperature)


def weighted_loss(groups: RandomGroups, found: list[ScoredTakes] | None = None) -> Callable[[ScoredTakes], Tensor]:
    """What `score_groups` wants to be told; parts are noted in `found`."""

    def learn(part: ScoredTakes) -> Tensor:
        if found is not None:
            found.append(part)
        weights = groups.weights[list(part.takes), : part.logprobs.shape[1]]
        return (part.logprobs * weights).sum()

    return learn


def joined(parts: Sequence[ScoredTakes], like: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [M, R] of all parts, each take in its place."""
    logprobs, entropy = torch.zeros_like(like), torch.zeros_like(like)
    for part in parts:
        logprobs[list(part.takes), : part.logprobs.shape[1]] = part.logprobs.detach()
        entropy[list(part.takes), : part.entropy.shape[1]] = part.entropy
    return logprobs, entropy


def gradients(model: Model) -> dict[str, Tensor]:
    """Of every parameter that has one, whole; they are taken away from the model. Where they are sharded, every rank must call it."""
    found = {name: whole(parameter.grad).clone() for name, parameter in model.hf.named_parameters() if parameter.grad is not None}
    model.hf.zero_grad()
    return found


def worst_relative(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest over the tensors of max|difference| / max|wanted|."""
    assert found.keys() == wanted.keys() and wanted
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)
