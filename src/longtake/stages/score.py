"""`longtake score`: log-probs of given responses to given rows, in one process or spread over the processes of a launch.

Rows are dealt to the data ranks, all rows of a video to the same one. They work in rounds: in each, every data rank scores one batch and
all tell each other what they found, so that no rank is ever more than a batch ahead of another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from longtake.config.env import world_size
from longtake.config.score import ScoreConfig
from longtake.data.responses import Line, Response, Scored, Vocabulary, checked, read_responses, write_scored
from longtake.data.rows import SourcedRow, check_failures
from longtake.errors import ConfigError
from longtake.models import load_model
from longtake.models.family import Model
from longtake.observe.progress import Progress, say
from longtake.observe.timing import Phases
from longtake.stages.score_units import Prompts, Rows, Unit, batches, score_batch
from longtake.stages.team import Team, joined
from longtake.types import Failure, RowName

Outcome = Scored | Failure
MAX_TOLD = 5
"""Errors said aloud; all of them are in the file."""


def run(config: ScoreConfig) -> None:
    """Write every line of config.responses, in its order, with its log-probs or its error into config.out. Only rank 0 writes.

    Raises ConfigError for a launch that the layout does not fit, RowError after writing when more responses could not be scored than
    data.max_failed_fraction allows.
    """
    started = time.perf_counter()
    check_launch(config)
    check_out(config)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    ring, ulysses = config.degrees
    with joined(config.parallel.model_copy(update={"ring": ring, "ulysses": ulysses, "sharded": False}), config.model.device) as team:
        job = prepare(config, team)
        outcomes = score_all(job)
        if team.is_first:
            write_scored(config.out, job.lines, outcomes, entropies=config.entropies)
            tell(job, outcomes, time.perf_counter() - started)
    if team.is_first:
        check_failures(outcomes, config.data.max_failed_fraction)


@dataclass(frozen=True, eq=False)
class Job:
    """What a process of the launch works with."""

    config: ScoreConfig
    team: Team
    model: Model
    prompts: Prompts
    lines: list[Line]
    rows: dict[int, SourcedRow]
    """By the place of a response among all, the row that it answers."""
    failed: dict[int, Failure]
    """By their place among all, the responses of which it is known without any video that they cannot be scored."""
    phases: Phases = field(default_factory=Phases)


def check_launch(config: ScoreConfig) -> None:
    ring, ulysses = config.degrees
    if world_size() % (ring * ulysses):
        raise ConfigError(
            f"sp = {ring * ulysses} in a launch of {world_size()} processes",
            rule="sp divides the number of processes",
            remedy=f"start `torchrun --nproc-per-node {ring * ulysses} -m longtake score ...` (or a multiple of it), or lower sp",
        )


def check_out(config: ScoreConfig) -> None:
    if config.out.is_dir():
        raise ConfigError(f"out = {config.out} is a folder", rule="out is a file", remedy="name another")
    read = (config.responses, *(part.rows for part in config.data.parts.values()))
    given = [path for path in read if path.resolve() == config.out.resolve()]
    if given:
        raise ConfigError(f"out = {config.out} is read too", rule="nothing that was given is replaced", remedy="choose another out")


def prepare(config: ScoreConfig, team: Team) -> Job:
    """Load the model, read rows and responses."""
    model, phases = load_model(config.model.model_copy(update={"train_vision": False})), Phases()
    size = model.hf.get_input_embeddings().num_embeddings
    lines = read_responses(config.responses, Vocabulary(size, frozenset(model.banned_ids.tolist())))
    rows, known, failed = Rows(config), dict[int, SourcedRow](), dict[int, Failure]()
    for place, line in enumerate(lines):
        content = line.content if isinstance(line.content, Failure) else rows.find(line.content)
        if isinstance(content, Failure):
            failed[place] = content
        else:
            known[place] = content
    return Job(config, team, model, Prompts(config, model, team.mesh.sequence, phases), lines, known, failed, phases)


def score_all(job: Job) -> list[Outcome]:
    """Of all lines, on every rank, in rounds: see the head of this file."""
    outcomes: dict[int, Outcome] = dict(job.failed)
    failed: dict[int, Failure] = {}
    work = batches(units(job, failed), job.config.max_tokens)
    with Progress("score", total=len(job.lines), done=len(outcomes)) as progress:
        more, number = True, 0
        while more:
            number += 1
            job.team.heartbeat.beat(f"round {number} of scoring")
            batch = next(work, None)
            found = score(job, batch) if batch else {}
            news, more = exchange(job, {**found, **failed}, batch is not None)
            failed.clear()
            job.prompts.release()
            outcomes |= news
            progress.advance(len(news))
    if job.team.speaks_for_sequence:
        job.prompts.index.save()
    return [outcomes[place] for place in range(len(job.lines))]


def score(job: Job, batch: Sequence[Unit]) -> dict[int, Outcome]:
    with job.phases("score"):
        scored = score_batch(job.model, batch, job.config, job.team.mesh)
    return {place: checked(one, response_at(job, place)) for place, one in scored.items()}


def units(job: Job, failed: dict[int, Failure]) -> Iterator[Unit]:
    """The work of this data rank, prompts made as they are wanted. Responses to a row that fails are put into `failed`."""
    for row, places in dealt(job):
        prompt = job.prompts.prompt(row)
        if isinstance(prompt, Failure):
            failed |= dict.fromkeys(places, prompt)
            continue
        unit = Unit(prompt, tuple(response_at(job, place).token_ids for place in places), tuple(places))
        yield from unit.rows() if job.config.layout == "naive" else [unit]


def dealt(job: Job) -> list[tuple[SourcedRow, list[int]]]:
    """(row, places of its responses) of this data rank; rows of one video behind each other."""
    by_video: dict[tuple[Path, str], dict[RowName | None, list[int]]] = {}
    for place, row in sorted(job.rows.items()):
        named = () if isinstance(row.item, Failure) else (*row.item.videos, *row.item.images)
        by_video.setdefault((row.root, next(iter(named), f"row {row.name}")), {}).setdefault(row.name, []).append(place)
    mine = list(by_video.values())[job.team.mesh.data_rank :: job.team.mesh.num_data]
    return [(job.rows[places[0]], places) for rows in mine for places in rows.values()]


def response_at(job: Job, place: int) -> Response:
    content = job.lines[place].content
    assert isinstance(content, Response)
    return content


def exchange(job: Job, own: dict[int, Outcome], worked: bool) -> tuple[dict[int, Outcome], bool]:
    """What all data ranks found in this round, and whether any still worked."""
    found = [[place, asdict(outcome)] for place, outcome in own.items()] if job.team.speaks_for_sequence else []
    answers = job.team.tell({"worked": worked, "found": found})
    news = {place: outcome_of(record) for answer in answers for place, record in answer["found"]}
    return news, any(answer["worked"] for answer in answers)


def outcome_of(record: dict[str, object]) -> Outcome:
    kind: type[Scored] | type[Failure] = Scored if "logprobs" in record else Failure
    return kind(**record)  # type: ignore[arg-type]


def tell(job: Job, outcomes: Sequence[Outcome], seconds: float) -> None:
    """The first few errors, each once, and the summary."""
    messages = list(dict.fromkeys(outcome.message for outcome in outcomes if isinstance(outcome, Failure)))
    for message in messages[:MAX_TOLD]:
        say(f"score: {message}", style="yellow")
    if len(messages) > MAX_TOLD:
        say(f"score: and {len(messages) - MAX_TOLD} more errors, each in its line of {job.config.out}", style="yellow")
    say(summary(job, outcomes, seconds))


def summary(job: Job, outcomes: Sequence[Outcome], seconds: float) -> str:
    """One line that counts everything."""
    scored = [outcome for outcome in outcomes if isinstance(outcome, Scored)]
    kinds = Counter(outcome.kind for outcome in outcomes if isinstance(outcome, Failure))
    told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    ring, ulysses = job.config.degrees
    phases = ", ".join(f"{name} {spent:.1f}" for name, spent in job.phases.seconds.items())
    return (
        f"score: {len(outcomes)} responses to {len({row.name for row in job.rows.values()})} rows: {len(scored)} scored, "
        f"{sum(len(one.logprobs) for one in scored)} tokens; {kinds.total()} failed{f' ({told})' if told else ''}; "
        f"{job.config.layout} on {job.team.world.size} processes, sp {ring * ulysses} (ring {ring} x Ulysses {ulysses}); "
        f"{seconds:.1f} s{f' ({phases})' if phases else ''}: {job.config.out}"
    )
