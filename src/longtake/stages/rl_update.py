"""The second half of an RL step: log-probs of the takes, the loss, the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from longtake.algorithms.losses import LossDenominator, Mean, add_metrics, policy_loss
from longtake.config.stages import RlConfig
from longtake.stages.training_run import TrainingRun
from longtake.training.batch import TakeBatch, split_by_tokens, take_batch
from longtake.training.policy import LogprobComparison, compare_logprobs, take_logprobs
from longtake.training.reference import Reference
from longtake.training.trainable import training_mode
from longtake.types import Example, Group, Prompt, Take


@dataclass(frozen=True, eq=False)
class TakeRow:
    """One take as a row of the update."""

    example: Example
    prompt: Prompt
    take: Take
    advantage: float
    valid: bool

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.token_ids) + len(self.take.token_ids)


@dataclass
class Updated:
    """What the updates of one step found. `policy_logprobs` are those before the take's own update, [R] per take, in order."""

    policy_logprobs: list[Tensor] = field(default_factory=list)
    metrics: dict[str, Mean] = field(default_factory=dict)
    loss: float = 0.0
    policy_loss: float = 0.0
    kl_loss: float = 0.0
    grad_norm: float = 0.0
    comparisons: list[LogprobComparison] = field(default_factory=list)
    entropy: list[tuple[float, int]] = field(default_factory=list)


def update(
    run: TrainingRun, config: RlConfig, groups: list[Group], valid: list[Tensor], estimates: list[Tensor], reference: Reference | None
) -> Updated:
    """`updates_per_step` optimizer steps, each on its own share of the groups. Raises MismatchError before the first one."""
    rows = [
        TakeRow(group.example, group.prompt, take, float(advantage), bool(usable))
        for group, usables, numbers in zip(groups, valid, estimates, strict=True)
        for take, usable, advantage in zip(group.takes, usables, numbers, strict=True)
    ]
    result = Updated(policy_logprobs=[torch.empty(0)] * len(rows))
    size = -(-len(groups) // config.updates_per_step) * config.rollout.num_takes
    for first in range(0, len(rows), size):
        indices = range(first, min(first + size, len(rows)))
        one_update(run, config, rows, indices, reference, result)
    return result


def one_update(
    run: TrainingRun, config: RlConfig, rows: list[TakeRow], indices: range, reference: Reference | None, result: Updated
) -> None:
    """One optimizer step on rows[indices]; the loss is divided by counts of the whole step, so micro-batches do not matter."""
    lengths = [len(rows[index].take.token_ids) if rows[index].valid else 0 for index in indices]
    denominator = LossDenominator.of_lengths(lengths, config.rollout.max_new_tokens)
    for part, needs_gradient in micro_batches(config, rows, indices):
        prompts = [rows[index].prompt for index in part]
        if needs_gradient and run.model.train_vision:
            prompts = run.with_live_tower([rows[index].example for index in part], prompts)
        batch = take_batch(prompts, [rows[index].take for index in part], run.model.device)
        with run.phases("update"), training_mode(run.model), torch.set_grad_enabled(needs_gradient):
            policy_lp, entropy = take_logprobs(run.model, batch, config.rollout.temperature)
        compare(config, batch, policy_lp, entropy, part, result, refuse=indices.start == 0)
        ref_lp = None
        if reference is not None:
            with run.phases("reference"):
                ref_lp = reference.logprobs(batch, config.rollout.temperature)
        with run.phases("update"):
            backward(config, [rows[index] for index in part], batch, policy_lp, ref_lp, denominator, needs_gradient, result)
    with run.phases("update"):
        result.grad_norm = run.optimizer.step()


def micro_batches(config: RlConfig, rows: list[TakeRow], indices: range) -> Iterator[tuple[list[int], bool]]:
    """(row indices, whether they need a gradient), like lengths together.

    A take with advantage 0 and no KL term adds exactly nothing to the gradient: it is only compared with the sampler.
    """
    has_kl_loss = config.algorithm.kl.coefficient > 0 and config.algorithm.kl.place == "loss"
    for needs_gradient in (True, False):
        chosen = [i for i in indices if (rows[i].valid and (rows[i].advantage != 0.0 or has_kl_loss)) == needs_gradient]
        for part in split_by_tokens([rows[i].num_tokens for i in chosen], config.micro_batch_tokens):
            yield [chosen[i] for i in part], needs_gradient


def compare(
    config: RlConfig, batch: TakeBatch, policy_lp: Tensor, entropy: Tensor, part: list[int], result: Updated, *, refuse: bool
) -> None:
    """Keep the log-probs and hold them against the sampler's. Later updates of a step have moved away from it: they are not refused."""
    mask = batch.response_mask
    limit = config.max_logprob_difference if refuse else None
    found = compare_logprobs(
        batch.sampler_logprobs, policy_lp, mask, max_difference=limit, max_mean_difference=limit / 10 if limit is not None else None
    )
    result.comparisons.append(replace(found))
    result.entropy.append((float(entropy.sum()), int(mask.sum())))
    for row, index in enumerate(part):
        result.policy_logprobs[index] = policy_lp[row, mask[row]].detach().cpu()


def backward(
    config: RlConfig,
    rows: list[TakeRow],
    batch: TakeBatch,
    policy_lp: Tensor,
    ref_lp: Tensor | None,
    denominator: LossDenominator,
    needs_gradient: bool,
    result: Updated,
) -> None:
    """This micro-batch's share of the loss, and its gradient."""
    device = policy_lp.device
    gains = torch.tensor([row.advantage for row in rows], dtype=policy_lp.dtype, device=device)
    usable = torch.tensor([row.valid for row in rows], device=device)
    mask = batch.response_mask & usable[:, None]
    part = policy_loss(policy_lp, batch.sampler_logprobs, gains, mask, config.algorithm, ref_lp, denominator=denominator)
    if needs_gradient:
        part.loss.backward()
    result.metrics = add_metrics([result.metrics, part.metrics])
    result.loss += float(part.loss.detach())
    result.policy_loss += float(part.policy_term)
    result.kl_loss += float(part.kl_term)


def update_metrics(result: Updated, lr: float) -> dict[str, float]:
    """What the step did to the policy."""
    tokens = sum(count for _, count in result.entropy)
    weights = [count for _, count in result.entropy]

    def mean(values: list[float]) -> float:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / max(1, tokens)

    return {
        "loss/total": result.loss,
        "loss/policy": result.policy_loss,
        "loss/kl": result.kl_loss,
        "optimizer/lr": lr,
        "optimizer/grad_norm": result.grad_norm,
        "policy/entropy": sum(total for total, _ in result.entropy) / max(1, tokens),
        **{f"policy/{name}": value.value() for name, value in result.metrics.items()},
        "mismatch/mean": mean([found.mean for found in result.comparisons]),
        "mismatch/kl": mean([found.kl for found in result.comparisons]),
        "mismatch/max": max((found.max for found in result.comparisons), default=0.0),
    }
