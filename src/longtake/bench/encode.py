"""One video's frames encoded by one process and by several, each of one thread: seconds, and the same bits.

The tower is that of `bench step` (`bench.shapes`). The frames are in memory, so decoding a file is no part of it;
preparing pixels for the tower is.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist

from longtake.bench.ranks import run_on_ranks
from longtake.bench.shapes import build_scaled
from longtake.config.benches import BenchEncodeConfig
from longtake.config.sections import ModelConfig
from longtake.errors import LongtakeError
from longtake.models import load_model
from longtake.observe.digest import digest_of
from longtake.observe.timing import Phases
from longtake.parallel.chunks import VideoSize
from longtake.parallel.encode import Encoder
from longtake.parallel.mesh import Axis, World, start_world
from longtake.types import Frames, Sampling, VideoTokens

CPU = torch.device("cpu")
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class EncodeBench:
    """What `bench encode --json` prints."""

    one_s: float
    """Median seconds of one process."""
    several_s: float
    """Median seconds of all of them together, embeddings gathered on each."""
    ratio: float
    """one_s / several_s."""
    identical: bool
    """The embeddings are equal bit for bit, on every rank."""
    processes: int
    frames: int
    tokens: int
    rounds: tuple[tuple[float, float], ...]
    """Seconds of each round, (one, several), one directly after the other."""


@dataclass(frozen=True, eq=False)
class HeldVideo:
    """Frames in memory, as `parallel.encode.Video`."""

    frames: Frames

    def size(self) -> VideoSize:
        count, height, width, _ = self.frames.pixels.shape
        return VideoSize(-(-count // 2), height * width // 28**2)

    def load(self, start: int, stop: int) -> Frames:
        part, whole = slice(2 * start, 2 * stop), self.frames
        return Frames(whole.pixels[part], whole.times_s[part], whole.source_digest, whole.sampling, 2 * (stop - start))


def noise_frames(count: int, height: int, width: int, seed: int) -> Frames:
    """Every pixel differs; two frames a second."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return Frames(pixels, np.arange(count) / 2, f"noise {seed}", Sampling(count, height, width, "uniform", "area"), count)


def measure_encode(config: BenchEncodeConfig) -> EncodeBench:
    """Raises LongtakeError when the embeddings differ."""
    with tempfile.TemporaryDirectory() as folder:
        answers = run_on_ranks(_on_rank, config.processes, config, str(build_scaled(Path(folder))), timeout_s=TIMEOUT_S)
    rounds = tuple((float(one), float(several)) for one, several in answers[0]["rounds"])
    one_s, several_s = (median(side) for side in zip(*rounds, strict=True))
    digests = {digest for answer in answers for digest in answer["digests"]}
    if len(digests) != 1:
        raise LongtakeError(
            f"{len(digests)} different embeddings of one video", rule="the number of processes changes no bit", remedy="report it"
        )
    return EncodeBench(one_s, several_s, one_s / several_s, True, config.processes, config.frames, answers[0]["tokens"], rounds)


def _on_rank(config: BenchEncodeConfig, path: str) -> dict[str, object]:
    with start_world(CPU, TIMEOUT_S) as world:
        model = load_model(ModelConfig(path=path, device="cpu"))
        video = HeldVideo(noise_frames(config.frames, config.height, config.width, 0))
        alone = Axis((world.rank,), 0, None)
        one, several = (Encoder(model, config.groups_per_chunk, axis, Phases()) for axis in (alone, world.axis))
        digests = {_digest(encoder, video) for encoder in (one, several)}  # a warm-up too
        rounds = [(_seconds(world, one, video, world.rank == 0), _seconds(world, several, video, True)) for _ in range(config.repeats)]
        return {"rounds": rounds, "digests": sorted(digests), "tokens": video.size().num_tokens}


def _digest(encoder: Encoder, video: HeldVideo) -> str:
    return digest_of(whole(encoder, [video])[0].embeddings)


def _seconds(world: World, encoder: Encoder, video: HeldVideo, takes_part: bool) -> float:
    """From one meeting of all ranks to the next; who takes no part sleeps in the second."""
    meet(world)
    begin = time.perf_counter()
    if takes_part:
        whole(encoder, [video])
    meet(world)
    return time.perf_counter() - begin


def whole(encoder: Encoder, videos: Sequence[HeldVideo]) -> list[VideoTokens]:
    """The tokens of all videos, on every rank of the encoder's axis. Raises what a video raised."""
    found = []
    for tokens in encoder.encode(videos).gather():
        if not isinstance(tokens, VideoTokens):
            raise tokens or AssertionError("gathered on every rank")
        found.append(tokens)
    return found


def meet(world: World) -> None:
    if world.axis.group is not None:
        dist.barrier(world.axis.group)
