"""A video cut into clips of about the length aimed at, at changes of scene where there are any.

What a division costs: for each clip the square of its distance from the target, in targets; TIME_CUT for each border that is no change
of scene; PASSED_CUT for each change of scene inside a clip. A scene of 16 s becomes two clips of 8, scenes of 6 and 14 s stay
what they are, scenes of 1 s are taken together. The cheapest division is found exactly: between two borders at changes of scene, equal
parts are cheapest (the cost is convex), so only these borders are searched for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from scenedetect import ContentDetector, FrameTimecode

from longtake.config.curate import SegmentConfig
from longtake.config.sections import VideoLimits
from longtake.curation.frames import reduced_size
from longtake.curation.records import Clip, Drop, SourceVideo, VideoClips
from longtake.errors import PathError, VideoError
from longtake.observe.digest import digest_of
from longtake.observe.keyed_lines import KeyedLines
from longtake.video.decode import DECODER, visit
from longtake.video.paths import resolve_inside
from longtake.video.probe import info_of
from longtake.video.source import open_source

TIME_CUT = 0.2
PASSED_CUT = 0.4
SCENE_PIXELS = 160 * 90
"""Size at which changes of scene are looked for: the detector compares means over the picture."""
BACK_BORDERS, BACK_CLIPS = 64, 4.0
"""Changes of scene that one stretch may pass over: the last 64, and all within 4 x longest_s. A stretch that passes over more than both
is never the cheapest: each of them costs PASSED_CUT, and in the middle of it, using one costs less than that."""
ROUNDING = 1e-9


def segment_video(video: SourceVideo, root: Path, config: SegmentConfig, limits: VideoLimits, store: KeyedLines) -> VideoClips | Drop:
    """The clips of a video. Its changes of scene are kept in `store` by the file's digest and the settings. Dropped with the class of the
    error when the file cannot be decoded to its end."""
    cuts_s: tuple[float, ...] = ()
    if config.scene_fps:
        key = digest_of("scenes 1", DECODER, SCENE_PIXELS, video.digest, config.scene_fps, config.scene_threshold, limits.model_dump_json())
        known = store.get(key)
        if known is None:
            try:
                path = resolve_inside(root, video.video)
                known = {"cuts_s": list(scene_changes(path, limits, config.scene_fps, config.scene_threshold))}
            except (PathError, VideoError) as error:
                return Drop("segment", type(error).__name__, str(error), video=video.video)
            store.put(key, known)
        cuts_s = tuple(known["cuts_s"])
    return VideoClips(video.video, video.digest, cut_clips(video.duration_s, cuts_s, config))


def scene_changes(path: Path, limits: VideoLimits, fps: float, threshold: float) -> tuple[float, ...]:
    """When, in seconds from the start, something else is seen than before: times of the first frames of scenes, ascending.

    Looked at `fps` times a second, or at every frame where there are fewer; a change is found by as much as 1 / fps late. The file is
    walked once, in the memory of a frame. PySceneDetect is given frames only: it never opens the file. Raises a `VideoError`.
    """
    with open_source(path, limits) as source:
        info = info_of(source)
        looked = _Looked(info.start_s, fps, threshold)
        times_s = info.start_s + np.arange(max(1, math.ceil(info.duration_s * fps))) / fps
        visit(source, times_s, reduced_size(info, SCENE_PIXELS), looked.take)
    return tuple(looked.cuts_s)


class _Looked:
    """What was seen so far of a walk over a file."""

    def __init__(self, start_s: float, fps: float, threshold: float) -> None:
        self.start_s, self.fps, self.threshold = start_s, fps, threshold
        self._begin()

    def _begin(self) -> None:
        # min_scene_len 0: which changes become borders is decided by `cut_clips`, which knows the lengths that are wanted
        self._detector = ContentDetector(threshold=self.threshold, min_scene_len=0)
        self._last_s: float | None = None
        self.cuts_s: list[float] = []

    def take(self, number: int, time_s: float, rgb: np.ndarray) -> None:
        """The next frame; number 0 begins anew."""
        if number == 0:
            self._begin()
        if time_s == self._last_s:
            return
        self._last_s = time_s
        bgr = np.ascontiguousarray(rgb[:, :, ::-1])
        if self._detector.process_frame(FrameTimecode(number, float(self.fps)), bgr):
            self.cuts_s.append(time_s - self.start_s)


def cut_clips(duration_s: float, cuts_s: Sequence[float], config: SegmentConfig) -> tuple[Clip, ...]:
    """Clips that cover [0, duration_s] without gap or overlap, each from `config.shortest_s` to `longest_s` long (a shorter video is one
    clip), of the least cost; see the module's head. `cuts_s`: changes of scene, in any order; those outside are ignored."""
    if duration_s < config.shortest_s:
        return (Clip(0.0, duration_s),)
    borders = np.array([0.0, *sorted({float(cut) for cut in cuts_s if 0 < cut < duration_s}), duration_s])
    costs = np.full(len(borders), np.inf)
    costs[0] = 0.0
    before = np.zeros(len(borders), dtype=np.int64)
    parts = np.ones(len(borders), dtype=np.int64)
    for at in range(1, len(borders)):
        nearest = min(at - BACK_BORDERS, int(np.searchsorted(borders, borders[at] - BACK_CLIPS * config.longest_s)))
        earlier = np.append(0, np.arange(max(1, nearest), at))  # 0: from the start, every place that is far enough can be reached
        number, cost = _best_parts(borders[at] - borders[earlier], config)
        total = costs[earlier] + cost + PASSED_CUT * (at - earlier - 1)
        best = int(np.argmin(total))
        costs[at], before[at], parts[at] = total[best], earlier[best], number[best]
    return _clips(borders, before, parts)


def _best_parts(lengths_s: np.ndarray, config: SegmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """(number of equal parts, cost) for each stretch between two borders; infinite where it is too short."""
    fewest = np.maximum(1, np.ceil(lengths_s / config.longest_s - ROUNDING))
    most = np.floor(lengths_s / config.shortest_s + ROUNDING)
    at_best = lengths_s / (config.target_s * math.sqrt(1 + TIME_CUT))  # where the cost, convex in the number, is least
    choices = np.clip(np.stack([np.floor(at_best), np.floor(at_best) + 1]), fewest, np.maximum(fewest, most))
    costs = choices * np.square(lengths_s / choices / config.target_s - 1) + TIME_CUT * (choices - 1)
    best = np.argmin(costs, axis=0)
    rows = np.arange(len(lengths_s))
    return choices[best, rows].astype(np.int64), np.where(fewest <= most, costs[best, rows], np.inf)


def _clips(borders: np.ndarray, before: np.ndarray, parts: np.ndarray) -> tuple[Clip, ...]:
    """Followed back from the end."""
    times_s = [float(borders[-1])]
    at = len(borders) - 1
    while at > 0:
        start, stop, number = float(borders[before[at]]), float(borders[at]), int(parts[at])
        times_s += [start + (stop - start) * part / number for part in range(number - 1, 0, -1)] + [start]
        at = int(before[at])
    times_s.reverse()
    return tuple(Clip(start, stop) for start, stop in pairwise(times_s))
