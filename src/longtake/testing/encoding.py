"""Videos of noise encoded by several processes, and by one: the same bits, and the same gradients of the tower?

Everything here runs inside the processes of `testing.processes.run_processes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longtake.config.sections import ModelConfig
from longtake.errors import VideoDamagedError
from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.observe.timing import Phases
from longtake.parallel.chunks import VideoSize
from longtake.parallel.encode import Encoder
from longtake.parallel.mesh import Axis, start_world
from longtake.parallel.rows import Needs
from longtake.testing.models import random_tiny
from longtake.training.trainable import choose_trainable
from longtake.types import Frames, Sampling, VideoTokens

CPU = torch.device("cpu")
Shape = tuple[int, int, int]
"""Frames, height, width in pixels."""
UNEVEN: tuple[Shape, ...] = ((14, 56, 84), (2, 28, 28), (9, 56, 56))
"""7 groups of 6 tokens, 1 of 1, 5 of 4 (the last frame repeated)."""


@dataclass(frozen=True)
class NoiseVideo:
    """Implements `parallel.encode.Video`: every pixel differs, so that a patch in the wrong place shows."""

    shape: Shape
    seed: int
    fails_at: int | None = None
    """This group cannot be decoded; -1: not even the size is known."""

    @property
    def frames(self) -> Frames:
        num, height, width = self.shape
        pixels = np.random.default_rng(self.seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)
        return Frames(
            pixels, np.cumsum(np.full(num, 0.1 + self.seed)), f"video {self.seed}", Sampling(num, height, width, "uniform", "area"), num
        )

    def size(self) -> VideoSize:
        if self.fails_at == -1:
            raise self.error()
        num, height, width = self.shape
        return VideoSize(-(-num // 2), height * width // 28**2)

    def load(self, start: int, stop: int) -> Frames:
        if self.fails_at is not None and start <= self.fails_at < stop:
            raise self.error()
        whole = self.frames
        part = slice(2 * start, 2 * stop)
        return Frames(whole.pixels[part], whole.times_s[part], whole.source_digest, whole.sampling, stop - start)

    def error(self) -> VideoDamagedError:
        return VideoDamagedError(f"video {self.seed} is damaged", rule="a video decodes", remedy="mend it")


def noise_videos(shapes: Sequence[Shape]) -> list[NoiseVideo]:
    return [NoiseVideo(shape, seed) for seed, shape in enumerate(shapes)]


def load_model(
    folder: str, dtype: Literal["float32", "float64"] = "float32", *, trains: bool = False, checkpointing: bool = False
) -> Qwen2_5VL:
    model = random_tiny(Path(folder), dtype=dtype, train_vision=trains)
    choose_trainable(model, ModelConfig(train_vision=trains, gradient_checkpointing=checkpointing))
    return model


def whole(model: Qwen2_5VL, videos: Sequence[NoiseVideo], groups_per_chunk: int, *, gradients: bool = False) -> list[VideoTokens]:
    """The slow obvious way: each video by itself in this process."""
    return [model.encode(video.frames, groups_per_chunk, gradients=gradients) for video in videos]


def encoder(model: Qwen2_5VL, axis: Axis, groups_per_chunk: int, **settings: bool) -> Encoder:
    return Encoder(model, groups_per_chunk, axis, Phases(), **settings)


def weights(rank: int, video: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """What rank's loss makes of a video's embeddings; rank 1 has no use for video 0."""
    draw = torch.Generator().manual_seed(100 * rank + video)
    return torch.randn(shape, generator=draw, dtype=dtype) * (rank != 1 or video != 0)


def used_here(rank: int, video: int) -> bool:
    return rank != 1 or video != 0


def tower_gradients(model: Qwen2_5VL) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.hf.model.visual.named_parameters() if parameter.grad is not None}


def reference_gradients(folder: str, shapes: Sequence[Shape], groups_per_chunk: int, dtype: Any, num_ranks: int) -> dict[str, Tensor]:
    """One process, plain autograd, the losses of all ranks added up."""
    model = load_model(folder, dtype, trains=True)
    for video, tokens in enumerate(whole(model, noise_videos(shapes), groups_per_chunk, gradients=True)):
        total = sum(weights(rank, video, tokens.embeddings.shape, tokens.embeddings.dtype) for rank in range(num_ranks))
        (tokens.embeddings * total).sum().backward()
    return tower_gradients(model)


def needs_of(num_tokens: int, num_ranks: int) -> Needs:
    """Each rank asks for two ranges that overlap each other and its neighbours', one of them empty on rank 2."""
    step = num_tokens // num_ranks
    return [
        [(rank * step // 2, min(num_tokens, rank * step + step + 1)), (0, 0 if rank == 2 else min(3, num_tokens))]
        for rank in range(num_ranks)
    ]


def world() -> Any:
    return start_world(CPU, timeout_s=30)
