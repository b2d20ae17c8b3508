"""What a video file is, in one record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longtake.config.sections import VideoLimits
from longtake.video.source import Source, open_source


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a file, all from its own packets and first frame."""

    path: Path
    width: int
    """Of a frame as shown: after rotation."""
    height: int
    start_s: float
    """Presentation time of the first frame; not always 0 (edit lists, broadcast clocks)."""
    duration_s: float
    """From the start to the end of the last frame."""
    num_frames: int
    """Frames that are shown (0 is impossible)."""
    average_fps: float
    """num_frames / duration_s; says nothing about single frames of a variable-rate file."""
    rotation: int
    """Clockwise degrees from stored to shown; already in width, height and every decoded frame."""
    codec: str
    container: str
    size_bytes: int
    has_audio: bool


def probe(path: Path, limits: VideoLimits) -> VideoInfo:
    """Open, check and describe a video file. Raises a `VideoError`; decodes one frame."""
    with open_source(path, limits) as source:
        return info_of(source)


def info_of(source: Source) -> VideoInfo:
    height, width = source.stored_size
    if source.orientation.transpose:
        height, width = width, height
    duration_s = float(source.duration_ticks * source.time_base)
    return VideoInfo(
        path=source.path,
        width=width,
        height=height,
        start_s=float(source.start_pts * source.time_base),
        duration_s=duration_s,
        num_frames=source.num_frames,
        average_fps=source.num_frames / duration_s,
        rotation=source.orientation.rotation,
        codec=source.stream.codec_context.name,
        container=source.container.format.name,
        size_bytes=source.size_bytes,
        has_audio=source.has_audio,
    )
