"""How much decoding only what is needed saves: uniform frames of a long file against decoding everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from longtake.config.sections import VideoConfig, VideoLimits
from longtake.video.decode import decode_at
from longtake.video.encode import VideoWriter
from longtake.video.probe import probe
from longtake.video.sample import plan_frames, uniform_times


@dataclass(frozen=True)
class DecodeBench:
    """One measurement; the first four are what `bench decode --json` prints."""

    seconds: float
    """Wall time of our decoding, opening and scanning the file included."""
    frames_decoded: int
    bound: int
    """Frames that any decoder needs: the sum over targets of min(gap since the last, distance from the keyframe), in decode order."""
    ratio: float
    """sequential_seconds / seconds."""
    sequential_seconds: float
    sequential_frames: int
    cpu_ratio: float
    """The same ratio in processor seconds, which a busy machine disturbs less."""
    identical: bool
    """Our frames equal those of sequential decoding, bit for bit, and so do their times."""
    video_seconds: float
    fps: float
    keyframe_every_s: float
    num_frames: int
    threads: int
    others: dict[str, float | None]
    """Seconds of other libraries for the same times; None where one cannot be imported or fails."""
    reasons: dict[str, str]
    """Why another library has no figure."""


def measure_decode(
    folder: Path,
    *,
    video_seconds: int = 3600,
    fps: int = 30,
    height: int = 360,
    width: int = 640,
    keyframe_every_s: float = 2.0,
    num_frames: int = 512,
    threads: int = 1,
) -> DecodeBench:
    """Build the file in `folder` (kept there; used again when it exists) and measure. Raises a `VideoError` if the file is unusable."""
    path = folder / f"decode_{video_seconds}s_{fps}fps_{height}p_key{keyframe_every_s:g}s.mp4"
    if not path.exists():
        make_long_video(path, video_seconds, fps, height, width, round(keyframe_every_s * fps))
    limits = VideoLimits()
    info = probe(path, limits)
    plan = plan_frames(info, VideoConfig(max_frames=num_frames), 28, 2)
    times_s, size = uniform_times(info.start_s, info.duration_s, num_frames), (plan.height, plan.width)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    ours = decode_at(path, times_s, size, limits, threads=threads)
    middle, cpu_middle = time.perf_counter(), time.process_time()
    everything = decode_at(path, times_s, size, limits, threads=threads, seek=False)
    end, cpu_end = time.perf_counter(), time.process_time()
    others, reasons = _measure_others(path, times_s, threads)
    return DecodeBench(
        seconds=middle - begin,
        frames_decoded=ours.num_decoded,
        bound=frames_needed(path, times_s),
        ratio=(end - middle) / (middle - begin),
        sequential_seconds=end - middle,
        sequential_frames=everything.num_decoded,
        cpu_ratio=(cpu_end - cpu_middle) / (cpu_middle - cpu_begin),
        identical=bool(np.array_equal(ours.pixels, everything.pixels) and np.array_equal(ours.times_s, everything.times_s)),
        video_seconds=info.duration_s,
        fps=info.average_fps,
        keyframe_every_s=keyframe_every_s,
        num_frames=num_frames,
        threads=threads,
        others=others,
        reasons=reasons,
    )


def make_long_video(path: Path, seconds: int, fps: int, height: int, width: int, gop: int) -> None:
    """At most a minute of moving content is encoded; then its packets are repeated with shifted times, without encoding again."""
    minute = min(seconds, 60)
    partial = path.with_name(f".{path.stem}.minute.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(partial, width, height, gop=gop, fps=fps, crf=28, preset="superfast") as writer:
        for number in range(minute * fps):
            writer.write(moving_picture(number, height, width), number / fps)
    repeat_packets(partial, path, max(1, seconds // minute), minute)
    partial.unlink()


def moving_picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [Y, X, 3]: a drifting texture with a moving square."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    texture = ((rows + number) // 8 * 37 + (columns - 2 * number) // 8 * 59) % 96
    picture = np.repeat((80 + texture)[..., None], 3, axis=2).astype(np.uint8)
    top, left = (number * 3) % (height - 40), (number * 5) % (width - 40)
    picture[top : top + 40, left : left + 40] = (250, 40, number % 256)
    return picture


def repeat_packets(source: Path, out: Path, times: int, seconds: int) -> None:
    """The packets of `source` (which lasts `seconds`), `times` times in a row. Valid with B-frames too: dts lags by the same delay
    in every copy, so it keeps increasing across the seams, and every copy starts with an IDR frame."""
    partial = out.with_name(f".{out.name}.partial")
    with av.open(str(source)) as given, av.open(str(partial), "w", format="mp4") as made:
        stream = given.streams.video[0]
        assert stream.time_base is not None
        target = made.add_stream_from_template(stream)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe, p.duration) for p in given.demux(stream) if p.pts is not None]
        shift = round(seconds / stream.time_base)
        for turn in range(times):
            for data, pts, dts, is_keyframe, duration in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe, packet.duration = target, stream.time_base, is_keyframe, duration
                packet.pts, packet.dts = (pts or 0) + turn * shift, (dts or 0) + turn * shift
                made.mux(packet)
    partial.replace(out)


def frames_needed(path: Path, times_s: Sequence[float] | np.ndarray) -> int:
    """Sum over targets of min(gap, distance from the keyframe), counted in packets in decode order, from a scan of all packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        table = [(float(p.pts * stream.time_base), p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
    shown_s = np.array([shown for shown, _ in table])
    keys = np.array([number for number, (_, is_keyframe) in enumerate(table) if is_keyframe])
    needed, fed = 0, -1
    for time_s in times_s:
        upto = np.flatnonzero(shown_s <= time_s + 1e-9)
        packet = int(upto[np.argmax(shown_s[upto])]) if upto.size else int(np.argmin(shown_s))
        before = keys[shown_s[keys] <= max(time_s + 1e-9, shown_s.min())]
        needed += max(0, min(packet - fed, packet - int(before.max()) + 1))
        fed = max(fed, packet)
    return needed


def _measure_others(path: Path, times_s: np.ndarray, threads: int) -> tuple[dict[str, float | None], dict[str, str]]:
    seconds: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    candidates: dict[str, Callable[[Path, np.ndarray, int], None]] = {"torchcodec": _with_torchcodec, "decord": _with_decord}
    for name, function in candidates.items():
        begin = time.perf_counter()
        try:
            function(path, times_s, threads)
            seconds[name] = time.perf_counter() - begin
        except (ImportError, OSError, RuntimeError) as error:
            seconds[name], reasons[name] = None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return seconds, reasons


def _with_torchcodec(path: Path, times_s: np.ndarray, threads: int) -> None:
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found, unused-ignore]  # optional

    VideoDecoder(str(path), num_ffmpeg_threads=threads).get_frames_played_at(seconds=times_s.tolist())


def _with_decord(path: Path, times_s: np.ndarray, threads: int) -> None:
    from decord import VideoReader  # type: ignore[import-not-found, unused-ignore]  # optional

    reader = VideoReader(str(path), num_threads=threads)
    reader.get_batch([round(time_s * reader.get_avg_fps()) for time_s in times_s.tolist()])
