"""The second half of an RL step: log-probs of the takes, the loss, the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longtake.algorithms.losses import LossDenominator, Mean, PolicyLoss, add_metrics, policy_loss
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
    mismatch: LogprobComparison = field(default_factory=lambda: LogprobComparison(0.0, 0.0, 0.0))
    """Of the takes of the first update: the later ones have moved away from the sampler for a reason."""
    entropy_sum: float = 0.0
    num_tokens: int = 0


def update(
    run: TrainingRun, config: RlConfig, groups: list[Group], valid: list[Tensor], estimates: list[Tensor], reference: Reference | None
) -> Updated:
    """`updates_per_step` optimizer steps, each on its own share of the groups. Raises MismatchError before the first one."""
    rows = [
        TakeRow(group.example, group.prompt, take, float(advantage), bool(usable))
        for group, usables, numbers in zip(groups, valid, estimates, strict=True)
        for take, usable, advantage in zip(group.takes, usables, numbers, strict=True)
    ]
    result = Updated(policy_logprobs=[torch.empty(0)] * len(rows), lr=run.optimizer.lr)
    for share in shares(len(groups), config.updates_per_step):
        indices = range(share.start * config.rollout.num_takes, share.stop * config.rollout.num_takes)
        one_update(run, config, rows, indices, reference, result)
    num_updates = min(len(groups), config.updates_per_step)
    result.loss, result.policy_loss, result.kl_loss = (total / num_updates for total in (result.loss, result.policy_loss, result.kl_loss))
    return result


def shares(num_groups: int, num_updates: int) -> list[range]:
    """Groups of each update, in order, their numbers differing by one at most; fewer updates when there are fewer groups.

    >>> shares(5, 4)
    [range(0, 1), range(1, 2), range(2, 3), range(3, 5)]
    """
    count = min(num_groups, num_updates)
    return [range(part * num_groups // count, (part + 1) * num_groups // count) for part in range(count)]


def one_update(
    run: TrainingRun, config: RlConfig, rows: list[TakeRow], indices: range, reference: Reference | None, result: Updated
) -> None:
    """One optimizer step on rows[indices]; the loss is divided by counts of the whole update, so micro-batches do not matter."""
    lengths = [len(rows[index].take.token_ids) if rows[index].valid else 0 for index in indices]
    denominator = LossDenominator.of_lengths(lengths, config.rollout.max_new_tokens)
    for part, needs_gradient in micro_batches(config, rows, indices):
        chosen = [rows[index] for index in part]
        prompts = [row.prompt for row in chosen]
        if needs_gradient and run.model.train_vision:
            prompts = run.with_live_tower([row.example for row in chosen], prompts)
        batch = take_batch(prompts, [row.take for row in chosen], run.model.device)
        ref_lp = reference_logprobs(run, config, batch, reference)
        with run.phases("update"), training_mode(run.model), torch.set_grad_enabled(needs_gradient):
            policy_lp, entropy = take_logprobs(run.model, batch, config.rollout.temperature)
            loss = loss_of(config, chosen, batch, policy_lp, ref_lp, denominator)
            if needs_gradient:
                loss.loss.backward()
        keep(result, batch, policy_lp, entropy, part, loss)
    if indices.start == 0:
        result.mismatch = compare(config, rows, indices, result)
    with run.phases("update"):
        result.grad_norm = max(result.grad_norm, run.optimizer.step())


def micro_batches(config: RlConfig, rows: Sequence[TakeRow], indices: range) -> Iterator[tuple[list[int], bool]]:
    """(row indices, whether they need a gradient), like lengths together.

    A take with advantage 0 and no KL term adds exactly nothing to the gradient: it is only compared with the sampler.
    """
    for needs_gradient in (True, False):
        chosen = [i for i in indices if (rows[i].valid and (rows[i].advantage != 0.0 or has_kl_loss(config))) == needs_gradient]
        for part in split_by_tokens([rows[i].num_tokens for i in chosen], config.micro_batch_tokens):
            yield [chosen[i] for i in part], needs_gradient


def has_kl_loss(config: RlConfig) -> bool:
    return config.algorithm.kl.coefficient > 0 and config.algorithm.kl.place == "loss"


def reference_logprobs(run: TrainingRun, config: RlConfig, batch: TakeBatch, reference: Reference | None) -> Tensor | None:
    """[M, R], or None where no loss needs them: a KL taken from the reward has had its pass already."""
    if reference is None or not has_kl_loss(config):
        return None
    with run.phases("reference"):
        return reference.logprobs(batch, config.rollout.temperature)


def loss_of(
    config: RlConfig, rows: Sequence[TakeRow], batch: TakeBatch, policy_lp: Tensor, ref_lp: Tensor | None, denominator: LossDenominator
) -> PolicyLoss:
    """This micro-batch's share of the loss."""
    device = policy_lp.device
    gains = torch.tensor([row.advantage for row in rows], dtype=policy_lp.dtype, device=device)
    usable = torch.tensor([row.valid for row in rows], device=device)
    mask = batch.response_mask & usable[:, None]
    return policy_loss(policy_lp, batch.sampler_logprobs, gains, mask, config.algorithm, ref_lp, denominator=denominator)


def keep(result: Updated, batch: TakeBatch, policy_lp: Tensor, entropy: Tensor, part: Sequence[int], loss: PolicyLoss) -> None:
    """Add what a micro-batch found, and each take's log-probs in its place."""
    mask = batch.response_mask
    result.metrics = add_metrics([result.metrics, loss.metrics])
    result.loss += float(loss.loss.detach())
    result.policy_loss += float(loss.policy_term)
    result.kl_loss += float(loss.kl_term)
    result.entropy_sum += float(entropy.double().sum())
    result.num_tokens += int(mask.sum())
    for row, index in enumerate(part):
        result.policy_logprobs[index] = policy_lp[row, mask[row]].detach().cpu()


def compare(config: RlConfig, rows: Sequence[TakeRow], indices: range, result: Updated) -> LogprobComparison:
    """Policy against sampler over the whole update, so that micro-batches do not decide. Raises MismatchError; no weight has moved yet."""
    sampler = torch.cat([rows[index].take.sampler_logprobs for index in indices])
    policy = torch.cat([result.policy_logprobs[index] for index in indices])
    limit = config.max_logprob_difference
    everywhere = torch.ones_like(sampler, dtype=torch.bool)
    return compare_logprobs(sampler, policy, everywhere, max_difference=limit, max_mean_difference=limit / 10)


def update_metrics(result: Updated) -> dict[str, float]:
    """What the step did to the policy."""
    return {
        "loss/total": result.loss,
        "loss/policy": result.policy_loss,
        "loss/kl": result.kl_loss,
        "optimizer/lr": result.lr,
        "optimizer/grad_norm": result.grad_norm,
        "policy/entropy": result.entropy_sum / max(1, result.num_tokens),
        **{f"policy/{name}": value.value() for name, value in result.metrics.items()},
        "mismatch/mean": result.mismatch.mean,
        "mismatch/kl": result.mismatch.kl,
        "mismatch/max": result.mismatch.max,
    }
