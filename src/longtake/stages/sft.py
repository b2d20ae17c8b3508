"""`longtake sft`: chain-of-thought supervised fine-tuning on the responses of the rows."""

from __future__ import annotations

import math
from collections import Counter

from longtake.config.stages import SftConfig
from longtake.data.render import response_ids
from longtake.errors import ConfigError
from longtake.observe.progress import say
from longtake.parallel.collectives import sum_over_ranks
from longtake.parallel.packed import pack_rows
from longtake.stages.team import Team, joined
from longtake.stages.training_run import Asked, TrainingRun
from longtake.training.packed_policy import idle_pass
from longtake.training.sft_loss import sft_loss
from longtake.training.trainable import training_mode


def run(config: SftConfig) -> None:
    """Train and leave checkpoints in config.out; resumes by itself."""
    with joined(config.parallel, config.model.device, can_shard=True) as team:
        refuse_dropout(config, team)
        train(config, TrainingRun(config, "sft", team))


def refuse_dropout(config: SftConfig, team: Team) -> None:
    """Raises ConfigError: each process would draw masks of its own, and only those of the first would be resumed."""
    if team.world.size > 1 and config.model.lora is not None and config.model.lora.dropout > 0:
        raise ConfigError(
            f"model.lora.dropout = {config.model.lora.dropout} on {team.world.size} processes",
            rule="several processes make the run of one",
            remedy="set model.lora.dropout = 0, or start one process",
        )


def train(config: SftConfig, run: TrainingRun) -> None:
    """The loop."""
    total = config.max_steps or math.ceil(config.epochs * len(run.examples) / config.batch_size)
    with run.start(total):
        run.begin()
        while not run.finished():
            asked, failures = run.ask(run.position, config.batch_size)
            metrics = train_step(run, config, asked, failures)
            run.end_step(run.position + config.batch_size, metrics, loss=metrics.get("loss/sft", math.nan))
    say(f"sft: done at step {run.step}{run.best}")


def train_step(run: TrainingRun, config: SftConfig, asked: list[Asked], failures: Counter[str]) -> dict[str, float]:
    """One optimizer step over the rows asked, every response token weighed once whatever the micro-batches. No row: no update."""
    counts = {"count/rows": float(len(asked))} | run.failure_metrics(failures)
    if not asked:
        return counts
    responses = [response_ids(row.example, run.model) for row in asked]
    num_tokens = sum(len(response) for response in responses)
    mesh, loss_sum = run.team.mesh, 0.0
    shares = run.team.shares_of_data([len(row.prompt.token_ids) + len(response) for row, response in zip(asked, responses, strict=True)])
    own, longest = shares[mesh.data_rank], max(map(len, shares)) if config.parallel.sharded else 0
    for start in range(0, max(len(own), longest), config.micro_batch_size):
        chunk = own[start : start + config.micro_batch_size]
        with run.phases("update"), training_mode(run.model):
            if not chunk:  # sharded weights: every rank enters them equally often
                idle_pass(run.model, mesh)
                continue
            rows = pack_rows([asked[index].prompt for index in chunk], [responses[index] for index in chunk], run.model.device)
            loss = sft_loss(run.model, rows, num_tokens, mesh=mesh)
            loss.backward()
            loss_sum += float(loss.detach())
    lr = run.optimizer.lr
    norm = run.apply_gradients()
    (loss_sum,) = sum_over_ranks([loss_sum if run.team.speaks_for_sequence else 0.0], run.team.axis)
    return counts | {
        "loss/sft": loss_sum,
        "optimizer/lr": lr,
        "optimizer/grad_norm": norm,
        "tokens/response": float(num_tokens),
        "tokens/prompt": float(sum(len(row.prompt.token_ids) for row in asked)),
    }
