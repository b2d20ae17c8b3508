"""Open a video file so that nothing else can be opened through it, and check what it says of itself.

What guards the opening (each has a hostile file in the tests):

* the file is opened once, without following into a FIFO or device, and FFmpeg only ever sees that open file;
* only real media containers are tried (`DEMUXERS`): no playlist, image sequence, concat list or network format;
* no protocol may be opened from inside a file: the white list is empty and every nested open is refused;
* pictures larger than the limit are refused by FFmpeg itself, before it allocates them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from longtake.config.sections import VideoLimits
from longtake.errors import PathError, VideoDamagedError, VideoEmptyError, VideoMissingError, VideoNoStreamError
from longtake.video.paths import open_regular
from longtake.video.scan import REENCODE, REPLACE, KeyframeIndex, Tally, check_top_boxes, is_iso, limit_error, scan

DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mp3,wav,flac,aac"
"""FFmpeg demuxers that may run; the audio ones only so that an audio file can be told from a damaged one."""
MAX_STREAMS = 64
MAX_ABS_SECONDS = 1e10
"""Timestamps beyond +-317 years are damage, not time (files may carry wall-clock times)."""


@dataclass(frozen=True)
class Orientation:
    """What the display matrix does to a stored picture: first perhaps swap the axes, then perhaps mirror each."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """[Y, X, 3] as stored -> [Y, X, 3] as shown."""
        shown = rgb.swapaxes(0, 1) if self.transpose else rgb
        return shown[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    @property
    def rotation(self) -> int:
        """Clockwise degrees from stored to shown: 0, 90, 180 or 270 (a mirror image counts as its rotation)."""
        if self.transpose:
            return 270 if self.flip_y else 90
        return 180 if self.flip_x else 0


@dataclass(frozen=True, eq=False)
class Source:
    """An open file with what its container says. Lives inside `open_source`."""

    path: Path
    size_bytes: int
    limits: VideoLimits
    container: InputContainer
    stream: VideoStream
    time_base: Fraction
    keyframes: KeyframeIndex
    num_frames: int
    """Packets of the video stream that are shown."""
    start_pts: int
    duration_ticks: int
    has_audio: bool
    stored_size: tuple[int, int]
    """(height, width) of the first frame, before rotation; every frame must have it."""
    orientation: Orientation

    def damaged(self, reason: str, remedy: str = REENCODE) -> NoReturn:
        raise VideoDamagedError(f"{self.path}: {reason}", rule="the file must be intact", remedy=remedy)


@contextmanager
def open_source(path: Path, limits: VideoLimits, threads: int = 1) -> Iterator[Source]:
    """Open and scan a video file. Raises one `VideoError` of the right kind, also for what FFmpeg raises inside the block."""
    with _open_video(path, limits) as (file, size_bytes), ffmpeg_errors_as_damage(path):
        container = _open_container(file, limits)
        try:
            if is_iso(container):
                check_top_boxes(path, file, size_bytes)
            stream = _pick_stream(path, container)
            _check_header(path, file, stream, limits)
            context = stream.codec_context
            context.options = {"max_pixels": str(limits.max_frame_pixels), "err_detect": "explode"}
            context.thread_count = threads
            if threads > 1:
                context.thread_type = "AUTO"
            with _oversized_frame_as_limit(path, stream, limits):
                tally = scan(path, file, size_bytes, limits, container, stream)
                yield _checked_source(path, size_bytes, limits, container, stream, tally)
        finally:
            container.close()


@contextmanager
def _oversized_frame_as_limit(path: Path, stream: VideoStream, limits: VideoLimits) -> Iterator[None]:
    """A decoder that refused a frame for its size (before allocating it) has that size on record."""
    try:
        yield
    except av.FFmpegError as error:
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > limits.max_frame_pixels:
            raise limit_error(path, f"a frame of {width}x{height} pixels", "max_frame_pixels", limits.max_frame_pixels) from error
        raise


@contextmanager
def ffmpeg_errors_as_damage(path: Path) -> Iterator[None]:
    """Whatever FFmpeg reports inside the block is a `VideoDamagedError` of this file."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise VideoDamagedError(
            f"{path}: FFmpeg cannot read it ({reason})", rule="a video is an intact media file", remedy=REPLACE
        ) from error


@contextmanager
def _open_video(path: Path, limits: VideoLimits) -> Iterator[tuple[BinaryIO, int]]:
    try:
        with open_regular(path) as (file, status):
            if status.st_size == 0:
                raise VideoEmptyError(f"{path}: 0 bytes", rule="a video has at least one frame", remedy=REPLACE)
            if status.st_size > limits.max_bytes:
                raise limit_error(path, f"{status.st_size} bytes", "max_bytes", limits.max_bytes)
            yield file, status.st_size
    except PathError as error:
        raise VideoMissingError(error.given, rule=error.rule, remedy=error.remedy) from error


def _refuse_nested_open(*_args: object, **_kwargs: object) -> NoReturn:
    raise PermissionError("a video may not open another file")


def _open_container(file: BinaryIO, limits: VideoLimits, **more: str) -> InputContainer:
    options = {
        "format_whitelist": DEMUXERS,
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
        "max_pixels": str(limits.max_frame_pixels),
        **more,
    }
    return av.open(file, "r", options=options, metadata_errors="replace", io_open=_refuse_nested_open)


def _pick_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kinds = {stream.type for stream in container.streams}
        raise VideoNoStreamError(
            f"{path}: no video stream ({', '.join(sorted(kinds)) or 'no streams'} in {container.format.name})",
            rule="a video file holds a video stream; cover pictures do not count",
            remedy="give a file with moving pictures, or leave the row out",
        )
    return streams[0]


def _check_header(path: Path, file: BinaryIO, stream: VideoStream, limits: VideoLimits) -> None:
    rule = "a video stream states a codec FFmpeg can decode, a frame size and a time base"
    context = stream.codec_context
    if context is None:
        raise VideoDamagedError(f"{path}: unknown video codec", rule=rule, remedy=REENCODE)
    if not stream.time_base:
        raise VideoDamagedError(f"{path}: no time base", rule=rule, remedy=REENCODE)
    width, height = context.width, context.height
    if width <= 0 or height <= 0:  # also what FFmpeg leaves after it refused a size over max_pixels
        width, height = _stated_size(file, stream.index, limits)
    if width * height > limits.max_frame_pixels:
        raise limit_error(path, f"frames of {width}x{height} pixels", "max_frame_pixels", limits.max_frame_pixels)
    if width <= 0 or height <= 0:
        raise VideoDamagedError(f"{path}: frame size {width}x{height}", rule=rule, remedy=REENCODE)
    declared_s = stream.duration * stream.time_base if stream.duration else Fraction(0)
    if declared_s > limits.max_seconds:
        raise limit_error(path, f"{float(declared_s):.0f} s long", "max_seconds", limits.max_seconds)


def _stated_size(file: BinaryIO, stream_index: int, limits: VideoLimits) -> tuple[int, int]:
    """(width, height) as the container states them, with every decoder forbidden, so that nothing of that size is allocated."""
    file.seek(0)
    with _open_container(file, limits, codec_whitelist="none", max_pixels=str(2**31 - 1)) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        return stream.codec_context.width, stream.codec_context.height


def _checked_source(
    path: Path, size_bytes: int, limits: VideoLimits, container: InputContainer, stream: VideoStream, tally: Tally
) -> Source:
    assert stream.time_base is not None  # checked in _check_header
    start = tally.start if tally.start is not None else tally.keyframes.at(0).pts
    duration = max(tally.end - start, 1)
    start_s, duration_s = start * stream.time_base, duration * stream.time_base
    if abs(start_s) > MAX_ABS_SECONDS:
        raise VideoDamagedError(f"{path}: starts at {float(start_s):.3g} s", rule="times are within 300 years", remedy=REENCODE)
    if duration_s > limits.max_seconds:
        raise limit_error(path, f"{float(duration_s):.0f} s long", "max_seconds", limits.max_seconds)
    first = _first_frame(path, container, stream, tally.keyframes.dts[0])
    return Source(
        path=path,
        size_bytes=size_bytes,
        limits=limits,
        container=container,
        stream=stream,
        time_base=stream.time_base,
        keyframes=tally.keyframes,
        num_frames=tally.num_frames,
        start_pts=start,
        duration_ticks=duration,
        has_audio=bool(container.streams.audio),
        stored_size=(first.height, first.width),
        orientation=_orientation(first),
    )


def _first_frame(path: Path, container: InputContainer, stream: VideoStream, dts: int) -> VideoFrame:
    """Decoded because only a frame tells its true size and display matrix, and to know that one can be decoded at all."""
    container.seek(dts, stream=stream)
    for packet in container.demux(stream):
        for frame in packet.decode():
            return frame
    raise VideoEmptyError(f"{path}: not one frame can be decoded", rule="a video has at least one frame", remedy=REPLACE)


def _orientation(frame: VideoFrame) -> Orientation:
    """From the display matrix: shown x = a x + c y, shown y = b x + d y (FFmpeg's libavutil/display.h)."""
    side = cast("SideDataContainer", frame.side_data)
    matrices = [entry for entry in (side[number] for number in range(len(side))) if entry.type is SideDataType.DISPLAYMATRIX]
    if not matrices:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrices[0]))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
