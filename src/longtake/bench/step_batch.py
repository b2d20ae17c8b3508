"""What a measured step works on: videos of noise, prompts around them, and recorded takes that every side trains on.

Shapes: F frames, G takes per prompt, R tokens of a take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longtake.bench.encode import HeldVideo, noise_frames
from longtake.config.benches import BenchStepConfig
from longtake.models.family import Model
from longtake.types import PackedGroup, Prompt, VideoSpan, VideoTokens

HEIGHT, WIDTH = 56, 56
"""4 video tokens for a pair of frames: 2 per frame."""
CHUNK = 8
"""Pairs of frames that the tower takes at a time."""


@dataclass(frozen=True, eq=False)
class StepBatch:
    """The groups of one step, one video each."""

    videos: list[HeldVideo]
    prompts: list[Prompt]
    """Their spans hold no embeddings yet: `with_tokens` puts them in."""
    responses: list[list[Tensor]]
    """int64 [R], G of each group."""
    advantages: list[Tensor]
    """float32 [G]."""
    sampler_logprobs: list[list[Tensor]]
    """float32 [R]."""

    def shapes(self, groups: Sequence[int]) -> list[PackedGroup]:
        return [PackedGroup(len(self.prompts[index].token_ids), tuple(map(len, self.responses[index]))) for index in groups]


def make_batch(model: Model, config: BenchStepConfig, frames: Sequence[int]) -> StepBatch:
    """One group for each number of frames; the same on all ranks."""
    generator = torch.Generator().manual_seed(0)
    videos = [HeldVideo(noise_frames(count, HEIGHT, WIDTH, seed)) for seed, count in enumerate(frames)]
    text = plain_tokens(model, config.text, generator)
    responses = [[plain_tokens(model, config.response, generator) for _ in range(config.group)] for _ in frames]
    return StepBatch(
        videos=videos,
        prompts=[_prompt(model, text, video) for video in videos],
        responses=responses,
        advantages=[torch.randn(config.group, generator=generator) for _ in frames],
        sampler_logprobs=[[torch.full((config.response,), -6.0) for _ in own] for own in responses],
    )


def plain_tokens(model: Model, count: int, generator: torch.Generator) -> Tensor:
    """int64 [count], none of them banned."""
    banned = set(model.banned_ids.tolist())
    allowed = torch.tensor([token for token in range(model.hf.lm_head.out_features) if token not in banned])
    return allowed[torch.randint(len(allowed), (count,), generator=generator)]


def _prompt(model: Model, text: Tensor, video: HeldVideo) -> Prompt:
    """Half of the text, the video, the other half."""
    half, count = len(text) // 2, video.size().num_tokens
    grid = (video.size().num_groups, HEIGHT // 14, WIDTH // 14)
    token_ids = torch.cat([text[:half], torch.full((count,), model.placeholder_ids["video"]), text[half:]])
    nothing = VideoTokens(torch.empty(0), grid, 1.0, "")
    position_ids, next_position = model.position_ids(token_ids.tolist(), [nothing])
    return Prompt(token_ids, position_ids, (VideoSpan(half, half + count, nothing),), next_position, "bench")


def with_tokens(prompt: Prompt, tokens: VideoTokens) -> Prompt:
    return replace(prompt, spans=(replace(prompt.spans[0], tokens=tokens),))
