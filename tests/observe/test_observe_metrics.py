"""Metrics: names are known with their reduction, one line per log, the same numbers in TensorBoard, nothing doubled by a resume."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from longtake.config.sections import ObserveConfig
from longtake.errors import ConfigError
from longtake.observe.lines import read_lines
from longtake.observe.metrics import METRICS, MetricsLog, metric_for, reproducible_part

QUIET = ObserveConfig(tensorboard=False)


@pytest.mark.parametrize(
    ("name", "reduction", "reproducible"),
    [
        ("reward/accuracy", "mean", True),
        ("reward/my own", "mean", True),
        ("seconds/decode", "max", False),
        ("memory/peak_host_bytes", "max", False),
        ("tokens/prompt", "sum", True),
        ("failures/VideoDamagedError", "sum", True),
        ("mismatch/mean", "mean", True),
        ("mismatch/max", "max", True),
        ("policy/ratio_max", "max", True),
    ],
)
def test_every_metric_says_how_it_is_reduced(name: str, reduction: str, reproducible: bool) -> None:
    assert (metric_for(name).reduce, metric_for(name).reproducible) == (reduction, reproducible)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, QUIET) as log, pytest.raises(ValueError, match="'speed' matches no entry of METRICS"):
        log.log(1, {"speed": 1.0})
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_the_table_is_explained_and_has_no_dead_entry() -> None:
    assert all(metric.doc for metric in METRICS)
    for place, metric in enumerate(METRICS):
        example = metric.pattern.replace("*", "something")
        assert METRICS.index(metric_for(example if "/" in example else f"group/{example}")) == place


def test_lines_and_resume(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, QUIET) as log:
        log.log(0, {"validation/accuracy": 0.25})
        for step in (1, 2, 3):
            log.log(step, {"loss/total": step / 10, "seconds/step": 0.5})
    with MetricsLog(tmp_path, QUIET, resume_at=1) as log:
        log.log(2, {"loss/total": math.nan})
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 0, "validation/accuracy": 0.25},
        {"step": 1, "loss/total": 0.1, "seconds/step": 0.5},
        {"step": 2, "loss/total": None, "non_finite": ["loss/total"]},
    ]


def test_reproducible_part_leaves_clocks_and_memory_out() -> None:
    line = {"step": 3, "loss/total": 0.5, "seconds/decode": 0.1, "memory/peak_host_bytes": 1e9, "non_finite": []}
    assert reproducible_part(line) == {"step": 3, "loss/total": 0.5, "non_finite": []}


def scalars(run_dir: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_holds_the_same_numbers_and_a_resume_does_not_double_them(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, ObserveConfig()) as log:
        for step in (1, 2, 3):
            log.log(step, {"reward/total": step / 4})
    assert scalars(tmp_path, "reward/total") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    with MetricsLog(tmp_path, ObserveConfig(), resume_at=1) as log:
        log.log(2, {"reward/total": 8.0})
    assert scalars(tmp_path, "reward/total") == [(1, 0.25), (2, 8.0)]
    with MetricsLog(tmp_path, ObserveConfig()) as log:  # killed before its first checkpoint: begins anew
        log.log(1, {"reward/total": 9.0})
    assert scalars(tmp_path, "reward/total") == [(1, 9.0)]


@pytest.mark.parametrize(("package", "key"), [("wandb", "wandb_project"), ("trackio", "trackio_project")])
def test_a_missing_extra_is_a_clear_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, key: str
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(ConfigError) as caught:
        MetricsLog(tmp_path / "run", ObserveConfig(tensorboard=False, **{key: "films"}))
    assert caught.value.given == f"observe.{key} = 'films', but the package {package} is not installed"
    assert f"pip install 'longtake[{package}]'" in caught.value.remedy
    assert not (tmp_path / "run").exists()


class FakeRun:
    """Stands for the run object of wandb and trackio, with the signatures they share."""

    def __init__(self) -> None:
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.defined: list[tuple[str, str]] = []
        self.finished = False

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.logged.append((step, dict(metrics)))

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def finish(self) -> None:
        self.finished = True


def test_wandb_and_trackio_get_the_numbers_when_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"wandb": FakeRun(), "trackio": FakeRun()}
    for package, run in runs.items():
        module = types.ModuleType(package)
        module.init = lambda run=run, **settings: run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package, module)
    with MetricsLog(tmp_path, ObserveConfig(tensorboard=False, wandb_project="films", trackio_project="films")) as log:
        log.log(3, {"loss/total": 0.5})
    assert runs["wandb"].logged == [(None, {"step": 3, "loss/total": 0.5})]
    assert runs["wandb"].defined == [("*", "step")]  # so that a resume may go back in steps
    assert runs["trackio"].logged == [(3, {"loss/total": 0.5})]
    assert runs["wandb"].finished and runs["trackio"].finished
