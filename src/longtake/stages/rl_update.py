"""The second half of an RL step: log-probs of the takes, the loss, the optimizer. Every prompt is computed once for all its takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from longtake.algorithms.losses import LossDenominator, Mean, PolicyLoss, add_metrics, metric_values, policy_loss
from longtake.config.stages import RlConfig
from longtake.parallel.packed import padded_rows
from longtake.stages.rl_batches import Batch, Batches, UpdateGroup, has_kl_loss
from longtake.stages.training_run import TrainingRun
from longtake.training.packed_policy import ScoredTakes, group_logprobs, score_groups
from longtake.training.policy import CHECK, LogprobComparison, compare_logprobs
from longtake.training.reference import Reference
from longtake.training.trainable import training_mode
from longtake.types import Group, Take


@dataclass
class Found:
    """What one rank's part of an update found; parts of several ranks add up."""

    metrics: dict[str, Mean] = field(default_factory=dict)
    loss: float = 0.0
    policy_loss: float = 0.0
    kl_loss: float = 0.0
    entropy_sum: float = 0.0
    num_tokens: int = 0
    logprobs: dict[int, Tensor] = field(default_factory=dict)
    """[R] of each take, by its place in the step."""

    def to_json(self) -> dict[str, Any]:
        metrics = {name: [float(mean.total), float(mean.count)] for name, mean in self.metrics.items()}
        logprobs = {str(place): values.tolist() for place, values in self.logprobs.items()}
        return vars(self) | {"metrics": metrics, "logprobs": logprobs}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Found:
        metrics = {name: Mean(*parts) for name, parts in record["metrics"].items()}
        logprobs = {int(place): torch.tensor(values, dtype=torch.float32) for place, values in record["logprobs"].items()}
        return Found(**record | {"metrics": metrics, "logprobs": logprobs})


@dataclass
class Updated:
    """What the updates of one step found."""

    policy_logprobs: list[Tensor]
    """[R] per take, in order, before the take's own update."""
    lr: float
    """Of the first update."""
    metrics: dict[str, Mean] = field(default_factory=dict)
    loss: float = 0.0
    policy_loss: float = 0.0
    kl_loss: float = 0.0
    """The three are means over the updates of the step."""
    grad_norm: float = 0.0
    """The largest of the step."""
    mismatch: LogprobComparison | None = None
    """Of takes that the trainer's present weights sampled: those of the first update, of all updates with importance correction. Without it
    the later ones have moved away from the sampler for a reason."""
    stale_mismatch: LogprobComparison | None = None
    """The same of takes that older weights sampled."""
    entropy_sum: float = 0.0
    num_tokens: int = 0
    seconds: float = 0.0
    """Of the policy's and reference's passes, on the slowest rank."""

    def add(self, found: Found) -> None:
        self.metrics = add_metrics([self.metrics, found.metrics])
        for name in ("loss", "policy_loss", "kl_loss", "entropy_sum", "num_tokens"):
            setattr(self, name, getattr(self, name) + getattr(found, name))
        for place, values in found.logprobs.items():
            self.policy_logprobs[place] = values


def update(
    run: TrainingRun,
    config: RlConfig,
    batches: Batches,
    groups: list[Group],
    valid: list[Tensor],
    estimates: list[Tensor],
    reference: Reference | None,
) -> Updated:
    """`updates_per_step` optimizer steps, each on its own share of the groups. Raises MismatchError before the first one.

    With importance correction the groups of the later updates are scored before the first one.
    """
    firsts = [sum(len(before.takes) for before in groups[:number]) for number in range(len(groups))]
    all_groups = [
        UpdateGroup(group, tuple(map(float, numbers)), tuple(map(bool, usable)), first)
        for group, numbers, usable, first in zip(groups, estimates, valid, firsts, strict=True)
    ]
    result = Updated(policy_logprobs=[torch.empty(0)] * sum(len(group.takes) for group in groups), lr=run.optimizer.lr)
    first, *later = (all_groups[share.start : share.stop] for share in shares(len(groups), config.updates_per_step))
    compared = first
    if config.importance is not None and later:
        later = with_proximal(run, config, batches, later)
        compared = [group for part in (first, *later) for group in part]
    one_update(run, config, batches, first, reference, result, compared)
    for part in later:
        one_update(run, config, batches, part, reference, result)
    num_updates = 1 + len(later)
    result.loss, result.policy_loss, result.kl_loss = (total / num_updates for total in (result.loss, result.policy_loss, result.kl_loss))
    return result


def shares(num_groups: int, num_updates: int) -> list[range]:
    """Groups of each update, in order, their numbers differing by one at most; fewer updates when there are fewer groups.

    >>> shares(5, 4)
    [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    """
    count = min(num_groups, num_updates)
    return [range(part * num_groups // count, (part + 1) * num_groups // count) for part in range(count)]


def with_proximal(run: TrainingRun, config: RlConfig, batches: Batches, parts: Sequence[list[UpdateGroup]]) -> list[list[UpdateGroup]]:
    """The groups with their takes' log-probs under the weights of now, on every rank whoever scored them."""
    run.team.heartbeat.beat(f"log-probs of step {run.step + 1}")
    own: dict[int, Tensor] = {}
    with run.phases("proximal"):
        for batch in batches.to_score([group for part in parts for group in part]):
            own |= scored_in(run, config, batch)
        every = run.team.exchange(own, Tensor.tolist, torch.tensor)
    return [
        [replace(group, proximal=tuple(every[group.first + index] for index in range(len(group.group.takes)))) for group in part]
        for part in parts
    ]


def scored_in(run: TrainingRun, config: RlConfig, batch: Batch) -> dict[int, Tensor]:
    """Log-probs [R] of a batch's takes by their place in the step, from the first rank of a sequence: the others find the same."""
    found = group_logprobs(
        run.model,
        batch.prompts,
        batch.responses,
        config.rollout.temperature,
        max_tokens=batch.max_tokens,
        mesh=batch.mesh,
        passes=batch.passes,
    )
    places = (group.first + index for group, index in batch.each())
    return dict(zip(places, found, strict=True)) if batch.mesh.sequence.rank == 0 else {}


def one_update(
    run: TrainingRun,
    config: RlConfig,
    batches: Batches,
    groups: list[UpdateGroup],
    reference: Reference | None,
    result: Updated,
    compared: Sequence[UpdateGroup] = (),
) -> None:
    """One optimizer step; the loss is divided by counts of the whole update, so neither micro-batches nor ranks matter.

    `compared`, before the first update alone: groups whose log-probs under the weights of now are known, to be held against the sampler's.
    """
    lengths = [len(response) if usable else 0 for group in groups for response, usable in zip(group.responses, group.valid, strict=True)]
    denominator = LossDenominator.of_lengths(lengths, config.rollout.max_new_tokens)
    run.team.heartbeat.beat(f"update of step {run.step + 1}")
    if run.model.train_vision and not compared:
        groups = seen_anew(run, groups)
    found, started = Found(), time.perf_counter()
    for batch in batches.of(groups):
        micro_batch(run, config, batch, reference, denominator, found)
    with run.phases("update"):  # the ranks wait here for the slowest
        for _, part in sorted(run.team.exchange({run.team.rank: found}, Found.to_json, Found.from_json).items()):
            result.add(part)
    result.seconds += time.perf_counter() - started
    if compared:
        result.mismatch, result.stale_mismatch = compare(config, compared, result.policy_logprobs, run.model.weights_version)
    result.grad_norm = max(result.grad_norm, run.apply_gradients())


def seen_anew(run: TrainingRun, groups: Sequence[UpdateGroup]) -> list[UpdateGroup]:
    """The groups with their videos as the tower sees them after the step's earlier updates."""
    prompts = run.encode_again([group.group.example for group in groups], [group.group.prompt for group in groups])
    return [replace(group, group=replace(group.group, prompt=prompt)) for group, prompt in zip(groups, prompts, strict=True)]


def micro_batch(
    run: TrainingRun, config: RlConfig, batch: Batch, reference: Reference | None, denominator: LossDenominator, found: Found
) -> None:
    """Score the takes of a batch, add their gradient, note what was found."""
    prompts, responses, temperature = batch.prompts, batch.responses, config.rollout.temperature
    ref_logprobs: list[Tensor] | None = None
    if reference is not None and has_kl_loss(config):  # a KL taken from the reward has had its pass already
        with run.phases("reference"):
            ref_logprobs = reference.logprobs(
                prompts, responses, temperature, max_tokens=batch.max_tokens, mesh=batch.mesh, passes=batch.passes
            )

    def learn(scored: ScoredTakes) -> Tensor | None:
        loss = loss_of(config, batch, scored, ref_logprobs, denominator)
        if batch.mesh.sequence.rank == 0:  # the ranks of a sequence find the same; it counts once
            keep(found, batch, scored, loss)
        return loss.loss if batch.needs_gradient else None

    with run.phases("update"), training_mode(run.model), torch.set_grad_enabled(batch.needs_gradient):
        score_groups(run.model, prompts, responses, temperature, learn, max_tokens=batch.max_tokens, mesh=batch.mesh, passes=batch.passes)


def loss_of(
    config: RlConfig, batch: Batch, scored: ScoredTakes, ref_logprobs: list[Tensor] | None, denominator: LossDenominator
) -> PolicyLoss:
    """The share of the loss of takes that were scored together."""
    device, dtype = scored.logprobs.device, scored.logprobs.dtype
    takes, every = batch.takes(), list(batch.each())
    here = [every[place] for place in scored.takes]
    sampler, _ = padded_rows([takes[place].sampler_logprobs for place in scored.takes])
    ref_lp = None if ref_logprobs is None else padded_rows([ref_logprobs[place] for place in scored.takes])[0].to(device)
    gains = torch.tensor([group.advantages[index] for group, index in here], dtype=dtype, device=device)
    usable = torch.tensor([group.valid[index] for group, index in here], device=device)
    mask = scored.mask & usable[:, None]
    proximal = [group.proximal[index] for group, index in here if group.proximal is not None]  # of all of an update's groups, or of none
    return policy_loss(
        scored.logprobs,
        sampler.to(device),
        gains,
        mask,
        config.algorithm,
        ref_lp,
        denominator=denominator,
        importance=config.importance,
        proximal_lp=padded_rows(proximal)[0].to(device) if proximal else None,
    )


def keep(found: Found, batch: Batch, scored: ScoredTakes, loss: PolicyLoss) -> None:
    """Add what a part found, and each take's log-probs in its place of the step."""
    found.metrics = add_metrics([found.metrics, loss.metrics])
    found.loss += float(loss.loss.detach())
    found.policy_loss += float(loss.policy_term)
    found.kl_loss += float(loss.kl_term)
    found.entropy_sum += float(scored.entropy.double().sum())
    found.num_tokens += int(scored.mask.sum())
    places = [group.first + index for group, index in batch.each()]
    logprobs, mask = scored.logprobs.detach().cpu(), scored.mask.cpu()
    for row, place in enumerate(scored.takes):
        found.logprobs[places[place]] = logprobs[row, mask[row]]


def compare(
    config: RlConfig, groups: Sequence[UpdateGroup], logprobs: Sequence[Tensor], weights_version: int
) -> tuple[LogprobComparison | None, LogprobComparison | None]:
    """Policy against sampler over all these groups, so that micro-batches do not decide: (takes of the trainer's `weights_version`, takes
    of older ones); None where there are none.

    `logprobs`: [R] of each take of the step, for groups that do not bring their own. Raises MismatchError for takes of the present weights
    alone: older ones differ for a reason. No weight has moved yet.
    """
    before = [
        (take, logprobs[group.first + index] if group.proximal is None else group.proximal[index])
        for group in groups
        for index, take in enumerate(group.group.takes)
    ]
    current = [(take, policy) for take, policy in before if take.weights_version >= weights_version]
    stale = [(take, policy) for take, policy in before if take.weights_version < weights_version]
    limit, remedy = config.logprob_limit, what_to_check(config, weights_version)
    return _compared(current, max_difference=limit, max_mean_difference=limit / 10, remedy=remedy), _compared(stale)


def _compared(takes: Sequence[tuple[Take, Tensor]], **limits: Any) -> LogprobComparison | None:
    if not takes:
        return None
    sampler = torch.cat([take.sampler_logprobs for take, _ in takes])
    policy = torch.cat([policy for _, policy in takes])
    return compare_logprobs(sampler, policy, torch.ones_like(sampler, dtype=torch.bool), **limits)


def what_to_check(config: RlConfig, weights_version: int) -> str:
    """The remedy for a mismatch. An engine of its own can differ from the trainer in more than the trainer's own can."""
    engine, rollout, model = config.rollout.engine, config.rollout, config.model
    if engine == "transformers":
        return CHECK
    return (
        f"the takes come from {engine}, another program: check that it was given the weights of version {weights_version}, as the takes "
        f"say, and that it has the trainer's temperature ({rollout.temperature:g}), number of frames, positions and spacing of each "
        f"video, and dtype ({model.dtype}); only then raise max_logprob_difference"
    )


def update_metrics(result: Updated) -> dict[str, float]:
    """What the step did to the policy."""
    return {
        "loss/total": result.loss,
        "loss/policy": result.policy_loss,
        "loss/kl": result.kl_loss,
        "optimizer/lr": result.lr,
        "optimizer/grad_norm": result.grad_norm,
        "policy/entropy": result.entropy_sum / max(1, result.num_tokens),
        **{f"policy/{name}": value for name, value in metric_values(result.metrics).items()},
        **mismatch_metrics("", result.mismatch),
        **mismatch_metrics("stale_", result.stale_mismatch),
    }


def mismatch_metrics(prefix: str, found: LogprobComparison | None) -> dict[str, float]:
    """None where there was nothing to compare."""
    return {} if found is None else {f"mismatch/{prefix}{name}": getattr(found, name) for name in ("mean", "kl", "max")}
