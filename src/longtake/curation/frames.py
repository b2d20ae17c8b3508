"""Frames of parts of a video as JPEGs, for a model to look at: chosen evenly, in one pass over the file, with their exact times.

All times are seconds from the start of the video (its first frame), whatever clock the file keeps.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.config.sections import VideoLimits
from longtake.curation.records import Clip, TimeRange
from longtake.video.decode import Take, visit
from longtake.video.probe import VideoInfo, info_of
from longtake.video.source import open_source

JPEG_QUALITY = 90
SHORTEST_RANGE_S = 1.0
"""A shorter range, such as a moment, is looked at as one of this length around its middle."""
HOW = f"frames 1 jpeg {JPEG_QUALITY}"
"""Names how frames are chosen, reduced and packed: part of what answers about them are kept under."""


@dataclass(frozen=True, eq=False)
class ClipFrames:
    """What a model is shown of a part of a video."""

    times_s: tuple[float, ...]
    """Ascending, each once: where the file has fewer frames than were wanted, there are fewer."""
    jpegs: tuple[bytes, ...]


def clip_frames(
    path: Path, limits: VideoLimits, clips: Sequence[Clip], count: int, max_pixels: int, stopped: Callable[[], bool] = lambda: False
) -> list[ClipFrames]:
    """`count` frames of each clip, at the midpoints of equal segments, reduced to `max_pixels`; the file is walked once.

    `clips` ascend and do not overlap. Memory: the JPEGs and one frame. `stopped` is asked at each frame; when it says so, what is
    missing stays empty. Raises a `VideoError`.
    """
    targets = [time_s for clip in clips for time_s in midpoints([(clip.start_s, clip.stop_s)], count)]
    shown: list[tuple[float, bytes]] = []
    with open_source(path, limits) as source:
        info = info_of(source)
        keep = _jpegs_into(shown, info.start_s)
        with _broken_off(keep, stopped) as take:
            visit(source, [info.start_s + time_s for time_s in targets], reduced_size(info, max_pixels), take)
    return [_each_once(shown[number * count : (number + 1) * count]) for number in range(len(clips))]


def range_frames(path: Path, limits: VideoLimits, ranges: Sequence[TimeRange], count: int, max_pixels: int) -> ClipFrames:
    """`count` frames spread evenly over all `ranges` together, in their order in time, reduced to `max_pixels`.

    Parts outside the video are left out, what overlaps counts once; nothing left: no frame. Raises a `VideoError`.
    """
    shown: list[tuple[float, bytes]] = []
    with open_source(path, limits) as source:
        info = info_of(source)
        targets = midpoints(merged(ranges, info.duration_s), count)
        visit(source, [info.start_s + time_s for time_s in targets], reduced_size(info, max_pixels), _jpegs_into(shown, info.start_s))
    return _each_once(shown)


def midpoints(spans: Sequence[tuple[float, float]], count: int) -> list[float]:
    """Of `count` equal segments of the spans (seconds; ascending, apart from each other) laid end to end.

    >>> midpoints([(0.0, 2.0), (10.0, 12.0)], 4)
    [0.5, 1.5, 10.5, 11.5]
    """
    total_s = sum(stop - start for start, stop in spans)
    offsets = [(number + 0.5) * total_s / count for number in range(count)] if total_s > 0 else []
    times_s, before_s = [], 0.0
    for start, stop in spans:
        end_s = before_s + stop - start
        times_s += [start + offset - before_s for offset in offsets if before_s <= offset < end_s]
        before_s = end_s
    return times_s


def merged(ranges: Sequence[TimeRange], duration_s: float) -> list[tuple[float, float]]:
    """The ranges inside [0, duration_s], ascending and apart, each of SHORTEST_RANGE_S at least where the video has room for it."""
    spans: list[tuple[float, float]] = []
    for start, stop in sorted(_widened(one, duration_s) for one in ranges):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        elif start < stop:
            spans.append((start, stop))
    return spans


def _widened(one: TimeRange, duration_s: float) -> tuple[float, float]:
    start, stop = one.start_s, max(one.start_s, one.stop_s)
    if stop < 0 or start > duration_s:
        return 0.0, 0.0
    missing = max(SHORTEST_RANGE_S - (stop - start), 0.0) / 2
    return max(0.0, start - missing), min(duration_s, stop + missing)


def reduced_size(info: VideoInfo, max_pixels: int) -> tuple[int, int]:
    """(height, width): even, at most `max_pixels` together, the aspect kept as nearly as that allows; never enlarged."""
    scale = min(1.0, math.sqrt(max_pixels / (info.width * info.height)))
    height, width = (max(2, math.floor(side * scale / 2 + 1e-9) * 2) for side in (info.height, info.width))
    return height, width


def jpeg(rgb: np.ndarray) -> bytes:
    """Of uint8 [Y, X, 3]; the same bytes for the same pixels."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


class _StoppedError(Exception):
    """Nobody wants the frames any more."""


@contextmanager
def _broken_off(take: Take, stopped: Callable[[], bool]) -> Iterator[Take]:
    """`take`, until `stopped` says yes: then the block ends."""

    def take_or_stop(number: int, time_s: float, rgb: np.ndarray) -> None:
        if stopped():
            raise _StoppedError
        take(number, time_s, rgb)

    try:
        yield take_or_stop
    except _StoppedError:
        return


def _jpegs_into(shown: list[tuple[float, bytes]], start_s: float) -> Take:
    """Adds (time from the start, JPEG) of every target; a frame that several targets get is packed once."""

    def take(number: int, time_s: float, rgb: np.ndarray) -> None:
        del shown[number:]  # a file that must be decoded from the start comes a second time
        at = time_s - start_s
        again = bool(shown) and shown[-1][0] == at
        shown.append(shown[-1] if again else (at, jpeg(rgb)))

    return take


def _each_once(shown: Sequence[tuple[float, bytes]]) -> ClipFrames:
    once = dict(shown)
    return ClipFrames(tuple(once), tuple(once.values()))
