"""What curation asks of the world's oracle, built by hand: for tests of the oracle without the pipeline around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longtake.config.sections import VideoLimits
from longtake.curation.frames import clip_frames, range_frames
from longtake.curation.prompts import time_list
from longtake.curation.records import Clip, TimeRange
from longtake.llm.prompts import block
from longtake.world.oracle import Oracle
from longtake.world.oracle_request import OracleRequest
from longtake.world.questions import LETTERS

MAX_PIXELS = 448 * 448


def text_of(**blocks: str | float) -> str:
    """Blocks of data with words around them; `options` as they are listed."""
    return "\n".join(["Answer.", *(block(tag, str(text)) for tag, text in blocks.items()), "As JSON."])


def clips_of(oracle: Oracle, video: int, clip_s: float = 10.0) -> list[Clip]:
    """Of about that length, without gaps."""
    duration_s = oracle.frames.videos[video].duration_s
    count = max(1, round(duration_s / clip_s))
    return [Clip(number * duration_s / count, (number + 1) * duration_s / count) for number in range(count)]


def caption_requests(
    oracle: Oracle, video: int, clips: Sequence[Clip], *, max_pixels: int = MAX_PIXELS, count: int = 6
) -> list[OracleRequest]:
    """One for each clip."""
    shown = clip_frames(oracle.frames.videos[video].path, VideoLimits(), clips, count, max_pixels)
    return [OracleRequest("caption", text_of(times=time_list(one.times_s)), one.jpegs) for one in shown]


def captions_of(oracle: Oracle, video: int) -> list[str]:
    """A line for each clip of a video."""
    clips = clips_of(oracle, video)
    said = [oracle.answer(request)["caption"] for request in caption_requests(oracle, video, clips)]
    return [f"[{clip.start_s:.1f} s - {clip.stop_s:.1f} s] {text}" for clip, text in zip(clips, said, strict=True)]


def question_request(oracle: Oracle, video: int, lines: Sequence[str], purpose: str, count: int = 5, seed: int = 0) -> OracleRequest:
    """`purpose`: question_temporal, open_goal ..."""
    duration = f"duration {oracle.frames.videos[video].duration_s:.1f} s"
    return OracleRequest(
        purpose, text_of(video=duration, captions="\n".join(lines), category=purpose.split("_")[1], count=count), seed=seed
    )


def asked_of(question: dict[str, Any]) -> dict[str, str]:
    """The blocks of a vote about a drafted question; for an open-ended one the proposed answer."""
    if "options" not in question:
        return {"question": question["question"], "answer": question["answer"]}
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question["options"], strict=True))
    return {"question": question["question"], "options": lines}


def support_request(lines: Sequence[str], question: dict[str, Any], seed: int = 0) -> OracleRequest:
    """From the captions of the cited ranges."""
    shown = [line for line in lines if any(_overlaps(line, one) for one in question["ranges"])]
    return OracleRequest("support", text_of(captions="\n".join(shown), **asked_of(question)), seed=seed)


def watch_request(oracle: Oracle, video: int, question: dict[str, Any], seed: int = 0, count: int = 8) -> OracleRequest:
    """From frames of the cited ranges."""
    ranges = [TimeRange(one["start"], one["stop"]) for one in question["ranges"]]
    shown = range_frames(oracle.frames.videos[video].path, VideoLimits(), ranges, count, MAX_PIXELS)
    return OracleRequest("watch", text_of(times=time_list(shown.times_s), **asked_of(question)), shown.jpegs, seed)


def _overlaps(line: str, one: dict[str, float]) -> bool:
    start, stop = (float(time.removesuffix(" s")) for time in line[1 : line.index("]")].split(" - "))
    return min(stop, one["stop"]) - max(start, one["start"]) > 0.05
