"""Numbers per step: one JSON line in metrics.jsonl, TensorBoard, and W&B or trackio when configured.

Names are `group/name`. The table below says of every group how it is reduced over ranks and whether it is bit-reproducible.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Protocol, Self

from longtake.config.sections import ObserveConfig
from longtake.errors import ConfigError
from longtake.observe.lines import JsonLines

Reduction = Literal["mean", "sum", "max"]


@dataclass(frozen=True)
class Metric:
    """What is known about all metrics whose name matches `pattern`."""

    pattern: str
    reduce: Reduction
    """How the values of several ranks become one: each rank's value weighs the same in a mean."""
    doc: str
    reproducible: bool = True
    """False for clocks and memory, which differ between two runs that are otherwise bit-identical."""


METRICS = (
    Metric("accuracy/*", "mean", "accuracy on training rows, by source of a mixture"),
    Metric("validation/accuracy/*", "mean", "accuracy on validation rows, by source of a mixture"),
    Metric("count/groups_of_*", "sum", "groups by source of a mixture"),
    Metric("*/max", "max", "largest of something over tokens or takes"),
    Metric("*_max", "max", "largest of something over tokens or takes"),
    Metric("seconds/*", "max", "seconds of a phase: the slowest rank sets the pace", reproducible=False),
    Metric("memory/*", "max", "peak bytes of the fullest rank", reproducible=False),
    Metric("rate/*", "sum", "something per second", reproducible=False),
    Metric("tokens/*", "sum", "tokens processed"),
    Metric("count/*", "sum", "things counted: groups, takes, frames decoded, cache misses"),
    Metric("failures/*", "sum", "failures by kind, all counted in their denominators"),
    Metric("loss/*", "mean", "parts of the loss, already divided by global counts"),
    Metric("policy/*", "mean", "entropy, ratio, clipped fractions, KL, importance weights"),
    Metric("reward/*", "mean", "each named reward, unweighted, and `reward/total`"),
    Metric("judge/*", "mean", "open-ended takes: share of calls that failed; over the verdicts: yes, yes of the rules, agreement of both"),
    Metric("advantage/*", "mean", "statistics of advantages"),
    Metric("group/*", "mean", "statistics over groups: fraction with uniform reward and the like"),
    Metric("mismatch/*", "mean", "|sampler - policy| log-prob; `stale_`: of takes of older weights"),
    Metric("rollout/*", "mean", "lengths, shares of finish reasons, steps behind the trainer"),
    Metric("optimizer/*", "mean", "learning rate, gradient norm: equal on all ranks"),
    Metric("video/max_*", "max", "how far real frame times were from equal spacing", reproducible=False),
    Metric("video/*", "sum", "videos served since this process started, so not after a resume", reproducible=False),
    Metric("cache/*", "sum", "embedding cache since this process started: hits, misses, refused, damaged, bytes", reproducible=False),
    Metric("encode/*", "sum", "work of the vision tower since this process started: `encode/groups`, temporal groups", reproducible=False),
    Metric("engine/*_seconds", "max", "weights on their way to the rollout engine, since this process started", reproducible=False),
    Metric("engine/*", "sum", "prompts, tokens, weight updates and bytes since this process started", reproducible=False),
    Metric("llm/*", "sum", "calls of language models since this process started: paid and kept, tokens, cost, retries", reproducible=False),
    Metric("plan/*", "mean", "layout of the updates, and predicted against measured seconds and bytes", reproducible=False),
    Metric("validation/*", "mean", "accuracy, format rate and loss on the fixed validation rows"),
)
"""The first match counts; a source of a mixture may have any name."""


def metric_for(name: str) -> Metric:
    """The entry of the table for a name. Raises ValueError for a name the table does not know."""
    for metric in METRICS:
        if fnmatchcase(name, metric.pattern):
            return metric
    raise ValueError(f"metric {name!r} matches no entry of METRICS in longtake/observe/metrics.py; add it there, with its reduction")


def reproducible_part(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without clocks and memory: what two bit-identical runs agree on."""
    return {key: value for key, value in line.items() if "/" not in key or metric_for(key).reproducible}


class Sink(Protocol):
    """Where metrics go besides metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Writes the metrics of a run into its folder and to the configured services.

    `resume_at=None` starts afresh; `resume_at=n` drops what was logged after step n. Raises ConfigError when a service is configured whose
    package is missing.
    """

    def __init__(self, run_dir: Path, observe: ObserveConfig, resume_at: int | None = None) -> None:
        self._sinks = make_sinks(run_dir, observe, resume_at)
        self._lines = JsonLines(run_dir / "metrics.jsonl", resume_at)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line; several lines may share a step. Raises ValueError for a name that is not in METRICS."""
        values = {name: float(value) for name, value in metrics.items() if metric_for(name)}
        self._lines.append(step, values)
        self._lines.flush()
        for sink in self._sinks:
            sink.log(step, values)

    def sync(self) -> None:
        """Down to the disk: before a checkpoint."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def make_sinks(run_dir: Path, observe: ObserveConfig, resume_at: int | None) -> list[Sink]:
    """The configured sinks, in the order TensorBoard, W&B, trackio."""
    sinks: list[Sink] = []
    if observe.tensorboard:
        sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_at))
    if observe.wandb_project is not None:
        sinks.append(WandbSink(run_dir, observe.wandb_project))
    if observe.trackio_project is not None:
        sinks.append(TrackioSink(run_dir, observe.trackio_project))
    return sinks


class TensorBoardSink:
    """Event files. TensorBoard hides what an earlier run logged after the step we resume at."""

    def __init__(self, log_dir: Path, resume_at: int | None) -> None:
        # Late import: it costs a second and loads torch, which nothing else in this room needs.
        from torch.utils.tensorboard import SummaryWriter

        # Events after this step are hidden; 0 for a fresh start, since a run killed before its first checkpoint begins anew in its folder.
        purge_step = 0 if resume_at is None else resume_at + 1
        self._writer: Any = SummaryWriter(log_dir=str(log_dir), purge_step=purge_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases. `step` is a metric of its own: W&B's own step cannot go back after a resume."""

    def __init__(self, run_dir: Path, project: str) -> None:
        wandb: Any = import_extra("wandb", "observe.wandb_project", project)
        self._run = wandb.init(project=project, name=run_dir.name, dir=str(run_dir))
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class TrackioSink:
    """trackio, the local-first tracker of Hugging Face."""

    def __init__(self, run_dir: Path, project: str) -> None:
        trackio: Any = import_extra("trackio", "observe.trackio_project", project)
        self._run = trackio.init(project=project, name=run_dir.name, resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def import_extra(package: str, key: str, value: str) -> ModuleType:
    """Import an optional package, or raise ConfigError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(
            f"{key} = {value!r}, but the package {package} is not installed",
            rule=f"logging to {package} needs the extra `{package}`",
            remedy=f"pip install 'longtake[{package}]', or set {key} = none",
        ) from None
