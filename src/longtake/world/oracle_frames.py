"""Which video, and when, an image shows: recognised by its pixels among all frames of the worlds.

An image is a JPEG of a frame, perhaps reduced. Thumbnails of 16 x 16 pixels in colour are compared; those of a JPEG and of the frame it
was made from differ by less than 1 of 255 per value, those of different pictures by more. The times that come with the images are taken
for a hint: at them every video shows one frame, and the video is wanted that fits all images of a request together. Frames of other
times are looked at only when none fits. Still scenes look the same for seconds, and in several videos; then they have the same answer.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.config.sections import VideoLimits
from longtake.observe.progress import Progress
from longtake.video.decode import visit
from longtake.video.probe import info_of
from longtake.video.source import open_source
from longtake.world.log import WorldLog
from longtake.world.oracle_request import OracleRequestError
from longtake.world.story import Story
from longtake.world.write import frame_times

SIDE = 16
FITS = 5.0
"""Mean difference of two thumbnails (0 to 255 per value) up to which they show the same."""
STRANGE = 16.0
"""From here on an image is of no video of the worlds."""
NEAR_S = 0.1
"""Durations are told with one decimal."""
SLACK_S = 0.011
"""Times of images are rounded to hundredths."""
_FAR_S = 1e7
"""Longer than any video: keeps the times of different videos apart in one sorted array."""


@dataclass(frozen=True, eq=False)
class KnownVideo:
    """A video of a world, with its truth."""

    path: Path
    story: Story
    duration_s: float
    """Of the file."""
    size: tuple[int, int]
    """(height, width) of its frames."""


@dataclass(frozen=True)
class Sighting:
    """What a request's images show."""

    video: int
    """Index of the video."""
    times_s: tuple[float, ...]
    """Of its frames, in the order of the images."""
    distance: float
    """The largest mean difference between an image and its frame, 0 to 255."""
    by_time: bool
    """Whether the times of the request were right."""


class FrameIndex:
    """All frames of the worlds, as thumbnails. Building it decodes every video once; 20 minutes of video take seconds."""

    def __init__(self, worlds: Sequence[WorldLog]) -> None:
        """Raises a VideoError for a video that cannot be decoded."""
        self.videos: list[KnownVideo] = []
        times, thumbnails = [], []
        with Progress("world: frames", sum(len(world.stories) for world in worlds)) as progress:
            for world in worlds:
                for story, name in zip(world.stories, world.names, strict=True):
                    video, video_times, video_thumbnails = _read_video(world, story, name)
                    self.videos.append(video)
                    times.append(video_times)
                    thumbnails.append(video_thumbnails)
                    progress.advance()
        self._times_s = np.concatenate(times)  # [N]
        self._of_video = np.repeat(np.arange(len(times)), [len(one) for one in times])  # [N]
        self._first = np.concatenate([[0], np.cumsum([len(one) for one in times])])  # [V + 1]
        self._thumbnails = np.concatenate(thumbnails)  # uint8 [N, SIDE * SIDE * 3]
        self._keys = self._times_s + self._of_video * _FAR_S  # ascending

    def find(self, images: Sequence[bytes], times_s: Sequence[float] = (), duration_s: float | None = None) -> Sighting:
        """Raises OracleRequestError for what is no image, or of no video of the worlds."""
        shown = np.stack([thumbnail(_opened(image)) for image in images])
        likely = np.array(self.likely(duration_s))
        if len(times_s) == len(images):
            by_time = self._at_times(shown, np.asarray(times_s, np.float64), likely)
            if by_time.distance <= FITS:
                return by_time
        anywhere = self._anywhere(shown, likely)
        if anywhere.distance > STRANGE:
            raise OracleRequestError(
                f"an image that differs by {anywhere.distance:.1f} of 255 from the likest frame of {len(self.videos)} videos",
                rule=f"images show frames of the worlds that are served (they differ by less than {STRANGE:g})",
                remedy="serve the world that the videos are from",
            )
        return anywhere

    def likely(self, duration_s: float | None) -> list[int]:
        """Videos of that duration; all where there is none, or it is not told."""
        near = [video for video, known in enumerate(self.videos) if duration_s is not None and abs(known.duration_s - duration_s) < NEAR_S]
        return near or list(range(len(self.videos)))

    def _at_times(self, shown: np.ndarray, times_s: np.ndarray, videos: np.ndarray) -> Sighting:
        frames = np.searchsorted(self._keys, videos[:, None] * _FAR_S + times_s[None] + SLACK_S, side="right") - 1
        frames = np.clip(frames, self._first[videos, None], self._first[videos + 1, None] - 1)  # [V, images]
        distances = np.stack([_differences(self._thumbnails[frames[:, number]], one) for number, one in enumerate(shown)], 1)
        best = int(distances.sum(1).argmin())
        return Sighting(int(videos[best]), tuple(self._times_s[frames[best]].tolist()), float(distances[best].max()), by_time=True)

    def _anywhere(self, shown: np.ndarray, videos: np.ndarray) -> Sighting:
        """For each video the frames that are most like the images; the video whose are best in all."""
        chosen = np.zeros((len(videos), len(shown)), np.int64)
        distances = np.zeros((len(videos), len(shown)))
        for row, video in enumerate(videos):
            start, stop = int(self._first[video]), int(self._first[video + 1])
            for number, one in enumerate(shown):
                all_of_it = _differences(self._thumbnails[start:stop], one)
                chosen[row, number] = start + int(all_of_it.argmin())
                distances[row, number] = all_of_it.min()
        best = int(distances.sum(1).argmin())
        return Sighting(int(videos[best]), tuple(self._times_s[chosen[best]].tolist()), float(distances[best].max()), by_time=False)


def thumbnail(picture: Image.Image) -> np.ndarray:
    """uint8 [SIDE * SIDE * 3]: means over equal parts of the picture, whatever its size."""
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.uint8).reshape(-1)


def _differences(thumbnails: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each of [N, D] to [D]: float64 [N]."""
    apart = np.maximum(thumbnails, one) - np.minimum(thumbnails, one)  # in uint8: a signed type would take 4 times as long
    return np.asarray(apart.sum(1, dtype=np.uint32) / apart.shape[1])


def _opened(image: bytes) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(image))
        opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        given = f"{len(image)} bytes that are no image: {error}"
        raise OracleRequestError(given, rule="images are JPEG or PNG", remedy="send one") from None
    return opened


def _read_video(world: WorldLog, story: Story, name: str) -> tuple[KnownVideo, np.ndarray, np.ndarray]:
    """The video, the times of its frames float64 [F] and their thumbnails uint8 [F, D]."""
    path = world.folder / name
    shown: dict[int, tuple[float, np.ndarray]] = {}
    with open_source(path, VideoLimits()) as source:
        info = info_of(source)
        targets = info.start_s + frame_times(world.config, story)

        def take(number: int, time_s: float, rgb: np.ndarray) -> None:
            shown[number] = (time_s - info.start_s, thumbnail(Image.fromarray(rgb)))

        visit(source, targets, (info.height, info.width), take)
    order = sorted(shown)
    times = np.array([shown[number][0] for number in order])
    return KnownVideo(path, story, info.duration_s, (info.height, info.width)), times, np.stack([shown[number][1] for number in order])
