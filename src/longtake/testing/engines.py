"""What tests of every rollout engine ask, and how they judge the answers: against the slow forward of the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtake.models.family import Model
from longtake.models.positions import Grid
from longtake.rollout.engine import Engine, RolloutRequest, SamplingParams
from longtake.testing.takes import ImageGrid, random_prompt, score_slowly
from longtake.types import Take

PARAMS = SamplingParams(num_takes=4, temperature=1.0, max_new_tokens=24, seed=11, step=3)
GRIDS: tuple[tuple[Grid | ImageGrid, ...], ...] = (
    *((), ((4, 4, 4),), ((4, 2, 4), (5, 4, 4)), ((3, 2, 6),), ((40, 4, 4),), ((9, 8, 6),), ((200, 4, 6),)),
    *(((4, 6),), ((2, 6), (4, 4)), ((4, 4, 4), (2, 6), (2, 2))),
)
"""Text only, one video, two, an odd grid, longer ones, an image, two, a video and two images: prompts of 9 to 1,227 tokens."""


def requests_of(model: Model, grids: Sequence[Sequence[Grid | ImageGrid]] = GRIDS) -> list[RolloutRequest]:
    """One for each prompt: the grids of its videos and images, and 9 text tokens, 12, 15, ..."""
    prompts = [random_prompt(model, 9 + 3 * index, own, seed=index) for index, own in enumerate(grids)]
    return [RolloutRequest(key=100 + index, prompt=prompt) for index, prompt in enumerate(prompts)]


def generate(engine: Engine, requests: Sequence[RolloutRequest], params: SamplingParams = PARAMS) -> list[tuple[Take, ...]]:
    """With the trainer's weights of now."""
    with engine.at_weights():
        return engine.generate(requests, params)


def all_tokens(groups: Sequence[Sequence[Take]]) -> list[list[list[int]]]:
    return [[take.token_ids.tolist() for take in takes] for takes in groups]


@torch.no_grad()
def largest_difference(
    model: Model, requests: Sequence[RolloutRequest], groups: Sequence[Sequence[Take]], temperature: float = 1.0
) -> float:
    """Between what the sampler reported and the slow scoring of each take."""
    return max(
        float((score_slowly(model, request.prompt, take.token_ids, temperature)[0] - take.sampler_logprobs).abs().max())
        for request, takes in zip(requests, groups, strict=True)
        for take in takes
    )


@torch.no_grad()
def perturb(model: Model, size: float, seed: int) -> None:
    """Another version of the weights, every tensor of it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.hf.parameters():
        parameter.add_(size * parameter.std() * torch.randn(parameter.shape, generator=generator))
    model.weights_version += 1
