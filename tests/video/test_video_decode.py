"""Decoding at chosen times equals decoding everything, costs no more than it must, and says the file's own times."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longtake.bench.decode import frames_needed, make_long_video, measure_decode
from longtake.config.sections import VideoConfig, VideoLimits
from longtake.testing.videos import good_mp4, write_video
from longtake.types import VideoRef
from longtake.video.decode import FILTER, DecodedFrames, decode_at, load_frames
from longtake.video.probe import probe

LIMITS = VideoLimits()
QUICK = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def decode_everything(path: Path, size: tuple[int, int]) -> tuple[list[float], list[np.ndarray]]:
    """The obvious way, with PyAV alone: every frame of the file with its time, resized, not rotated."""
    times_s, frames = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = frame.reformat(width=size[1], height=size[0], format="rgb24", interpolation=FILTER, threads=1)
            times_s.append(float(frame.pts * frame.time_base))
            frames.append(picture.to_ndarray())
    return times_s, frames


def expected_at(all_times_s: list[float], target_s: float) -> int:
    """Number of the frame shown at a time: the last that is not later (by a nanosecond: floats round), else the first."""
    return max((number for number, time_s in enumerate(all_times_s) if time_s <= target_s + 1e-9), default=0)


def check(path: Path, targets_s: list[float], size: tuple[int, int] = (32, 40), threads: int = 1) -> DecodedFrames:
    all_times_s, all_frames = decode_everything(path, size)
    found = decode_at(path, sorted(targets_s), size, LIMITS, threads=threads)
    for number, target_s in enumerate(sorted(targets_s)):
        right = expected_at(all_times_s, target_s)
        assert found.times_s[number] == all_times_s[right], f"target {target_s}"
        assert np.array_equal(found.pixels[number], all_frames[right]), f"target {target_s}: other pixels"
    return found


KINDS = {
    "short_groups": {"gop": 4},
    "long_groups": {"gop": 300},
    "all_keyframes": {"gop": 1},
    "no_b_frames": {"options": {"bf": "0"}},
    "deep_b_frames": {"gop": 40, "options": {"x264-params": "bframes=8:b-pyramid=normal:b-adapt=0"}},
    "open_groups": {"gop": 10, "options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}},
    "intra_refresh": {"gop": 20, "options": {"x264-params": "intra-refresh=1:bframes=0"}},
    "odd_size": {"height": 51, "width": 67, "pixel_format": "yuv444p"},
    "ten_bit": {"pixel_format": "yuv420p10le"},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=10:bframes=3"}},
    "vp8": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "mpeg4": {"codec": "mpeg4", "ticks": 600, "gop": 12, "options": {"bf": "2"}},
}
CONTAINERS = {"vp8": "webm", "vp9": "webm"}
TIMINGS = {
    "constant": [number / 10 for number in range(90)],
    "variable": list(np.cumsum(np.random.default_rng(3).choice([1 / 60, 1 / 30, 0.1, 0.7, 2.0], 90)) + 0.0),
    "late_start": [7.25 + number / 10 for number in range(90)],
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Files are written once, on demand, by `video_of`."""
    return {("", ""): tmp_path_factory.mktemp("videos")}


def video_of(library: dict[tuple[str, str], Path], kind: str, timing: str, container: str | None = None) -> Path:
    suffix = container or CONTAINERS.get(kind, "mp4")
    path = library["", ""] / f"{kind}_{timing}.{suffix}"
    return path if path.exists() else write_video(path, TIMINGS[timing], **KINDS[kind])


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_equals_sequential_decoding(library: dict[tuple[str, str], Path], kind: str, timing: str, data: st.DataObject) -> None:
    path = video_of(library, kind, timing)
    end_s = TIMINGS[timing][-1] + 2
    exact = st.sampled_from(TIMINGS[timing])
    targets_s = data.draw(st.lists(st.one_of(exact, st.floats(-1, end_s)), min_size=1, max_size=12))
    check(path, targets_s)


@pytest.mark.parametrize("container", ["mkv", "avi", "ts", "flv", "mov"])
@pytest.mark.parametrize("targets_s", [[0.05, 3.3, 3.35, 8.0, 20.0], [number / 4 for number in range(36)], [8.9]])
def test_other_containers(library: dict[tuple[str, str], Path], container: str, targets_s: list[float]) -> None:
    kind = "no_b_frames" if container in ("avi", "flv") else "short_groups"
    check(video_of(library, kind, "constant", container), targets_s)


@pytest.mark.parametrize("kind", ["short_groups", "deep_b_frames", "hevc"])
def test_threads_change_nothing(library: dict[tuple[str, str], Path], kind: str) -> None:
    check(video_of(library, kind, "variable"), [1.0, 1.1, 9.0, 30.0], threads=3)


def test_fragmented_file(tmp_path: Path) -> None:
    flags = {"movflags": "frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "f.mp4", TIMINGS["constant"], container="mp4", container_options=flags, gop=10)
    assert not check(path, [0.0, 4.44, 8.0]).sequential


@pytest.mark.parametrize("kind", ["short_groups", "long_groups", "no_b_frames", "deep_b_frames", "hevc"])
@pytest.mark.parametrize("timing", TIMINGS)
@QUICK
@given(data=st.data())
def test_cost_is_bounded(library: dict[tuple[str, str], Path], kind: str, timing: str, data: st.DataObject) -> None:
    """At most min(gap, distance from the keyframe) per target, and never the fall-back."""
    path = video_of(library, kind, timing)
    targets_s = sorted(data.draw(st.lists(st.floats(0, TIMINGS[timing][-1] + 1), min_size=1, max_size=10)))
    found = decode_at(path, targets_s, (28, 28), LIMITS)
    assert not found.sequential
    assert 0 < found.num_decoded <= frames_needed(path, targets_s)


def test_cost_by_hand(tmp_path: Path) -> None:
    """Keyframes at 0, 1, 2, ... s; 10 fps; no B-frames. 2.55 s: frames 20..25; 2.75: 26, 27; 5.05: seek, 50; 5.95: 51..59."""
    path = write_video(tmp_path / "v.mp4", TIMINGS["constant"], gop=10, options={"bf": "0", "sc_threshold": "0"})
    assert decode_at(path, [2.55, 2.75, 5.05, 5.95], (28, 28), LIMITS).num_decoded == 6 + 2 + 1 + 9
    assert frames_needed(path, [2.55, 2.75, 5.05, 5.95]) == 6 + 2 + 1 + 9
    assert decode_at(path, [2.55, 2.75, 5.05, 5.95], (28, 28), LIMITS, seek=False).num_decoded == 61  # 0..59 and the one after


def test_frames_nobody_refers_to_are_left_out(library: dict[tuple[str, str], Path]) -> None:
    path = video_of(library, "deep_b_frames", "constant")
    targets_s = [3.95, 7.95]
    assert decode_at(path, targets_s, (28, 28), LIMITS).num_decoded < frames_needed(path, targets_s)


def test_wrong_frame_would_be_seen(library: dict[tuple[str, str], Path]) -> None:
    """Negative control: neighbouring frames differ, so the comparisons above can fail."""
    _, frames = decode_everything(video_of(library, "short_groups", "constant"), (32, 40))
    assert min(np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)) > 3.0


def test_targets_must_ascend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ascend"):
        decode_at(good_mp4(tmp_path / "v.mp4", 2), [1.0, 0.5], (28, 28), LIMITS)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0.0, False, False), lambda a: a),
        ((-90.0, False, False), lambda a: np.rot90(a, -1)),
        ((90.0, False, False), lambda a: np.rot90(a, 1)),
        ((180.0, False, False), lambda a: np.rot90(a, 2)),
        ((0.0, True, False), lambda a: a[:, ::-1]),
        ((0.0, False, True), lambda a: a[::-1]),
    ],
)
def test_rotation(tmp_path: Path, matrix: tuple[float, bool, bool], turn: object) -> None:
    """Degrees counter-clockwise, as `ffmpeg -display_rotation`; the stored picture is 48x64."""
    plain = write_video(tmp_path / "plain.mp4", [0.0, 0.5], gop=1)
    turned = write_video(tmp_path / "turned.mp4", [0.0, 0.5], gop=1, rotation=matrix)
    _, frames = decode_everything(plain, (48, 64))
    wanted = turn(frames[1])  # type: ignore[operator]
    info = probe(turned, LIMITS)
    assert (info.height, info.width) == wanted.shape[:2]
    assert np.array_equal(decode_at(turned, [0.5], wanted.shape[:2], LIMITS).pixels[0], wanted)


def test_rotation_in_probe(tmp_path: Path) -> None:
    degrees = {-90.0: 90, 90.0: 270, 180.0: 180}
    for number, (given_degrees, clockwise) in enumerate(degrees.items()):
        path = write_video(tmp_path / f"{number}.mp4", [0.0], rotation=(given_degrees, False, False))
        assert probe(path, LIMITS).rotation == clockwise


def test_edit_list_is_respected(tmp_path: Path) -> None:
    """A file cut without re-encoding: frames before the cut are there, but not shown, and the rest starts at 0."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed: the edit list is not tested")
    whole = write_video(tmp_path / "whole.mp4", TIMINGS["constant"], gop=30)
    path = tmp_path / "cut.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "4.45", "-i", whole, "-c", "copy", path], check=True)
    all_times_s, _ = decode_everything(path, (28, 28))
    info = probe(path, LIMITS)
    assert info.start_s == pytest.approx(all_times_s[0], abs=1e-3)
    assert len(all_times_s) < 60  # of 90: the first 3 s are left out, the rest of the group is hidden by the edit list
    check(path, [0.0, 0.02, 0.3, 2.0, 4.0])


def program_frames(path: Path, pixel_format: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every frame as the program ffmpeg gives it."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed: no comparison with it")
    command = ["ffmpeg", "-v", "error", "-i", path, "-vsync", "0", "-f", "rawvideo", "-pix_fmt", pixel_format, "-"]
    raw = subprocess.run(command, check=True, capture_output=True)
    return np.frombuffer(raw.stdout, np.uint8).reshape(-1, *shape)


@pytest.mark.parametrize("kind", ["deep_b_frames", "open_groups"])
def test_planes_equal_the_program_ffmpeg(library: dict[tuple[str, str], Path], kind: str) -> None:
    """What every test here compares with (all frames by PyAV) is what another build of FFmpeg decodes, bit for bit."""
    path = video_of(library, kind, "variable")
    theirs = program_frames(path, "yuv420p", (72, 64))
    with av.open(str(path)) as container:
        ours = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
    assert np.array_equal(ours, theirs)
    assert len(ours) == 90


@pytest.mark.parametrize(
    "matrix", [(-90.0, False, False), (90.0, False, False), (180.0, False, False), (0.0, True, False), (-90.0, False, True)]
)
def test_rotation_is_that_of_the_program_ffmpeg(tmp_path: Path, matrix: tuple[float, bool, bool]) -> None:
    path = write_video(tmp_path / "v.mp4", TIMINGS["constant"][:10], rotation=matrix)
    info = probe(path, LIMITS)
    theirs = program_frames(path, "rgb24", (info.height, info.width, 3)).astype(int)
    ours = decode_at(path, [0.5], (info.height, info.width), LIMITS).pixels[0]
    assert np.abs(ours - theirs[5]).mean() < 8  # measured 5: it turns first, then interpolates colour
    assert np.abs(ours - theirs[5, ::-1]).mean() > 16
    assert np.abs(ours - theirs[5, :, ::-1]).mean() > 16


def test_load_frames(tmp_path: Path) -> None:
    """30 s at 2 fps, 8 frames: midpoints 1.875, 5.625, ...; frames are 0.5 s apart, so 1.5, 5.5, 9.0, 13.0, ... are shown."""
    path = good_mp4(tmp_path / "v.mp4", 30)
    frames = load_frames(VideoRef(path, "digest"), VideoConfig(max_frames=8), 28, 2)
    assert frames.times_s.tolist() == [1.5, 5.5, 9.0, 13.0, 16.5, 20.5, 24.0, 28.0]
    assert frames.pixels.shape == (8, 56, 56, 3)  # 48x64 rounds to 2x2 patches
    assert (frames.source_digest, frames.sampling.strategy, frames.sampling.num_frames) == ("digest", "uniform", 8)


def test_one_frame(tmp_path: Path) -> None:
    """A video of one frame fills one temporal patch with it."""
    path = write_video(tmp_path / "v.mp4", [0.0])
    frames = load_frames(VideoRef(path, ""), VideoConfig(), 28, 2)
    assert frames.times_s.tolist() == [0.0, 0.0]
    assert np.array_equal(frames.pixels[0], frames.pixels[1])
    assert frames.pixels.max() > 200


def test_benchmark_on_a_short_file(tmp_path: Path) -> None:
    result = measure_decode(tmp_path, video_seconds=6, fps=10, height=96, width=128, num_frames=8)
    assert result.identical
    assert result.frames_decoded <= result.bound < result.sequential_frames
    assert result.ratio == pytest.approx(result.sequential_seconds / result.seconds)


def test_repeated_packets_stay_valid(tmp_path: Path) -> None:
    """Two minutes of one encoded minute, with B-frames: no frame lost or shown twice at the seam."""
    path = tmp_path / "long.mp4"
    make_long_video(path, 120, 5, 48, 64, 10)
    times_s, frames = decode_everything(path, (48, 64))
    assert times_s == pytest.approx([number / 5 for number in range(600)], abs=1e-4)
    assert np.array_equal(frames[17], frames[317])
