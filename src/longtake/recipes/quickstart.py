"""The whole method on two CPU cores: a world, SFT on a third of its rows, GRPO on the rest, and everything held against a control.

train world --split by video--> sft rows (1/3)   rl rows (2/3)         validation world, held-out world: other seeds
tiny base --SFT--> sft --GRPO--> rl                                     base and blind are scored, not trained on
                    +--more SFT for as many seconds as GRPO takes--> sft_control
tiny base --SFT without the video--> sft_blind
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longtake.config.sections import (
    AlgorithmConfig,
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PromptConfig,
    RolloutConfig,
    ValidationConfig,
    VideoConfig,
)
from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig, WorldConfig

FRAMES = (8, 16, 32)
"""Evaluated at a quarter, half and all of the frames that training uses."""
VIDEO = VideoConfig(max_frames=FRAMES[-1], max_pixels_per_frame=28 * 28)
PROMPT = PromptConfig(instruction="")
"""The tiny model reads no instruction: the form of the response is what SFT teaches it."""
MAX_NEW_TOKENS = 112
BRIEF_SHARE = 0.8
"""Of the chains of thought that SFT imitates: they name the deciding fact without describing the video first, as people do who think
they have seen it. Which questions need the longer way is what RL has to find out."""
SFT_SHARE = 1 / 3
"""Of the training videos; the rest is for RL (the published split)."""


@dataclass(frozen=True)
class Quickstart:
    """Every configuration of the run, in the order in which they are used."""

    train_world: WorldConfig
    validation_world: WorldConfig
    held_out_world: WorldConfig
    sft: SftConfig
    sft_blind: SftConfig
    rl: RlConfig
    sft_control: SftConfig
    evaluations: dict[str, EvaluateConfig]


def quickstart(
    out: Path, seed: int, *, num_videos: int = 450, num_held_out: int = 130, sft_steps: int = 500, rl_steps: int = 100
) -> Quickstart:
    """`num_videos` to train on and `num_held_out` to evaluate on, four questions each."""
    worlds = [world(out / "data" / name, 3 * seed + offset, count, BRIEF_SHARE) for name, offset, count in splits(num_videos, num_held_out)]
    sft = sft_config(out, "sft", seed, sft_steps)
    blind = sft_config(out, "sft_blind", seed, sft_steps, with_video=False)
    return Quickstart(
        train_world=worlds[0],
        validation_world=worlds[1],
        held_out_world=worlds[2],
        sft=sft,
        sft_blind=blind,
        rl=rl_config(out, seed, rl_steps),
        sft_control=control_config(out, sft),
        evaluations=evaluations(out, seed),
    )


def splits(num_videos: int, num_held_out: int) -> tuple[tuple[str, int, int], ...]:
    return ("train", 0, num_videos), ("validation", 1, 32), ("held_out", 2, num_held_out)


def world(out: Path, seed: int, num_videos: int, brief: float = 0.0) -> WorldConfig:
    """About a minute per video, five scenes, one question of each category."""
    return WorldConfig(out=out, seed=seed, num_videos=num_videos, seconds=(56.0, 72.0), num_scenes=(5, 5), brief=brief)


def rows(out: Path, split: str, *, with_video: bool = True) -> DataConfig:
    """`sft` and `rl` share the videos folder of `train`."""
    folder = out / "data" / ("train" if split in ("sft", "rl") else split)
    return DataConfig(
        rows=out / "data" / f"{split}.jsonl" if split in ("sft", "rl") else folder / "rows.jsonl", root=folder, with_video=with_video
    )


def sft_config(out: Path, name: str, seed: int, steps: int, *, with_video: bool = True) -> SftConfig:
    """Until the held-out accuracy has not risen for `patience` validations, `steps` at most."""
    return SftConfig(
        out=out / name,
        seed=seed,
        video=VIDEO,
        prompt=PROMPT,
        data=rows(out, "sft", with_video=with_video),
        optimizer=OptimizerConfig(lr=3e-4, warmup_steps=10, schedule="constant", betas=(0.9, 0.98)),
        max_steps=steps,
        batch_size=32,
        micro_batch_size=32,
        validation=validation(out, with_video=with_video, every=25, patience=6),
        checkpoint=CheckpointConfig(every=1000),
        num_threads=1,
    )


def control_config(out: Path, sft: SftConfig) -> SftConfig:
    """SFT goes on from where it was best, on the same rows, for as many seconds as RL took (the stage sets them)."""
    assert sft.validation is not None
    return sft.model_copy(
        update={
            "out": out / "sft_control",
            "model": ModelConfig(path=str(out / "models" / "sft")),
            "max_steps": 100_000,
            "validation": sft.validation.model_copy(update={"patience": None}),
        }
    )


def rl_config(out: Path, seed: int, steps: int) -> RlConfig:
    """GRPO as published, on the two thirds of the videos that SFT has not seen.

    At a learning rate of 1e-4 the noise of 16 prompts a step undoes what SFT taught.
    """
    return RlConfig(
        out=out / "rl",
        seed=seed,
        model=ModelConfig(path=str(out / "models" / "sft")),
        video=VIDEO,
        prompt=PROMPT,
        data=rows(out, "rl"),
        optimizer=OptimizerConfig(lr=6e-5, warmup_steps=5, schedule="constant", betas=(0.9, 0.98)),
        steps=steps,
        prompts_per_step=16,
        rollout=RolloutConfig(num_takes=8, max_new_tokens=MAX_NEW_TOKENS, max_rows=128),
        algorithm=AlgorithmConfig(),
        validation=validation(out, with_video=True, every=20, patience=None),
        checkpoint=CheckpointConfig(every=1000),
        num_threads=1,
    )


def validation(out: Path, *, with_video: bool, every: int, patience: int | None) -> ValidationConfig:
    return ValidationConfig(
        data=rows(out, "validation", with_video=with_video), num_rows=128, every=every, patience=patience, max_new_tokens=MAX_NEW_TOKENS
    )


def evaluations(out: Path, seed: int) -> dict[str, EvaluateConfig]:
    """On the held-out world; the base by the log-probs of the option letters, since it has never seen an answer's form."""

    def evaluate(name: str, model: str, **changes: object) -> EvaluateConfig:
        config = EvaluateConfig(
            out=out / "eval" / name,
            model=ModelConfig(path=model),
            video=VIDEO,
            prompt=PROMPT,
            data=rows(out, "held_out"),
            frames=FRAMES,
            rollout=RolloutConfig(num_takes=1, temperature=0.0, max_new_tokens=MAX_NEW_TOKENS, max_rows=128),
            seed=seed,
            num_threads=1,
        )
        return config.model_copy(update=changes)

    trained = {name: evaluate(name, str(out / "models" / name)) for name in ("sft", "sft_control", "rl")}
    blind = evaluate("blind", str(out / "models" / "sft_blind"), data=rows(out, "held_out", with_video=False))
    return {"base": evaluate("base", "tiny", scoring="letters"), **trained, "blind": blind}
