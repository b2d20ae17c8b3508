"""How much slower the planner's choice is than the best fixed layout: reference and policy passes of a batch, all layouts in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from longtake.bench.encode import meet
from longtake.bench.step_batch import StepBatch
from longtake.bench.step_passes import StepRank
from longtake.parallel.collectives import sum_over_ranks
from longtake.parallel.costs import flop_ratio
from longtake.parallel.layouts import Allowed, splits_of
from longtake.parallel.planner import best_layout, plan_batch
from longtake.parallel.setting import Setting
from longtake.types import Layout, VideoTokens

Seconds = tuple[float, float]
"""(on the wall, busy on the busiest rank), the same on all ranks."""
HOPELESS_FLOPS = 1.8
"""Layouts with one row per take are left out where they do so many times the operations: they cannot be the best."""
HOPELESS = 1.6
"""A fixed layout that took so many times the fastest in two trials is not the best one, and is not measured further."""
CLOCKS = ("wall", "busy")


@dataclass(frozen=True)
class Regret:
    """One batch. Seconds by both clocks."""

    frames: tuple[int, ...]
    """Of each group's video."""
    chosen: str
    best: dict[str, str]
    regret: dict[str, float]
    """Median seconds of the choice over those of the best fixed layout; 1 where they are the same layout."""
    medians: dict[str, dict[str, float]]
    """Of every layout that was measured to the end."""
    trials: dict[str, float]
    """The faster of two trials, of every layout."""
    left_out: list[str]
    """For their operations."""


def measure_regret(rank: StepRank, setting: Setting, batch: StepBatch, tokens: Sequence[VideoTokens], repeats: int) -> Regret:
    """All ranks call it."""
    mine = replace(rank, batch=batch)
    shapes = batch.shapes(range(len(batch.prompts)))
    left_out = [name for name in fixed_layouts(setting) if name.endswith("rows") and flop_ratio(setting.costs, shapes[0]) >= HOPELESS_FLOPS]
    fixed = {
        name: best_layout(setting, shapes, allowed).layouts for name, allowed in fixed_layouts(setting).items() if name not in left_out
    }
    planned = plan_batch(setting, shapes).layouts
    chosen = next((name for name, layouts in fixed.items() if layouts == planned), "planned")
    works = {name: _work(mine, layouts, tokens) for name, layouts in {**fixed, chosen: planned}.items()}
    trials = {name: min(met(rank, run)[1] for _ in range(2)) for name, run in works.items()}
    kept = [name for name in works if trials[name] <= HOPELESS * min(trials.values()) or name == chosen]
    rounds = [{name: met(rank, works[name]) for name in turned(kept, number)} for number in range(repeats)]
    medians = {clock: {name: median(one[name][place] for one in rounds) for name in kept} for place, clock in enumerate(CLOCKS)}
    best = {clock: min((name for name in kept if name != "planned"), key=found.__getitem__) for clock, found in medians.items()}
    regret = {clock: found[chosen] / found[best[clock]] for clock, found in medians.items()}
    frames = tuple(len(video.frames.pixels) for video in batch.videos)
    return Regret(frames, chosen, best, regret, medians, trials, left_out)


def _work(rank: StepRank, layouts: Sequence[Layout], tokens: Sequence[VideoTokens]) -> Callable[[], object]:
    """Reference and policy passes under these layouts."""
    micros = rank.planned(layouts)
    return lambda: rank.learn(micros, tokens.__getitem__, rank.score_reference(micros, tokens.__getitem__))


def turned(names: Sequence[str], number: int) -> list[str]:
    """Another one begins each round."""
    place = number % len(names)
    return [*names[place:], *names[:place]]


def fixed_layouts(setting: Setting) -> dict[str, Allowed]:
    """Every split with the prompt shared or repeated, whatever the batch; packed as well as the planner can."""
    return {
        f"ulysses {split.ulysses} ring {split.ring} {'shared' if shared else 'rows'}": Allowed(False, shared, (split,))
        for split in splits_of(setting)
        for shared in (True, False)
    }


def met(rank: StepRank, run: Callable[[], object]) -> Seconds:
    """Seconds of `run` from one meeting of all ranks to the next; gradients are dropped."""
    meet(rank.world)
    begin, busy_begin = time.perf_counter(), time.process_time()
    run()
    busy = time.process_time() - busy_begin
    meet(rank.world)
    wall = time.perf_counter() - begin
    rank.optimizer.adamw.zero_grad()
    rank.phases.take_both()
    (walls, busys) = by_rank(rank, [wall, busy])
    return max(walls), max(busys)


def by_rank(rank: StepRank, values: Sequence[float]) -> list[list[float]]:
    """Each value of every rank, the same on all of them."""
    size = rank.world.size
    own = [value if place == rank.world.rank else 0.0 for value in values for place in range(size)]
    told = sum_over_ranks(own, rank.world.axis)
    return [told[start : start + size] for start in range(0, len(told), size)]
