"""Writing videos, subtitles, the index of digests, what is probed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from longtake.config.sections import VideoLimits
from longtake.errors import ConfigError, PathError, RowError
from longtake.testing.videos import good_mp4, picture, write_audio, write_video
from longtake.video.encode import VideoWriter
from longtake.video.index import DigestIndex
from longtake.video.probe import probe
from longtake.video.subtitles import Cue, read_srt, write_srt


def test_writer_keeps_times_keyframes_and_pictures(tmp_path: Path) -> None:
    times_s = [0.0, 0.5, 0.533, 2.0, 2.25, 7.125, 7.2, 8.0, 9.5]
    with VideoWriter(tmp_path / "v.mp4", 64, 48, gop=4, fps=2.0) as writer:
        for number, time_s in enumerate(times_s):
            writer.write(np.full((48, 64, 3), 20 * number, np.uint8), time_s)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frames = list(container.decode(video=0))
        assert [frame.time for frame in frames] == times_s  # all are multiples of 1/90000 s
        assert [number for number, frame in enumerate(frames) if frame.key_frame] == [0, 4, 8]
        for number, frame in enumerate(frames):
            assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - 20 * number).max() <= 4  # measured 2
    info = probe(tmp_path / "v.mp4", VideoLimits())
    assert info.duration_s == pytest.approx(9.5 + 0.5)  # the last frame is shown for 1 / fps
    assert (info.num_frames, info.width, info.height, info.codec, info.has_audio) == (9, 64, 48, "h264", False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


def test_writer_is_deterministic(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.mp4", "b.mp4"):
        with VideoWriter(tmp_path / name, 64, 48, gop=10, fps=10) as writer:
            for number in range(60):
                writer.write(picture(number, 48, 64), number / 10)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_writer_starts_late(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", 64, 48, gop=10) as writer:
        for number in range(5):
            writer.write(picture(number, 48, 64), 3.25 + number / 2)
    info = probe(tmp_path / "v.mp4", VideoLimits())
    assert (info.start_s, info.duration_s) == (3.25, pytest.approx(2.5))


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (0, 48)])
def test_writer_refuses_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(ConfigError, match="even"):
        VideoWriter(tmp_path / "v.mp4", width, height, gop=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times_s", [[0.5, 0.5], [1.0, 0.5], [-0.5]])
def test_writer_refuses_times_and_leaves_nothing(tmp_path: Path, times_s: list[float]) -> None:
    (tmp_path / "v.mp4").write_bytes(b"what was there before")
    with pytest.raises(ConfigError, match="increase"), VideoWriter(tmp_path / "v.mp4", 64, 48, gop=10) as writer:
        for time_s in times_s:
            writer.write(picture(0, 48, 64), time_s)
    assert (tmp_path / "v.mp4").read_bytes() == b"what was there before"
    assert len(list(tmp_path.iterdir())) == 1


def test_writer_refuses_nothing_and_wrong_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no frame"), VideoWriter(tmp_path / "v.mp4", 64, 48, gop=10):
        pass
    with pytest.raises(ValueError, match="uint8"), VideoWriter(tmp_path / "v.mp4", 64, 48, gop=10) as writer:
        writer.write(np.zeros((64, 48, 3), np.uint8), 0.0)
    assert list(tmp_path.iterdir()) == []


def test_probe_sees_audio(tmp_path: Path) -> None:
    video, sound = good_mp4(tmp_path / "v.mp4", 2), write_audio(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "both.mp4"), "w") as out, av.open(str(video)) as a, av.open(str(sound)) as b:
        streams = [out.add_stream_from_template(given.streams[0]) for given in (a, b)]
        for stream, given in zip(streams, (a, b), strict=True):
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    assert probe(tmp_path / "both.mp4", VideoLimits()).has_audio
    assert not probe(video, VideoLimits()).has_audio


def test_probe_of_variable_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [0.0, 1.0, 1.5, 4.0], options={"bf": "0"})
    info = probe(path, VideoLimits())
    assert (info.num_frames, info.size_bytes) == (4, path.stat().st_size)
    assert info.duration_s == pytest.approx(6.5)  # the last as long as the one before it
    assert info.average_fps == pytest.approx(4 / 6.5)


def test_probe_of_variable_rate_with_b_frames(tmp_path: Path) -> None:
    """MP4 states 5.0 s here (durations in decode order); the last frame is only shown from 9.5 s on."""
    path = write_video(tmp_path / "v.mp4", [0.0, 0.5, 0.533, 2.0, 2.25, 7.125, 7.2, 8.0, 9.5])
    assert 9.5 < probe(path, VideoLimits()).duration_s <= 11.0


def test_srt_reads_what_is_out_there(tmp_path: Path) -> None:
    text = (
        "\ufeff1\r\n00:00:01,500 --> 00:00:02,000\r\nHello\r\nthere\r\n\r\n\r\n"
        "2\r\n01:02:03.4 --> 01:02:04,05 X1:10 Y1:20\r\n<i>7</i>\r\n\r\n"
        "59:59,999 --> 1:00:00,000\r\n\r\n"
        "5\r\n00:00:09,000 --> 00:00:09,500\r\n12"
    )
    (tmp_path / "s.srt").write_bytes(text.encode())
    assert read_srt(tmp_path / "s.srt") == [
        Cue(1.5, 2.0, "Hello\nthere"),
        Cue(9.0, 9.5, "12"),
        Cue(3599.999, 3600.0, ""),
        Cue(3723.4, 3724.05, "<i>7</i>"),
    ]


def test_srt_of_one_start_keep_their_order(tmp_path: Path) -> None:
    cues = [Cue(2.0, 3.0, "c"), Cue(1.0, 9.0, "a"), Cue(1.0, 2.0, "b"), Cue(0.0, 1.0, "d")]
    write_srt(tmp_path / "s.srt", cues)
    assert [cue.text for cue in read_srt(tmp_path / "s.srt")] == ["d", "a", "b", "c"]


def test_srt_round_trip(tmp_path: Path) -> None:
    cues = [Cue(0.0, 0.0, "a"), Cue(0.001, 59.9994, "b\nc"), Cue(359_999.999, 360_000.0, "ü --> 3")]
    write_srt(tmp_path / "s.srt", cues)
    again = read_srt(tmp_path / "s.srt")
    assert again == [cues[0], Cue(0.001, 59.999, "b\nc"), cues[2]]
    assert (tmp_path / "s.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:00,000\na\n\n2\n")
    write_srt(tmp_path / "empty.srt", [])
    assert read_srt(tmp_path / "empty.srt") == []


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"1\n00:00:01,000 -> 00:00:02,000\nx\n", 1),
        (b"1\n00:00:01,000 --> later\nx\n", 2),
        (b"1\n00:00:01,000 --> 00:00:02,000\nx\n\n2\n00:00:09,000 --> 00:00:08,000\ny\n", 6),
        (b"1\n00:00:01,000 --> 00:00:02,000\nx\n\nlost text\n", 5),
        (b"1\n00:00:01,000 --> 00:00:02,000\n\xff\xfe\n", 3),
        (b"1\n00:00:01,000 --> 00:00:02,000\nx\0y\n", 3),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\nx\n", 1),
    ],
)
def test_srt_malformed(tmp_path: Path, data: bytes, line: int) -> None:
    (tmp_path / "s.srt").write_bytes(data)
    with pytest.raises(RowError, match=rf"s\.srt line {line}: "):
        read_srt(tmp_path / "s.srt")


def test_srt_refuses(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.srt")
    with pytest.raises(PathError):
        read_srt(tmp_path / "pipe.srt")
    for cue in (Cue(2.0, 1.0, "x"), Cue(-1.0, 1.0, "x"), Cue(0.0, 1.0, "x\n\ny"), Cue(0.0, float("nan"), "x")):
        with pytest.raises(RowError, match="cue 1"):
            write_srt(tmp_path / "s.srt", [cue])
    assert not (tmp_path / "s.srt").exists()


def test_index_reads_a_file_once(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"abc")
    wanted = hashlib.sha256(b"abc").hexdigest()
    index = DigestIndex(tmp_path / "cache" / "index.json")
    assert [index.ref(video).digest, index.ref(video).digest] == [wanted, wanted]
    assert index.num_hashed == 1
    index.save()
    again = DigestIndex(tmp_path / "cache" / "index.json")
    assert (again.ref(video).digest, again.num_hashed) == (wanted, 0)
    video.write_bytes(b"abd")  # same size
    os.utime(video, ns=(1, 1))
    assert again.ref(video).digest == hashlib.sha256(b"abd").hexdigest()
    assert again.num_hashed == 1
    assert sorted(entry.name for entry in (tmp_path / "cache").iterdir()) == [".index.json.lock", "index.json"]


def test_index_believes_no_damage(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"abc")
    status = video.stat()
    for text in ("{", "[]", "\0", json.dumps({str(video): [status.st_size, status.st_mtime_ns, 7]})):
        (tmp_path / "index.json").write_text(text)
        assert DigestIndex(tmp_path / "index.json").ref(video).digest == hashlib.sha256(b"abc").hexdigest()


def test_index_is_shared(tmp_path: Path) -> None:
    """Two indexes on one file and eight threads: nothing is lost."""
    videos = [tmp_path / f"{number}.mp4" for number in range(40)]
    for video in videos:
        video.write_bytes(video.name.encode())
    indexes = [DigestIndex(tmp_path / "index.json") for _ in range(2)]

    def work(number: int) -> None:
        for video in videos[number::8]:
            indexes[number % 2].ref(video)
        indexes[number % 2].save()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in indexes:
        index.save()
    last = DigestIndex(tmp_path / "index.json")
    assert [last.ref(video).digest for video in videos] == [hashlib.sha256(video.name.encode()).hexdigest() for video in videos]
    assert last.num_hashed == 0
