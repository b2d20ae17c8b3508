"""`longtake tiny train`: make the tiny base model. It learns to describe world videos, and never sees a question answered.

out/world, out/held_out (videos)     out/model (the checkpoint directory; out/see and out/read after the first two phases)
out/log.jsonl (loss, and accuracy on held-out videos and texts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longtake.config.sections import ModelConfig, OptimizerConfig, PromptConfig, VideoConfig
from longtake.config.stages import TinyConfig, WorldConfig
from longtake.data.render import render_prompt
from longtake.errors import PathError
from longtake.models import Model, load_model
from longtake.models.positions import time_step
from longtake.models.tiny import build_tiny
from longtake.observe.lines import JsonLines
from longtake.observe.progress import Progress, say
from longtake.parallel.packed import pack_rows
from longtake.recipes.quickstart import world as quickstart_world
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.training.batch import split_by_tokens
from longtake.training.export import export_model
from longtake.training.optimizer import Optimizer, build_optimizer
from longtake.training.sft_loss import sft_loss
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import Example, Frames, Prompt, Sampling, VideoRef, VideoTokens
from longtake.video.decode import load_frames
from longtake.world.descriptions import FOCUS, INSTRUCTION, LABELS, WORDS, focused_description, reading
from longtake.world.questions import describe
from longtake.world.story import Story, make_story
from longtake.world.write import rows_of, story_of, video_name, write_world

HELD_OUT_SEED = 900_000
"""Added to the seed: far from the seeds that worlds for training and evaluation use."""
READING_SEED, NUM_READING = 5_000_000, 1500
"""Stories that are only read, never filmed."""
ALONE = 100
"""Times each word and label is shown alone to the tokenizer."""
MICRO_BATCH_TOKENS = 2048
MAX_TEST_TOKENS = 192
READING_TESTS = 64
"""Texts per kind of reading on which accuracy is measured."""
FILMED_SHARE = 0.6
"""Of each batch of the last phase; the rest is read."""
POOL_FRAMES = 128
"""Frames of a video that are read; each step takes some of them, at jittered times."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A video in memory and what is to be said about it."""

    pixels: np.ndarray
    """uint8 [POOL_FRAMES, Y, X, 3]."""
    times_s: np.ndarray
    story: Story
    example: Example


def run(config: TinyConfig) -> None:
    """Train and write out/model; the same configuration on the same machine gives the same bytes."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    for name in ("see", "read", "model"):
        refuse_occupied(config.out / name)
    world, held_out = worlds_of(config)
    stories = [story_of(world, index) for index in range(world.num_videos)]
    build_tiny(config.out / "random", texts_of(world, stories), config.seed)
    model = load_model(ModelConfig(path=str(config.out / "random"), train_vision=True))
    choose_trainable(model, ModelConfig(train_vision=True), config.seed)
    clips = read_clips(config, world, model)
    tests = read_clips(config, held_out, model)
    with JsonLines(config.out / "log.jsonl") as log:
        for name, learn in (("see", learn_to_see), ("read", learn_to_read), ("model", learn_to_focus)):
            learn(config, model, clips, tests, log)
            export_model(model, config.out / name)
            say(f"tiny: wrote {config.out / name}")


def refuse_occupied(out: Path) -> None:
    """Raises PathError now, and not when hours of training are to be written."""
    if out.exists():
        raise PathError(f"{out} is already there", rule="an export never overwrites", remedy="remove it, or choose another `out`")


def worlds_of(config: TinyConfig) -> tuple[WorldConfig, WorldConfig]:
    """The world to learn from and the held-out one, written to disk (or reused)."""
    world = quickstart_world(config.out / "world", HELD_OUT_SEED + 2 * config.seed, config.num_videos)
    held_out = quickstart_world(config.out / "held_out", HELD_OUT_SEED + 2 * config.seed + 1, config.num_held_out)
    for each in (world, held_out):
        write_world(each)
    return world, held_out


def texts_of(world: WorldConfig, stories: Sequence[Story]) -> list[str]:
    """The world's text, from which the tokenizer is trained; each word and label also alone, so that it is one piece wherever it stands."""
    rows = [row for index, story in enumerate(stories[:1000]) for row in rows_of(world, index, story)]
    alone = [f"{space}{word}" for word in (*WORDS, *LABELS) for space in ("", " ")] * ALONE
    return [INSTRUCTION, *alone, *(text for row in rows for text in (row.problem, f" {row.reasoning}"))]


def read_clips(config: TinyConfig, world: WorldConfig, model: Model) -> list[Clip]:
    """Decode every video once, at the model's resolution."""
    setting = VideoConfig(max_frames=POOL_FRAMES, max_pixels_per_frame=config.pixels_per_frame)
    clips = []
    with Progress("decode", world.num_videos) as progress:
        for index in range(world.num_videos):
            path = world.out / video_name(index)
            frames = load_frames(VideoRef(path, str(path)), setting, model.patch_multiple, model.temporal_patch)
            story = story_of(world, index)
            clips.append(Clip(frames.pixels, frames.times_s, story, example_of(story, INSTRUCTION, describe(story))))
            progress.advance()
    return clips


def example_of(story: Story, instruction: str, description: str) -> Example:
    return Example(story.seed, instruction, (), description, "text", "describe", "", None, None, story.duration_s)


def learn_to_see(config: TinyConfig, model: Model, clips: list[Clip], tests: list[Clip], log: JsonLines) -> None:
    """Cross-entropy on whole descriptions, tower included."""
    optimizer = build_optimizer(model, optimizer_config(config), config.steps)
    rng = np.random.default_rng(config.seed)
    with Progress("tiny: see", config.steps) as progress:
        for step in range(1, config.steps + 1):
            chosen = [clips[int(index)] for index in rng.choice(len(clips), config.batch_size, replace=len(clips) < config.batch_size)]
            num_frames = int(rng.choice(config.frames))
            with training_mode(model):
                loss = learn(model, optimizer, show(model, chosen, num_frames, rng), [clip.example for clip in chosen])
            progress.advance(loss=loss)
            if step % config.evaluate_every == 0 or step == config.steps:
                log.append(step, {"phase": "see", "loss": loss, **exact_at(config, model, tests)})
                log.flush()


def learn_to_read(config: TinyConfig, model: Model, clips: list[Clip], tests: list[Clip], log: JsonLines) -> None:
    """Cross-entropy on text alone, of stories that are not filmed; the tower is frozen from here on."""
    choose_trainable(model, ModelConfig(), config.seed)
    stories = reading_stories(config)
    steps = config.copy_steps + config.read_steps
    optimizer = build_optimizer(model, optimizer_config(config, warmup_steps=20), steps)
    rng = np.random.default_rng(config.seed + 1)
    with Progress("tiny: read", steps) as progress:
        for step in range(1, steps + 1):
            kind = "copy" if step <= config.copy_steps else None
            examples = [example_of(stories[0], *reading(stories, rng, kind)) for _ in range(config.batch_size)]
            with training_mode(model):
                loss = learn(model, optimizer, [ask(model, example, None) for example in examples], examples)
            progress.advance(loss=loss)
            if step % config.evaluate_every == 0 or step == steps:
                log.append(config.steps + step, {"phase": "read", "loss": loss, **exact_reading(model, tests)})
                log.flush()


def learn_to_focus(config: TinyConfig, model: Model, clips: list[Clip], tests: list[Clip], log: JsonLines) -> None:
    """Cross-entropy on descriptions with a focus; the tower is frozen, so every video is encoded once.

    A share of each batch goes on reading: without it, 100 steps of descriptions unlearn all of it.
    """
    stories = reading_stories(config)
    tokens = [tokens_of(model, [clip], max(config.frames), None)[0] for clip in clips]
    optimizer = build_optimizer(model, optimizer_config(config), config.focus_steps)
    rng = np.random.default_rng([config.seed, 1])
    with Progress("tiny: focus", config.focus_steps) as progress:
        for step in range(1, config.focus_steps + 1):
            count = round(config.batch_size * FILMED_SHARE)
            chosen = [int(index) for index in rng.choice(len(clips), count, replace=len(clips) < count)]
            seen = [example_of(clips[index].story, *focused_description(clips[index].story, rng)) for index in chosen]
            read = [example_of(stories[0], *reading(stories, rng)) for _ in range(config.batch_size - count)]
            with training_mode(model):
                prompts = [ask(model, example, tokens[index]) for example, index in zip(seen, chosen, strict=True)]
                loss = learn(model, optimizer, [*prompts, *(ask(model, example, None) for example in read)], [*seen, *read])
            progress.advance(loss=loss)
            if step % config.evaluate_every == 0 or step == config.focus_steps:
                log.append(
                    config.steps + config.copy_steps + config.read_steps + step,
                    {"phase": "focus", "loss": loss} | exact_at(config, model, tests) | exact_reading(model, tests),
                )
                log.flush()


def reading_stories(config: TinyConfig) -> list[Story]:
    return [quickstart_story(READING_SEED + config.seed * NUM_READING + index) for index in range(NUM_READING)]


def quickstart_story(seed: int) -> Story:
    world = quickstart_world(Path(), 0, 1)
    return make_story(seed, seconds=world.seconds, num_scenes=world.num_scenes, event_share=world.event_share)


def optimizer_config(config: TinyConfig, warmup_steps: int | None = None) -> OptimizerConfig:
    warmup = config.warmup_steps if warmup_steps is None else warmup_steps
    return OptimizerConfig(lr=config.lr, warmup_steps=warmup, betas=(0.9, 0.98))


def learn(model: Model, optimizer: Optimizer, prompts: Sequence[Prompt], examples: Sequence[Example]) -> float:
    """One step on the descriptions `examples[i].answer`, in micro-batches of like length; returns the loss."""
    responses = [torch.tensor([*model.text_ids(example.answer), model.end_id]) for example in examples]
    num_tokens = sum(len(response) for response in responses)
    lengths = [len(prompt.token_ids) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    total = 0.0
    # Live embeddings of one batch hang on one pass through the tower, whose graph is walked once: no parts then.
    parts = [list(range(len(lengths)))] if live(prompts) else split_by_tokens(lengths, MICRO_BATCH_TOKENS)
    for part in parts:
        loss = sft_loss(model, pack_rows([prompts[i] for i in part], [responses[i] for i in part], model.device), num_tokens)
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    model.weights_version += 1
    return total


def live(prompts: Sequence[Prompt]) -> bool:
    """Whether gradients flow into the tower."""
    return any(span.tokens.embeddings.requires_grad for prompt in prompts for span in prompt.spans)


def exact_at(config: TinyConfig, model: Model, tests: list[Clip]) -> dict[str, float]:
    return {f"exact_{count}_frames": exact(model, tests, count) for count in sorted(set(config.frames))}


def show(model: Model, clips: Sequence[Clip], num_frames: int, rng: np.random.Generator | None) -> list[Prompt]:
    """Prompts for whole descriptions; see `tokens_of`."""
    return [ask(model, clip.example, tokens) for clip, tokens in zip(clips, tokens_of(model, clips, num_frames, rng), strict=True)]


def ask(model: Model, example: Example, tokens: VideoTokens | None) -> Prompt:
    return render_prompt(example, tokens, model, PromptConfig(instruction=""))


def tokens_of(model: Model, clips: Sequence[Clip], num_frames: int, rng: np.random.Generator | None) -> list[VideoTokens]:
    """`num_frames` frames of each clip, one per equal segment: jittered and with gradients with an rng, at the midpoints without.

    All clips pass the tower as one long video: its attention stays inside a temporal group, so the result is the same.
    """
    picks = [segments(len(clip.times_s), num_frames, rng) for clip in clips]
    pixels = np.concatenate([clip.pixels[pick] for clip, pick in zip(clips, picks, strict=True)])
    sampling = Sampling(len(pixels), pixels.shape[1], pixels.shape[2], "jittered", "bicubic")
    together = Frames(pixels, np.arange(len(pixels), dtype=np.float64), "clips", sampling, 0)
    encoded = model.encode(together, len(pixels), gradients=rng is not None)
    grid = (num_frames // model.temporal_patch, *encoded.grid[1:])
    seconds = [time_step(clip.times_s[pick], model.temporal_patch)[0] for clip, pick in zip(clips, picks, strict=True)]
    return [VideoTokens(piece, grid, second, "clip") for piece, second in zip(encoded.embeddings.chunk(len(clips)), seconds, strict=True)]


def segments(available: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Indices int64 [wanted] into `available` frames, ascending, one per equal segment."""
    inside = rng.random(wanted) if rng is not None else np.full(wanted, 0.5)
    return np.minimum(((np.arange(wanted) + inside) * available / wanted).astype(np.int64), available - 1)


def exact(model: Model, clips: Sequence[Clip], num_frames: int) -> float:
    """Share of the events described without a mistake and in their place, greedy decoding."""
    with torch.no_grad():
        prompts = show(model, clips, num_frames, None)
    right = total = 0
    for clip, text in zip(clips, greedy(model, prompts), strict=True):
        wanted, said = sentences(clip.example.answer), sentences(text)
        right += sum(one == other for one, other in zip(wanted, said, strict=False))
        total += len(wanted)
    return right / total


def exact_reading(model: Model, clips: Sequence[Clip]) -> dict[str, float]:
    """Per kind of reading the share of held-out texts answered without a mistake, greedy decoding."""
    stories = [clip.story for clip in clips]
    rng = np.random.default_rng(0)
    shares = {}
    for kind in ("copy", *FOCUS, "walk"):
        examples = [example_of(stories[0], *reading(stories, rng, kind)) for _ in range(READING_TESTS)]
        said = greedy(model, [ask(model, example, None) for example in examples])
        shares[f"exact_{kind}"] = sum(example.answer == text for example, text in zip(examples, said, strict=True)) / READING_TESTS
    return shares


def greedy(model: Model, prompts: Sequence[Prompt]) -> list[str]:
    requests = [RolloutRequest(index, prompt) for index, prompt in enumerate(prompts)]
    takes = TransformersEngine(model, max_rows=64).generate(requests, SamplingParams(1, 0.0, MAX_TEST_TOKENS, 0, 0))
    return [take.text for (take,) in takes]


def sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in text.split(".") if sentence.strip()]
