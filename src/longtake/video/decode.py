"""Decode exactly the frames that are wanted, at the times the file itself gives them.

For each target time the answer is the frame being shown then: the last one whose presentation time is not later (the first frame of
the file for a target before it). Targets come sorted and the file is walked once, forwards. Per target:

1. K = the last keyframe shown at or before the target. If K lies beyond what has been fed to the decoder, seek to it; if it is
   the next packet anyway, just go on; if it lies behind, keep decoding.
2. Read packets (without decoding) until one with dts > target: pts >= dts, so no later packet can be shown by then. The wanted
   frame is the one with the largest pts <= target among them, whatever the order of B-frames.
3. Feed the decoder up to that packet, in decode order, and no further; frames on the way that no other frame refers to are left out
   by the decoder (`skip_frame`).

Before a seek and at the end the decoder is drained, which gives out the frames it holds back for reordering without feeding it more.
So a target costs at most min(gap since the last fed packet, distance from its keyframe) frames, both in decode order.

If a file breaks the assumptions (keyframes that are none, packets without times or without frames), the fast walk stops and everything
is decoded in sequence from the start: slower, always right.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from longtake.config.sections import VideoConfig, VideoLimits
from longtake.errors import VideoEmptyError
from longtake.types import Frames, Sampling, VideoRef
from longtake.video.probe import info_of
from longtake.video.sample import plan_frames
from longtake.video.scan import Keyframe, limit_error
from longtake.video.source import Orientation, Source, open_source

RESIZE = "bicubic"
FILTER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
"""Bicubic as the families' own video processors use; the flags make the bits independent of the processor's SIMD units."""
DECODER = "decode 1 " + " ".join(
    f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat", "libswscale")
)
"""Names what decides the pixels of a frame beside the file and the plan. Raise the number when this room chooses or resizes otherwise."""
GRACE_S = 1e-9
"""A target this close before a frame's time counts as that time: float64 cannot hold every pts exactly."""
WINDOW = 32
"""Packets read ahead of the decoder; more than any codec's reordering depth (16)."""


@dataclass(frozen=True, eq=False)
class DecodedFrames:
    """What `decode_at` returns."""

    pixels: np.ndarray
    """uint8 [F, Y, X, 3] RGB, rotation applied, one per target."""
    times_s: np.ndarray
    """float64 [F], presentation time of each frame from the file's pts (may be earlier than its target)."""
    num_decoded: int
    """Frames the decoder produced."""
    sequential: bool
    """True when the file had to be decoded from the start."""


class _NotSeekableError(Exception):
    """The fast walk met something it cannot prove right; decode in sequence instead."""


Take = Callable[[int, float, np.ndarray], None]
"""Gets (number of the target, presentation time in seconds, uint8 [Y, X, 3])."""


@dataclass(eq=False)
class _Sink:
    """Takes chosen frames, converts each once, hands them on, and counts."""

    source: Source
    size: tuple[int, int]
    take: Take
    num_decoded: int = 0
    _reformatter: VideoReformatter = field(default_factory=VideoReformatter)
    _last: tuple[int, np.ndarray] | None = None
    """(pts, pixels) of the last converted frame."""

    def count(self, frame: VideoFrame) -> None:
        """Check a frame that the decoder produced."""
        self.num_decoded += 1
        source, limits = self.source, self.source.limits
        if self.num_decoded > limits.max_decoded_frames:
            raise limit_error(
                source.path, f"more than {limits.max_decoded_frames} frames decoded", "max_decoded_frames", limits.max_decoded_frames
            )
        if frame.width * frame.height > limits.max_frame_pixels:
            raise limit_error(source.path, f"a frame of {frame.width}x{frame.height} pixels", "max_frame_pixels", limits.max_frame_pixels)
        if (frame.height, frame.width) != source.stored_size:
            height, width = source.stored_size
            source.damaged(f"its frame size changes from {width}x{height} to {frame.width}x{frame.height}")

    def keep(self, target: int, frame: VideoFrame) -> None:
        pts = pts_of(frame)
        if self._last is None or self._last[0] != pts:
            self._last = (pts, to_rgb(frame, self.size, self.source.orientation, self._reformatter))
        self.take(target, float(pts * self.source.time_base), self._last[1])


def pts_of(frame: VideoFrame) -> int:
    """Presentation time in ticks; containers without one (AVI) give the decoding time."""
    at = frame.pts if frame.pts is not None else frame.dts
    if at is None:
        raise _NotSeekableError
    return at


def to_rgb(frame: VideoFrame, size: tuple[int, int], orientation: Orientation, reformatter: VideoReformatter) -> np.ndarray:
    """uint8 [Y, X, 3] of `size` = (Y, X), turned as the file's display matrix says."""
    height, width = size[::-1] if orientation.transpose else size
    rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation=FILTER, threads=1)
    return orientation.apply(rgb.to_ndarray())


def decode_at(
    path: Path, times_s: Sequence[float] | np.ndarray, size: tuple[int, int], limits: VideoLimits, *, threads: int = 1, seek: bool = True
) -> DecodedFrames:
    """The frames shown at `times_s` (ascending, on the clock of the file's pts), resized to `size` = (height, width).

    `seek=False` decodes everything in sequence; the result is the same, bit for bit. Raises a `VideoError`.
    """
    with open_source(path, limits, threads=threads) as source:
        return decode_from(source, times_s, size, seek=seek)


def decode_from(source: Source, times_s: Sequence[float] | np.ndarray, size: tuple[int, int], *, seek: bool = True) -> DecodedFrames:
    """`decode_at` for a file that is open already."""
    pixels = np.zeros((len(times_s), *size, 3), dtype=np.uint8)
    frame_times_s = np.zeros(len(times_s), dtype=np.float64)

    def keep(target: int, time_s: float, rgb: np.ndarray) -> None:
        pixels[target], frame_times_s[target] = rgb, time_s

    num_decoded, sequential = visit(source, times_s, size, keep, seek=seek)
    return DecodedFrames(pixels, frame_times_s, num_decoded, sequential)


def visit(
    source: Source, times_s: Sequence[float] | np.ndarray, size: tuple[int, int], take: Take, *, seek: bool = True
) -> tuple[int, bool]:
    """Hand the frames that `decode_from` returns to `take`, one after the other: a film of any length in the memory of one frame.

    Targets come in order. When the file turns out to need decoding from the start, they come once more, from number 0. Arrays handed
    on are not written again. Returns (frames decoded, whether they were decoded from the start). Raises a `VideoError`.
    """
    targets = [_ticks(float(time_s), source.time_base) for time_s in times_s]
    if targets != sorted(targets):
        raise ValueError("target times must ascend")
    if not targets:
        return 0, False
    sink = _Sink(source, size, take)
    if seek:
        try:
            _Walk(source, targets, sink).run()
            return sink.num_decoded, False
        except (_NotSeekableError, av.FFmpegError):  # if the file is damaged, decoding in sequence says so
            sink = _Sink(source, size, take, num_decoded=sink.num_decoded)
    try:
        _decode_in_sequence(source, targets, sink)
    except _NotSeekableError:
        source.damaged("a frame has no time")
    return sink.num_decoded, True


def _ticks(time_s: float, time_base: Fraction) -> int:
    if not math.isfinite(time_s):
        raise ValueError(f"target time {time_s}")
    return math.floor(Fraction(time_s + GRACE_S) / time_base)


def _checked(source: Source, sink: _Sink, frames: list[VideoFrame], from_pts: int) -> Iterator[VideoFrame]:
    """Count what the decoder produced; pass on what is shown from `from_pts` on, refusing frames it had to make up."""
    for frame in frames:
        sink.count(frame)
        if pts_of(frame) < from_pts:
            continue
        if frame.is_corrupt:
            source.damaged(f"the frame at {float(pts_of(frame) * source.time_base):.3f} s cannot be decoded")
        yield frame


def _decode_in_sequence(source: Source, targets: list[int], sink: _Sink) -> None:
    """The obvious way: every frame from the start, until the last target has its frame."""
    source.stream.codec_context.skip_frame = "DEFAULT"
    first = source.keyframes.at(0)
    source.container.seek(first.dts, stream=source.stream)
    shown: VideoFrame | None = None
    done = 0
    for packet in source.container.demux(source.stream):
        if packet.pts is not None and packet.pts < first.pts:
            continue  # a leading frame of an open group, see _Walk._feed
        for frame in _checked(source, sink, packet.decode(), first.pts):
            if shown is not None and pts_of(frame) < pts_of(shown):
                source.damaged(f"time runs backwards after {float(pts_of(shown) * source.time_base):.3f} s")
            while done < len(targets) and pts_of(frame) > targets[done]:
                sink.keep(done, shown if shown is not None else frame)
                done += 1
            if done == len(targets):
                return
            shown = frame
    if shown is None:
        raise VideoEmptyError(f"{source.path}: not one frame can be decoded", rule="a video has frames", remedy="leave the row out")
    for target in range(done, len(targets)):
        sink.keep(target, shown)


class _Walk:
    """One forward pass over the file; see the module's head."""

    def __init__(self, source: Source, targets: list[int], sink: _Sink) -> None:
        self.source, self.targets, self.sink = source, targets, sink
        self.packets: Iterator[Packet[VideoStream]] = iter(())
        self.start: Keyframe | None = None  # where decoding began
        self.first_out: int | None = None  # the decoder must give this frame first, or it could not start there
        self.ahead: deque[Packet[VideoStream]] = deque()  # read, not fed
        self.fed_dts = 0
        self.fed_pts: set[int] = set()
        self.later: list[int] = []  # pts of packets read that are shown after the last target
        self.shown: int | None = None  # pts shown at the current target, as far as read
        self.out: deque[VideoFrame] = deque()  # decoded, not yet passed by
        self.waiting: deque[tuple[int, int]] = deque()  # (target index, pts wanted)

    def run(self) -> None:
        keys = [self.source.keyframes.shown_at(target) for target in self.targets]  # first: this moves the demuxer
        for index, (target, key) in enumerate(zip(self.targets, keys, strict=True)):
            self._go_to(key)
            self._serve(index, target)
        self._drain()

    def _go_to(self, key: Keyframe) -> None:
        """Seek only where that skips packets."""
        if self.start is not None:
            if key.dts <= self.fed_dts or (self.ahead and self.ahead[0].dts == key.dts):
                return
            self._drain()
        self._seek(key)

    def _seek(self, key: Keyframe) -> None:
        self.source.container.seek(key.dts, stream=self.source.stream)
        self.packets = self.source.container.demux(self.source.stream)
        self.start, self.fed_dts, self.shown = key, key.dts - 1, None
        self.fed_pts.clear()
        self.out.clear()
        while True:  # some containers land before the keyframe
            self.ahead.clear()
            self.later.clear()
            if not self._read() or self.ahead[0].dts is None or self.ahead[0].dts > key.dts:
                raise _NotSeekableError
            if self.ahead[0].dts == key.dts and self.ahead[0].is_keyframe:
                break
        self.first_out = None if self.ahead[0].is_discard else key.pts

    def _read(self) -> bool:
        """Read one packet ahead; False at the end of the file."""
        assert self.start is not None
        for packet in self.packets:
            if packet.pts is None or packet.dts is None:
                if packet.size:
                    raise _NotSeekableError
                continue  # the mark that the file has ended
            if packet.is_corrupt:
                self.source.damaged(f"data is missing at {float(packet.pts * self.source.time_base):.3f} s")
            self.ahead.append(packet)
            if not packet.is_discard and packet.pts >= self.start.pts:
                self.later.append(packet.pts)
            if len(self.ahead) > WINDOW:
                self._feed()
            return True
        return False

    def _serve(self, index: int, target: int) -> None:
        """Find the frame shown at `target` and feed the decoder up to its packet."""
        self._look_ahead(target)
        if self.shown is None:
            if self.start != self.source.keyframes.at(0):
                raise _NotSeekableError
            while not self.later and self._read():
                pass
            self._look_ahead(min(self.later, default=target))  # the target lies before the first frame
            if self.shown is None:
                raise _NotSeekableError
        self.waiting.append((index, self.shown))
        while self.shown not in self.fed_pts:
            self._feed()
        self._match()

    def _look_ahead(self, target: int) -> None:
        """Read until no later packet can be shown by `target`; pts >= dts."""
        self._settle(target)
        while not self.ahead or self.ahead[-1].dts is None or self.ahead[-1].dts <= target:
            if not self._read():
                return
            self._settle(target)

    def _settle(self, target: int) -> None:
        due = [pts for pts in self.later if pts <= target]
        if due:
            self.shown = max(due) if self.shown is None else max(self.shown, *due)
            self.later = [pts for pts in self.later if pts > target]

    def _feed(self) -> None:
        packet = self.ahead.popleft()
        assert self.start is not None and packet.pts is not None and packet.dts is not None
        self.fed_dts = packet.dts
        self.fed_pts.add(packet.pts)
        if packet.pts < self.start.pts:
            return  # a leading frame of an open group: it needs what lies before the keyframe, and nothing shown later needs it
        needed = packet.is_keyframe or (bool(self.waiting) and packet.pts == self.waiting[-1][1])
        self.source.stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        self._take(packet.decode())

    def _take(self, frames: list[VideoFrame]) -> None:
        assert self.start is not None
        for frame in _checked(self.source, self.sink, frames, self.start.pts):
            if self.first_out not in (None, pts_of(frame)) or (self.out and pts_of(frame) < pts_of(self.out[-1])):
                raise _NotSeekableError
            self.first_out = None
            self.out.append(frame)
            self._match()

    def _match(self) -> None:
        """Give decoded frames to the targets waiting for them and let go of those that no target can want any more."""
        while self.out:
            wanted = self.waiting[0][1] if self.waiting else self.shown
            if wanted is None or pts_of(self.out[0]) > wanted:
                break
            if self.waiting and pts_of(self.out[0]) == wanted:
                self.sink.keep(self.waiting.popleft()[0], self.out[0])
            elif pts_of(self.out[0]) < wanted:
                self.out.popleft()
            else:
                break

    def _drain(self) -> None:
        """Get the frames that the decoder holds back; it must be sought before it is fed again."""
        self._take(self.source.stream.codec_context.decode(None))
        if self.waiting:
            raise _NotSeekableError  # a packet that gave no frame


def load_frames(
    ref: VideoRef,
    config: VideoConfig,
    patch_multiple: int,
    temporal_patch: int,
    *,
    groups: tuple[int, int] | None = None,
    threads: int = 1,
) -> Frames:
    """Choose, decode and resize the frames of one video. Raises a `VideoError`.

    `groups`: only those of temporal groups start..stop, bit for bit what they are among all; `sampling` is that of the whole video.
    """
    with open_source(ref.path, config.limits, threads) as source:
        plan = plan_frames(info_of(source), config, patch_multiple, temporal_patch)
        start, stop = (0, len(plan.times_s)) if groups is None else (groups[0] * temporal_patch, groups[1] * temporal_patch)
        decoded = decode_from(source, plan.times_s[start:stop], (plan.height, plan.width))
    sampling = Sampling(plan.num_frames, plan.height, plan.width, plan.strategy, RESIZE, plan.reduced, DECODER)
    return Frames(decoded.pixels, decoded.times_s, ref.digest, sampling, decoded.num_decoded)
