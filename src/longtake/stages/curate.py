"""`longtake curate run`: from a folder of long videos to questions with reasoning, checked, split and published."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from longtake.config.curate import STAGES, CurateConfig
from longtake.config.env import num_cores
from longtake.config.load import dump_config
from longtake.config.meta import run_meta
from longtake.curation.audit import read_labels
from longtake.curation.ingest import Origin, deduplicate, inspect, inspect_held_out, list_files, read_origins
from longtake.curation.outputs import forget_stages, write_stage
from longtake.curation.pipeline import Tools, curate_videos, is_mine, reaches, sorted_out
from longtake.curation.prompts import Prompts
from longtake.curation.records import Outcome, SourceVideo
from longtake.errors import ConfigError, CurationError
from longtake.llm.client import Budget, LlmClient
from longtake.observe.keyed_lines import KeyedLines
from longtake.observe.progress import Progress, say
from longtake.observe.signals import StopFlag
from longtake.stages.curate_end import rate, split_and_publish
from longtake.stages.curate_tables import print_estimate, print_stages
from longtake.video.index import DigestIndex

LOOK_AGAIN_S = 0.1
GRACE_S = 60.0
"""For calls in flight, before they are broken off."""


@dataclass(frozen=True, eq=False)
class State:
    """What a run keeps between its starts, in OUT/state."""

    folder: Path
    answers: KeyedLines
    """Every answer that was paid."""
    made: KeyedLines
    """What was made besides."""
    digests: DigestIndex


def run(config: CurateConfig) -> None:
    """Do the stages up to `config.until`; the same command goes on where it was stopped.

    Raises CurationError when no video is left, BudgetError at the end of the budget, LlmError when a server cannot be used, StopRequested
    after Ctrl-C or SIGTERM. Nothing that was paid is lost by any of them.
    """
    prompts = Prompts(config.prompts)
    refuse_own_videos(config)
    files, ignored = list_files(config.videos, config.ingest, skip=(config.out, *own_folders(config.out)))
    if config.dry_run:
        print_estimate(config, prompts, files)
        return
    folder = config.out if config.num_shards == 1 else config.out / "shards" / f"{config.shard_index}-of-{config.num_shards}"
    mine = [relative for relative in files if is_mine(relative, config)]
    origins = read_origins(config.ingest)
    if config.publish.labels is not None:
        read_labels(config.publish.labels)  # a mistake in it is told before anything is paid
    if unknown := sorted(origins.keys() - set(files)):
        say(f"curate: {len(unknown)} lines of {config.ingest.sources} name no video of the folder, such as {unknown[0]}", "yellow")
    say(f"curate: {len(mine)} of {len(files)} videos, {ignored} other files ignored")
    with StopFlag() as stop, opened_state(config) as state:
        folder.mkdir(parents=True, exist_ok=True)
        tell_of_other_videos(folder, config.videos)
        forget_stages(folder)  # else a run that breaks off would leave the outputs of two
        (folder / "config.json").write_text(dump_config(config, run_meta() | {"stage": "curate"}), encoding="utf-8")
        videos = ingest(config, mine, origins, state, stop)
        write_stage(folder, "ingest", videos)
        if not videos.kept and config.num_shards == 1:
            raise nothing_left(config, videos)
        if reaches(config.until, "segment"):
            asyncio.run(through_models(config, prompts, videos.kept, state, folder, stop))
        leave_if_asked(stop, state.folder)
        if reaches(config.until, "difficulty"):
            rate(config, folder, state.made, state.answers, state.digests, lambda: leave_if_asked(stop, state.folder))
        leave_if_asked(stop, state.folder)
        if config.num_shards == 1 and reaches(config.until, "split"):
            split_and_publish(config, prompts, folder, state.answers, state.digests)
    print_stages(folder, [stage for stage in STAGES if reaches(config.until, stage)])
    if config.num_shards > 1:
        say(f"curate: part {config.shard} is done; when all are, the same command without --shard puts them together")


def own_folders(out: Path) -> tuple[Path, ...]:
    """What a run writes in its folder: no videos are looked for there, also where the folder is that of the videos."""
    return tuple(out / name for name in ("dataset", ".dataset.partial", ".dataset.old", "shards", "state"))


def refuse_own_videos(config: CurateConfig) -> None:
    """Raises ConfigError for videos inside what publishing replaces: they would be removed."""
    videos = config.videos.resolve()
    for folder in own_folders(config.out):
        if videos.is_relative_to(folder.resolve()):
            raise ConfigError(
                f"videos = {config.videos} lies in {folder}, which this run writes",
                rule="publishing replaces the data set of the run before, videos and all",
                remedy="give the folder that the videos came from, or another `out`",
            )


def tell_of_other_videos(folder: Path, videos: Path) -> None:
    """Warn that the outputs of a run about another folder are about to be replaced."""
    try:
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))["videos"]
    except (OSError, ValueError, LookupError):
        return
    if Path(before).resolve() != videos.resolve():
        say(f"curate: {folder} held a run of the videos in {before}: its outputs are replaced, its answers stay in the state", "yellow")


def leave_if_asked(stop: StopFlag, kept_in: Path) -> None:
    """Raises StopRequested after a signal."""
    if stop.requested:
        stop.leave(f"every answer that was paid is kept in {kept_in}; the same command goes on")


@contextmanager
def opened_state(config: CurateConfig) -> Iterator[State]:
    """The state folder, open under the name of this part of the videos. Raises CheckpointError when another process has it."""
    folder, writer = config.out / "state", f"{config.shard_index}-of-{config.num_shards}"
    with ExitStack() as opened:
        answers = opened.enter_context(KeyedLines(folder / "answers", writer))
        made = opened.enter_context(KeyedLines(folder / "made", writer))
        index = DigestIndex(folder / "digests.json", max_bytes=config.ingest.limits.max_bytes)
        opened.callback(index.save)
        yield State(folder, answers, made, index)


def ingest(config: CurateConfig, files: Sequence[str], origins: Mapping[str, Origin], state: State, stop: StopFlag) -> Outcome[SourceVideo]:
    """Every file looked at, and each video once. Raises StopRequested between two files."""
    found = []
    with Progress("ingest", len(files)) as progress:
        for relative in files:
            leave_if_asked(stop, state.folder)
            found.append(inspect(config.videos, relative, config.ingest, state.digests, state.made, origins))
            progress.advance()
    looked_at = sorted_out(found)
    held_out = inspect_held_out(config.ingest, state.digests, state.made)
    unique = deduplicate(looked_at.kept, held_out.kept, config.ingest.max_hash_distance)
    return Outcome.joined([Outcome(dropped=looked_at.dropped), Outcome(dropped=held_out.dropped), unique])


async def through_models(
    config: CurateConfig, prompts: Prompts, videos: Sequence[SourceVideo], state: State, folder: Path, stop: StopFlag
) -> None:
    """The stages that treat each video by itself. Raises StopRequested when a signal comes, with no call in the air."""
    budget = Budget(config.budget)
    vlm, reasoner = (LlmClient(endpoint, state.answers, budget) for endpoint in (config.vlm, config.reasoner))

    async def drain() -> None:
        say(f"curate: no new calls; those in flight may take another {GRACE_S:g} s", "yellow")
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(vlm.drain(), reasoner.drain()), GRACE_S)

    async def all_stages(done: Callable[[], None]) -> None:
        captioner = await served_by(vlm) if reaches(config.until, "caption") else ""
        decode = asyncio.Semaphore(num_cores())

        def tools(place: int) -> Tools:
            """Calls about the first videos go first: were all videos to advance together, one endpoint would wait for the other."""
            ask_vlm, ask_reasoner = partial(vlm.ask, turn=place), partial(reasoner.ask, turn=place)
            return Tools(config, prompts, state.made, ask_vlm, ask_reasoner, captioner, decode)

        await curate_videos(videos, config, tools, folder, done, drain)

    async with vlm, reasoner:
        with Progress("curate", len(videos)) as progress:

            def done() -> None:
                spent = vlm.summary().total()
                spent.add(reasoner.summary().total())
                progress.advance(1, calls=spent.calls, paid=spent.paid, cost=spent.cost)

            await until_stopped(stop, all_stages(done), drain, state.folder)
    for name, client in (("vlm", vlm), ("reasoner", reasoner)):
        total = client.summary().total()
        if total.failed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in total.failures.most_common())
            say(f"{name}: {total.failed} of {total.calls} calls came to nothing ({kinds}); the same command asks them again", "yellow")


async def until_stopped(stop: StopFlag, work: Coroutine[Any, Any, None], drain: Callable[[], Awaitable[None]], kept_in: Path) -> None:
    """`work`, broken off when a signal comes. Raises StopRequested then."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if stop.requested:
            await drain()
            task.cancel()
        await asyncio.wait({task}, timeout=LOOK_AGAIN_S)
    if task.cancelled():
        leave_if_asked(stop, kept_in)
    task.result()


async def served_by(client: LlmClient) -> str:
    """What answers are kept under besides their questions: the model's name, and what every request carries. Raises LlmError."""
    carried = json.dumps(client.config.extra_body, sort_keys=True) if client.config.extra_body else ""
    return f"{await client.model_name()} {carried}".rstrip()


def nothing_left(config: CurateConfig, videos: Outcome[SourceVideo]) -> CurationError:
    reasons = sorted({f"{drop.video}: {drop.reason}" for drop in videos.dropped})[:5]
    return CurationError(
        f"no video in {config.videos} can be used ({'; '.join(reasons) or 'there is none'})",
        rule=f"at least one file ending in {', '.join(config.ingest.suffixes)} passes `ingest`",
        remedy="check `videos` and `ingest.suffixes`, or lower `ingest.min_seconds`",
    )
