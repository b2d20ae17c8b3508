"""The first half of an RL step: prompts, takes, rewards, advantages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longtake.algorithms.advantages import advantages, is_uniform
from longtake.algorithms.kl import subtract_kl
from longtake.config.stages import RlConfig
from longtake.data.order import positions
from longtake.data.render import render_prompt
from longtake.errors import PromptTooLongError, VideoError
from longtake.observe.progress import say
from longtake.rewards import Rewards
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.stages.training_run import TrainingRun
from longtake.training.batch import take_batch
from longtake.training.reference import Reference
from longtake.types import Example, Group, Prompt


@dataclass
class Sampled:
    """The groups of one step and what it took to get them."""

    groups: list[Group] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    """bool [G] per group: takes that a gradient may be taken from."""
    position: int = 0
    """Data position after the step."""
    rounds: int = 0
    dropped_uniform: int = 0
    """Groups thrown away by dynamic sampling."""
    failures: Counter[str] = field(default_factory=Counter)
    """Prompts that could not be made, by kind of error: they keep their place in the data order."""


def sample_groups(run: TrainingRun, config: RlConfig, engine: TransformersEngine, rewards: Rewards) -> Sampled:
    """One round of prompts; with dynamic sampling up to max_rounds, until enough groups have something to compare."""
    sampled = Sampled(position=run.position)
    dynamic = config.algorithm.dynamic_sampling
    for sampled.rounds in range(1, (dynamic.max_rounds if dynamic else 1) + 1):
        wanted = config.prompts_per_step - len(sampled.groups)
        indices = positions(sampled.position, wanted, len(run.examples), config.seed)
        sampled.position += wanted
        asked = render_prompts(run, config, [run.examples[index] for index in indices], sampled.failures)
        for group, valid in answer(run, config, engine, rewards, asked):
            if dynamic and is_uniform(group.total_reward, valid):
                sampled.dropped_uniform += 1
            else:
                sampled.groups.append(group)
                sampled.valid.append(valid)
        if len(sampled.groups) == config.prompts_per_step:
            break
    return sampled


def render_prompts(run: TrainingRun, config: RlConfig, examples: list[Example], failures: Counter[str]) -> list[tuple[Example, Prompt]]:
    """Prompts with their videos decoded and encoded once; a row that fails is counted and said, never replaced."""
    asked = []
    for example in examples:
        try:
            video = example.video if config.data.with_video else None
            tokens = run.source.tokens(video) if video is not None else None
            asked.append((example, render_prompt(example, tokens, run.model, config.prompt)))
        except (VideoError, PromptTooLongError) as error:
            failures[type(error).__name__] += 1
            say(f"row {example.problem_id} gives no group: {error}", style="yellow")
    return asked


def answer(
    run: TrainingRun, config: RlConfig, engine: TransformersEngine, rewards: Rewards, asked: list[tuple[Example, Prompt]]
) -> list[tuple[Group, Tensor]]:
    """G takes per prompt, scored."""
    rollout = config.rollout
    params = SamplingParams(rollout.num_takes, rollout.temperature, rollout.max_new_tokens, config.seed, run.step)
    with run.phases("rollout"):
        requests = [RolloutRequest(example.problem_id, prompt) for example, prompt in asked]
        takes = engine.generate(requests, params) if requests else []
    with run.phases("reward"):
        scores = [rewards.score(example, group) for (example, _), group in zip(asked, takes, strict=True)]
    return [
        (Group(example, prompt, group, score.named, score.total), score.valid)
        for (example, prompt), group, score in zip(asked, takes, scores, strict=True)
    ]


def group_advantages(run: TrainingRun, config: RlConfig, sampled: Sampled, reference: Reference | None) -> list[Tensor]:
    """Advantages [G] per group; with kl.place == "reward" the KL to the reference is taken from the rewards first."""
    totals = [group.total_reward for group in sampled.groups]
    if reference is not None and config.algorithm.kl.place == "reward":
        with run.phases("reference"):
            totals = [minus_kl(run, config, group, reference) for group in sampled.groups]
    return advantages(totals, config.algorithm, sampled.valid)


def minus_kl(run: TrainingRun, config: RlConfig, group: Group, reference: Reference) -> Tensor:
    """A group's total rewards [G] less the KL of its takes; a uniform group stays uniform, it must not train on the KL's noise."""
    if is_uniform(group.total_reward):
        return group.total_reward
    batch = take_batch([group.prompt] * len(group.takes), group.takes, run.model.device)
    ref_lp = reference.logprobs(batch, config.rollout.temperature)
    rewards = group.total_reward.to(ref_lp.device)
    return subtract_kl(rewards, batch.sampler_logprobs, ref_lp, batch.response_mask, config.algorithm.kl).cpu()


def rollout_metrics(config: RlConfig, sampled: Sampled, estimates: list[Tensor]) -> dict[str, float]:
    """What the step sampled: each named reward apart, lengths, stop reasons, uniform groups, failures."""
    takes = [take for group in sampled.groups for take in group.takes]
    metrics = {
        "count/groups": float(len(sampled.groups)),
        "count/takes": float(len(takes)),
        "count/rounds": float(sampled.rounds),
        "count/dropped_uniform_groups": float(sampled.dropped_uniform),
        "failures/total": float(sum(sampled.failures.values())),
        **{f"failures/{kind}": float(count) for kind, count in sampled.failures.items()},
    }
    if not takes:
        return metrics
    lengths = torch.tensor([len(take.token_ids) for take in takes], dtype=torch.float64)
    uniform = [is_uniform(group.total_reward, valid) for group, valid in zip(sampled.groups, sampled.valid, strict=True)]
    names = sampled.groups[0].rewards
    return metrics | {
        **{f"reward/{name}": float(torch.cat([group.rewards[name] for group in sampled.groups]).mean()) for name in names},
        "reward/total": float(torch.cat([group.total_reward for group in sampled.groups]).mean()),
        "group/uniform": sum(uniform) / len(uniform),
        "advantage/abs": float(torch.cat(estimates).abs().mean()),
        "rollout/response_tokens": float(lengths.mean()),
        "rollout/response_tokens/max": float(lengths.max()),
        "rollout/truncated": sum(take.finish_reason == "length" for take in takes) / len(takes),
        "tokens/response": float(lengths.sum()),
        "tokens/prompt": float(sum(len(group.prompt.token_ids) for group in sampled.groups)),
    }
