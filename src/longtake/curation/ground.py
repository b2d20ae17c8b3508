"""Objects and their boxes in frames of each clip, located by a vision-language model: what spatial questions rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longtake.config.curate import GroundConfig
from longtake.curation.caption import clean
from longtake.curation.frames import HOW, ClipFrames
from longtake.curation.look import Look, Viewer, clip_drop, look_at
from longtake.curation.prompts import Prompts, block, time_list
from longtake.curation.records import Box, Clip, Drop, Outcome, SourceVideo, VideoClips
from longtake.llm.calls import ChatCall
from longtake.observe.digest import digest_of
from longtake.video.decode import DECODER

MAX_LABEL_CHARS = 80
OBJECT_TOKENS = MAX_LABEL_CHARS + 40
"""Room for an object: a token for each character."""
THOUSANDTHS = 1000
SAME_TIME_S = 0.01
"""Models are told times in hundredths of a second; what they give back may be off by the rounding."""


async def ground_video(video: SourceVideo, clips: VideoClips, viewer: Viewer) -> Outcome[Box]:
    """The boxes of all clips, in order. A clip whose call failed is dropped alone; so is a box that cannot be one, as `bad_box`.

    Frames are as large as those of captions. Answers are kept as captions are (`caption_video`). Nothing is asked with
    frames_per_clip = 0. Raises BudgetError.
    """
    config, prompts, max_pixels = viewer.config.ground, viewer.prompts, viewer.config.caption.max_pixels_per_frame
    if not config.frames_per_clip:
        return Outcome()
    found = await look_at(
        video,
        clips.clips,
        [_key(video, clip, config, max_pixels, prompts, viewer.captioner) for clip in clips.clips],
        Look(viewer.config.ingest.limits, config.frames_per_clip, max_pixels),
        viewer,
        lambda _, shown: ground_call(shown, config, prompts),
        lambda answer: {"frames": answer.value["frames"]},
    )
    return Outcome.joined(
        [
            checked_boxes(video, one["frames"], one["times_s"])
            if isinstance(one, dict)
            else Outcome(dropped=(clip_drop("ground", video, clip, one),))
            for clip, one in zip(clips.clips, found, strict=True)
        ]
    )


def checked_boxes(video: SourceVideo, frames: Sequence[dict[str, Any]], times_s: Sequence[float]) -> Outcome[Box]:
    """The boxes of an answer; dropped as `bad_box`: of a frame that was not shown, without a label, empty, outside the picture, twice."""
    kept: list[Box] = []
    dropped: list[Drop] = []
    for frame in frames:
        time_s = min(times_s, key=lambda shown_s: abs(shown_s - frame["time"]), default=float("inf"))
        for item in frame["objects"]:
            left, top, right, bottom = (int(side) for side in item["box"])
            box = Box(video.video, video.digest, time_s, clean(item["label"]), (left, top, right, bottom))
            fault = _fault(box, frame["time"]) or ("it was named before" if box in kept else "")
            if fault:
                told = f"{frame['time']:.2f} s, {box.label!r} at {box.box}: {fault}"
                dropped.append(Drop("ground", "bad_box", told, video=video.video))
            else:
                kept.append(box)
    return Outcome(tuple(kept), tuple(dropped))


def _fault(box: Box, given_time_s: float) -> str:
    left, top, right, bottom = box.box
    faults = {
        "no such frame was shown": abs(box.time_s - given_time_s) > SAME_TIME_S,
        "it has no label": not box.label,
        "it leaves the picture": min(box.box) < 0 or max(box.box) > THOUSANDTHS,
        "left is smaller than right, and top than bottom": left >= right or top >= bottom,
    }
    return next((fault for fault, holds in faults.items() if holds), "")


def _key(video: SourceVideo, clip: Clip, config: GroundConfig, max_pixels: int, prompts: Prompts, served_by: str) -> str:
    asked = (config.frames_per_clip, config.max_objects, max_pixels)
    return digest_of("ground 1", HOW, DECODER, video.digest, clip.start_s, clip.stop_s, asked, prompts.text("ground"), served_by)


def ground_call(shown: ClipFrames, config: GroundConfig, prompts: Prompts) -> ChatCall:
    """The words, then the frames as images in the order of their times."""
    words = prompts.render("ground", times=block("times", time_list(shown.times_s)), max_objects=config.max_objects)
    return ChatCall(
        purpose="ground",
        parts=(words, *shown.jpegs),
        schema=ground_schema(len(shown.times_s), config),
        max_tokens=len(shown.times_s) * (30 + config.max_objects * OBJECT_TOKENS),
    )


def ground_schema(num_frames: int, config: GroundConfig) -> dict[str, Any]:
    """Limits of numbers are not in it: one bad box must not cost the others."""
    box = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
    item = _object({"label": {"type": "string", "maxLength": MAX_LABEL_CHARS}, "box": box})
    objects = {"type": "array", "items": item, "maxItems": config.max_objects}
    frame = _object({"time": {"type": "number"}, "objects": objects})
    return _object({"frames": {"type": "array", "items": frame, "maxItems": num_frames}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
