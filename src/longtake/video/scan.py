"""What the packets of a container tell, without decoding: how many frames, from when to when, where decoding can start, is it complete.

A plain MP4 or MOV carries an index of all samples, which is read instead of the data. (FFmpeg can also be asked to skip all but
keyframe packets; in libavformat 62 these then have wrong presentation times in files with B-frames, so it is not used.) Any other
container, and a fragmented MP4, is read through once.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from longtake.config.sections import VideoLimits
from longtake.errors import VideoDamagedError, VideoEmptyError, VideoLimitError

REENCODE = "re-encode it, e.g. `ffmpeg -i IN -c:v libx264 OUT.mp4`, or leave the row out"
REPLACE = "copy or download the file again, or leave the row out"
MAX_TOP_BOXES = 1_000_000


@dataclass(frozen=True)
class Keyframe:
    """A packet that decoding can start from; times in ticks of the stream's time base."""

    pts: int
    dts: int


@dataclass(eq=False)
class KeyframeIndex:
    """All keyframes by dts; their pts, where the container's index does not hold it, is read from the packet when asked for."""

    container: InputContainer
    stream: VideoStream
    dts: list[int]
    """Ascending, never empty."""
    pts: dict[int, int] = field(default_factory=dict)
    """dts -> pts, as far as known."""

    def shown_at(self, ticks: int) -> Keyframe:
        """The last keyframe with pts <= ticks; the first one if there is none. May move the demuxer: ask before decoding."""
        at = max(bisect.bisect_right(self.dts, ticks) - 1, 0)  # pts >= dts: no later one can qualify
        while at > 0 and self.at(at).pts > ticks:
            at -= 1
        return self.at(at)

    def at(self, number: int) -> Keyframe:
        dts = self.dts[number]
        if dts not in self.pts:
            self.pts[dts] = self._read_pts(dts)
        return Keyframe(self.pts[dts], dts)

    def _read_pts(self, dts: int) -> int:
        self.container.seek(dts, stream=self.stream)
        for packet in self.container.demux(self.stream):
            if packet.dts is not None and packet.dts >= dts:
                return packet.pts if packet.pts is not None else packet.dts
        return dts


@dataclass(eq=False)
class Tally:
    """What a pass over the packets found; times in ticks of the video stream."""

    keyframes: KeyframeIndex
    num_frames: int = 0
    """Packets of the video stream that are shown."""
    start: int | None = None
    end: int = 0
    """Largest pts + duration."""


def scan(path: Path, file: BinaryIO, size_bytes: int, limits: VideoLimits, container: InputContainer, stream: VideoStream) -> Tally:
    """Raises VideoEmptyError, VideoDamagedError or VideoLimitError."""
    if is_iso(container) and not _is_fragmented(file, size_bytes):
        tally = _scan_index(path, size_bytes, limits, stream, Tally(KeyframeIndex(container, stream, [])))
    else:
        tally = _scan_packets(path, limits, container, stream)
    if not tally.num_frames:
        raise VideoEmptyError(f"{path}: no frame in its video stream", rule="a video shows at least one frame", remedy=REPLACE)
    if not tally.keyframes.dts:
        raise VideoDamagedError(f"{path}: no keyframe", rule="decoding starts at a keyframe", remedy=REENCODE)
    tally.keyframes.dts.sort()
    return tally


def is_iso(container: InputContainer) -> bool:
    """MP4, MOV and their kin."""
    return "mov" in container.format.name.split(",")


def check_top_boxes(path: Path, file: BinaryIO, size_bytes: int) -> None:
    """The box with the index, and every box of a fragmented file, must end inside the file. Raises VideoDamagedError."""
    fragmented = False
    for kind, end in _top_boxes(file, size_bytes):
        fragmented |= kind == b"moof"
        if end > size_bytes and (kind in (b"moov", b"moof") or fragmented):
            name = kind.decode("ascii", "replace")
            _raise_truncated(path, f"its `{name}` part ends at byte {end} but it has only {size_bytes}")


def _is_fragmented(file: BinaryIO, size_bytes: int) -> bool:
    """True when a `moof` box follows: then the index at the start is not the whole of it."""
    return any(kind == b"moof" for kind, _ in _top_boxes(file, size_bytes))


def _top_boxes(file: BinaryIO, size_bytes: int) -> Iterator[tuple[bytes, int]]:
    """(type, end) of the top-level boxes of an ISO file, by their headers alone. Leaves `file` where it was."""
    here, at = file.tell(), 0
    try:
        for _ in range(MAX_TOP_BOXES):
            file.seek(at)
            header = file.read(16)
            if len(header) < 8:
                return
            size, kind = struct.unpack(">I4s", header[:8])
            if size == 1 and len(header) == 16:
                size = struct.unpack(">Q", header[8:])[0]
            at = size_bytes if size == 0 else at + size
            yield kind, at
            if size < 8 or at >= size_bytes:
                return
    finally:
        file.seek(here)


def _scan_index(path: Path, size_bytes: int, limits: VideoLimits, stream: VideoStream, tally: Tally) -> Tally:
    """ISO files: every sample that the index promises must lie inside the file."""
    _check_count(path, len(stream.index_entries), limits)
    first: int | None = None
    last = 0
    for entry in stream.index_entries:
        if entry.pos < 0 or entry.pos + entry.size > size_bytes:
            _raise_truncated(path, f"its index points to byte {entry.pos + entry.size} but it has only {size_bytes}")
        if entry.is_keyframe:
            tally.keyframes.dts.append(entry.timestamp)
        if not entry.is_discard:  # cut off by an edit list
            tally.num_frames += 1
            first = entry.timestamp if first is None else first
            last = entry.timestamp
    _check_index_is_whole(path, stream, last - (first or 0))
    if first is not None:
        tally.start = stream.start_time if stream.start_time is not None else first
        tally.end = max(tally.start + (stream.duration or 0), _end_of_last_group(tally.keyframes))
    return tally


def _end_of_last_group(keyframes: KeyframeIndex) -> int:
    """The end of the frame shown last. The duration that an MP4 states counts in decode order, which with B-frames at irregular times
    may end seconds too early, so the packets from the last keyframe on are read."""
    keyframes.container.seek(max(keyframes.dts), stream=keyframes.stream)
    packets = keyframes.container.demux(keyframes.stream)
    return max((packet.pts + max(packet.duration or 0, 1) for packet in packets if packet.pts is not None), default=0)


def _check_index_is_whole(path: Path, stream: VideoStream, span: int) -> None:
    """FFmpeg stops building the index at the first sample it cannot believe. (An edit list leaves samples out too, but then shortens
    the duration.)"""
    num_entries = len(stream.index_entries)
    declared = stream.duration or 0
    tolerance = max(2 / float(stream.time_base or 1), 0.1 * declared)
    if stream.frames > num_entries and (not num_entries or span < declared - tolerance):
        reason = f"{path}: its index makes sense for {num_entries} of {stream.frames} frames only"
        raise VideoDamagedError(reason, rule="the file must be intact", remedy=REPLACE)


def _scan_packets(path: Path, limits: VideoLimits, container: InputContainer, stream: VideoStream) -> Tally:
    """Any other container: one pass over all packets of all streams."""
    tally = Tally(KeyframeIndex(container, stream, []))
    end_s = 0.0
    for packet in container.demux():
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            continue
        end = at + (packet.duration or 0)
        end_s = max(end_s, float(end * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.is_corrupt:
            _raise_truncated(path, f"data is missing in the frame at {float(at * packet.time_base):.3f} s")
        tally.num_frames += 1
        _check_count(path, tally.num_frames, limits)
        tally.end = end if tally.start is None else max(tally.end, end)
        tally.start = at if tally.start is None else min(tally.start, at)
        if packet.is_keyframe:
            dts = packet.dts if packet.dts is not None else at
            tally.keyframes.dts.append(dts)
            tally.keyframes.pts[dts] = at
    _check_declared_end(path, container, end_s)
    return tally


def _check_count(path: Path, num_frames: int, limits: VideoLimits) -> None:
    if num_frames > limits.max_decoded_frames:
        raise limit_error(path, f"{num_frames} frames or more", "max_decoded_frames", limits.max_decoded_frames)


def _check_declared_end(path: Path, container: InputContainer, end_s: float) -> None:
    if container.duration is None:
        return
    declared_s = container.duration / av.time_base  # of the end in Matroska, from the start elsewhere: never more than the end
    if end_s < declared_s - max(2.0, 0.1 * declared_s):
        _raise_truncated(path, f"its header says {declared_s:.1f} s but its data ends at {end_s:.1f} s")


def _raise_truncated(path: Path, reason: str) -> NoReturn:
    raise VideoDamagedError(f"{path}: truncated, {reason}", rule="the file must be complete", remedy=REPLACE)


def limit_error(path: Path, what: str, name: str, limit: float) -> VideoLimitError:
    """The error for passing `video.limits.<name>`."""
    remedy = f"raise video.limits.{name}, or shorten or shrink the video"
    return VideoLimitError(f"{path}: {what}", rule=f"video.limits.{name} = {limit}", remedy=remedy)
