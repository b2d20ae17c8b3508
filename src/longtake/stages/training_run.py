"""What SFT and RL share: open the run folder, build the parts, resume, and end every step the same way.

    with TrainingRun(config, total_steps) as run:
        while not run.finished():
            run.end_step(position, metrics)

A step ends in this order: validation when it is due, one line in metrics.jsonl, a checkpoint when it is due. A validation that
fails is counted and costs nothing; whatever else happens in it, the checkpoint is written first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch

from longtake.config.load import dump_config
from longtake.config.meta import run_meta
from longtake.config.sections import RolloutConfig
from longtake.config.stages import RlConfig, SftConfig
from longtake.data.rows import check_failures, read_examples
from longtake.data.videos import VideoSource
from longtake.errors import CheckpointError, LongtakeError, RowError
from longtake.evaluation.score import evaluate_examples
from longtake.evaluation.summary import summarise
from longtake.models import load_model
from longtake.models.family import Model
from longtake.observe.metrics import MetricsLog
from longtake.observe.progress import Progress, say
from longtake.observe.signals import StopFlag
from longtake.observe.timing import Phases, memory_metrics
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.training.checkpoint import CheckpointStore
from longtake.training.optimizer import Optimizer, build_optimizer
from longtake.training.trainable import choose_trainable, parameter_counts
from longtake.types import Example, Failure, Prompt, VideoTokens


@dataclass
class Best:
    """The best validation so far."""

    accuracy: float = -1.0
    step: int = -1
    validations_since: int = 0

    def update(self, accuracy: float, step: int) -> bool:
        """True when this is a new best; equal is not better."""
        if accuracy > self.accuracy:
            self.accuracy, self.step, self.validations_since = accuracy, step, 0
            return True
        self.validations_since += 1
        return False


class TrainingRun:
    """The parts of one SFT or RL run and its place in time. A context manager; single process."""

    def __init__(self, config: SftConfig | RlConfig, kind: str) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        torch.manual_seed(config.seed)
        self.config, self.kind = config, kind
        self.phases = Phases()
        self.examples, self.failures = read_training_rows(config)
        self.model: Model = load_model(config.model)
        choose_trainable(self.model, config.model, config.seed)
        self.source = VideoSource(self.model, config.video, self.phases)
        self.validation_source = VideoSource(self.model, config.video, Phases())
        self.store = CheckpointStore(config.out, config.checkpoint.keep_last)
        self.stop = StopFlag()
        self.step = self.position = self.total_steps = 0
        self.seconds_before = 0.0
        self.steps_without_signal = 0
        self.resumed = False
        self.best = Best()
        self.validation = validation_items(config)

    def start(self, total_steps: int) -> Self:
        """Build the optimizer for so many steps, resume when there is a checkpoint, and write the resolved configuration."""
        self.total_steps = total_steps
        self.optimizer: Optimizer = build_optimizer(self.model, self.config.optimizer, total_steps)
        self.resumed = self._resume()
        self.config.out.mkdir(parents=True, exist_ok=True)
        (self.config.out / "config.json").write_text(dump_config(self.config, run_meta() | {"stage": self.kind}))
        self.metrics = MetricsLog(self.config.out, self.config.observe, resume_at=self.step if self.resumed else None)
        counts = parameter_counts(self.model)
        rows = f"{len(self.examples)} rows, {len(self.failures)} failed"
        say(f"{self.kind}: {counts['trainable']:,} of {counts['total']:,} parameters train; {rows}")
        return self

    def _resume(self) -> bool:
        found = self.store.latest()
        if found is None:
            return False
        if not self.config.resume:
            raise CheckpointError(
                f"{self.config.out} already holds checkpoints up to step {found.step}",
                rule="resume = false starts from nothing",
                remedy="choose another folder, remove this one, or set resume = true",
            )
        self.store.load(found, self.model, self.optimizer, self.config)
        self.step, self.position = found.step, found.position
        self.model.weights_version = found.step
        self.best = Best(**found.extra["best"])
        self.steps_without_signal = found.extra["steps_without_signal"]
        self.seconds_before = found.extra["seconds"]
        say(f"{self.kind}: resumed at step {self.step} from {found.path}")
        return True

    def __enter__(self) -> Self:
        self.stop.__enter__()
        self.started = time.monotonic()
        self.progress = Progress(self.kind, self.total_steps, self.config.observe.progress, done=self.step).__enter__()
        if self.step == 0 and self.validation:
            self.metrics.log(0, self.validate())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.__exit__(kind, error, trace)
        self.metrics.close()
        self.stop.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.seconds_before + time.monotonic() - self.started

    def finished(self) -> bool:
        """True at the end of the steps, of the seconds, of the patience. A stop signal saves and leaves (StopRequested)."""
        if self.stop.requested:
            self.stop.leave(f"{self.kind} saved step {self.step} in {self.config.out}")
        out_of_time = self.config.max_seconds is not None and self.seconds >= self.config.max_seconds
        return self.step >= self.total_steps or out_of_time or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience if self.config.validation and self.kind == "sft" else None
        return patience is not None and self.best.validations_since >= patience

    def end_step(self, position: int, metrics: dict[str, float], **shown: float) -> None:
        """Count the step, validate, log, checkpoint: see the head of this file."""
        self.step += 1
        self.position = position
        self.model.weights_version = self.step
        improved = False
        try:
            if self.validation and (self.step % self._validate_every() == 0 or self.step == self.total_steps):
                before = self.best.step
                metrics |= self.validate()
                improved = self.best.step != before
            metrics |= {f"seconds/{name}": value for name, value in self.phases.take().items()} | memory_metrics()
            self.metrics.log(self.step, metrics)
        finally:
            self._checkpoint_if_due(improved)
        self.progress.advance(1, **shown)

    def _validate_every(self) -> int:
        return self.config.validation.every if self.config.validation else self.total_steps + 1

    def _checkpoint_if_due(self, improved: bool) -> None:
        due = self.step % self.config.checkpoint.every == 0 or self.step == self.total_steps
        # finished() may end the run before the next step; asking again is cheap, a lost step is not
        ends = self.stop.requested or self._out_of_patience() or (self.config.max_seconds or float("inf")) <= self.seconds
        if due or improved or ends:
            extra = {"best": vars(self.best), "seconds": self.seconds, "steps_without_signal": self.steps_without_signal}
            self.metrics.sync()
            self.store.save(self.step, self.model, self.optimizer, self.config, position=self.position, extra=extra, best=improved)

    def with_live_tower(self, examples: Sequence[Example], prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with their videos encoded anew, with gradients: for the update of a trained tower."""
        live: dict[str, VideoTokens] = {}
        for example in examples:
            if example.video is not None and example.video.digest not in live:
                live[example.video.digest] = self.source.tokens(example.video, gradients=True)
        return [
            replace(prompt, spans=tuple(replace(span, tokens=live[example.video.digest]) for span in prompt.spans))
            if example.video is not None
            else prompt
            for example, prompt in zip(examples, prompts, strict=True)
        ]

    def validate(self) -> dict[str, float]:
        """Greedy answers to the fixed rows; a validation that fails is counted and the run goes on."""
        setting = self.config.validation
        assert setting is not None
        try:
            with self.phases("validation"):
                records = evaluate_examples(
                    self.model,
                    TransformersEngine(self.model, setting.max_rows),
                    self.validation_source,
                    self.validation,
                    frames=self.config.video.max_frames,
                    prompt=self.config.prompt,
                    rollout=RolloutConfig(num_takes=1, temperature=0.0, max_new_tokens=setting.max_new_tokens, max_rows=setting.max_rows),
                    with_video=setting.data.with_video,
                )
        except LongtakeError as error:
            say(f"{self.kind}: validation at step {self.step} failed and is skipped: {error}", style="yellow")
            return {"validation/failed": 1.0}
        summary = summarise(records)
        self.best.update(summary["accuracy"], self.step)
        return {
            "validation/failed": 0.0,
            "validation/accuracy": summary["accuracy"],
            "validation/format": summary["format_rate"] or 0.0,
            "validation/response_tokens": summary["response_tokens"]["mean"],
        }


def read_training_rows(config: SftConfig | RlConfig) -> tuple[list[Example], list[Failure]]:
    """Usable rows in their order, and the failures, each said aloud once. Raises RowError when too many failed or none is left."""
    items = read_examples(config.data)
    check_failures(items, config.data.max_failed_fraction)
    failures = [item for item in items if isinstance(item, Failure)]
    for failure in failures:
        say(f"skipped row {failure.problem_id}: {failure.message}", style="yellow")
    examples = [item for item in items if isinstance(item, Example)]
    if not examples:
        raise RowError(f"{config.data.rows} has no usable row", rule="training needs at least one", remedy="mend the rows listed above")
    return examples, failures


def validation_items(config: SftConfig | RlConfig) -> list[Example | Failure]:
    """The first rows of the validation set; a row that fails to read stays, as a wrong answer."""
    if config.validation is None:
        return []
    return read_examples(config.validation.data)[: config.validation.num_rows]
