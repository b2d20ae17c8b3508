"""`torchrun -m longtake rl|sft|evaluate`: several processes make the run that one makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig
from longtake.evaluation.records import read_records
from longtake.observe.lines import read_lines
from longtake.rollout import spread_prefill
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.stages import evaluate, rl, sft, training_run
from longtake.testing.processes import run_processes
from longtake.testing.samplers import bent_sampler, uneven
from longtake.testing.training import base_weights, largest_difference, last_weights, metrics_of, write_config

MakeRl = Callable[..., RlConfig]
MakeSft = Callable[..., SftConfig]
LAYOUTS = {"planned": (2, 1, 1), "ulysses 2": (2, 1, 2), "ring 2": (2, 2, 1)}
LONG = {"data 2 x ring 2": (4, 2, 1), "ring 2 x ulysses 2": (4, 2, 2), "planned 4": (4, 1, 1)}
EVERY = {**LAYOUTS, **LONG}
CASES = [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]


def run_stage(stage: str, config: Any, layout: str, run: Callable[[str, dict[str, Any]], None] | None = None) -> None:
    processes, ring, ulysses = EVERY[layout]
    values = config.model_dump(mode="json")
    values["parallel"] |= {"ring": ring, "ulysses": ulysses}
    run_processes(run or _run, processes, stage, values, timeout_s=240)


def _run(stage: str, values: dict[str, Any]) -> None:
    module, kind = {"rl": (rl, RlConfig), "sft": (sft, SftConfig), "evaluate": (evaluate, EvaluateConfig)}[stage]
    module.run(kind.model_validate(values))


def said(config: RlConfig) -> list[tuple[Any, ...]]:
    takes = read_lines(config.out / "takes.jsonl")
    return [(take["step"], take["problem_id"], take["take"], tuple(take["token_ids"])) for take in takes]


@pytest.mark.parametrize("layout", CASES)
@pytest.mark.parametrize("train_vision", [False, True], ids=["frozen", "trained"])
def test_rl_with_several_processes(rl: MakeRl, base: Path, layout: str, train_vision: bool) -> None:
    """The same takes (random numbers are keyed by step, row and take) and after five steps the same weights. Measured: see the assert."""
    changes: dict[str, Any] = {"steps": 5, "prompts_per_step": 4, "model": {"train_vision": train_vision}, "optimizer": {"eps": 1e-4}}
    alone, several = rl("alone", **changes), rl("several", **changes)
    _run("rl", alone.model_dump(mode="json"))
    run_stage("rl", several, layout)
    assert said(alone) == said(several)
    moved = largest_difference(last_weights(alone.out), base_weights(base))
    assert moved > 1e-3
    assert largest_difference(last_weights(alone.out), last_weights(several.out)) <= 1e-5
    lines = zip(metrics_of(alone.out), metrics_of(several.out), strict=True)
    for one, other in lines:
        assert one["tokens/prompt"] == other["tokens/prompt"] and one["reward/total"] == pytest.approx(other["reward/total"], abs=1e-6)
        assert one["encode/groups"] == other["encode/groups"]  # the tower saw each video once, whoever saw it
        assert one["policy/entropy"] == pytest.approx(other["policy/entropy"], abs=1e-5)
        assert ("plan/predicted_s" in other) == layout.startswith("planned")


@pytest.mark.parametrize("layout", CASES)
def test_importance_correction_with_several_processes(rl: MakeRl, base: Path, layout: str) -> None:
    """A sampler that is off unevenly, two updates a step: the pass before the first is shared out, and reaches whoever trains."""
    changes: dict[str, Any] = {
        "steps": 3,
        "prompts_per_step": 4,
        "updates_per_step": 2,
        "algorithm": {"importance": {"kind": "truncate", "level": "sequence", "cap": 1.5}},
        "max_logprob_difference": 5.0,
        "optimizer": {"eps": 1e-4},
    }
    alone, several = rl("alone", **changes), rl("several", **changes)
    _run_bent("rl", alone.model_dump(mode="json"))
    run_stage("rl", several, layout, _run_bent)
    assert said(alone) == said(several)
    assert largest_difference(last_weights(alone.out), base_weights(base)) > 1e-3
    assert largest_difference(last_weights(alone.out), last_weights(several.out)) <= 1e-5
    for one, other in zip(metrics_of(alone.out), metrics_of(several.out), strict=True):
        for name in ("policy/importance_weight", "policy/importance_truncated", "policy/importance_ess", "mismatch/mean", "policy/ratio"):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
        assert one["policy/importance_truncated"] > 0.0 and other["seconds/proximal"] > 0.0


def _run_bent(stage: str, values: dict[str, Any]) -> None:
    with bent_sampler(lambda step, key, take: uneven(take)):
        _run(stage, values)


@pytest.mark.parametrize("train_vision", [False, True], ids=["frozen", "trained"])
def test_one_prompt_is_prefilled_by_all(rl: MakeRl, train_vision: bool) -> None:
    """Fewer prompts than ranks, and long by the standard of this test: the takes of one process, and no rank prefills alone."""
    changes: dict[str, Any] = {"steps": 3, "prompts_per_step": 1, "model": {"train_vision": train_vision}, "optimizer": {"eps": 1e-4}}
    alone, several = rl("alone", **changes), rl("several", **changes)
    _run("rl", alone.model_dump(mode="json"))
    run_processes(_run_with_short_as_long, 2, several.model_dump(mode="json"), timeout_s=240)
    assert said(alone) == said(several)
    assert largest_difference(last_weights(alone.out), last_weights(several.out)) <= 1e-5


def _run_with_short_as_long(values: dict[str, Any]) -> None:
    spread_prefill.MIN_TOKENS = 1
    del TransformersEngine._prefill
    _run("rl", values | {"validation": None})


def test_it_fails_when_gradients_stay_where_they_are(rl: MakeRl) -> None:
    """The control of the test above: without the sum over ranks the weights differ."""
    alone, several = rl("alone", steps=1, prompts_per_step=4), rl("several", steps=1, prompts_per_step=4)
    _run("rl", alone.model_dump(mode="json"))
    run_processes(_run_without_sum, 2, several.model_dump(mode="json"), timeout_s=240)
    assert largest_difference(last_weights(alone.out), last_weights(several.out)) > 1e-4


def _run_without_sum(values: dict[str, Any]) -> None:
    training_run.sum_gradients = lambda parameters, axis: None
    _run("rl", values)


@pytest.mark.parametrize("layout", CASES)
def test_sft_with_several_processes(sft: MakeSft, base: Path, layout: str) -> None:
    changes: dict[str, Any] = {"max_steps": 3, "batch_size": 6, "optimizer": {"eps": 1e-4}, "model": {"train_vision": layout == "ring 2"}}
    alone, several = sft("alone", **changes), sft("several", **changes)
    _run("sft", alone.model_dump(mode="json"))
    run_stage("sft", several, layout)
    assert largest_difference(last_weights(alone.out), base_weights(base)) > 1e-3
    assert largest_difference(last_weights(alone.out), last_weights(several.out)) <= 1e-5
    for one, other in zip(metrics_of(alone.out), metrics_of(several.out), strict=True):
        assert one["loss/sft"] == pytest.approx(other["loss/sft"], rel=1e-5)


def test_a_run_of_two_goes_on_where_a_run_of_one_stopped(rl: MakeRl) -> None:
    """Processes are how fast, not what: one may resume with another number of them."""
    whole, cut = rl("whole", steps=4, optimizer={"eps": 1e-4}), rl("cut", steps=2, optimizer={"eps": 1e-4})
    _run("rl", whole.model_dump(mode="json"))
    _run("rl", cut.model_dump(mode="json"))
    run_stage("rl", cut.model_copy(update={"steps": 4}), "planned")
    assert said(whole) == said(cut)
    assert largest_difference(last_weights(whole.out), last_weights(cut.out)) <= 1e-5


def test_a_video_that_fails_fails_on_every_rank_and_is_counted_once(rl: MakeRl, rows: Path, tmp_path: Path) -> None:
    """Its rows keep their place in the data order; the run goes on."""
    folder = tmp_path / "damaged"
    shutil.copytree(rows.parent, folder)
    damaged = sorted((folder / "videos").glob("*.mp4"))[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    changes = {"steps": 2, "prompts_per_step": 6, "data": {"rows": folder / "rows.jsonl", "max_failed_fraction": 0.5}}
    alone, several = rl("alone", **changes), rl("several", **changes)
    _run("rl", alone.model_dump(mode="json"))
    run_stage("rl", several, "planned")
    counts = [[{k: v for k, v in line.items() if k.startswith("failures/")} for line in metrics_of(run.out)] for run in (alone, several)]
    assert counts[0] == counts[1] and counts[0][-1]["failures/known_rows"] > 0
    assert said(alone) == said(several)


def test_evaluation_with_several_processes(rows: Path, base: Path, tmp_path: Path) -> None:
    """The same records in the same order."""
    shared = {
        "model": {"path": str(base), "device": "cpu"},
        "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
        "data": {"rows": str(rows)},
        "rollout": {"num_takes": 1, "temperature": 0.0, "max_new_tokens": 8},
        "num_threads": 1,
    }
    for name, processes in (("alone", 1), ("several", 2)):
        run_processes(_run, processes, "evaluate", shared | {"out": str(tmp_path / name)}, timeout_s=240)
    alone, several = (read_records(tmp_path / name / "answers.jsonl") for name in ("alone", "several"))
    assert alone == several and len(alone) == 12


def test_torchrun_names_the_rank_that_was_killed(rl: MakeRl, tmp_path: Path) -> None:
    """The command of the README; one rank gets SIGKILL in the middle; the other leaves with its name within the heartbeat's time."""
    config = rl("killed", steps=10_000, parallel={"heartbeat_s": 20.0, "timeout_s": 60.0})
    path = write_config(config, tmp_path / "rl.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "longtake", "rl", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as launcher:
        takes = config.out / "takes.jsonl"
        wait_until(lambda: (takes.exists() and takes.stat().st_size > 0) or launcher.poll() is not None, 240)
        assert launcher.poll() is None, launcher.communicate()[0]
        ranks = sorted(psutil.Process(launcher.pid).children(), key=lambda process: process.create_time())
        next(one for one in ranks if one.environ().get("RANK") == "1").kill()
        said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "rank 1 is gone" in said or "local_rank: 1" in said, said


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_longest_rows_come_first_when_asked(sft: MakeSft, rows: Path, processes: int) -> None:
    """Of twelve rows about six videos of ten to twelve seconds, sampled at one frame a second: the first four have the most tokens."""
    config = sft("longest", max_steps=3, data={"longest_first": True}, video={"fps": 1.0, "max_frames": 64})
    run_processes(_run, processes, "sft", config.model_dump(mode="json"), timeout_s=240)
    prompts = [line["tokens/prompt"] for line in metrics_of(config.out)]
    assert prompts[0] > max(prompts[1:])
