"""`longtake rl`: GRPO and its relatives. Sample groups, score them, take the gradient, say what happened; again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from typing import Any

from torch import Tensor

from longtake.config.stages import RlConfig
from longtake.data.render import longest_prompt
from longtake.errors import ConfigError, MismatchError, NoSignalError
from longtake.models.loading import model_folder
from longtake.observe.progress import say
from longtake.rewards import Rewards
from longtake.rollout.engines import make_engine
from longtake.rollout.judges import open_judge
from longtake.stages.rl_batches import Batches
from longtake.stages.rl_judge import JudgeWatch
from longtake.stages.rl_rollout import Sampled, Sampling, group_advantages, rollout_metrics
from longtake.stages.rl_update import update, update_metrics
from longtake.stages.team import joined
from longtake.stages.training_run import TrainingRun
from longtake.training.reference import Reference
from longtake.types import Group

MAX_STEPS_WITHOUT_SIGNAL = 20
"""So many steps in a row without one group to learn from are no bad luck."""


def run(config: RlConfig) -> None:
    """Train and leave checkpoints, metrics.jsonl and takes.jsonl in config.out; resumes by itself.

    Raises MismatchError when sampler and policy disagree, NoSignalError when the rewards have nothing to say for many steps, LlmError when
    the judge has not, BudgetError when it has cost what it may.
    """
    refuse_dropout(config)
    with (
        joined(config.parallel, config.model.device, can_shard=True) as team,
        open_judge(config.rewards.judge, config.out, team.rank) as judge,
    ):
        train(config, TrainingRun(config, "rl", team, judge))


def train(config: RlConfig, run: TrainingRun) -> None:
    """The loop."""
    reference = Reference(run.model) if config.algorithm.kl.coefficient > 0 else None  # of the starting weights: before any resume
    of_sources = {name: source.rewards for name, source in config.data.sources.items()}
    rewards = Rewards(config.rewards, config.rollout.max_new_tokens, config.algorithm.overlong, run.judge, of_sources)
    sampling, watch = Sampling(run, config, rewards), JudgeWatch(run)
    num_own = -(-config.prompts_per_step // run.team.world.size)  # prompts of a step that a process answers
    batches = Batches(config, run.team, run.model.device, run.model.dtype)
    run.start(config.steps, config.updates_per_step, reference)
    longest = longest_prompt([*run.examples, *run.validation_examples], run.model, config.video, config.prompt)
    run.engine = make_engine(
        run.model, model_folder(config.model), config.engine_setting, longest, num_own, axis=run.team.axis, out=config.out
    )
    with run, run.lines("takes.jsonl") as takes_log:
        run.begin()
        while not run.finished():
            sampled = sampling.batch()
            refuse_stale(run, config, sampled)
            judged = watch.look(sampled)
            estimates = group_advantages(run, config, sampled, reference)
            metrics = rollout_metrics(sampled, estimates, run.model.weights_version) | run.failure_metrics(sampled.failures) | judged
            policy_logprobs: list[Tensor] = []
            if sampled.groups:
                updated = update(run, config, batches, sampled.groups, sampled.valid, estimates, reference)
                metrics |= update_metrics(updated) | batches.metrics(updated.seconds)
                policy_logprobs = updated.policy_logprobs
            for record in take_records(sampled, estimates, policy_logprobs):
                takes_log.append(run.step + 1, record)
            takes_log.sync()
            count_signal(run, estimates)
            run.end_step(sampled.position, metrics, reward=metrics.get("reward/total", 0.0))
            watch.refuse_silence()
            refuse_silence(run)
    say(f"rl: done at step {run.step}{run.best}")


def refuse_dropout(config: RlConfig) -> None:
    """Raises ConfigError: with dropout the policy that is updated is not the one that sampled."""
    if config.model.lora is not None and config.model.lora.dropout > 0:
        raise ConfigError(
            f"model.lora.dropout = {config.model.lora.dropout} in RL",
            rule="the policy that is updated is the one that sampled, and sampling has no dropout",
            remedy="set model.lora.dropout = 0",
        )


def refuse_stale(run: TrainingRun, config: RlConfig, sampled: Sampled) -> None:
    """Raises MismatchError when a take was sampled by older weights than rollout.staleness allows."""
    versions = {take.weights_version for group in sampled.groups for take in group.takes}
    if versions and min(versions) < run.model.weights_version - config.rollout.staleness:
        raise MismatchError(
            f"takes of weights {min(versions)} at weights {run.model.weights_version}",
            rule=f"takes are at most rollout.staleness = {config.rollout.staleness} updates old",
            remedy=f"the engine ({config.rollout.engine}) was not given the new weights; report it",
        )


def count_signal(run: TrainingRun, estimates: Sequence[Tensor]) -> None:
    """Count steps in a row in which nothing could be learned. A step without groups makes no update, and says so."""
    if any(bool((estimate != 0).any()) for estimate in estimates):
        run.steps_without_signal = 0
        return
    run.steps_without_signal += 1
    say(f"rl: step {run.step + 1}: no group with different rewards; nothing to learn from", style="yellow")


def refuse_silence(run: TrainingRun) -> None:
    """Raises NoSignalError after MAX_STEPS_WITHOUT_SIGNAL steps without signal; what was done until then is saved."""
    if run.steps_without_signal >= MAX_STEPS_WITHOUT_SIGNAL:
        run.save_if_new()
        raise NoSignalError(
            f"{run.steps_without_signal} steps in a row without a group whose rewards differ",
            rule="GRPO learns from differences inside a group",
            remedy="choose rows that the model answers right sometimes, start from a better SFT model, or raise the temperature",
        )


def take_records(sampled: Sampled, estimates: Sequence[Tensor], policy_logprobs: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """One JSON record per take: what was said, what it earned, how likely it was to the sampler and to the policy.

    Takes of a group that dynamic sampling threw away are there too; the policy never scored them, so those log-probs are null.
    """
    scored = iter(policy_logprobs)
    for group, valid, advantages in zip(sampled.groups, sampled.valid, estimates, strict=True):
        for index, advantage in enumerate(advantages.tolist()):
            learned = {"advantage": advantage, "policy_logprobs": next(scored).tolist(), "dropped": False}
            yield take_record(group, valid, index) | learned
    for group, valid in zip(sampled.dropped, sampled.dropped_valid, strict=True):
        for index in range(len(group.takes)):
            yield take_record(group, valid, index) | {"advantage": 0.0, "policy_logprobs": None, "dropped": True}


def take_record(group: Group, valid: Tensor, index: int) -> dict[str, Any]:
    """What is known of a take before any update; a reward that is not known is null."""
    take = group.takes[index]
    return {
        "problem_id": group.example.problem_id,
        **({"source": group.example.source} if group.example.source else {}),
        "take": index,
        "text": take.text,
        "finish_reason": take.finish_reason,
        "rewards": {name: known(values[index]) for name, values in group.rewards.items()},
        "total_reward": known(group.total_reward[index]),
        "valid": bool(valid[index]),
        "unjudged": group.unjudged[index] if group.unjudged else None,
        "token_ids": take.token_ids.tolist(),
        "sampler_logprobs": take.sampler_logprobs.tolist(),
        "weights_version": take.weights_version,
        "prompt_digest": group.prompt.digest,
        "video_digests": [span.tokens.digest for span in group.prompt.spans],
    }


def known(reward: Tensor) -> float | None:
    value = float(reward)
    return None if isnan(value) else value
