"""`longtake evaluate`: answer every row, at each number of frames, and say how often it was right and how sure that is."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longtake.config.meta import run_meta
from longtake.config.stages import EvaluateConfig
from longtake.data.embedding_cache import EmbeddingCache, digest_index
from longtake.data.render import longest_prompt
from longtake.data.rows import read_examples
from longtake.data.videos import VideoSource
from longtake.errors import ConfigError
from longtake.evaluation.judged import judge_records
from longtake.evaluation.records import AnswerRecord, write_records
from longtake.evaluation.score import Item, evaluate_examples, evaluate_letters
from longtake.evaluation.summary import JudgeShare, Share, Summary, summarise
from longtake.models import load_model
from longtake.models.family import Model
from longtake.models.loading import model_folder
from longtake.observe.progress import Progress
from longtake.observe.timing import Phases
from longtake.parallel.collectives import reduce_metrics
from longtake.rewards.judge import Judge
from longtake.rollout.engine import Engine
from longtake.rollout.engines import make_engine
from longtake.rollout.judges import open_judge
from longtake.stages.shared_evaluation import share_evaluation
from longtake.stages.team import Team, joined
from longtake.types import Example

BLIND = 0
"""Number of frames written into the records of an evaluation without video."""


def run(config: EvaluateConfig) -> Summary:
    """Write answers.jsonl and results.json (summary, seconds, config, versions) into config.out, and print a table.

    Blind (data.with_video false), numbers of frames mean nothing: the rows are answered once, under 0 frames.
    """
    _check(config)
    with joined(config.parallel, config.model.device) as team, open_judge(config.judge, config.out, team.rank) as judge:
        return evaluate(config, team, judge)


def evaluate(config: EvaluateConfig, team: Team, judge: Judge | None = None) -> Summary:
    """Each process of the launch answers some rows; the first writes and prints."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    started, phases = time.perf_counter(), Phases()
    path = config.out / "digests.json" if team.world.size > 1 else None  # so that files are digested once
    with team.first_ahead():
        index = digest_index(config.cache, path, config.video.limits)
        items = read_examples(config.data, index)
        index.save()
    model = load_model(config.model)
    cache = EmbeddingCache(config.cache)
    frames = sorted(set(config.frames) or {config.video.max_frames}) if config.data.with_video else [BLIND]
    records: list[AnswerRecord] = []
    video = config.video.model_copy(update={"max_frames": max(*frames, config.video.max_frames)})
    longest = longest_prompt([item for item in items if isinstance(item, Example)], model, video, config.prompt)
    engine = make_engine(
        model, model_folder(config.model), config.rollout, longest, config.rollout.max_rows, axis=team.axis, out=config.out
    )
    total = len(frames) * len(items) // team.world.size
    with closing(engine), engine.at_weights(), Progress(f"evaluate {config.out.name}", total=total) as progress:
        for count in frames:
            team.heartbeat.beat(f"{count} frames")
            own_judge = judge if team.rank % engine.ranks_per_engine == 0 else None  # one of the ranks that share an engine asks
            answer = partial(evaluate_at, config, model, engine, count, phases, progress, cache, own_judge)
            records += share_evaluation(team, items, answer, engine.ranks_per_engine)
    summary = summarise(records)
    calls = {} if judge is None else reduce_metrics(judge.metrics(), team.axis) if team.world.size > 1 else judge.metrics()
    if not team.is_first:
        return summary
    config.out.mkdir(parents=True, exist_ok=True)
    write_records(config.out / "answers.jsonl", records)
    seconds = {**phases.seconds, "answer": time.perf_counter() - started - sum(phases.seconds.values())}
    results = {"summary": summary, "seconds": seconds, "calls": calls, "config": config.model_dump(mode="json"), "versions": run_meta()}
    (config.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print_summary(config.out.name, summary)
    return summary


def evaluate_at(
    config: EvaluateConfig,
    model: Model,
    engine: Engine,
    frames: int,
    phases: Phases,
    progress: Progress,
    cache: EmbeddingCache,
    judge: Judge | None,
    items: Sequence[Item],
) -> list[AnswerRecord]:
    """These rows at one number of frames."""
    video = config.video.model_copy(update={"max_frames": frames}) if frames != BLIND else config.video
    source = VideoSource(model, video, phases, cache)
    blind = not config.data.with_video
    if config.scoring == "letters":
        return evaluate_letters(
            model,
            source,
            items,
            frames=frames,
            prompt=config.prompt,
            max_rows=config.rollout.max_rows,
            with_video=not blind,
            advance=progress.advance,
        )
    records = evaluate_examples(
        model,
        engine,
        source,
        items,
        frames=frames,
        prompt=config.prompt,
        rollout=config.rollout,
        with_video=not blind,
        seed=config.seed,
        advance=progress.advance,
    )
    with phases("judge"):
        return records if judge is None else judge_records(judge, items, records)


def _check(config: EvaluateConfig) -> None:
    if config.rollout.num_takes != 1:
        raise ConfigError(
            f"rollout.num_takes = {config.rollout.num_takes} in an evaluation",
            rule="each row is answered once",
            remedy="set rollout.num_takes = 1",
        )


def print_summary(name: str, summary: Summary, console: Console | None = None) -> None:
    """A table of the headline and its parts, on stdout; names from the data are printed as they are, never as markup."""
    table = Table(title=escape(f"{name}: {summary['n']} rows at {summary['frames']} frames"), title_justify="left")
    for column in ("", "accuracy", "95 % interval", "rows"):
        table.add_column(column, justify="left" if not column else "right")
    _add_share(table, "all", summary)
    parts_of = (("category", "by_category"), ("source", "by_source"), ("frames", "by_frames"), ("key", "by_letter"))
    for title, name_of_parts in parts_of:
        parts = summary[name_of_parts]  # type: ignore[literal-required]
        table.add_section()
        for part, share in parts.items():
            _add_share(table, f"{title} {part}", share)
    console = console or Console()
    console.print(table)
    format_rate = summary["format_rate"]
    told = "not measured (letters scoring)" if format_rate is None else f"{format_rate:.1%}"
    failures = ", ".join(f"{kind} {count}" for kind, count in summary["failures"].items()) or "none"
    low, high = summary["chance99"]
    console.print(
        f"format {told}; tokens per response {summary['response_tokens']['mean']:.1f}; guessing scores {low:.1%} to {high:.1%} (99 %); "
        f"failures (counted as wrong): {failures}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if summary["judge"] is not None:
        console.print(judge_line(summary["judge"]), markup=False, highlight=False, soft_wrap=True)


def judge_line(share: JudgeShare) -> str:
    """What the judge said, and what is to be done about calls that failed."""
    agreed = "" if share["agreement"] is None else f"; says the same as the rules about {share['agreement']:.1%}"
    again = f"; {share['failed']} calls failed: run again, and only these are made anew" if share["failed"] else ""
    counts = f"{share['n']} open-ended rows, {share['calls']} asked, yes {share['yes']}, by the rules {share['rule_yes']}"
    return f"judge: {counts}{agreed}{again}"


def _add_share(table: Table, name: str, share: Share) -> None:
    low, high = share["ci95"]
    table.add_row(escape(name), f"{share['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", str(share["n"]))
