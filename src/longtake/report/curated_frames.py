"""Frames for the page: each piece of a video once, as one JPEG of frames side by side that cards refer to by a CSS class.

A piece is a part of a video and a number of frames: the middles of as many equal parts. Times are seconds from the video's start.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.config.sections import VideoLimits
from longtake.curation.records import TimeRange
from longtake.errors import PathError, VideoError
from longtake.observe.progress import Progress
from longtake.report.markup import Html
from longtake.video.decode import decode_from
from longtake.video.paths import resolve_inside
from longtake.video.probe import info_of
from longtake.video.sample import uniform_times
from longtake.video.source import open_source

MAX_HEIGHT, MAX_WIDTH = 120, 214
IMAGE_BYTES = 9_500_000
"""Of all JPEGs of a page together, before base64 makes four bytes of three."""
LEAST_FRAME_BYTES, MOST_FRAME_BYTES = 1_500, 12_000
SIZES = (1.0, 0.8, 0.6)
QUALITIES = (82, 70, 58, 46)
SECONDS_PER_FRAME = 2.5
"""Inside a cited range, within the two numbers below."""
FEWEST_IN_RANGE, MOST_IN_RANGE = 2, 5


@dataclass(frozen=True)
class Piece:
    start_s: float
    stop_s: float | None
    """None: to the end of the video."""
    num_frames: int


@dataclass(frozen=True)
class Strip:
    """A piece that was decoded."""

    name: str
    """The CSS class that has the picture as its background."""
    times_s: tuple[float, ...]
    """Of each frame, as the file gives them, from the video's start."""
    width: int
    """Of one frame, in CSS pixels."""
    height: int


@dataclass(frozen=True)
class Seen:
    """What could be had of one video."""

    duration_s: float
    strips: Mapping[Piece, Strip]


@dataclass(frozen=True)
class Gallery:
    """All pictures of the page."""

    seen: Mapping[str, Seen | str]
    """By video; a text where it could not be opened, which says why."""
    css: Html


def whole(num_frames: int) -> Piece:
    return Piece(0.0, None, num_frames)


def moment(time_s: float) -> Piece:
    """The frame shown at a time."""
    return Piece(time_s, time_s, 1)


def evidence(cited: TimeRange) -> Piece | None:
    """Frames inside a cited range; None for one that holds no time at all. The same range always gives the same piece."""
    length = cited.stop_s - cited.start_s
    if not math.isfinite(length) or length < 0 or cited.stop_s <= 0:
        return None
    frames = min(MOST_IN_RANGE, max(FEWEST_IN_RANGE, round(length / SECONDS_PER_FRAME)))
    return Piece(max(0.0, cited.start_s), cited.stop_s, frames)


def gather(root: Path | None, wanted: Mapping[str, Iterable[Piece]], no_root: str) -> Gallery:
    """Decode every piece of every video once; JPEGs share out IMAGE_BYTES. Without a root, `no_root` is said of every video."""
    if root is None:
        return Gallery(dict.fromkeys(wanted, no_root), Html(""))
    pieces = {
        video: sorted(set(own), key=lambda one: (one.start_s, one.stop_s or math.inf, one.num_frames)) for video, own in wanted.items()
    }
    frames = sum(piece.num_frames for own in pieces.values() for piece in own)
    frame_bytes = min(MOST_FRAME_BYTES, max(LEAST_FRAME_BYTES, IMAGE_BYTES // max(1, frames)))
    seen: dict[str, Seen | str] = {}
    rules: list[str] = []
    with Progress("frames", len(pieces)) as progress:
        for video, own in pieces.items():
            try:
                seen[video] = _look(resolve_inside(root, video), own, frame_bytes, rules)
            except (PathError, VideoError) as error:
                seen[video] = f"No frames: {error}"
            progress.advance()
    return Gallery(seen, Html("\n".join(rules)))


def _look(path: Path, pieces: list[Piece], frame_bytes: int, rules: list[str]) -> Seen:
    """Decode the pieces in one walk through the file. Raises a VideoError."""
    with open_source(path, VideoLimits()) as source:
        info = info_of(source)
        times = {piece: _times(piece, info.duration_s) for piece in pieces}
        targets = np.unique(np.concatenate(list(times.values()) or [np.zeros(0)]))
        height, width = _size(info.height, info.width)
        decoded = decode_from(source, info.start_s + targets, (height, width))
    strips = {}
    for piece, own in times.items():
        places = np.searchsorted(targets, own)
        if piece.stop_s is not None:  # the same frame twice says nothing more; over the whole video, place means time
            places = places[np.unique(decoded.times_s[places], return_index=True)[1]]
        if len(places):
            name = f"strip{len(rules)}"
            rules.append(_rule(name, jpeg(np.concatenate(decoded.pixels[places], axis=1), frame_bytes * len(places))))
            strips[piece] = Strip(name, tuple(float(decoded.times_s[place]) - info.start_s for place in places), width, height)
    return Seen(info.duration_s, strips)


def _times(piece: Piece, duration_s: float) -> np.ndarray:
    """float64 [F], none for a piece that begins after the end."""
    stop_s = duration_s if piece.stop_s is None else min(piece.stop_s, duration_s)
    return uniform_times(piece.start_s, stop_s - piece.start_s, piece.num_frames) if piece.start_s <= stop_s else np.zeros(0)


def _size(height: int, width: int) -> tuple[int, int]:
    """As large as fits into MAX_HEIGHT x MAX_WIDTH, never larger than the video."""
    shrink = min(1.0, MAX_HEIGHT / height, MAX_WIDTH / width)
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def jpeg(pixels: np.ndarray, max_bytes: int) -> bytes:
    """uint8 [Y, X, 3] as a JPEG of at most `max_bytes`: reduced in quality, then in size; the smallest one when none fits."""
    image = Image.fromarray(pixels)
    smallest = b""
    for size in SIZES:
        scaled = image if size == 1 else image.resize((max(1, round(size * image.width)), max(1, round(size * image.height))))
        for quality in QUALITIES:
            buffer = io.BytesIO()
            scaled.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
            smallest = min(smallest or buffer.getvalue(), buffer.getvalue(), key=len)
    return smallest


def _rule(name: str, picture: bytes) -> str:
    return f'.{name}{{background-image:url("data:image/jpeg;base64,{base64.b64encode(picture).decode("ascii")}")}}'
