"""What the tiny model can do so far, on held-out videos and texts: shares without one mistake, greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from longtake.config.stages import TinyConfig
from longtake.models import Model
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.stages.tiny_clips import Clip, ask, example_of, show, tokens_of
from longtake.types import Prompt
from longtake.world.descriptions import FOCUS, INSTRUCTION, focused, reading

MAX_TEST_TOKENS = 192
TESTS = 64
"""Texts or videos per kind on which accuracy is measured."""


def exact_at(config: TinyConfig, model: Model, tests: list[Clip]) -> dict[str, float]:
    return {f"exact_{count}_frames": exact(model, tests, count) for count in sorted(set(config.frames))}


def exact(model: Model, clips: Sequence[Clip], num_frames: int) -> float:
    """Share of the events described without a mistake and in their place."""
    with torch.no_grad():
        prompts = show(model, clips, num_frames, None)
    right = total = 0
    for clip, text in zip(clips, greedy(model, prompts), strict=True):
        wanted, said = sentences(clip.example.answer), sentences(text)
        right += sum(one == other for one, other in zip(wanted, said, strict=False))
        total += len(wanted)
    return right / total


def exact_reading(model: Model, clips: Sequence[Clip]) -> dict[str, float]:
    """Per kind of reading the share of held-out texts answered without a mistake."""
    stories = [clip.story for clip in clips]
    rng = np.random.default_rng(0)
    shares = {}
    for kind in ("copy", *FOCUS, "walk"):
        examples = [example_of(stories[0], *reading(stories, rng, kind)) for _ in range(TESTS)]
        said = greedy(model, [ask(model, example) for example in examples])
        shares[f"exact_{kind}"] = sum(example.answer == text for example, text in zip(examples, said, strict=True)) / TESTS
    return shares


def exact_facts(config: TinyConfig, model: Model, clips: Sequence[Clip]) -> dict[str, float]:
    """Per focus the share of held-out videos whose description ends in the right fact: found in the model's OWN log."""
    clips = clips[:TESTS]
    tokens = [tokens_of(model, [clip], max(config.frames), None)[0] for clip in clips]
    rng = np.random.default_rng(0)
    shares = {}
    for kind in FOCUS:
        asked = [focused(clip.story, rng, kind) for clip in clips]
        examples = [example_of(clip.story, f"{INSTRUCTION} {focus}", fact) for clip, (focus, fact) in zip(clips, asked, strict=True)]
        said = greedy(model, [ask(model, example, (seen,)) for example, seen in zip(examples, tokens, strict=True)])
        shares[f"exact_fact_{kind}"] = sum(text.endswith(f". {fact}") for text, (_, fact) in zip(said, asked, strict=True)) / len(clips)
    return shares


def greedy(model: Model, prompts: Sequence[Prompt]) -> list[str]:
    requests = [RolloutRequest(index, prompt) for index, prompt in enumerate(prompts)]
    takes = TransformersEngine(model, max_rows=64).generate(requests, SamplingParams(1, 0.0, MAX_TEST_TOKENS, 0, 0))
    return [take.text for (take,) in takes]


def sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in text.split(".") if sentence.strip()]
