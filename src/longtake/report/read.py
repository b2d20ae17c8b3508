"""Read a run folder, whole or partial. What is not there is noted in plain words, never guessed.

A run is the folder of a pipeline (summary.json, and one folder per stage), of one training (metrics.jsonl), or of one evaluation
(answers.jsonl).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.errors import RowError
from longtake.evaluation.records import AnswerRecord, read_records
from longtake.evaluation.summary import PairedTest, paired_test, summarise
from longtake.types import RowName, row_name

STAGES = ("base", "sft", "sft_control", "rl")
TRAININGS = ("sft", "sft_control", "rl", "sft_blind")
TITLES = {
    "base": "Base",
    "sft": "SFT",
    "sft_control": "SFT continued",
    "rl": "SFT + RL",
    "blind": "Blind (no video)",
    "sft_blind": "Blind SFT (no video)",
}
PAIRS = (("rl", "sft"), ("rl", "sft_control"), ("sft", "base"))
MAX_TAKES_BYTES = 64 << 20
"""takes.jsonl can be many gigabytes: only this much of its beginning and of its end is read."""


@dataclass(frozen=True)
class TakeGroup:
    """The takes of one prompt in one step, as written in takes.jsonl."""

    step: int
    row: RowName | None
    """The row's name; None where the log has none."""
    takes: tuple[dict[str, Any], ...]

    @property
    def totals(self) -> list[float]:
        """Of the takes whose reward is known."""
        return [total for take in self.takes if (total := number(take.get("total_reward"))) is not None]

    @property
    def is_mixed(self) -> bool:
        return len({round(total, 6) for total in self.totals}) > 1


@dataclass(frozen=True)
class Training:
    """One training run: its steps in order, lines of one step merged."""

    name: str
    folder: Path
    metrics: list[dict[str, float]]
    config: dict[str, Any] | None
    groups: tuple[TakeGroup, ...]
    """The first and the last group of takes whose rewards differ."""

    def series(self, *names: str) -> tuple[list[float], list[float]]:
        """Steps and values of the first of the names that was logged."""
        for name in names:
            points = [(line["step"], line[name]) for line in self.metrics if name in line]
            if points:
                return [step for step, _ in points], [value for _, value in points]
        return [], []

    def names(self, prefix: str) -> list[str]:
        """The metrics `prefix/*` that were logged, without the prefix, in the order of the log; not `prefix/x/max` and its like."""
        logged = dict.fromkeys(name for line in self.metrics for name in line if name.startswith(prefix + "/"))
        return [name[len(prefix) + 1 :] for name in logged if name.count("/") == 1]

    def totals(self, prefix: str) -> dict[str, float]:
        """Sums over all steps of the metrics `prefix/*`, without the prefix."""
        sums: dict[str, float] = {}
        for line in self.metrics:
            for name, value in line.items():
                if name.startswith(prefix + "/"):
                    sums[name[len(prefix) + 1 :]] = sums.get(name[len(prefix) + 1 :], 0.0) + value
        return sums


@dataclass(frozen=True)
class Evaluation:
    name: str
    figures: dict[str, Any]
    """What `evaluation.summarise` returns, or the part of it that the run wrote."""
    records: list[AnswerRecord]


@dataclass
class Run:
    """Everything a report is made of."""

    folder: Path
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    trainings: dict[str, Training] = field(default_factory=dict)
    paired: dict[str, dict[str, Any] | PairedTest] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """Other plain entries of summary.json: seed, versions and the like."""
    notes: list[str] = field(default_factory=list)
    """What is absent or could not be read."""


def read_run(folder: Path) -> Run:
    """Read whatever the folder holds. Raises RowError when it holds nothing that a report could show."""
    run = Run(folder)
    summary = read_json(folder / "summary.json", run.notes) if (folder / "summary.json").exists() else None
    if summary is None and (folder / "metrics.jsonl").exists():
        name = "rl" if (folder / "takes.jsonl").exists() else "sft"
        run.trainings[name] = read_training(name, folder, run.notes)
    elif summary is None and (folder / "answers.jsonl").exists():
        _add_evaluation(run, "evaluation", folder, None)
    else:
        _read_pipeline(run, summary or {})
    if not run.trainings and not run.evaluations:
        raise RowError(
            f"{folder} holds neither summary.json, metrics.jsonl nor answers.jsonl with anything in it",
            rule="a report is made from the folder of a run",
            remedy="give the folder that the run wrote (`out` in its configuration)",
        )
    return run


def _read_pipeline(run: Run, summary: dict[str, Any]) -> None:
    stages = as_dict(summary.get("stages"))
    for name in dict.fromkeys((*STAGES, *stages)):
        _add_evaluation(run, name, run.folder / "eval" / name, as_dict(stages.get(name)) or None)
    _add_evaluation(run, "blind", run.folder / "eval" / "blind", as_dict(summary.get("blind")) or None)
    for name in TRAININGS:
        if (run.folder / name / "metrics.jsonl").exists():
            run.trainings[name] = read_training(name, run.folder / name, run.notes)
        else:
            run.notes.append(f"{name}/metrics.jsonl is not there: no learning curves of {TITLES[name]}.")
    run.seconds = {name: value for name, raw in as_dict(summary.get("seconds")).items() if (value := number(raw)) is not None}
    run.about = {name: value for name, value in summary.items() if name not in ("stages", "blind", "seconds", "paired")}
    run.paired = {name: test for name, raw in as_dict(summary.get("paired")).items() if (test := as_dict(raw))}
    _complete_pairs(run)


def _add_evaluation(run: Run, name: str, folder: Path, figures: dict[str, Any] | None) -> None:
    """Figures come from summary.json, then results.json, then the records themselves."""
    records: list[AnswerRecord] = []
    if (folder / "answers.jsonl").exists():
        try:
            records = read_records(folder / "answers.jsonl")
        except (RowError, OSError, UnicodeDecodeError) as error:
            run.notes.append(f"{name}/answers.jsonl could not be read: {error}")
    if (folder / "results.json").exists():
        results = read_json(folder / "results.json", run.notes) or {}
        run.configs[f"evaluation: {name}"] = as_dict(results.get("config"))
        figures = {**as_dict(results.get("summary")), **(figures or {})}
    if records:
        try:
            figures = {**summarise(records), **(figures or {})}
        except RowError as error:
            run.notes.append(f"{name}/answers.jsonl is not one evaluation: {error}")
    if figures and number(figures.get("accuracy")) is not None:
        run.evaluations[name] = Evaluation(name, figures, records)
    else:
        run.notes.append(f"No evaluation of {TITLES.get(name, name)} was found.")


def _complete_pairs(run: Run) -> None:
    """Paired tests that the run did not write but whose records are there."""
    for first, second in PAIRS:
        key = f"{first}_vs_{second}"
        sides = [run.evaluations[name].records if name in run.evaluations else [] for name in (first, second)]
        if any(first in name and name.endswith(second) for name in run.paired) or not all(sides):
            continue
        try:
            run.paired[key] = paired_test(sides[0], sides[1])
        except RowError as error:
            run.notes.append(f"No paired test of {first} against {second}: {error}")


def read_training(name: str, folder: Path, notes: list[str]) -> Training:
    """metrics.jsonl with the lines of one step merged, config.json, and two groups of takes."""
    steps: dict[float, dict[str, float]] = {}
    for line in _json_lines(folder / "metrics.jsonl", notes):
        step = number(line.get("step"))
        if step is not None:
            flat = {key: value for key, raw in line.items() if (value := number(raw)) is not None}
            steps.setdefault(step, {}).update(flat)
    config = read_json(folder / "config.json", notes) if (folder / "config.json").exists() else None
    groups = read_groups(folder / "takes.jsonl", notes) if (folder / "takes.jsonl").exists() else ()
    return Training(name, folder, [steps[step] for step in sorted(steps)], config, groups)


def read_groups(path: Path, notes: list[str]) -> tuple[TakeGroup, ...]:
    """The first and the last group of takes with differing rewards, by streaming both ends of the file."""
    size = path.stat().st_size
    first = next((group for group in _groups(path, notes, 0, MAX_TAKES_BYTES) if group.is_mixed), None)
    last: TakeGroup | None = None
    for group in _groups(path, notes, max(0, size - MAX_TAKES_BYTES), size):
        last = group if group.is_mixed else last
    return tuple({(group.step, group.row): group for group in (first, last) if group is not None}.values())


def _groups(path: Path, notes: list[str], start: int, length: int) -> Iterator[TakeGroup]:
    """Neighbouring lines with the same step and row."""
    takes: list[dict[str, Any]] = []
    for take in _json_lines(path, notes, start, length):
        if takes and any(take.get(name) != takes[0].get(name) for name in ("step", "source", "problem_id")):
            yield _group(takes)
            takes = []
        takes.append(take)
    if takes:
        yield _group(takes)


def _group(takes: list[dict[str, Any]]) -> TakeGroup:
    problem_id, source = takes[0].get("problem_id"), takes[0].get("source")
    row = row_name(source if isinstance(source, str) else "", problem_id) if isinstance(problem_id, int) else None
    return TakeGroup(int(number(takes[0].get("step")) or 0), row, tuple(takes))


def _json_lines(path: Path, notes: list[str], start: int = 0, length: int | None = None) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file from byte `start` on; a line that is none (one cut by a kill, say) is counted in the notes."""
    damaged = 0
    with path.open("rb") as file:
        file.seek(max(0, start - 1))
        if start:
            file.readline()
        while (length is None or file.tell() < start + length) and (line := file.readline()):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            elif line.strip():
                damaged += 1
    if damaged:
        notes.append(f"{path.parent.name}/{path.name}: {damaged} lines could not be read and are left out.")


def read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """A JSON object, or None with a note."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return None
    return as_dict(value)


def as_dict(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """A finite number, or None: NaN and text are not figures."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") and value == value else None
