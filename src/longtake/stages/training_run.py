"""What SFT and RL share: open the run folder, build the parts, resume, ask rows, and end every step the same way.

    with run.start(total_steps):
        run.begin()
        while not run.finished():
            asked, failures = run.ask(run.position, count)
            ...
            run.end_step(run.position + count, metrics)

A step ends in this order: validation when it is due, one line in metrics.jsonl, a checkpoint when it is due. A validation that
fails is counted and the run goes on; if it dies of something nobody thought of, the step is logged and saved before the error leaves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import torch

from longtake.config.load import dump_config
from longtake.config.meta import run_meta
from longtake.config.sections import RolloutConfig
from longtake.config.stages import RlConfig, SftConfig
from longtake.data.embedding_cache import EmbeddingCache, digest_index
from longtake.data.render import render_prompt
from longtake.data.videos import VideoSource
from longtake.errors import CheckpointError, LongtakeError, OtherRankFailedError, PathError, PromptTooLongError, RowError, VideoError
from longtake.evaluation.judged import judge_records
from longtake.evaluation.records import JUDGE_FAILED, AnswerRecord
from longtake.evaluation.score import evaluate_examples
from longtake.evaluation.summary import summarise
from longtake.models import load_model, model_folder
from longtake.models.family import Model
from longtake.observe.digest import digest_of
from longtake.observe.lines import JsonLines
from longtake.observe.metrics import MetricsLog
from longtake.observe.progress import Progress, say
from longtake.observe.signals import StopFlag
from longtake.observe.timing import Phases, memory_metrics
from longtake.parallel.collectives import reduce_metrics
from longtake.parallel.fsdp import gathered, shard_model
from longtake.parallel.gradients import sum_gradients
from longtake.rewards.judge import Judge
from longtake.rollout.engine import Engine
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.stages.shared_evaluation import share_evaluation
from longtake.stages.team import Nowhere, RollCall, Team
from longtake.stages.training_rows import facts_of, longest_rows, media_of, order_of, read_training_rows, refuse_failed, validation_items
from longtake.training.checkpoint import CheckpointStore
from longtake.training.optimizer import Optimizer, build_optimizer
from longtake.training.reference import Reference
from longtake.training.shard_loading import fill
from longtake.training.trainable import choose_trainable, parameter_counts
from longtake.types import Example, Failure, Prompt, RowName, source_of

VALIDATION_MAY_RAISE = (LongtakeError, OSError, MemoryError, RuntimeError)
"""RuntimeError: what torch raises, out of memory included. Anything else is a fault of ours and is told, after the step is saved."""


@dataclass
class Best:
    """The best validation so far."""

    accuracy: float = -1.0
    step: int = -1
    """-1: there was none."""
    validations_since: int = 0

    def update(self, accuracy: float, step: int) -> bool:
        """True when this is a new best; equal is not better."""
        if accuracy > self.accuracy:
            self.accuracy, self.step, self.validations_since = accuracy, step, 0
            return True
        self.validations_since += 1
        return False

    def __str__(self) -> str:
        return f"; best validation accuracy {self.accuracy:.3f} at step {self.step}" if self.step >= 0 else ""


@dataclass(frozen=True, eq=False)
class Asked:
    """A row of the data order that can be asked."""

    position: int
    """In the data order: no two rows of a run share it, even when the same row comes again in the next epoch."""
    example: Example
    prompt: Prompt


class TrainingRun:
    """The parts of one SFT or RL run and its place in time, on every process of the launch. A context manager."""

    def __init__(self, config: SftConfig | RlConfig, kind: str, team: Team, judge: Judge | None = None) -> None:
        """`judge` decides about the open-ended answers of training and validation; whoever gives it closes it."""
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        torch.manual_seed(config.seed)
        self.config, self.kind, self.team, self.judge = config, kind, team, judge
        self.phases = Phases()
        with team.first_ahead():  # files are digested once
            index = digest_index(config.cache, config.out / "digests.json", config.video.limits)
            self.examples, self.failures = read_training_rows(config, index)
            self.validation = validation_items(config, index)
            index.save()
        self.model: Model = load_model(config.model, on_meta=config.parallel.sharded)
        choose_trainable(self.model, config.model, config.seed)
        cache = EmbeddingCache(config.cache)  # one for both: a video in both sets is encoded once
        self.source = VideoSource(
            self.model,
            config.video,
            self.phases,
            cache,
            axis=team.axis,
            hold_graphs=not config.model.gradient_checkpointing,
            prefetch_bytes=config.cache.prefetch_bytes,
        )
        num_first = config.prompts_per_step if isinstance(config, RlConfig) else config.batch_size
        self.order = order_of(config, self.examples)
        self.front = longest_rows(team, self.model, self.source, self.examples, num_first) if config.data.longest_first else ()
        self.validation_source = VideoSource(self.model, config.video, Phases(), cache)
        self.engine: Engine = TransformersEngine(self.model, config.validation.max_rows if config.validation else 1)
        """Answers what is asked; RL puts the one of its configuration in this place."""
        self.store = CheckpointStore(config.out, config.checkpoint.keep_last)
        self.stop = StopFlag()
        self.step = self.position = self.total_steps = 0
        self.saved_step = -1
        self.seconds_before = 0.0
        self.steps_without_signal = 0
        self.failed_in_use: set[RowName] = set()
        """Rows that were read but could not be asked: a video that does not decode, a prompt that is too long."""
        self.resumed = False
        self.best = Best()

    def start(self, total_steps: int, updates_per_step: int = 1, reference: Reference | None = None) -> Self:
        """Cut the weights over the ranks if asked (those of `reference` too), build the optimizer for so many steps, resume when there is a
        checkpoint, and write the resolved configuration."""
        self.total_steps = total_steps
        if self.config.parallel.sharded:
            folder = model_folder(self.config.model)
            fill(shard_model(self.model, self.team.world), folder)
            if reference is not None:
                reference.shard(self.team.world, folder)
        self.optimizer: Optimizer = build_optimizer(self.model, self.config.optimizer, total_steps * updates_per_step)
        self.resumed = self._resume()
        self._refuse_other_runs()
        self.metrics: MetricsLog | Nowhere = self._open_folder() if self.team.is_first else Nowhere()
        counts = parameter_counts(self.model)
        rows = f"{len(self.examples)} rows, {len(self.failures)} failed"
        say(f"{self.kind}: {counts['trainable']:,} of {counts['total']:,} parameters train; {rows}")
        return self

    def _open_folder(self) -> MetricsLog:
        self.config.out.mkdir(parents=True, exist_ok=True)
        (self.config.out / "config.json").write_text(dump_config(self.config, run_meta() | {"stage": self.kind}), encoding="utf-8")
        return MetricsLog(self.config.out, self.config.observe, resume_at=self.step if self.resumed else None)

    def lines(self, name: str) -> JsonLines | Nowhere:
        """A log of the run folder beside metrics.jsonl; nothing on ranks that write nothing."""
        return JsonLines(self.config.out / name, resume_at=self.step if self.resumed else None) if self.team.is_first else Nowhere()

    def _refuse_other_runs(self) -> None:
        """A rank that does not see the folder, or sees other rows or videos, would make another run of it."""
        told = self.team.tell([self.step, self.resumed, self._rows_digest])
        if any(one != told[0] for one in told):
            raise CheckpointError(
                f"the ranks do not see the same run: steps {[one[0] for one in told]}, resumed {[one[1] for one in told]}, "
                f"{len({one[2] for one in told})} different sets of rows and videos",
                rule="all ranks read the same rows, videos and checkpoints",
                remedy=f"put {self.config.out}, the rows and the videos on a file system that all machines share",
            )

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
        self._refuse_other_rows(found.extra["rows"])
        self.store.load(found, self.model, self.optimizer, self.config)
        self.step, self.position, self.saved_step = found.step, found.position, found.step
        self.model.weights_version = found.step
        self.best = Best(**found.extra["best"])
        self.steps_without_signal = found.extra["steps_without_signal"]
        self.failed_in_use = set(found.extra["failed_in_use"])
        self.front = tuple(found.extra.get("front", ()))
        self.seconds_before = found.extra["seconds"]
        say(f"{self.kind}: resumed at step {self.step} from {found.path}")
        return True

    def _refuse_other_rows(self, rows: str) -> None:
        """The data position counts rows: among other rows it means nothing."""
        if rows != self._rows_digest:
            raise CheckpointError(
                f"the usable rows of {self.config.data.files}, or those of the validation, are not those that this run was started with",
                rule="a resumed run is the same experiment: the same questions, keys, subtitles and bytes of videos",
                remedy="restore rows and videos (a video that went missing or came back counts), or start anew in another `out`",
            )

    @cached_property
    def _rows_digest(self) -> str:
        """Of all that is shown, asked and taught, and of what validates it."""
        taught = self.kind == "sft"
        validated = [facts_of(item, taught=False) if isinstance(item, Example) else str(item.name) for item in self.validation]
        return digest_of("rows 2", [facts_of(example, taught) for example in self.examples], validated)

    @property
    def validation_examples(self) -> list[Example]:
        return [item for item in self.validation if isinstance(item, Example)]

    def __enter__(self) -> Self:
        self.stop.__enter__()
        self.started = time.monotonic()
        self.progress = Progress(self.kind, self.total_steps, self.config.observe.progress, done=self.step).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.source.close(wait=error is None)
        self.engine.close()
        self.progress.__exit__(kind, error, trace)
        self.metrics.close()
        self.stop.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.seconds_before + time.monotonic() - self.started

    def begin(self) -> None:
        """Validate the starting weights, once per run. They are saved, since nothing later may be better."""
        if self.validation and not self.resumed:
            self.metrics.log(0, self.validate() | self._costs())
            if self.best.step == 0:
                self.save(best=True)

    def finished(self) -> bool:
        """True at the end of the steps, of the seconds, of the patience: the last step is then saved.

        Raises StopRequested when a signal has come, with the step saved too.
        """
        self.team.heartbeat.beat(f"end of step {self.step}")
        stop = self.team.any(self.stop.requested)
        limit = self.config.max_seconds  # by the clock of the first rank, which is the one that is saved
        out_of_time = self.team.any(self.team.is_first and limit is not None and self.seconds >= limit)
        ends = stop or out_of_time or self.step >= self.total_steps or self._out_of_patience()
        if ends:
            self.save_if_new()
        if stop:
            self.stop.leave(f"{self.kind} saved step {self.step} in {self.config.out}")
        return ends

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience if self.config.validation and self.kind == "sft" else None
        return patience is not None and self.best.validations_since >= patience

    def ask(self, position: int, count: int) -> tuple[list[Asked], Counter[str]]:
        """Prompts of the rows at data positions position..position+count-1, each video decoded and encoded once.

        A row that fails is said, counted (by kind of error) and never replaced: it keeps its place in the data order.
        Raises RowError when, with those that could not be read, more rows have failed than data.max_failed_fraction allows.
        """
        self.team.heartbeat.beat(f"videos of step {self.step + 1}")
        asked: list[Asked] = []
        failures: Counter[str] = Counter()
        examples = [self.examples[index] for index in self._rows_at(position, count)]
        self.source.prepare(media_of(examples))
        for place, example in enumerate(examples, position):
            try:
                tokens = [self.source.tokens(ref) for ref in example.media]
                asked.append(Asked(place, example, render_prompt(example, tokens, self.model, self.config.prompt)))
                self.failed_in_use.discard(example.name)
            except (VideoError, PathError, PromptTooLongError) as error:
                failures[type(error).__name__] += 1
                self._note_failed(example, error)
        if failures:
            self._refuse_too_many()
        if self.step + 1 < self.total_steps:
            self.source.prefetch(media_of([self.examples[index] for index in self._rows_at(position + count, count)]))
        return asked, failures

    def _rows_at(self, position: int, count: int) -> list[int]:
        return self.order(position, count, self.front)

    def _note_failed(self, example: Example, error: LongtakeError) -> None:
        if example.name not in self.failed_in_use:
            say(f"row {example.name} cannot be used: {error}", style="yellow")
        self.failed_in_use.add(example.name)

    def _refuse_too_many(self) -> None:
        unread = [failure.source for failure in self.failures]
        rows = Counter([*(example.source for example in self.examples), *unread])
        failed = Counter([*unread, *map(source_of, self.failed_in_use)])
        try:
            refuse_failed(self.config.data, rows, failed, f", {len(self.failed_in_use)} of them found out while training; see above")
        except RowError:
            self.save_if_new()
            raise

    def failure_metrics(self, failures: Counter[str]) -> dict[str, float]:
        """Rows that failed in this step by kind, and those of the whole set known to be unusable so far."""
        known = len(self.failures) + len(self.failed_in_use)
        by_kind = {f"failures/{kind}": float(count) for kind, count in failures.items()}
        return {"failures/total": float(sum(failures.values())), "failures/known_rows": float(known), **by_kind}

    def end_step(self, position: int, metrics: dict[str, float], **shown: float) -> None:
        """Count the step, validate, log, checkpoint: see the head of this file. Raises what validation raised, on the other ranks
        OtherRankFailedError."""
        self.step += 1
        self.position = position
        self.source.release()
        self.model.weights_version = self.step
        due = bool(self.validation) and (self.step % self._validate_every() == 0 or self.step == self.total_steps)
        with _EndOfStep(metrics, self._log_and_save) as logged:
            if due:
                logged |= self.validate()
        self.progress.advance(1, **shown)

    def _log_and_save(self, metrics: dict[str, float], fault: BaseException | None) -> None:
        """The end of a step, with the error that this rank has on its way. Raises OtherRankFailedError when another has one."""
        call = self.team.roll_call(fault, self._own_costs())
        self.metrics.log(self.step, metrics | call.metrics)
        improved = self.best.step == self.step
        if improved or call.fault or not call.complete or self.step % self.config.checkpoint.every == 0:
            self._save_with(call, best=improved)
        if call.fault and fault is None:
            raise OtherRankFailedError("another rank failed in validation", rule="every rank answers its rows", remedy="see its message")

    def _validate_every(self) -> int:
        return self.config.validation.every if self.config.validation else self.total_steps + 1

    def _costs(self) -> dict[str, float]:
        """Of all ranks."""
        return reduce_metrics(self._own_costs(), self.team.axis) if self.team.world.size > 1 else self._own_costs()

    def _own_costs(self) -> dict[str, float]:
        seconds = {f"seconds/{name}": value for name, value in self.phases.take().items()}
        of_judge = self.judge.metrics() if self.judge is not None else {}
        return seconds | memory_metrics() | self.source.metrics() | self.engine.metrics() | of_judge

    def save_if_new(self) -> None:
        """Before leaving, on every rank: a lost step is never the price of it. None leaves before all have saved."""
        if self.saved_step != self.step:
            self.save()
        self.team.any(False)

    def _save_with(self, call: RollCall, *, best: bool) -> None:
        """Whole weights are saved by the first rank whoever else is there; sharded ones need all."""
        if call.complete or self.model.root is None:
            self.save(best=best)
            return
        found = f"the newest checkpoint is of step {self.saved_step}" if self.saved_step >= 0 else "there is no checkpoint yet"
        say(f"{self.kind}: step {self.step} is NOT saved: its weights are cut over ranks that are not all there; {found}", style="red")

    def save(self, *, best: bool = False) -> None:
        """A checkpoint of the last finished step, by every rank where weights are sharded; the logs reach the disk first."""
        extra: dict[str, Any] = {
            "best": vars(self.best),
            "seconds": self.seconds,
            "steps_without_signal": self.steps_without_signal,
            "failed_in_use": sorted(self.failed_in_use, key=str),
            "rows": self._rows_digest,
            "front": list(self.front),
        }
        self.saved_step = self.step
        if not self.team.is_first:
            self.store.take_part(self.model, self.optimizer)
            return
        self.metrics.sync()
        self.store.save(self.step, self.model, self.optimizer, self.config, position=self.position, extra=extra, best=best)

    def encode_again(self, examples: Sequence[Example], prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts as a trained tower sees their videos now, after an update since they were made."""
        self.source.prepare(media_of(examples), again=True)
        return [
            replace(
                prompt,
                spans=tuple(replace(span, tokens=self.source.tokens(ref)) for span, ref in zip(prompt.spans, example.media, strict=True)),
            )
            for example, prompt in zip(examples, prompts, strict=True)
        ]

    def apply_gradients(self) -> float:
        """One optimizer step from the gradients of all ranks, which add up; every rank makes the same. Returns the norm."""
        self.team.heartbeat.beat(f"gradients of step {self.step + 1}")
        self.source.backward()
        with self.phases("update"):
            sum_gradients(self.optimizer.named.values(), self.team.axis)
            return self.optimizer.step()

    def validate(self) -> dict[str, float]:
        """Greedy answers to the fixed rows; a validation that fails is counted and the run goes on."""
        setting = self.config.validation
        assert setting is not None
        self.team.heartbeat.beat(f"validation of step {self.step}")
        self.model.tower_digest()  # the name of updated weights is settled before they are gathered
        try:
            whole = gathered(self.model, with_tower=True) if self.model.train_vision else nullcontext()
            with self.phases("validation"), whole, self.engine.at_weights():
                summary = summarise(share_evaluation(self.team, self.validation, self._validate_share, self.engine.ranks_per_engine))
        except VALIDATION_MAY_RAISE as error:
            say(f"{self.kind}: validation at step {self.step} failed and is skipped: {type(error).__name__}: {error}", style="yellow")
            return {"validation/failed": 1.0}
        self.best.update(summary["accuracy"], self.step)
        return {
            "validation/failed": 0.0,
            "validation/accuracy": summary["accuracy"],
            **{f"validation/accuracy/{name}": share["accuracy"] for name, share in summary["by_source"].items()},
            "validation/format": summary["format_rate"] or 0.0,
            "validation/response_tokens": summary["response_tokens"]["mean"],
            **({"validation/not_judged": float(summary["failures"].get(JUDGE_FAILED, 0))} if self.judge is not None else {}),
        }

    def _validate_share(self, items: Sequence[Example | Failure]) -> list[AnswerRecord]:
        setting = self.config.validation
        assert setting is not None
        records = evaluate_examples(
            self.model,
            self.engine,
            self.validation_source,
            items,
            frames=self.config.video.max_frames,
            prompt=self.config.prompt,
            rollout=RolloutConfig(num_takes=1, temperature=0.0, max_new_tokens=setting.max_new_tokens, max_rows=setting.max_rows),
            with_video=setting.data.with_video,
        )
        if self.judge is None or self.team.rank % self.engine.ranks_per_engine:  # one of the ranks that share an engine asks
            return records
        return judge_records(self.judge, items, records)


class _EndOfStep(AbstractContextManager[dict[str, float]]):
    """What is measured inside is logged and saved with the rest at the end; an error that comes there goes on once that is done."""

    def __init__(self, metrics: dict[str, float], log_and_save: Callable[[dict[str, float], BaseException | None], None]) -> None:
        self.metrics = dict(metrics)
        self.log_and_save = log_and_save

    def __enter__(self) -> dict[str, float]:
        return self.metrics

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.log_and_save(self.metrics if error is None else self.metrics | {"validation/failed": 1.0}, error)
