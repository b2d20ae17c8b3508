"""Frames for a model to look at: the right ones, once each, at their exact times, in the size asked for."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.config.sections import VideoLimits
from longtake.curation import frames
from longtake.curation.frames import clip_frames, jpeg, merged, midpoints, range_frames, reduced_size
from longtake.curation.records import Clip, TimeRange
from longtake.errors import VideoError
from longtake.testing.videos import HOSTILE, HOSTILE_LIMITS, picture, write_video
from longtake.video import decode
from longtake.video.decode import decode_at
from longtake.video.probe import probe

LIMITS = VideoLimits()


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s at 2 frames a second, whose clock starts at 100 s."""
    path = tmp_path_factory.mktemp("late") / "late.mkv"
    return write_video(path, [100 + number / 2 for number in range(40)])


def pixels(picture_bytes: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture_bytes)))


def test_midpoints():
    assert midpoints([(0.0, 8.0)], 4) == [1.0, 3.0, 5.0, 7.0]
    assert midpoints([(0.0, 1.0), (10.0, 13.0)], 2) == [10.0, 12.0]
    assert midpoints([], 3) == []


def test_ranges_are_put_together():
    ranges = [TimeRange(30.0, 40.0), TimeRange(5.0, 10.0), TimeRange(8.0, 12.0), TimeRange(90.0, 95.0), TimeRange(-9.0, -2.0)]
    assert merged(ranges, 35.0) == [(5.0, 12.0), (30.0, 35.0)]


def test_a_moment_is_looked_at_for_a_second():
    assert merged([TimeRange(5.0, 5.0)], 20.0) == [(4.5, 5.5)]
    assert merged([TimeRange(19.8, 19.9)], 20.0) == [(pytest.approx(19.35), 20.0)]
    assert merged([TimeRange(7.0, 3.0)], 20.0) == [(6.5, 7.5)]
    assert merged([TimeRange(0.1, 0.2)], 0.4) == [(0.0, 0.4)]


def test_size_keeps_the_aspect_and_never_grows(late: Path):
    info = probe(late, LIMITS)
    assert reduced_size(replace(info, width=1920, height=1080), 448 * 448) == (336, 596)
    assert reduced_size(replace(info, width=64, height=48), 448 * 448) == (48, 64)
    assert reduced_size(replace(info, width=65, height=49), 448 * 448) == (48, 64)
    assert reduced_size(replace(info, width=8192, height=2), 4096) == (2, 4096)


def test_frames_of_clips_are_those_that_the_file_shows(late: Path):
    first, second = clip_frames(late, LIMITS, [Clip(0.0, 4.0), Clip(10.0, 16.0)], 2, 48 * 64)
    assert first.times_s == (1.0, 3.0) and second.times_s == (11.5, 14.5)
    shown = decode_at(late, [101.0, 103.0, 111.5, 114.5], (48, 64), LIMITS).pixels
    assert first.jpegs == (jpeg(shown[0]), jpeg(shown[1]))
    for number, frame in zip((2, 6, 23, 29), (*first.jpegs, *second.jpegs), strict=True):
        assert np.abs(pixels(frame).astype(float) - picture(number, 48, 64)).mean() < 12  # of 255; another frame: over 25
        assert np.abs(pixels(frame).astype(float) - picture(number + 9, 48, 64)).mean() > 20


def test_a_frame_is_shown_once(late: Path):
    """Six midpoints of a second, in which the file has two frames."""
    (only,) = clip_frames(late, LIMITS, [Clip(3.0, 4.0)], 6, 48 * 64)
    assert only.times_s == (3.0, 3.5) and len(only.jpegs) == 2
    ranged = range_frames(late, LIMITS, [TimeRange(3.0, 4.0)], 6, 48 * 64)
    assert (ranged.times_s, ranged.jpegs) == (only.times_s, only.jpegs)


def test_frames_of_several_ranges(late: Path):
    seen = range_frames(late, LIMITS, [TimeRange(16.0, 18.0), TimeRange(2.0, 4.0), TimeRange(3.0, 4.0)], 4, 24 * 32)
    assert seen.times_s == (2.5, 3.5, 16.5, 17.5)
    assert pixels(seen.jpegs[0]).shape == (24, 32, 3)
    assert range_frames(late, LIMITS, [TimeRange(50.0, 60.0)], 4, 24 * 32).times_s == ()
    assert range_frames(late, LIMITS, [], 4, 24 * 32).jpegs == ()


def test_bytes_are_the_same_again(late: Path):
    again = [range_frames(late, LIMITS, [TimeRange(0.0, 20.0)], 5, 48 * 64).jpegs for _ in range(2)]
    assert again[0] == again[1] and len(set(again[0])) == 5


def test_a_file_that_must_be_decoded_from_the_start_gives_the_same(late: Path, monkeypatch: pytest.MonkeyPatch):
    clips = [Clip(0.0, 4.0), Clip(4.0, 8.0), Clip(8.0, 20.0)]
    easy = clip_frames(late, LIMITS, clips, 3, 48 * 64)
    walk = decode._Walk._serve

    def gives_up(self, index: int, target: int) -> None:
        if index == 5:
            raise decode._NotSeekableError
        walk(self, index, target)

    monkeypatch.setattr(decode._Walk, "_serve", gives_up)
    hard = clip_frames(late, LIMITS, clips, 3, 48 * 64)
    assert [(one.times_s, one.jpegs) for one in hard] == [(one.times_s, one.jpegs) for one in easy]


def test_nobody_waits_for_frames_that_nobody_wants(late: Path, monkeypatch: pytest.MonkeyPatch):
    packed = []
    monkeypatch.setattr(frames, "jpeg", lambda rgb: packed.append(1) or b"")
    asked = iter([False, False, True])
    clip_frames(late, LIMITS, [Clip(0.0, 10.0), Clip(10.0, 20.0)], 4, 48 * 64, stopped=lambda: next(asked))
    assert len(packed) == 2


@pytest.mark.parametrize("name", ["cut_half", "data_noise", "fifo", "playlist_as_mp4", "time_backwards"])
def test_hostile_files_are_errors(name: str, tmp_path: Path):
    path = HOSTILE[name].make(tmp_path)
    with pytest.raises(VideoError):
        clip_frames(path, HOSTILE_LIMITS, [Clip(float(second), second + 1.0) for second in range(60)], 2, 48 * 64)
