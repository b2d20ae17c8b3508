"""`longtake sft`: chain-of-thought supervised fine-tuning on the responses of the rows."""

from __future__ import annotations

import math

from longtake.config.stages import SftConfig
from longtake.data.order import positions
from longtake.data.render import render_prompt, response_ids
from longtake.errors import PromptTooLongError, VideoError
from longtake.observe.progress import say
from longtake.stages.training_run import TrainingRun
from longtake.training.batch import sft_batch
from longtake.training.sft_loss import sft_loss
from longtake.training.trainable import training_mode
from longtake.types import Example, Prompt


def run(config: SftConfig) -> None:
    """Train and leave checkpoints in config.out; resumes by itself."""
    run = TrainingRun(config, "sft")
    total = config.max_steps or math.ceil(config.epochs * len(run.examples) / config.batch_size)
    with run.start(total):
        while not run.finished():
            stop = run.position + config.batch_size
            rows = [run.examples[i] for i in positions(run.position, config.batch_size, len(run.examples), config.seed)]
            metrics = train_step(run, config, rows)
            run.end_step(stop, metrics, loss=metrics["loss/sft"])
    say(
        f"sft: done at step {run.step}; best validation accuracy {run.best.accuracy:.3f} at step {run.best.step}"
        if run.validation
        else "sft: done"
    )


def train_step(run: TrainingRun, config: SftConfig, rows: list[Example]) -> dict[str, float]:
    """One optimizer step over `rows`, every response token weighed once whatever the micro-batches."""
    asked, failed = render_rows(run, config, rows)
    if not asked:
        return {"loss/sft": math.nan, "count/failed_rows": float(failed), "count/rows": 0.0}
    responses = [response_ids(example, run.model) for example, _ in asked]
    num_tokens = sum(len(response) for response in responses)
    loss_sum = 0.0
    for start in range(0, len(asked), config.micro_batch_size):
        chunk = slice(start, start + config.micro_batch_size)
        examples, prompts = zip(*asked[chunk], strict=True)
        if run.model.train_vision:
            prompts = run.with_live_tower(examples, prompts)
        with run.phases("update"), training_mode(run.model):
            loss = sft_loss(run.model, sft_batch(prompts, responses[chunk], run.model.device), num_tokens)
            loss.backward()
            loss_sum += float(loss.detach())
    lr = run.optimizer.lr
    with run.phases("update"):
        norm = run.optimizer.step()
    return {
        "loss/sft": loss_sum,
        "optimizer/lr": lr,
        "optimizer/grad_norm": norm,
        "tokens/response": float(num_tokens),
        "tokens/prompt": float(sum(len(prompt.token_ids) for _, prompt in asked)),
        "count/rows": float(len(asked)),
        "count/failed_rows": float(failed),
    }


def render_rows(run: TrainingRun, config: SftConfig, rows: list[Example]) -> tuple[list[tuple[Example, Prompt]], int]:
    """Prompts with their videos encoded, and how many rows failed: those keep their place in the data order and teach nothing."""
    asked = []
    for example in rows:
        try:
            video = example.video if config.data.with_video else None
            tokens = run.source.tokens(video) if video is not None else None
            asked.append((example, render_prompt(example, tokens, run.model, config.prompt)))
        except (VideoError, PromptTooLongError) as error:
            say(f"row {example.problem_id} teaches nothing in this step: {error}", style="yellow")
    return asked, len(rows) - len(asked)
