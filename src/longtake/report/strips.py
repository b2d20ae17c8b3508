"""Strips of video frames as small JPEG data URIs, with the real time of each frame."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.config.sections import VideoConfig
from longtake.errors import PathError, VideoError
from longtake.report.markup import Html, el, join
from longtake.types import Row
from longtake.video.decode import load_frames
from longtake.video.index import DigestIndex
from longtake.video.paths import resolve_inside

NUM_FRAMES = 8
MAX_HEIGHT, MAX_WIDTH = 120, 214
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    time_s: float
    jpeg: bytes


def thumbnails(root: Path, relative: str, num_frames: int = NUM_FRAMES) -> list[Thumbnail]:
    """Frames at the middles of `num_frames` equal parts of the video. Raises PathError, VideoError."""
    ref = DigestIndex(None).ref(resolve_inside(root, relative))
    config = VideoConfig(max_frames=num_frames, max_pixels_per_frame=320 * 320)
    frames = load_frames(ref, config, patch_multiple=2, temporal_patch=1)
    return [Thumbnail(float(time_s), jpeg(pixels)) for time_s, pixels in zip(frames.times_s, frames.pixels, strict=True)]


def jpeg(pixels: np.ndarray) -> bytes:
    """uint8 [Y, X, 3] as a JPEG that fits MAX_WIDTH x MAX_HEIGHT CSS pixels at double density."""
    image = Image.fromarray(pixels)
    image.thumbnail((2 * MAX_WIDTH, 2 * MAX_HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def strips(root: Path, row: Row) -> Html:
    """The strips of a row's videos, or the reason why there are none."""
    if not row.videos:
        return el("p", f"This row has {len(row.images)} images." if row.images else "This row has no video.", class_="note")
    return join(strip(root, video) for video in row.videos)


def strip(root: Path, relative: str) -> Html:
    """The strip of a video, or the reason why there is none."""
    try:
        frames = thumbnails(root, relative)
    except (PathError, VideoError) as error:
        return el("p", f"No frames: {error}", class_="note")
    return el("div", join(map(_figure, frames)), class_="strip")


def _figure(frame: Thumbnail) -> Html:
    source = "data:image/jpeg;base64," + base64.b64encode(frame.jpeg).decode("ascii")
    time = clock(frame.time_s)
    return el("figure", el("img", src=source, alt=f"frame at {time}", loading="lazy"), el("figcaption", time))


def clock(seconds: float) -> str:
    """`m:ss.s` below an hour, `h:mm:ss` above."""
    if seconds >= 3600:
        whole = round(seconds)
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
