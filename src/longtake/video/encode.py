"""Write H.264 MP4 files, frame by frame, at any times.

One x264 thread and a fixed option set, so that the same frames and times give the same bytes. The file appears under its name
only when it is complete (written beside it and renamed).
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import av

from longtake.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from av.video.stream import VideoStream

TICKS_PER_SECOND = 90_000
"""Time base of the files: exact for 24, 25, 30, 50 and 60 fps and for milliseconds to within 6 microseconds."""


class VideoWriter:
    """An H.264 yuv420p MP4 that is written frame by frame; a context manager.

    A keyframe (IDR, closed GOP) every `gop` frames exactly. Frame times may be irregular; they must increase. The last frame is
    shown for 1 / fps seconds. Without B-frames (the default) the durations in the file are exact too; MP4 counts them in decode
    order, which B-frames at irregular times put askew. Odd sizes are refused (`ConfigError`): 4:2:0 chroma cannot hold them, and the
    4:4:4 profile that can is not played by browsers and phones.
    """

    def __init__(
        self, path: Path, width: int, height: int, *, gop: int, fps: float = 2.0, crf: int = 18, preset: str = "veryfast", bframes: int = 0
    ) -> None:
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise ConfigError(
                f"video size {width}x{height} for {path}",
                rule="H.264 with 4:2:0 chroma needs even sides of at least 2 pixels",
                remedy="choose an even width and height",
            )
        self.path, self.width, self.height = Path(path), width, height
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._last_ticks: int | None = None
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._add_stream(fps, gop, crf, preset, bframes)

    def _add_stream(self, fps: float, gop: int, crf: int, preset: str, bframes: int) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS_PER_SECOND)
        context.thread_count = 1  # x264's output depends on the number of threads
        # mbtree=0: x264's macroblock tree gives other bytes in about one run of 50 for the same small frames (its SIMD code)
        keyframes = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:mbtree=0:bframes={bframes}"
        stream.options = {"crf": str(crf), "preset": preset, "x264-params": keyframes}
        return stream

    def write(self, rgb: np.ndarray, time_s: float) -> None:
        """Add one frame, uint8 [Y, X, 3], shown from `time_s` on. Raises `ConfigError` when times do not increase."""
        if rgb.shape != (self.height, self.width, 3) or str(rgb.dtype) != "uint8":
            raise ValueError(f"rgb must be uint8 [{self.height}, {self.width}, 3]; got {rgb.dtype} {rgb.shape}")
        ticks = round(time_s * TICKS_PER_SECOND)
        if ticks < 0 or (self._last_ticks is not None and ticks <= self._last_ticks):
            raise ConfigError(
                f"frame at {time_s} s for {self.path}",
                rule=f"frame times are at least 0 and increase by at least 1/{TICKS_PER_SECOND} s",
                remedy="write frames in the order in which they are shown",
            )
        self._last_ticks = ticks
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p", threads=1)
        frame.pts, frame.time_base = ticks, Fraction(1, TICKS_PER_SECOND)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Flush and put the file in its place. Raises `ConfigError` when no frame was written."""
        if self._last_ticks is None:
            self.discard()
            raise ConfigError(f"no frame written to {self.path}", rule="a video has at least one frame", remedy="write a frame")
        self._container.mux(self._stream.encode(None))
        self._container.close()
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Throw away what was written."""
        self._container.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
