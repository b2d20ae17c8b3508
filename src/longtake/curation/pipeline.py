"""The stages that treat each video by itself, from its clips to its checked rows, and all videos through them at once.

Everything paid for or decoded is kept by its content in the state folder, so a run that was killed goes through what is done without a
call, and a machine that does a part of the videos (a shard) comes to the same rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.config.curate import STAGES, CurateConfig, StageName
from longtake.curation.caption import caption_video
from longtake.curation.check import ask_checks, finish, structure, wording
from longtake.curation.ground import ground_video
from longtake.curation.outputs import StageWriter
from longtake.curation.prompts import Prompts
from longtake.curation.question import Kind, draft_questions
from longtake.curation.records import Drop, Outcome, SourceVideo
from longtake.curation.rewrite import rewrite
from longtake.curation.segment import segment_video
from longtake.llm.calls import Ask
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines

Outcomes = Mapping[StageName, Outcome[Any]]
"""Of one video, by stage, as far as it has come."""


@dataclass(frozen=True, eq=False)
class Tools:
    """What the stages work with."""

    config: CurateConfig
    prompts: Prompts
    made: KeyedLines
    """What was made without a call, or from several."""
    vlm: Ask
    reasoner: Ask
    captioner: str
    """The model behind `vlm`."""
    decode: asyncio.Semaphore
    """A place for each file that is decoded at the same time."""


def reaches(until: StageName, stage: StageName) -> bool:
    """Whether a run that ends with `until` does `stage`."""
    return STAGES.index(stage) <= STAGES.index(until)


def is_mine(relative: str, config: CurateConfig) -> bool:
    """Whether a file belongs to this machine's part, which its path alone decides."""
    return int(digest_of("shard 1", relative)[:12], 16) % config.num_shards == config.shard_index


async def curate_videos(
    videos: Sequence[SourceVideo],
    config: CurateConfig,
    tools: Callable[[int], Tools],
    folder: Path,
    done: Callable[[], None],
    drain: Callable[[], Awaitable[None]],
) -> None:
    """All videos through the stages of `CHAIN`, a bounded number at once, into the outputs in `folder` in the order of `videos`.

    `tools(n)`: for the video of place n. `done` is called after each; `drain` lets calls in flight come home before an error ends the
    others. Raises the first error, such as BudgetError or LlmError: what was answered until then is kept, the outputs are those of the run
    before.
    """
    stages = [stage for stage in CHAIN if reaches(config.until, stage)]
    room = asyncio.Semaphore(max(config.vlm.concurrency, config.reasoner.concurrency))
    with StageWriter(folder, stages) as writer:

        async def one(number: int, video: SourceVideo) -> None:
            async with room:
                writer.put(number, await curate_video(video, tools(number)))
                done()

        tasks = [asyncio.create_task(one(number, video)) for number, video in enumerate(videos)]
        try:
            ended, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION) if tasks else (set(), set())
            if others:
                await drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()


async def curate_video(video: SourceVideo, tools: Tools) -> Outcomes:
    """One video through the stages."""
    outcomes: dict[StageName, Outcome[Any]] = {}
    for stage, work in CHAIN.items():
        if not reaches(tools.config.until, stage):
            break
        outcomes[stage] = await work(video, outcomes, tools)
    return outcomes


async def _segment(video: SourceVideo, before: Outcomes, tools: Tools) -> Outcome[Any]:
    config = tools.config
    async with tools.decode:
        found = await asyncio.to_thread(segment_video, video, config.videos, config.segment, config.ingest.limits, tools.made)
    return Outcome(dropped=(found,)) if isinstance(found, Drop) else Outcome((found,))


async def _caption(video: SourceVideo, before: Outcomes, tools: Tools) -> Outcome[Any]:
    if not before["segment"].kept:
        return Outcome()
    return await caption_video(video, before["segment"].kept[0], tools)


async def _ground(video: SourceVideo, before: Outcomes, tools: Tools) -> Outcome[Any]:
    wants_places = any(counts.get("spatial") for counts in (tools.config.question.per_video, tools.config.question.open_per_video))
    if not before["segment"].kept or not tools.config.ground.frames_per_clip or not wants_places:
        return Outcome()
    return await ground_video(video, before["segment"].kept[0], tools)


async def _question(video: SourceVideo, before: Outcomes, tools: Tools) -> Outcome[Any]:
    captions, boxes, config = before["caption"].kept, before["ground"].kept, tools.config.question
    if not captions:
        return Outcome(dropped=(Drop("question", "no_captions", "nothing is known of the video: see the stages before", video.video),))
    kinds: tuple[tuple[Kind, Mapping[str, int]], ...] = (("choice", config.per_video), ("open", config.open_per_video))
    asked = [
        draft_questions(video, captions, boxes, category, kind, count, config, tools.prompts, tools.reasoner)
        for kind, counts in kinds
        for category, count in counts.items()
    ]
    return Outcome.joined(await asyncio.gather(*asked))


async def _rewrite(video: SourceVideo, before: Outcomes, tools: Tools) -> Outcome[Any]:
    """Of the drafts that pass the rules which need no rewriting: what they refuse is dropped by `check`, and costs nothing here."""
    drafts = structure(before["question"].kept, video, tools.config).kept
    return sorted_out(await asyncio.gather(*(rewrite(draft, tools.config.question, tools.prompts, tools.reasoner) for draft in drafts)))


async def _check(video: SourceVideo, before: Outcomes, tools: Tools) -> Outcome[Any]:
    refused = structure(before["question"].kept, video, tools.config).dropped
    worded = wording(before["rewrite"].kept, video, tools.config)
    asked = await asyncio.gather(*(ask_checks(draft, before["caption"].kept, tools) for draft in worded.kept))
    checked = sorted_out(asked)
    return Outcome.joined([Outcome(dropped=refused), Outcome(dropped=worded.dropped), finish(checked, tools.config)])


CHAIN: Mapping[StageName, Callable[[SourceVideo, Outcomes, Tools], Awaitable[Outcome[Any]]]] = {
    "segment": _segment,
    "caption": _caption,
    "ground": _ground,
    "question": _question,
    "rewrite": _rewrite,
    "check": _check,
}


def sorted_out(found: Sequence[Any]) -> Outcome[Any]:
    """Records and drops apart."""
    return Outcome(tuple(one for one in found if not isinstance(one, Drop)), tuple(one for one in found if isinstance(one, Drop)))
