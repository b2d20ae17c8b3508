"""Models asked about clips: the clips of a video are decoded a batch at a time in a thread while those before them are with the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from longtake.config.curate import CurateConfig, StageName
from longtake.config.sections import VideoLimits
from longtake.curation.frames import ClipFrames, clip_frames
from longtake.curation.prompts import Prompts, span
from longtake.curation.records import Clip, Drop, SourceVideo
from longtake.errors import PathError, VideoError
from longtake.llm.calls import Answer, Ask, CallFailure, ChatCall
from longtake.observe.keyed_lines import KeyedLines
from longtake.video.paths import resolve_inside

MadeT = TypeVar("MadeT")
CLIPS_AT_ONCE = 32
"""Clips of a video whose frames are made together. Two such batches are in memory at most: 64 clips of 6 frames of 448 x 448 pixels are
10 to 20 MB of JPEGs. Each batch opens the file anew, and decodes from the keyframe before it."""


class Viewer(Protocol):
    """What looking at videos takes."""

    @property
    def config(self) -> CurateConfig: ...

    @property
    def prompts(self) -> Prompts: ...

    @property
    def made(self) -> KeyedLines:
        """Where answers are kept."""

    @property
    def vlm(self) -> Ask: ...

    @property
    def captioner(self) -> str:
        """The model behind `vlm`: answers are kept under its name."""

    @property
    def decode(self) -> asyncio.Semaphore:
        """A place for each file that is decoded at the same time."""


@dataclass(frozen=True)
class Look:
    """What is seen of each clip."""

    limits: VideoLimits
    frames_per_clip: int
    max_pixels: int


Found = dict[str, Any] | CallFailure | VideoError | PathError
"""Of a clip: what `made` keeps of the answer, with the times of the frames as `times_s`; or why there is nothing."""


async def look_at(
    video: SourceVideo,
    clips: Sequence[Clip],
    keys: Sequence[str],
    look: Look,
    viewer: Viewer,
    call_for: Callable[[Clip, ClipFrames], ChatCall],
    kept_of: Callable[[Answer], dict[str, Any]],
) -> list[Found]:
    """What is known of each clip, from `viewer.made` under its key where it was asked before; only the others are decoded and asked.

    Failures are not kept. Raises BudgetError.
    """
    found: list[Found | None] = [viewer.made.get(key) for key in keys]
    missing = [number for number, known in enumerate(found) if known is None]
    numbers = {clips[number]: number for number in missing}

    async def ask(clip: Clip, shown: ClipFrames) -> Found:
        answer = await viewer.vlm(call_for(clip, shown))
        if isinstance(answer, CallFailure):
            return answer
        record = {"times_s": list(shown.times_s), **kept_of(answer)}
        viewer.made.put(keys[numbers[clip]], record)
        return record

    results: Sequence[Found]
    try:
        path = resolve_inside(viewer.config.videos, video.video)
        results = await ask_clips(path, list(numbers), look, viewer.decode, ask)
    except PathError as error:
        results = [error] * len(missing)
    for number, result in zip(missing, results, strict=True):
        found[number] = result
    return [one for one in found if one is not None]


def clip_drop(stage: StageName, video: SourceVideo, clip: Clip, found: Found) -> Drop:
    """Why nothing is known of a clip."""
    if isinstance(found, CallFailure):
        reason, why = found.kind, found.message
    elif isinstance(found, dict):
        reason, why = "empty", "the model said nothing"
    else:
        reason, why = type(found).__name__, str(found)
    return Drop(stage, reason, f"{span(clip)}: {why}", video=video.video)


async def ask_clips(
    path: Path, clips: Sequence[Clip], look: Look, decode: asyncio.Semaphore, ask: Callable[[Clip, ClipFrames], Awaitable[MadeT]]
) -> list[MadeT | VideoError]:
    """What `ask` made of the frames of each clip, or why a clip could not be decoded.

    `clips` ascend; all of a batch are asked at once. An error of `ask`, such as BudgetError, is raised when the calls under way have
    ended, so that no paid answer is lost; when this is cancelled, they are too.
    """
    stopped = threading.Event()
    asked: list[asyncio.Future[MadeT | VideoError]] = []
    try:
        for start in range(0, len(clips), CLIPS_AT_ONCE):
            batch = clips[start : start + CLIPS_AT_ONCE]
            shown = await _decoded(path, batch, look, decode, stopped)
            await _all(asked)  # one batch with the server, one decoded
            if isinstance(shown, VideoError):
                asked += [_known(shown) for _ in batch]
            else:
                asked += [asyncio.ensure_future(ask(clip, frames)) for clip, frames in zip(batch, shown, strict=True)]
        return await _all(asked)
    finally:
        stopped.set()  # a thread cannot be cancelled: it ends at its next frame
        for future in asked:
            future.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _decoded(
    path: Path, clips: Sequence[Clip], look: Look, decode: asyncio.Semaphore, stopped: threading.Event
) -> list[ClipFrames] | VideoError:
    async with decode:
        try:
            return await asyncio.to_thread(clip_frames, path, look.limits, clips, look.frames_per_clip, look.max_pixels, stopped.is_set)
        except VideoError as error:
            return error


def _known(value: VideoError) -> asyncio.Future[MadeT | VideoError]:
    future: asyncio.Future[MadeT | VideoError] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def _all(asked: Sequence[asyncio.Future[MadeT | VideoError]]) -> list[MadeT | VideoError]:
    """Every result, once all are there. Raises the first error among them."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    made: list[MadeT | VideoError] = []
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, VideoError):
            raise result
        made.append(result)
    return made
