"""`longtake sft`: chain-of-thought supervised fine-tuning on the responses of the rows."""

from __future__ import annotations

import math
from collections import Counter

from longtake.config.stages import SftConfig
from longtake.data.render import response_ids
from longtake.observe.progress import say
from longtake.parallel.packed import pack_rows
from longtake.stages.training_run import Asked, TrainingRun
from longtake.training.sft_loss import sft_loss
from longtake.training.trainable import training_mode


def run(config: SftConfig) -> None:
    """Train and leave checkpoints in config.out; resumes by itself."""
    run = TrainingRun(config, "sft")
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
    loss_sum = 0.0
    for start in range(0, len(asked), config.micro_batch_size):
        chunk = slice(start, start + config.micro_batch_size)
        prompts = [row.prompt for row in asked[chunk]]
        if run.model.train_vision:
            prompts = run.with_live_tower([row.example for row in asked[chunk]], prompts)
        with run.phases("update"), training_mode(run.model):
            loss = sft_loss(run.model, pack_rows(prompts, responses[chunk], run.model.device), num_tokens)
            loss.backward()
            loss_sum += float(loss.detach())
    lr = run.optimizer.lr
    with run.phases("update"):
        norm = run.optimizer.step()
    return counts | {
        "loss/sft": loss_sum,
        "optimizer/lr": lr,
        "optimizer/grad_norm": norm,
        "tokens/response": float(num_tokens),
        "tokens/prompt": float(sum(len(row.prompt.token_ids) for row in asked)),
    }
