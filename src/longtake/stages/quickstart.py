"""`longtake quickstart`: the whole pipeline of recipes/quickstart.py, in processes of one thread.

Two stages that do not need each other run side by side, one process each. RL has both cores, through torchrun; its control then has both
for as many seconds. An interrupted quickstart goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longtake.config.base import Section
from longtake.config.env import num_cores, one_thread
from longtake.config.load import dump_config
from longtake.config.stages import ExportConfig, QuickstartConfig
from longtake.data.row_files import read_rows, write_rows
from longtake.errors import LongtakeError
from longtake.evaluation.records import read_records
from longtake.evaluation.summary import headline_rows, paired_test
from longtake.observe.progress import say
from longtake.observe.signals import StopFlag
from longtake.recipes.quickstart import SFT_SHARE, Quickstart, quickstart
from longtake.report.html import write_report
from longtake.training.checkpoint import find_checkpoint
from longtake.types import Row
from longtake.world.write import write_world

STAGE_KEYS = ("accuracy", "n", "ci95", "by_category", "by_frames", "by_letter", "format_rate")
MAX_PROCESSES = 2
"""Of RL and its control; fewer where there are fewer cores."""


def run(config: QuickstartConfig) -> None:
    """Write config.out/summary.json and report.html, and print the table."""
    recipe = quickstart(config.out, config.seed, num_held_out=config.held_out_videos)
    summary_path = config.out / "summary.json"
    if summary_path.exists():
        say(f"quickstart: {config.out} is complete; remove it to run again")
    else:
        summary = run_pipeline(config.out, recipe)
        summary_path.write_text(json.dumps(summary, indent=2) + "\n")
    print_table(json.loads(summary_path.read_text()))
    say(f"report: {write_report(config.out)}")


def run_pipeline(out: Path, recipe: Quickstart) -> dict[str, Any]:
    """All stages in order; returns what summary.json holds."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def done(name: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[name], started = now - started, now

    make_data(out, recipe)
    done("world")
    together(out, {"sft": recipe.sft, "sft_blind": recipe.sft_blind})
    for name in ("sft", "sft_blind"):
        export_best(out, name)
    done("sft")
    num_processes = min(MAX_PROCESSES, num_cores())
    together(out, {"rl": recipe.rl}, num_processes)
    export_best(out, "rl")
    done("rl")
    control = recipe.sft_control.model_copy(update={"max_seconds": training_seconds(out, "rl")})
    together(out, {"sft_control": control}, num_processes)
    export_best(out, "sft_control")
    done("sft_control")
    for pair in (("base", "blind"), ("sft", "sft_control"), ("rl",)):
        missing = [name for name in pair if not (out / "eval" / name / "results.json").exists()]
        together(out, {f"evaluate {name}": recipe.evaluations[name] for name in missing})
    done("evaluate")
    seconds["total"] = sum(seconds.values())
    seconds |= {f"{name}_training": training_seconds(out, name) for name in ("sft", "sft_blind", "rl", "sft_control")}
    return summarise_run(out, seconds)


def make_data(out: Path, recipe: Quickstart) -> None:
    """Three worlds of three seeds; the rows of the first are split by video."""
    for world in (recipe.train_world, recipe.validation_world, recipe.held_out_world):
        write_world(world)
    rows = [row for row in read_rows(recipe.train_world.out / "rows.jsonl") if isinstance(row, Row)]
    videos = sorted({row.videos for row in rows})
    for_sft = set(videos[: round(len(videos) * SFT_SHARE)])
    write_rows(out / "data" / "sft.jsonl", [row for row in rows if row.videos in for_sft])
    write_rows(out / "data" / "rl.jsonl", [row for row in rows if row.videos not in for_sft])


def together(out: Path, stages: dict[str, Section], num_processes: int = 1) -> None:
    """Run stages side by side, each in so many processes, and wait for all. Raises LongtakeError naming the one that failed.

    SIGTERM and Ctrl-C are passed on; StopRequested is raised when all have saved and left, so that our line is the last.
    """
    with StopFlag() as stop:
        running = {name: start(out, name, config, num_processes) for name, config in stages.items()}
        try:
            while not stop.requested and {process.poll() for process in running.values()} <= {None, 0} and unfinished(running):
                time.sleep(0.1)
            codes = {name: process.poll() for name, process in running.items()}
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if stop.requested:
        stop.leave("a new start of the quickstart goes on from here")
    for name, code in codes.items():
        check(name, code)


def unfinished(running: dict[str, subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is None for process in running.values())


def start(out: Path, name: str, config: Section, num_processes: int) -> subprocess.Popen[bytes]:
    """`longtake STAGE CONFIG`; its configuration stays in out/configs for reading and running again.

    In a session of its own: a Ctrl-C reaches it once, from us.
    """
    folder = out / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_')}.json"
    path.write_text(dump_config(config))
    stage = {"rl": "rl"}.get(name, "evaluate" if name.startswith("evaluate") else "sft")
    say(f"quickstart: {name}" + (f", {num_processes} processes" if num_processes > 1 else ""))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)] if num_processes > 1 else []
    return subprocess.Popen([sys.executable, *torchrun, "-m", "longtake", stage, str(path)], env=one_thread(), start_new_session=True)


def training_seconds(out: Path, name: str) -> float:
    return float(find_checkpoint(out / name).extra["seconds"])


def check(name: str, code: int | None) -> None:
    """None: it was told to leave because another stage failed, which the others' codes tell."""
    if code not in (None, 0):
        raise LongtakeError(
            f"stage {name} ended with exit code {code}",
            rule="every stage of the quickstart succeeds",
            remedy="read its message above; a new start goes on where this one stopped",
        )


def export_best(out: Path, name: str) -> None:
    """models/NAME from the best checkpoint of the run (by validation accuracy)."""
    from longtake.stages.export import run as export

    target = out / "models" / name
    if not target.exists():
        export(ExportConfig(run=out / name, out=target, which="best"))


def summarise_run(out: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """What summary.json holds: every stage, the blind baseline, paired tests of RL, and the seconds."""
    results = {
        name: json.loads((out / "eval" / name / "results.json").read_text())["summary"] for name in ("base", "sft", "sft_control", "rl")
    }
    blind = json.loads((out / "eval" / "blind" / "results.json").read_text())["summary"]
    answers = {name: headline_rows(read_records(out / "eval" / name / "answers.jsonl")) for name in ("sft", "sft_control", "rl")}
    return {
        "stages": {name: {key: summary[key] for key in STAGE_KEYS} for name, summary in results.items()},
        "blind": {key: blind[key] for key in ("accuracy", "n", "ci95", "chance", "chance99")},
        "paired": {f"rl_vs_{name}": paired_test(answers["rl"], answers[name]) for name in ("sft", "sft_control")},
        "seconds": seconds,
    }


def print_table(summary: dict[str, Any]) -> None:
    """The headline on stdout."""
    table = Table(title="held-out accuracy")
    for column in (
        "stage",
        "accuracy",
        "95 % interval",
        *(f"{frames} frames" for frames in summary["stages"]["rl"]["by_frames"]),
        "format",
    ):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, stage in {**summary["stages"], "blind": summary["blind"]}.items():
        frames = [f"{share['accuracy']:.1%}" for share in stage.get("by_frames", {}).values()] or [""] * len(
            summary["stages"]["rl"]["by_frames"]
        )
        low, high = stage["ci95"]
        rate = stage.get("format_rate")
        table.add_row(name, f"{stage['accuracy']:.1%}", f"{low:.1%} - {high:.1%}", *frames, "" if rate is None else f"{rate:.1%}")
    Console().print(table)
    for name, test in summary["paired"].items():
        Console().print(f"{name}: {test['difference']:+.1%}, paired p = {test['p']:.2g}", highlight=False)
    Console().print(f"seconds: {', '.join(f'{name} {value:.0f}' for name, value in summary['seconds'].items())}", highlight=False)
