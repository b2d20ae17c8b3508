"""Rollouts of one batch by each engine: tokens per second, and how often a prompt was computed.

Three sides: the embedded engine, vLLM fed with embeddings, and vLLM fed with the frames themselves, which its own tower encodes, each as
one request of G takes. Random weights at the proportions of `bench step`. Takes end only at their longest, so that all sides sample
equally many tokens. Before each measurement every side forgets all prompts.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from longtake.bench.encode import noise_frames
from longtake.bench.shapes import build_scaled
from longtake.config.benches import BenchRolloutConfig
from longtake.config.env import environment
from longtake.config.sections import ModelConfig, PromptConfig, RolloutConfig
from longtake.data.render import render_prompt
from longtake.models import load_model
from longtake.models.family import Model
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.engines import engine_limits, make_engine
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.rollout.vllm_arguments import require_vllm
from longtake.rollout.vllm_prompts import SETTINGS
from longtake.types import Example, Frames

GROUPS_PER_CHUNK = 64


@dataclass(frozen=True)
class RolloutLine:
    """One engine at one G."""

    engine: str
    """transformers | vllm | vllm, pixels."""
    group: int
    """G."""
    seconds: float
    """Median over the rounds, of the whole batch."""
    tokens_per_s: float
    """Sampled ones."""
    prefills_per_group: float
    """Prompt tokens that were computed over those of the prompts: 1 where each prompt is computed once for all its takes."""
    rounds: tuple[float, ...]
    """Seconds of each."""


@dataclass(frozen=True)
class RolloutBench:
    """What `bench rollout --json` prints."""

    lines: tuple[RolloutLine, ...]
    prompts: int
    prompt_tokens: int
    """Of each prompt."""
    response_tokens: int
    encode_s: float
    """Median seconds of our tower over all videos of the batch; the sides fed with embeddings are spared it in every later step."""


@dataclass(frozen=True, eq=False)
class Side:
    """One engine, as it is measured."""

    name: str
    sample: Callable[[int, int], int]
    """(G, round) -> prompt tokens that were computed."""
    close: Callable[[], None]


def measure_rollout(config: BenchRolloutConfig) -> RolloutBench:
    """Raises ConfigError when vLLM is not installed."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        path = build_scaled(Path(folder))
        model = load_model(ModelConfig(path=str(path), device=config.device))
        model.end_ids = ()
        videos = [noise_frames(config.frames, config.height, config.width, seed) for seed in range(config.prompts)]
        encode_s, requests = requests_of(model, videos, config.repeats)
        sides = [own_side(model, requests, config), *vllm_sides(model, path, requests, videos, config)]
        lengths = [len(request.prompt.token_ids) for request in requests]
        lines = tuple(measured(sides, config, sum(lengths)))
        for side in sides:
            side.close()
    return RolloutBench(lines, config.prompts, lengths[0], config.response, encode_s)


def requests_of(model: Model, videos: Sequence[Frames], repeats: int) -> tuple[float, list[RolloutRequest]]:
    """Seconds to encode all videos, and a prompt for each."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        tokens = [model.encode(video, GROUPS_PER_CHUNK) for video in videos]
        seconds.append(time.perf_counter() - begin)
    asked = [Example(0, "a tokenizer is needed", (), "", "text", "general", "", (), None, None) for _ in videos]
    prompts = [render_prompt(example, (video,), model, PromptConfig(instruction="")) for example, video in zip(asked, tokens, strict=True)]
    return median(seconds), [RolloutRequest(key, prompt) for key, prompt in enumerate(prompts)]


def measured(sides: Sequence[Side], config: BenchRolloutConfig, prompt_tokens: int) -> Iterator[RolloutLine]:
    """Rounds interleaved over the sides, after one that does not count. `prompt_tokens`: of all prompts."""
    for group in config.groups:
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        computed: dict[str, int] = {}
        for round_number in range(config.repeats + 1):
            for side in sides:
                begin = time.perf_counter()
                computed[side.name] = side.sample(group, round_number)
                if round_number > 0:
                    seconds[side.name].append(time.perf_counter() - begin)
        for side in sides:
            typical = median(seconds[side.name])
            rate = config.prompts * group * config.response / typical
            yield RolloutLine(side.name, group, typical, rate, computed[side.name] / prompt_tokens, tuple(seconds[side.name]))


def own_side(model: Model, requests: Sequence[RolloutRequest], config: BenchRolloutConfig) -> Side:
    engine = TransformersEngine(model, config.max_rows)

    def sample(group: int, round_number: int) -> int:
        before = engine.counters.prompt_tokens
        engine.generate(requests, params_of(config, group, round_number))
        return engine.counters.prompt_tokens - before

    return Side("transformers", sample, engine.close)


def vllm_sides(
    model: Model, path: Path, requests: Sequence[RolloutRequest], videos: Sequence[Frames], config: BenchRolloutConfig
) -> list[Side]:
    """Fed with embeddings, and with frames.

    The one with a tower is made first: vLLM keeps rotary tables for all engines of a process, and those of an engine without are empty.
    """
    require_vllm("bench rollout")
    longest = max(len(request.prompt.token_ids) for request in requests)
    rollout = RolloutConfig(engine="vllm", num_takes=max(config.groups), max_new_tokens=config.response, max_rows=config.max_rows)
    limits = engine_limits(model, rollout, longest, len(requests))
    with environment(SETTINGS):
        pixels: Any = importlib.import_module("longtake.bench.rollout_pixels").PixelEngine(model, path, limits, videos)
    engine: Any = make_engine(model, path, rollout, longest, len(requests))

    def embeddings(group: int, round_number: int) -> int:
        engine.forget()
        before = engine.counters.computed_tokens
        with engine.at_weights():
            takes = engine.generate(requests, params_of(config, group, round_number))
        return prefilled(engine.counters.computed_tokens - before, sum(len(take.token_ids) for group in takes for take in group), group)

    def frames(group: int, round_number: int) -> int:
        pixels.forget()
        before = pixels.computed_tokens
        sampled = pixels.generate(requests, params_of(config, group, round_number))
        return prefilled(pixels.computed_tokens - before, sampled, group)

    def prefilled(computed: int, sampled: int, group: int) -> int:
        """The first token of a take comes out of the pass that computes the end of its prompt."""
        return computed - (sampled - group * len(requests))

    return [Side("vllm", embeddings, engine.close), Side("vllm, pixels", frames, pixels.close)]


def params_of(config: BenchRolloutConfig, group: int, round_number: int) -> SamplingParams:
    return SamplingParams(group, 1.0, config.response, 0, round_number)
