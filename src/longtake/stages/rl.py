"""`longtake rl`: GRPO and its relatives. Sample groups, score them, take the gradient, say what happened; again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from longtake.config.stages import RlConfig
from longtake.errors import NoSignalError
from longtake.observe.lines import JsonLines
from longtake.observe.progress import say
from longtake.rewards import Rewards
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.stages.rl_rollout import Sampled, group_advantages, rollout_metrics, sample_groups
from longtake.stages.rl_update import Updated, update, update_metrics
from longtake.stages.training_run import TrainingRun
from longtake.training.reference import Reference

MAX_STEPS_WITHOUT_SIGNAL = 20
"""So many steps in a row without one group to learn from are no bad luck."""


def run(config: RlConfig) -> None:
    """Train and leave checkpoints, metrics.jsonl and takes.jsonl in config.out; resumes by itself.

    Raises MismatchError when sampler and policy disagree, NoSignalError when the rewards have nothing to say for many steps.
    """
    run = TrainingRun(config, "rl")
    reference = Reference(run.model) if config.algorithm.kl.coefficient > 0 else None  # of the starting weights: before any resume
    rewards = Rewards(config.rewards, config.rollout.max_new_tokens, config.algorithm.overlong)
    engine = TransformersEngine(run.model, config.rollout.max_rows)
    run.start(config.steps)
    with run, JsonLines(config.out / "takes.jsonl", resume_at=run.step if run.resumed else None) as takes_log:
        while not run.finished():
            sampled = sample_groups(run, config, engine, rewards)
            estimates = group_advantages(run, config, sampled, reference)
            metrics = rollout_metrics(config, sampled, estimates) | run.source.metrics()
            if sampled.groups:
                lr = run.optimizer.lr
                updated = update(run, config, sampled.groups, sampled.valid, estimates, reference)
                metrics |= update_metrics(updated, lr)
                for record in take_records(sampled, estimates, updated):
                    takes_log.append(run.step + 1, record)
                takes_log.sync()
            check_signal(run, estimates)
            run.end_step(sampled.position, metrics, reward=metrics.get("reward/total", 0.0))
    best = f"; best validation accuracy {run.best.accuracy:.3f} at step {run.best.step}" if run.validation else ""
    say(f"rl: done at step {run.step}{best}")


def check_signal(run: TrainingRun, estimates: list[Tensor]) -> None:
    """Count steps in which nothing could be learned. A step without groups makes no update, and says so."""
    if any(bool((estimate != 0).any()) for estimate in estimates):
        run.steps_without_signal = 0
        return
    run.steps_without_signal += 1
    say(f"rl: step {run.step + 1}: no group with different rewards; nothing to learn from", style="yellow")
    if run.steps_without_signal >= MAX_STEPS_WITHOUT_SIGNAL:
        raise NoSignalError(
            f"{run.steps_without_signal} steps in a row without a group whose rewards differ",
            rule="GRPO learns from differences inside a group",
            remedy="choose rows that the model answers right sometimes, start from a better SFT model, or raise the temperature",
        )


def take_records(sampled: Sampled, estimates: list[Tensor], updated: Updated) -> Iterator[dict[str, Any]]:
    """One JSON record per take: what was said, what it earned, how likely it was to the sampler and to the policy."""
    logprobs = iter(updated.policy_logprobs)
    for group, numbers in zip(sampled.groups, estimates, strict=True):
        for index, (take, advantage) in enumerate(zip(group.takes, numbers, strict=True)):
            yield {
                "problem_id": group.example.problem_id,
                "take": index,
                "text": take.text,
                "finish_reason": take.finish_reason,
                "rewards": {name: float(values[index]) for name, values in group.rewards.items()},
                "total_reward": float(group.total_reward[index]),
                "advantage": float(advantage),
                "token_ids": take.token_ids.tolist(),
                "sampler_logprobs": take.sampler_logprobs.tolist(),
                "policy_logprobs": next(logprobs).tolist(),
                "weights_version": take.weights_version,
                "prompt_digest": group.prompt.digest,
                "video_digests": [span.tokens.digest for span in group.prompt.spans],
            }
