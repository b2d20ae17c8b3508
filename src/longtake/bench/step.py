"""A whole RL step five ways, at the proportions of cost of Qwen2.5-VL-7B, by processes of one thread each: `longtake bench step`.

A step: as many groups as processes, a new video each; videos are encoded, prompts prefilled, G takes of R tokens decoded from each; then
the reference (beta > 0) and the policy score them, backward, sum of gradients, AdamW. No old-log-prob pass anywhere: the step is on-policy.
Training replays recorded takes, so that every column computes the same loss, which is checked. Columns: step_columns.py; bound:
step_bound.py.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from longtake.bench.busy import BusyPhases
from longtake.bench.encode import meet, whole
from longtake.bench.ranks import run_on_ranks
from longtake.bench.shapes import SCALED, build_scaled, costs_of, published_costs, tower_share
from longtake.bench.step_batch import CHUNK, StepBatch, make_batch
from longtake.bench.step_bound import bound
from longtake.bench.step_columns import Columns, Found
from longtake.bench.step_passes import StepRank
from longtake.bench.step_regret import CLOCKS, by_rank, measure_regret, met, turned
from longtake.config.benches import BenchStepConfig
from longtake.config.sections import ModelConfig, OptimizerConfig
from longtake.errors import LongtakeError
from longtake.models import load_model
from longtake.models.costs import model_costs
from longtake.observe.progress import say
from longtake.parallel.calibrate import calibrate
from longtake.parallel.costs import flop_ratio
from longtake.parallel.encode import Encoder
from longtake.parallel.mesh import SequenceMesh, World, start_world
from longtake.parallel.setting import GIB, Cluster, Setting, training_costs
from longtake.training.optimizer import build_optimizer
from longtake.training.trainable import choose_trainable

CPU = torch.device("cpu")
TIMEOUT_S = 3600.0
RANK_BYTES = 8 * GIB
DIFFERENCE = 1e-3
"""Relative, of loss and gradient norm between columns (float32; measured 1e-5 and less)."""
BASELINES = ("published", "modern")
PHASES = ("encode", "prefill", "decode", "plan", "reference", "update", "optimizer")
Measured = tuple[float, dict[str, float]]
"""Seconds of a column, and of each of its phases."""


@dataclass(frozen=True)
class ByClock:
    """What one clock says of a line."""

    seconds: dict[str, float]
    """Median of each column."""
    phases: dict[str, dict[str, float]]
    """Of each column, the median seconds of each phase on the slowest rank."""
    rounds: list[dict[str, float]]
    bounds: dict[str, float]
    """Over each baseline."""
    speedups: dict[str, float]
    """Of everything with the planner, over each baseline."""
    fractions: dict[str, float]
    """speedup / bound."""


@dataclass(frozen=True)
class StepLine:
    """One line of the table."""

    frames: int
    prompt: int
    """Tokens."""
    wall: dict[str, Any]
    busy: dict[str, Any]
    """`ByClock`s: seconds on the wall, and seconds on a core of the busiest rank."""
    flop_ratio: float
    rows_at_once: dict[str, int]
    difference: float
    """The largest relative difference of loss and gradient norm between columns."""


@dataclass(frozen=True)
class StepBench:
    """What `bench step --json` prints."""

    lines: list[dict[str, Any]]
    """`StepLine`s."""
    regrets: list[dict[str, Any]]
    """`step_regret.Regret`s."""
    regret_mean: dict[str, float]
    """Geometric, by either clock."""
    regret_max: dict[str, float]
    tower_share: dict[str, float]
    """Products of the tower per video token over those of the decoder: in the 7B and here."""
    rates: dict[str, Any]
    settings: dict[str, Any]
    seconds: float


def measure_step(config: BenchStepConfig) -> StepBench:
    """Raises LongtakeError when two columns do not compute the same."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answers = run_on_ranks(_on_rank, config.processes, config, str(build_scaled(Path(folder))), timeout_s=TIMEOUT_S)
    found = answers[0]
    regrets = {clock: [one["regret"][clock] for one in found["regrets"]] for clock in CLOCKS}
    return StepBench(
        lines=found["lines"],
        regrets=found["regrets"],
        regret_mean={clock: math.exp(sum(map(math.log, own)) / len(own)) for clock, own in regrets.items()},
        regret_max={clock: max(own) for clock, own in regrets.items()},
        tower_share={"qwen2_5_vl_7b": tower_share(published_costs("7b")), "here": tower_share(costs_of(SCALED))},
        rates=found["rates"],
        settings=config.model_dump(),
        seconds=time.perf_counter() - begin,
    )


def _on_rank(config: BenchStepConfig, path: str) -> dict[str, Any]:
    with start_world(CPU, TIMEOUT_S) as world:
        setting = make_setting(world, config, path)
        rank = make_rank(world, config, path, config.frames[0])
        lines = [_line(rank, setting, config, frames) for frames in config.frames]
        regrets = [_regret(rank, setting, batch) for batch in regret_batches(rank, config)]
        return {"lines": lines, "regrets": regrets, "rates": asdict(setting.rates) | {"node_link_bytes": None}}


def _line(rank: StepRank, setting: Setting, config: BenchStepConfig, frames: int) -> dict[str, Any]:
    """A line of the table, told on stderr as soon as it is measured: a run that is stopped has shown what it found."""
    begin = time.perf_counter()
    line = asdict(measure_line(_with_batch(rank, config, frames), setting))
    if rank.world.rank == 0:
        columns = ", ".join(f"{name} {seconds:.2f}" for name, seconds in line["wall"]["seconds"].items())
        say(f"{frames} frames: {columns} s on the wall (measured in {time.perf_counter() - begin:.0f} s)")
    return line


def make_setting(world: World, config: BenchStepConfig, path: str) -> Setting:
    costs = model_costs(path, "float32")
    rates = calibrate(costs, CPU, torch.float32, world.axis if world.size > 1 else None)
    cluster = Cluster(1, world.size, RANK_BYTES, RANK_BYTES * world.size, "cpu")
    return Setting(costs, training_costs(costs, reference_passes=config.beta > 0), cluster, rates)


def make_rank(world: World, config: BenchStepConfig, path: str, frames: int) -> StepRank:
    """Model, a reference of its own weights, and an optimizer whose steps are too small to change anything."""
    settings = ModelConfig(path=path, device="cpu")
    model, reference = load_model(settings), load_model(settings)
    choose_trainable(model, settings)
    reference.hf.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-12, schedule="constant"), 1_000_000)
    batch = make_batch(model, config, [frames] * world.size)
    return StepRank(world, model, reference, optimizer, config, batch, BusyPhases())


def _with_batch(rank: StepRank, config: BenchStepConfig, frames: int) -> StepRank:
    batch = make_batch(rank.model, config, [frames] * rank.world.size)
    return StepRank(rank.world, rank.model, rank.reference, rank.optimizer, config, batch, rank.phases)


def measure_line(rank: StepRank, setting: Setting) -> StepLine:
    """All columns in turn, `repeats` times, after a first run of each that is not counted but checked."""
    world, config = rank.world, rank.config
    spread = world.sequence_mesh(ulysses=world.size)
    every = list(range(world.size))
    alone_rows = fastest_rows(rank, world.sequence_mesh(), [rank.own_group])
    columns = Columns(rank, setting, alone_rows, fastest_rows(rank, spread, every))
    difference = check_same({name: column() for name, column in columns.all().items()})
    rank.phases.take_both()
    timed = [
        {name: timed_column(rank, columns.all()[name]) for name in turned(list(columns.all()), turn)} for turn in range(config.repeats)
    ]
    shape = rank.batch.shapes([0])[0]
    ratio = flop_ratio(setting.costs, shape)
    clocks = [by_clock(config, [{name: one[name][place] for name in one} for one in timed], ratio) for place in range(len(CLOCKS))]
    return StepLine(
        frames=len(rank.batch.videos[0].frames.pixels),
        prompt=shape.prompt_length,
        wall=asdict(clocks[0]),
        busy=asdict(clocks[1]),
        flop_ratio=ratio,
        rows_at_once={"alone": columns.alone_rows, "spread": columns.spread_rows},
        difference=difference,
    )


def by_clock(config: BenchStepConfig, rounds: list[dict[str, Measured]], ratio: float) -> ByClock:
    """Medians of all rounds, what the counts allow, and how much of it is reached."""
    seconds = {name: median(one[name][0] for one in rounds) for name in rounds[0]}
    phases = {name: {phase: median(one[name][1][phase] for one in rounds) for phase in PHASES} for name in rounds[0]}
    bounds = {name: bound(name, phases[name], config.group, ratio, reference=config.beta > 0) for name in BASELINES}
    speedups = {name: seconds[name] / seconds["planned"] for name in BASELINES}
    fractions = {name: speedups[name] / bounds[name] for name in BASELINES}
    return ByClock(seconds, phases, [{name: one[name][0] for name in one} for one in rounds], bounds, speedups, fractions)


def check_same(found: dict[str, Found]) -> float:
    """The largest relative difference to the first column. Raises LongtakeError when it is more than rounding."""
    first = next(iter(found.values()))
    worst = max(abs(own - given) / abs(given) for one in found.values() for own, given in zip(one, first, strict=True))
    if worst > DIFFERENCE:
        raise LongtakeError(f"columns differ by {worst:.2g}: {found}", rule="all compute the same loss and gradient", remedy="report it")
    return worst


def timed_column(rank: StepRank, column: Callable[[], Found]) -> tuple[Measured, Measured]:
    """By both clocks, from one meeting of all ranks to the next: the slowest rank's seconds, in all and of each phase."""
    meet(rank.world)
    begin, busy_begin = time.perf_counter(), time.process_time()
    column()
    busy = time.process_time() - busy_begin
    meet(rank.world)
    totals = by_rank(rank, [time.perf_counter() - begin, busy])
    phases = [by_rank(rank, [own.get(name, 0.0) for name in PHASES]) for own in rank.phases.take_both()]
    wall, on_core = ((max(total), dict(zip(PHASES, map(max, own), strict=True))) for total, own in zip(totals, phases, strict=True))
    return wall, on_core


def fastest_rows(rank: StepRank, mesh: SequenceMesh, groups: list[int]) -> int:
    """Rows at a time with which reference and policy of one row per take are fastest, tried once each."""
    tokens = [rank.encode_alone(group) for group in range(len(rank.batch.videos))]
    rank.phases.take_both()
    most = rank.config.group * len(groups)
    seconds: dict[int, float] = {}
    for count in [count for count in (1, 2, 4, 8) if count <= most]:
        micros = rank.rows(groups, count, mesh)[: max(1, 4 // count)]
        takes = sum(len(micro.takes) for micro in micros)

        def work() -> None:
            rank.learn(micros, tokens.__getitem__, rank.score_reference(micros, tokens.__getitem__))  # noqa: B023 - called in this turn of the loop

        seconds[count] = met(rank, work)[1] / takes
    return min(seconds, key=lambda count: seconds[count])


def regret_batches(rank: StepRank, config: BenchStepConfig) -> list[StepBatch]:
    """For each number of frames: as many equal groups as processes, and a group by itself."""
    whole_batches = [make_batch(rank.model, config, [frames] * rank.world.size) for frames in config.frames]
    return [*whole_batches, *(make_batch(rank.model, config, [frames]) for frames in config.frames)]


def _regret(rank: StepRank, setting: Setting, batch: StepBatch) -> dict[str, Any]:
    tokens = whole(Encoder(rank.model, CHUNK, rank.world.axis, rank.phases), batch.videos)
    rank.phases.take_both()
    found = asdict(measure_regret(rank, setting, batch, tokens, rank.config.regret_repeats))
    if rank.world.rank == 0:
        told = ", ".join(f"{value:.3f} ({clock}, best {found['best'][clock]})" for clock, value in found["regret"].items())
        say(f"frames {', '.join(map(str, found['frames']))}: chosen {found['chosen']}, regret {told}")
    return found
