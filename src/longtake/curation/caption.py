"""What is seen in each clip, told by a vision-language model that is shown frames and their exact times."""

from __future__ import annotations

import re
from typing import Any

from longtake.config.curate import CaptionConfig
from longtake.curation.frames import HOW, ClipFrames
from longtake.curation.look import Look, Viewer, clip_drop, look_at
from longtake.curation.prompts import Prompts, block, range_lines, time_list
from longtake.curation.records import Caption, Clip, Drop, Outcome, SourceVideo, TimeRange, VideoClips
from longtake.llm.calls import ChatCall
from longtake.llm.prompts import flat
from longtake.observe.digest import digest_of
from longtake.video.decode import DECODER

UNWRITABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


async def caption_video(video: SourceVideo, clips: VideoClips, viewer: Viewer) -> Outcome[Caption]:
    """A caption for each clip, in order; a clip whose call failed, or whose caption is empty, is dropped alone.

    Captions are kept in `viewer.made` by the video's digest, the clip, the settings, the prompt and the model's name: clips that have
    theirs are neither decoded nor asked about. Raises BudgetError.
    """
    config, prompts = viewer.config.caption, viewer.prompts
    found = await look_at(
        video,
        clips.clips,
        [_key(video, clip, config, prompts, viewer.captioner) for clip in clips.clips],
        Look(viewer.config.ingest.limits, config.frames_per_clip, config.max_pixels_per_frame),
        viewer,
        lambda clip, shown: caption_call(clip, shown, config, prompts),
        lambda answer: {"text": clean(answer.value["caption"])},
    )
    kept: list[Caption] = []
    dropped: list[Drop] = []
    for clip, one in zip(clips.clips, found, strict=True):
        if isinstance(one, dict) and one["text"]:
            kept.append(Caption(video.video, video.digest, clip.start_s, clip.stop_s, tuple(one["times_s"]), one["text"]))
        else:
            dropped.append(clip_drop("caption", video, clip, one))
    return Outcome(tuple(kept), tuple(dropped))


def clean(text: str) -> str:
    """On one line, without what cannot be written or shown: control characters, halves of surrogate pairs."""
    return UNWRITABLE.sub("", flat(text))


def _key(video: SourceVideo, clip: Clip, config: CaptionConfig, prompts: Prompts, served_by: str) -> str:
    asked = (config.frames_per_clip, config.max_pixels_per_frame, config.max_chars, config.temperature)
    return digest_of("caption 1", HOW, DECODER, video.digest, clip.start_s, clip.stop_s, asked, prompts.text("caption"), served_by)


def caption_call(clip: Clip, shown: ClipFrames, config: CaptionConfig, prompts: Prompts) -> ChatCall:
    """The words, then the frames as images in the order of their times."""
    words = prompts.render(
        "caption",
        ranges=block("ranges", range_lines([TimeRange(clip.start_s, clip.stop_s)])),
        times=block("times", time_list(shown.times_s)),
        max_chars=config.max_chars,
    )
    return ChatCall(
        purpose="caption",
        parts=(words, *shown.jpegs),
        schema=caption_schema(config),
        max_tokens=config.max_chars + 100,  # a token for each character: no caption within the limit is cut off
        temperature=config.temperature,
    )


def caption_schema(config: CaptionConfig) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"caption": {"type": "string", "maxLength": config.max_chars}},
        "required": ["caption"],
        "additionalProperties": False,
    }
