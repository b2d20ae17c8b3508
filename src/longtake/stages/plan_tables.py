"""A plan as tables for people and as a record for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longtake.config.plan import PlanConfig
from longtake.parallel.memory import RankBytes
from longtake.parallel.setting import GIB
from longtake.parallel.step import StepPlan
from longtake.stages.plan_assessment import Assessment, asks_for_degrees, in_words
from longtake.stages.plan_remedies import Remedy
from longtake.stages.plan_workload import SampledRow, Workload
from longtake.types import Layout

FIRST_PASS_ONLY = ("decode", "encode")


def print_plan(config: PlanConfig, workload: Workload, found: Assessment, console: Console) -> None:
    """Tokens, layouts, memory of a rank and of a node, seconds of a step."""
    console.print(f"[bold]plan[/bold] for {escape(describe(config, found))}", highlight=False, soft_wrap=True)
    for title, table in (_tokens(config, workload, found), _layouts(found), _memory(found), _host(found), _seconds(found)):
        console.print(f"\n[bold]{escape(title)}[/bold]", highlight=False, soft_wrap=True)
        console.print(table)
    console.print(_notes(config, workload, found), highlight=False, soft_wrap=True, markup=False)


def describe(config: PlanConfig, found: Assessment) -> str:
    """Model, what trains, and hardware in one line."""
    costs, cluster, training = found.setting.costs, found.setting.cluster, found.setting.training
    trains = f"{_parameters(training.trained_parameters)} {'of adapters ' if training.adapters else ''}train"
    ranks = _count(cluster.ranks_per_node, "GPU" if cluster.device == "cuda" else "process", "s" if cluster.device == "cuda" else "es")
    on = f"{_count(cluster.nodes, 'node', 's')} of {ranks}"
    sharded = ", split over all ranks" if training.sharded else ""
    sizes = f"{_parameters(costs.parameters)} parameters in {config.model.dtype}, {trains}{sharded}"
    return f"{config.model.path} ({sizes}) on {on}: {found.setting.rates.name}"


def _parameters(count: int) -> str:
    return f"{count / 1e9:,.2f} billion" if count >= 1e8 else f"{count / 1e6:,.2f} million"


def _table(columns: Sequence[str]) -> Table:
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _tokens(config: PlanConfig, workload: Workload, found: Assessment) -> tuple[str, Table]:
    middle, largest = found.rows[len(found.rows) // 2], found.rows[-1]
    failed = workload.failures.total() + found.refused.total()
    what = "hypothetical videos" if config.frames is not None else f"{len(found.rows)} rows, {failed} cannot be used"
    cells: list[tuple[str, str, str]] = []
    for name, text in (
        ("frames", lambda row: "-" if row.video is None else f"{row.video.num_frames:,}"),
        ("size", lambda row: "-" if row.video is None else f"{row.video.width} x {row.video.height}"),
        ("video tokens", lambda row: f"{row.video_tokens:,}"),
        ("prompt tokens", lambda row: f"{row.prompt_tokens:,}"),
    ):
        cells.append((name, text(middle), text(largest)))
    takes = config.rollout.num_takes
    usual = config.response_tokens or config.rollout.max_new_tokens
    cells.append(("tokens of its takes", f"{takes} x {usual:,}", f"{takes} x {config.rollout.max_new_tokens:,}"))
    shorter, longer = (row.prompt_tokens + takes * size for row, size in ((middle, usual), (largest, config.rollout.max_new_tokens)))
    cells.append(("tokens of the group", f"{shorter:,}", f"{longer:,}"))
    alike = all(one == other for _, one, other in cells)
    table = _table(("", "each") if alike else ("", "usual" if config.frames is not None else "median", "largest"))
    for row in cells:
        table.add_row(*row[: len(table.columns)])
    return f"Tokens ({what})", table


def _layouts(found: Assessment) -> tuple[str, Table]:
    table = _table(("step", "layout"))
    table.columns[1].justify = "left"
    cells: dict[str, list[str]] = {}
    for name, step in (("usual", found.usual), ("largest", found.largest)):
        for text in layout_texts(step) if step is not None else ["does not fit"]:
            cells.setdefault(text, []).append(name)
    for text, names in cells.items():
        table.add_row(", ".join(names), text)
    return "Layout of the updates, as chosen", table


def layouts_of(step: StepPlan | None) -> list[Layout]:
    """The layouts of a step's updates, in order."""
    return [layout for plan in (() if step is None else step.plans) for layout in plan.layouts]


def layout_texts(step: StepPlan) -> list[str]:
    """The layouts of a step in words, those that differ in packing alone together."""
    alike: dict[tuple[int, int, bool, bool], Layout] = {}
    for layout in layouts_of(step):
        key = (layout.ulysses, layout.ring, layout.shared_prompt, layout.gradient_checkpointing)
        alike[key] = replace(layout, rounds=alike[key].rounds + layout.rounds) if key in alike else layout
    return [layout_text(layout) for layout in alike.values()]


def layout_text(layout: Layout) -> str:
    """A layout in words."""
    micros = [micro for one in layout.rounds for micro in one if micro.pieces]
    split = sum(micro.split_tokens is not None for micro in micros)
    several = f"{layout.degree} ranks a sequence (Ulysses {layout.ulysses} x ring {layout.ring})"
    alone = all(len(one) == 1 for one in layout.rounds)
    words = [
        several if layout.degree > 1 else "" if alone else "each rank its own sequences",
        "a prompt once for its takes" if layout.shared_prompt else "one row per take",
        "layers checkpointed" if layout.gradient_checkpointing else "",
        _count(len(micros), "micro-batch", "es") + ("" if alone else f" in {_count(len(layout.rounds), 'round', 's')}"),
        f"{_count(split, 'group', 's')} in chunks of takes" if split else "",
    ]
    return ", ".join(word for word in words if word)


def _count(number: int, word: str, plural: str) -> str:
    return f"{number} {word}{plural if number != 1 else ''}"


def _memory(found: Assessment) -> tuple[str, Table]:
    limit = found.setting.cluster.rank_bytes
    sizes = [size for _, size in found.largest_bytes]
    table = _table(("", *(phase for phase, _ in found.largest_bytes)))
    for name in [name for name, _ in RankBytes().named() if any(getattr(size, name) for size in sizes)]:
        table.add_row(in_words(name), *(_gib(getattr(size, name)) for size in sizes))
    table.add_section()
    table.add_row("total", *(_gib(size.total) if size.total <= limit else f"[bold red]{_gib(size.total)}[/bold red]" for size in sizes))
    return f"Memory of one rank in the largest step, GiB (of {limit / GIB:,.1f} usable)", table


def _gib(size: float) -> str:
    return "" if not size else f"{size / GIB:,.2f}" if size >= 0.01 * GIB else "<0.01"


def _host(found: Assessment) -> tuple[str, Table]:
    limit, total, ranks = found.setting.cluster.host_bytes, found.host.total, found.setting.cluster.ranks_per_node
    table = _table(("", "one rank", "node"))
    for name, size in found.host.parts():
        if size:
            table.add_row(in_words(name), _gib(size / ranks), _gib(size))
    table.add_section()
    table.add_row("total", _gib(total / ranks), _gib(total) if total <= limit else f"[bold red]{_gib(total)}[/bold red]")
    return f"Host memory, GiB (of {limit / GIB:,.1f} usable on a node)", table


def _seconds(found: Assessment) -> tuple[str, Table]:
    """With every embedding kept, steps whose videos have been seen before stand beside the others."""
    title, again = "Seconds of a usual step", found.keeps_embeddings and found.num_videos > 0
    table = _table(("phase", "new videos", "share", "seen before", "share") if again else ("phase", "seconds", "share"))
    if found.usual is None:
        table.add_row("does not fit", *[""] * (len(table.columns) - 1))
        return title, table
    first = dict(found.usual.seconds.phases())
    columns = [first, _without_videos(first)] if again else [first]
    totals = [sum(column.values()) for column in columns]
    for name in [name for name, seconds in first.items() if seconds > 0]:
        cells = [(_short(column[name]), f"{column[name] / total:.0%}") for column, total in zip(columns, totals, strict=True)]
        table.add_row(name, *(text for pair in cells for text in pair))
    table.add_section()
    table.add_row("step", *(text for total in totals for text in (_short(total), "")))
    return title, table


def _without_videos(seconds: dict[str, float]) -> dict[str, float]:
    return {name: 0.0 if name in FIRST_PASS_ONLY else value for name, value in seconds.items()}


def _notes(config: PlanConfig, workload: Workload, found: Assessment) -> str:
    """What the tables do not say, a line each."""
    return "\n" + "\n".join(line for line in (*_about_the_run(config, found), *_doubts(config, workload, found)) if line)


def _about_the_run(config: PlanConfig, found: Assessment) -> list[str]:
    lines = []
    if found.largest is not None and not found.shortfalls:
        phase, size = max(found.largest_bytes, key=lambda entry: entry[1].total)
        limit = found.setting.cluster.rank_bytes
        lines.append(f"It fits: the fullest phase, {phase}, takes {size.total / GIB:.1f} of {limit / GIB:.1f} GiB of a rank.")
    else:
        lines.append("It does not fit.")
    degrees = degrees_to_set(config, found)
    if degrees:
        lines.append("For this layout set " + " and ".join(f"{key} = {value}" for key, value in degrees.items()) + ".")
    if found.usual is not None:
        steps = f"{config.steps} steps of {config.prompts_per_step} prompts x {config.rollout.num_takes} takes"
        lines.append(f"{steps}: about {run_seconds(config, found) / 3600:,.1f} hours.")
    return [*lines, _about_the_cache(config, found)]


def _about_the_cache(config: PlanConfig, found: Assessment) -> str:
    if config.model.train_vision and found.num_videos:
        return "The tower trains: videos are encoded anew in every step."
    holds = f"the cache holds {found.kept_videos:,} of {found.num_videos:,}"
    if config.frames is not None:
        return f"Every prompt is given a video of its own here; {holds} (see cache)."
    again = "videos are decoded and encoded again in every pass"
    return (
        ""
        if found.keeps_embeddings
        else f"{holds.capitalize()} videos; the other {again} (cache.folder, cache.memory_bytes, cache.disk_bytes)."
    )


def degrees_to_set(config: PlanConfig, found: Assessment) -> dict[str, int]:
    """Settings with which the run takes the layout of the largest step; none where it does so already."""
    layouts = layouts_of(found.largest)
    if not layouts or asks_for_degrees(config):
        return {}
    most = max(layouts, key=lambda layout: layout.degree)
    return {f"parallel.{name}": getattr(most, name) for name in ("ulysses", "ring") if getattr(most, name) > 1}


def run_seconds(config: PlanConfig, found: Assessment) -> float:
    """Of all steps, videos counted where they are decoded and encoded."""
    assert found.usual is not None
    seconds = dict(found.usual.seconds.phases())
    once = sum(seconds[name] for name in FIRST_PASS_ONLY)
    return config.steps * (sum(seconds.values()) - once) + found.fresh_steps * once


def _doubts(config: PlanConfig, workload: Workload, found: Assessment) -> list[str]:
    """What the reader should know before believing the figures."""
    failed, hardware = workload.failures.total() + found.refused.total(), config.hardware
    reduced, total = sum(row.reduced for row in found.rows), failed + len(found.rows)
    allowed = config.data.max_failed_fraction
    return [
        f"{reduced} of {len(found.rows)} videos are reduced to stay within video.max_video_tokens." if reduced else "",
        f"The run will refuse these rows: {failed / total:.0%} cannot be used, data.max_failed_fraction allows {allowed:.0%}."
        if failed > allowed * total
        else "",
        "Host memory is that of this machine; hardware.host_memory_gib names another."
        if hardware.device not in ("auto", "cpu") and hardware.host_memory_gib is None
        else "",
        "Seconds rest on assumed shares of the GPU's published peaks, not on measurements."
        if "assumed" in found.setting.rates.name
        else "",
    ]


def _short(seconds: float) -> str:
    return "0" if not seconds else f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.3f}"


def as_record(config: PlanConfig, workload: Workload, found: Assessment, ways: Sequence[Remedy]) -> dict[str, Any]:
    """Everything as plain values, bytes and seconds unrounded."""
    setting = found.setting
    return {
        "fits": not found.shortfalls and found.largest is not None,
        "shortfalls": [asdict(shortfall) for shortfall in found.shortfalls],
        "remedies": [dict(way.settings) for way in ways],
        "model": {"path": config.model.path, "dtype": config.model.dtype, "parameters": setting.costs.parameters},
        "training": asdict(setting.training),
        "hardware": asdict(setting.cluster),
        "rates": {name: value for name, value in asdict(setting.rates).items() if value != float("inf")},
        "rows": {"usable": len(found.rows), "failures": dict(workload.failures + found.refused)},
        "median": _row_record(found.rows[len(found.rows) // 2]),
        "largest": _row_record(found.rows[-1]),
        "usual_step": _step_record(found.usual),
        "largest_step": _step_record(found.largest),
        "memory": {phase: {**asdict(size), "total": size.total} for phase, size in found.largest_bytes},
        "host": {**asdict(found.host), "total": found.host.total},
        "videos": {"different": found.num_videos, "kept": found.kept_videos},
        "settings": degrees_to_set(config, found),
        "run_seconds": None if found.usual is None else run_seconds(config, found),
    }


def _row_record(row: SampledRow) -> dict[str, Any]:
    video = None if row.video is None else asdict(row.video)
    return {"prompt_tokens": row.prompt_tokens, "video_tokens": row.video_tokens, "video": video, "reduced": row.reduced}


def _step_record(step: StepPlan | None) -> dict[str, Any] | None:
    if step is None:
        return None
    seconds = {**asdict(step.seconds), "total": step.seconds.total}
    layouts = [
        {
            "ulysses": layout.ulysses,
            "ring": layout.ring,
            "shared_prompt": layout.shared_prompt,
            "gradient_checkpointing": layout.gradient_checkpointing,
            "rounds": len(layout.rounds),
            "split_groups": sum(micro.split_tokens is not None for one in layout.rounds for micro in one),
        }
        for layout in layouts_of(step)
    ]
    return {"seconds": seconds, "layouts": layouts}
