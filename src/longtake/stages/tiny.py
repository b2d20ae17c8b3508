"""`longtake tiny train`: make the tiny base model. It learns to describe world videos, and never sees a question answered.

out/world, out/held_out (videos)     out/model (the checkpoint directory; out/see and out/read after the first two phases)
out/log.jsonl (loss, and accuracy on held-out videos and texts)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from longtake.config.load import dump_config
from longtake.config.sections import ModelConfig, OptimizerConfig
from longtake.config.stages import TinyConfig, WorldConfig
from longtake.errors import ConfigError, PathError
from longtake.models import Model, load_model
from longtake.models.tiny import build_tiny
from longtake.observe.lines import JsonLines
from longtake.observe.progress import Progress, say
from longtake.parallel.packed import pack_rows
from longtake.recipes.quickstart import world as quickstart_world
from longtake.stages.tiny_clips import Clip, ask, example_of, read_clips, show, tokens_of
from longtake.stages.tiny_scores import exact_at, exact_facts, exact_reading
from longtake.training.batch import split_by_tokens
from longtake.training.export import export_model
from longtake.training.optimizer import Optimizer, build_optimizer
from longtake.training.sft_loss import sft_loss
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import Example, Prompt
from longtake.world.descriptions import INSTRUCTION, LABELS, LAST, WORDS, focused_description, reading
from longtake.world.story import Story, make_story
from longtake.world.write import rows_of, story_of, write_world

HELD_OUT_SEED = 900_000
"""Added to the seed: far from the seeds that worlds for training and evaluation use."""
READING_SEED, NUM_READING = 5_000_000, 1500
"""Stories that are only read, never filmed."""
ALONE = 100
"""Times each word and label is shown alone to the tokenizer."""
MICRO_BATCH_TOKENS = 2048
FILMED_SHARE = 0.6
"""Of each batch of the last phase; the rest is read."""


def run(config: TinyConfig) -> None:
    """Train and write out/model; the same configuration on the same machine gives the same bytes, also when it was interrupted.

    Raises PathError when the model is there already, ConfigError when `out` holds the phases of another configuration.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    refuse_occupied(config.out / PHASES[-1])
    refuse_another_run(config)
    world, held_out = worlds_of(config)
    stories = [story_of(world, index) for index in range(world.num_videos)]
    done = [name for name in PHASES if (config.out / name).exists()]
    if not done:
        build_tiny(config.out / "random", texts_of(world, stories), config.seed)
    model = load_model(ModelConfig(path=str(config.out / (done[-1] if done else "random")), train_vision=True))
    clips = read_clips(config, world, model)
    tests = read_clips(config, held_out, model)
    with JsonLines(config.out / "log.jsonl", steps_of(config, done)) as log:
        for name in PHASES[len(done) :]:
            LEARN[name](config, model, clips, tests, log)
            export_model(model, config.out / name)
            say(f"tiny: wrote {config.out / name}")


def refuse_occupied(out: Path) -> None:
    """Raises PathError now, and not when hours of training are to be written."""
    if out.exists():
        raise PathError(f"{out} is already there", rule="an export never overwrites", remedy="remove it, or choose another `out`")


def refuse_another_run(config: TinyConfig) -> None:
    """Write out/config.json, or raise ConfigError when it is there with other settings: phases of two runs make no model of either."""
    path, text = config.out / "config.json", dump_config(config)
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{config.out} holds a run with other settings", rule="a folder holds one run", remedy="remove it, or choose another `out`"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def steps_of(config: TinyConfig, done: Sequence[str]) -> int | None:
    """The last step of the phases done; None before the first."""
    steps = {"see": config.steps, "read": config.copy_steps + config.read_steps, "model": config.focus_steps}
    return sum(steps[name] for name in done) if done else None


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


def learn_to_see(config: TinyConfig, model: Model, clips: list[Clip], tests: list[Clip], log: JsonLines) -> None:
    """Cross-entropy on whole descriptions, tower included."""
    choose_trainable(model, ModelConfig(train_vision=True), config.seed)
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
                loss = learn(model, optimizer, [ask(model, example) for example in examples], examples)
            progress.advance(loss=loss)
            if step % config.evaluate_every == 0 or step == steps:
                log.append(config.steps + step, {"phase": "read", "loss": loss, **exact_reading(model, tests)})
                log.flush()


def learn_to_focus(config: TinyConfig, model: Model, clips: list[Clip], tests: list[Clip], log: JsonLines) -> None:
    """Cross-entropy on descriptions with a focus; the tower is frozen, so every video is encoded once.

    A share of each batch goes on reading: without it, 100 steps of descriptions unlearn all of it.
    """
    choose_trainable(model, ModelConfig(), config.seed)
    stories = reading_stories(config)
    tokens = [tokens_of(model, [clip], max(config.frames), None)[0] for clip in clips]
    optimizer = build_optimizer(model, optimizer_config(config), config.focus_steps)
    rng = np.random.default_rng([config.seed, 1])
    with Progress("tiny: focus", config.focus_steps) as progress:
        for step in range(1, config.focus_steps + 1):
            count = round(config.batch_size * FILMED_SHARE)
            chosen = [int(index) for index in rng.choice(len(clips), count, replace=len(clips) < count)]
            seen = [example_of(clips[index].story, *focused_description(clips[index].story, rng)) for index in chosen]
            read = [example_of(stories[0], *reading(stories, rng, mixture=LAST)) for _ in range(config.batch_size - count)]
            with training_mode(model):
                prompts = [ask(model, example, (tokens[index],)) for example, index in zip(seen, chosen, strict=True)]
                loss = learn(model, optimizer, [*prompts, *(ask(model, example) for example in read)], [*seen, *read])
            progress.advance(loss=loss)
            if step % config.evaluate_every == 0 or step == config.focus_steps:
                log.append(
                    config.steps + config.copy_steps + config.read_steps + step,
                    {"phase": "focus", "loss": loss}
                    | exact_at(config, model, tests)
                    | exact_reading(model, tests)
                    | exact_facts(config, model, tests),
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


PHASES = ("see", "read", "model")
LEARN: dict[str, Callable[[TinyConfig, Model, list[Clip], list[Clip], JsonLines], None]] = {
    "see": learn_to_see,
    "read": learn_to_read,
    "model": learn_to_focus,
}
