"""The first half of an RL step: prompts, takes, rewards, advantages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longtake.algorithms.advantages import advantages, is_uniform
from longtake.algorithms.kl import subtract_kl
from longtake.config.stages import RlConfig
from longtake.parallel.packed import padded_rows
from longtake.rewards import Rewards
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.spread_prefill import is_spread, prefill_mesh, spread_prefill
from longtake.stages.take_records import scored_from_json, scored_to_json
from longtake.stages.training_run import Asked, TrainingRun
from longtake.training.reference import Reference
from longtake.types import Group


@dataclass
class Sampled:
    """The groups of one step and what it took to get them."""

    groups: list[Group] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    """bool [G] per group: takes that a gradient may be taken from."""
    dropped: list[Group] = field(default_factory=list)
    """Groups thrown away by dynamic sampling: not learned from, but logged and counted like the others."""
    dropped_valid: list[Tensor] = field(default_factory=list)
    """Of them, as `valid`."""
    position: int = 0
    """Data position after the step."""
    rounds: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Prompts that could not be made, by kind of error: they keep their place in the data order."""
    kl_penalty: list[Tensor] = field(default_factory=list)
    """[G] per group: the KL taken from the rewards, weighted; empty unless kl.place is reward."""


class Sampling:
    """The batches of a run, in the order of the data."""

    def __init__(self, run: TrainingRun, config: RlConfig, rewards: Rewards) -> None:
        self._run, self._config, self._rewards = run, config, rewards
        self._ahead: Sampled | None = None

    def batch(self) -> Sampled:
        """That of this step. With rollout.staleness 1 it was sampled in the step before, and the next one is sampled now, with the weights
        that this step's update has not yet moved; a run that has just started or resumed has none yet and samples both."""
        run = self._run
        this = self._ahead or self._sample(run.position, run.step)
        has_next = self._config.rollout.staleness > 0 and run.step + 1 < run.total_steps
        self._ahead = self._sample(this.position, run.step + 1) if has_next else None
        return this

    def _sample(self, position: int, step: int) -> Sampled:
        return sample_groups(self._run, self._config, self._rewards, position, step)


def sample_groups(run: TrainingRun, config: RlConfig, rewards: Rewards, position: int, step: int) -> Sampled:
    """One round of prompts from data position `position`; with dynamic sampling up to max_rounds, until enough groups have something to
    compare. `step` selects the random numbers."""
    sampled = Sampled(position=position)
    dynamic = config.algorithm.dynamic_sampling
    for round_number in range(1, (dynamic.max_rounds if dynamic else 1) + 1):
        sampled.rounds = round_number
        wanted = config.prompts_per_step - len(sampled.groups)
        asked, failures = run.ask(sampled.position, wanted)
        sampled.position += wanted
        sampled.failures += failures
        for group, valid in answer(run, config, rewards, asked, step):
            if dynamic and is_uniform(group.total_reward, valid):
                sampled.dropped.append(group)
                sampled.dropped_valid.append(valid)
            else:
                sampled.groups.append(group)
                sampled.valid.append(valid)
        if len(sampled.groups) == config.prompts_per_step:
            break
    return sampled


def answer(run: TrainingRun, config: RlConfig, rewards: Rewards, asked: Sequence[Asked], step: int) -> list[tuple[Group, Tensor]]:
    """G takes per prompt, scored; each rank, or engine of several, answers some of the prompts, the longest first to who has the least.

    Random numbers are drawn by data position, not by problem id: a row that comes twice in a step (a small set, a second round of
    dynamic sampling) is answered anew.
    """
    run.team.heartbeat.beat(f"rollout of step {run.step + 1}")
    rollout = config.rollout
    params = SamplingParams(rollout.num_takes, rollout.temperature, rollout.max_new_tokens, config.seed, step)
    together = run.engine.ranks_per_engine
    shares = run.team.share([len(row.prompt.token_ids) for row in asked], together)
    own = shares[run.team.rank]
    with run.phases("rollout"), run.engine.at_weights():
        requests = own_requests(run, asked, shares)
        takes = run.engine.generate(requests, params) if own else []
    run.team.heartbeat.beat(f"rewards of step {run.step + 1}")
    with run.phases("reward"):  # by one of the ranks that share an engine
        mine = list(zip(own, takes, strict=True)) if run.team.rank % together == 0 else []
        scores = rewards.score_all([(asked[index].example, group) for index, group in mine])
        scored = {index: (group, score) for (index, group), score in zip(mine, scores, strict=True)}
    with run.phases("rollout"):  # the ranks wait here for the slowest
        everything = run.team.exchange(scored, scored_to_json, scored_from_json)
    found = [(row, *everything[index]) for index, row in enumerate(asked)]
    return [(Group(row.example, row.prompt, group, score.named, score.total, score.unjudged), score.valid) for row, group, score in found]


def own_requests(run: TrainingRun, asked: Sequence[Asked], shares: Sequence[Sequence[int]]) -> list[RolloutRequest]:
    """Of the prompts that this rank answers, `shares[rank]`. Fewer long prompts than ranks are prefilled by all together, where the engine
    can go on from there."""
    world, prefilled = run.team.world, {}
    if run.engine.takes_prefilled and is_spread([row.prompt for row in asked], world.size):
        owner = {index: rank for rank, part in enumerate(shares) for index in part}
        mesh = prefill_mesh(run.model, world)
        prefilled = {index: spread_prefill(run.model, row.prompt, owner[index], mesh) for index, row in enumerate(asked)}
    return [RolloutRequest(asked[index].position, asked[index].prompt, prefilled.get(index)) for index in shares[world.rank]]


def group_advantages(run: TrainingRun, config: RlConfig, sampled: Sampled, reference: Reference | None) -> list[Tensor]:
    """Advantages [G] per group; with kl.place == "reward" the KL to the reference is taken from the rewards first."""
    totals = [group.total_reward for group in sampled.groups]
    if reference is not None and config.algorithm.kl.place == "reward":
        with run.phases("reference"), reference.gathered():
            own = run.team.share([float(len(group.prompt.token_ids)) for group in sampled.groups])[run.team.rank]
            mine = {index: minus_kl(run, config, sampled.groups[index], sampled.valid[index], reference) for index in own}
            found = run.team.exchange(mine, Tensor.tolist, torch.tensor)
            reduced = [found[index].to(total) for index, total in enumerate(totals)]
        sampled.kl_penalty = [total - less for total, less in zip(totals, reduced, strict=True)]
        totals = reduced
    return advantages(totals, config.algorithm, sampled.valid)


def minus_kl(run: TrainingRun, config: RlConfig, group: Group, valid: Tensor, reference: Reference) -> Tensor:
    """A group's total rewards [G] less the KL of its takes; a uniform group stays uniform, it must not train on the KL's noise."""
    if is_uniform(group.total_reward, valid):
        return group.total_reward
    responses = [take.token_ids for take in group.takes]
    ref_logprobs = reference.logprobs([group.prompt], [responses], config.rollout.temperature, max_tokens=config.micro_batch_tokens)
    ref_lp, mask = padded_rows(ref_logprobs)
    sampler_lp, _ = padded_rows([take.sampler_logprobs for take in group.takes])
    return subtract_kl(group.total_reward, sampler_lp, ref_lp, mask, config.algorithm.kl).to(group.total_reward)


def rollout_metrics(sampled: Sampled, estimates: Sequence[Tensor], weights_version: int) -> dict[str, float]:
    """What the step sampled: each named reward apart, lengths, stop reasons, uniform groups, and how far behind `weights_version` it was.

    Over ALL takes, those of dropped groups included: a mean over the groups that were kept would say nothing about the policy. A take whose
    reward is not known is in no mean of it.
    """
    groups = [*sampled.groups, *sampled.dropped]
    takes = [take for group in groups for take in group.takes]
    metrics = {
        "count/groups": float(len(sampled.groups)),
        "count/takes": float(len(takes)),
        "count/rounds": float(sampled.rounds),
        "count/dropped_uniform_groups": float(len(sampled.dropped)),
    }
    if not takes:
        return metrics
    lengths = torch.tensor([len(take.token_ids) for take in takes], dtype=torch.float64)
    pairs = zip(sampled.groups, sampled.valid, strict=True)
    num_uniform = len(sampled.dropped) + sum(is_uniform(group.total_reward, valid) for group, valid in pairs)
    if estimates:
        metrics["advantage/abs"] = float(torch.cat(list(estimates)).abs().mean())
    if sampled.kl_penalty:
        metrics |= known_mean("reward/kl_penalty", sampled.kl_penalty)
    for name in groups[0].rewards:
        metrics |= known_mean(f"reward/{name}", [group.rewards[name] for group in groups])
    for source in sorted({group.example.source for group in groups} - {""}):
        own = [group for group in groups if group.example.source == source]
        metrics |= known_mean(f"accuracy/{source}", [group.rewards["accuracy"] for group in own])
        metrics[f"count/groups_of_{source}"] = float(len(own))
    return metrics | {
        **known_mean("reward/total", [group.total_reward for group in groups]),
        "group/uniform": num_uniform / len(groups),
        "rollout/response_tokens": float(lengths.mean()),
        "rollout/response_tokens/max": float(lengths.max()),
        "rollout/staleness/max": float(max(weights_version - take.weights_version for take in takes)),
        "rollout/truncated": sum(take.finish_reason == "length" for take in takes) / len(takes),
        "tokens/response": float(lengths.sum()),
        "tokens/prompt": float(sum(len(group.prompt.token_ids) for group in groups)),
    }


def known_mean(name: str, values: Sequence[Tensor]) -> dict[str, float]:
    """The mean of those that are known (not NaN); nothing where none is."""
    every = torch.cat(list(values))
    known = every[~every.isnan()]
    return {name: float(known.mean())} if known.numel() else {}
