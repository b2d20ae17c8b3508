"""Makers of good, damaged and hostile video files."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from longtake.config.sections import VideoLimits
from longtake.errors import (
    VideoDamagedError,
    VideoEmptyError,
    VideoError,
    VideoLimitError,
    VideoMissingError,
    VideoNoStreamError,
)

HOSTILE_LIMITS = VideoLimits(max_bytes=2 << 20, max_seconds=600.0, max_frame_pixels=320 * 240, max_decoded_frames=3000)
"""The limits under which `HOSTILE` files give their errors."""
TICKS = 90_000


def picture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [Y, X, 3]: texture that moves, and a bright square whose place tells the number; no two within 10,000 are alike."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    texture = ((rows * 3 + number * 5) % 97 + (columns * 7 - number * 3) % 89).astype(np.uint8)
    rgb = np.stack([texture, (texture + number % 120) % 200, 255 - texture], axis=2).astype(np.uint8)
    top, left = number * 3 % max(height - 8, 1), number * 7 % max(width - 8, 1)
    rgb[top : top + 8, left : left + 8] = (255, number % 256, 0)
    return rgb


def write_video(
    path: Path,
    times_s: Sequence[float],
    *,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    gop: int = 12,
    container: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    ticks: int = TICKS,
) -> Path:
    """Any codec FFmpeg can write, at any times. `rotation`: (degrees, mirror x, mirror y) of the display matrix.
    `ticks`: per second, of the encoder's clock."""
    with av.open(str(path), "w", format=container, container_options=container_options or {}) as out:
        last_gap = Fraction(times_s[-1] - times_s[-2] if len(times_s) > 1 else 1 / 30).limit_denominator(1000)
        stream = out.add_stream(codec, rate=1 / last_gap)  # tells how long the last frame is shown
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, ticks)
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = dict(options or {})
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = round(time_s * ticks), Fraction(1, ticks)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def good_mp4(path: Path, seconds: float = 60.0, fps: float = 2.0, *, faststart: bool = False, height: int = 48, width: int = 64) -> Path:
    """H.264 with B-frames; with `faststart` the index comes before the data."""
    times_s = [number / fps for number in range(round(seconds * fps))]
    flags = {"movflags": "faststart"} if faststart else {}
    return write_video(path, times_s, height=height, width=width, container="mp4", container_options=flags)


def write_audio(path: Path, codec: str = "aac", seconds: float = 1.0, container: str | None = None) -> Path:
    """A tone."""
    rate = 44_100
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        tone = (np.sin(np.arange(round(rate * seconds)) * 0.05) * 8000).astype(np.int16)[None, :]
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate = rate
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def box_at(data: bytes, *kinds: bytes) -> tuple[int, int]:
    """(start, end) of the first ISO box on this path of types, its header included. `stsd` is entered too."""
    start, end = 0, len(data)
    for kind in kinds:
        at = start
        while True:
            if at + 8 > end:
                raise ValueError(f"no box {kind!r}")
            size, found = struct.unpack(">I4s", data[at : at + 8])
            if found == kind:
                break
            at += size
        inside = 16 if kind == b"stsd" else 8
        start, end = at + inside, at + size
    return start - (16 if kinds[-1] == b"stsd" else 8), end


STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def patched(path: Path, at: int, new: bytes) -> Path:
    """The file with bytes replaced at an offset."""
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def cut(path: Path, keep: float | int) -> Path:
    """The file cut to a share of its bytes (float) or by a number of bytes at its end (negative int)."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    return path


def _mp4(folder: Path, name: str = "video.mp4", *, faststart: bool = True) -> Path:
    return good_mp4(folder / name, faststart=faststart)


def _bytes(data: bytes, name: str = "video.mp4") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _other_container(name: str, keep: float | int, codec: str = "libx264", ticks: int = TICKS) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return cut(write_video(folder / name, [number / 2 for number in range(120)], codec=codec, ticks=ticks), keep)

    return make


def _moov_missing(folder: Path) -> Path:
    path = _mp4(folder)
    return patched(path, box_at(path.read_bytes(), b"moov")[0] + 4, b"gone")


def _data_zeroed(folder: Path) -> Path:
    path = _mp4(folder)
    start, end = box_at(path.read_bytes(), b"mdat")
    return patched(path, start + 8, bytes(end - start - 8))


def _data_noise(folder: Path) -> Path:
    """Every 50th byte of the frames is wrong."""
    path = _mp4(folder)
    data = bytearray(path.read_bytes())
    start, end = box_at(bytes(data), b"mdat")
    for at in range(start + 2000, end, 50):
        data[at] ^= 0xFF
    path.write_bytes(data)
    return path


def _codec_header_noise(folder: Path) -> Path:
    path = _mp4(folder)
    start, end = box_at(path.read_bytes(), *STBL, b"stsd")
    at = path.read_bytes().index(b"avcC", start, end)
    return patched(path, at + 10, b"\xff" * 24)


def _unknown_codec(folder: Path) -> Path:
    path = _mp4(folder)
    at = path.read_bytes().index(b"avc1", box_at(path.read_bytes(), *STBL, b"stsd")[0])
    return patched(path, at, b"zz99")


def _sample_sizes_huge(folder: Path) -> Path:
    """One frame claims 2 GB."""
    path = _mp4(folder)
    return patched(path, box_at(path.read_bytes(), *STBL, b"stsz")[0] + 24, struct.pack(">I", 0x7FFFFFFF))


def _sample_count_huge(folder: Path) -> Path:
    """The index claims 100 million frames of one byte."""
    path = _mp4(folder)
    return patched(path, box_at(path.read_bytes(), *STBL, b"stsz")[0] + 12, struct.pack(">II", 1, 100_000_000))


def _chunk_offsets_outside(folder: Path) -> Path:
    path = _mp4(folder)
    return patched(path, box_at(path.read_bytes(), *STBL, b"stco")[0] + 16, struct.pack(">I", 0xFFFFFF00))


def plain_mp4(folder: Path) -> Path:
    """Without B-frames and edit list, so that a patched time is not cut off again."""
    times_s = [number / 2 for number in range(120)]
    flags = {"movflags": "faststart", "use_editlist": "0"}
    return write_video(folder / "video.mp4", times_s, container="mp4", container_options=flags, options={"bf": "0"})


def duration_absurd(folder: Path) -> Path:
    """The header says 13 hours; the samples say a minute. FFmpeg believes the samples: harmless."""
    path = _mp4(folder)
    return patched(path, box_at(path.read_bytes(), b"moov", b"trak", b"mdia", b"mdhd")[0] + 24, struct.pack(">I", 0xFFFFFFFE))


def _deltas_absurd(folder: Path) -> Path:
    """Each frame is shown for three hours."""
    path = plain_mp4(folder)
    return patched(path, box_at(path.read_bytes(), *STBL, b"stts")[0] + 20, struct.pack(">I", 10_000 * TICKS))


def _time_scale_one(folder: Path) -> Path:
    """One tick is a second: the minute lasts 62 days."""
    path = plain_mp4(folder)
    return patched(path, box_at(path.read_bytes(), b"moov", b"trak", b"mdia", b"mdhd")[0] + 20, struct.pack(">I", 1))


def _png(folder: Path) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"".join(b"\0" + bytes(64 * 3) for _ in range(48)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    return _bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))(folder)


def _mp3_with_cover(folder: Path) -> Path:
    """An ID3v2.3 tag with a PNG picture in front of MP3 frames."""
    cover = _png(folder).read_bytes()
    content = b"\0image/png\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    audio = write_audio(folder / "tone.mp3", "libmp3lame").read_bytes()
    path = folder / "song.mp3"
    path.write_bytes(b"ID3\x03\0\0" + size + frame + audio[audio.index(b"\xff\xfb") :])
    return path


def _raw_avi(folder: Path, height: int, width: int) -> Path:
    """Uncompressed AVI whose headers lie about the frame size."""
    path = write_video(folder / "raw.avi", [0.0, 0.5, 1.0], codec="rawvideo", pixel_format="bgr24")
    data = path.read_bytes()
    at = data.index(b"strf") + 8
    patched(path, at + 4, struct.pack("<ii", width, height))
    return patched(path, data.index(b"avih") + 8 + 32, struct.pack("<II", width, height))


def _size_change(height: int, width: int) -> Callable[[Path], Path]:
    """MPEG-TS whose second half has another frame size."""

    def make(folder: Path) -> Path:
        first = write_video(folder / "a.ts", [number / 5 for number in range(50)])
        second = write_video(folder / "b.ts", [12 + number / 5 for number in range(50)], height=height, width=width, options={"crf": "45"})
        path = folder / "changes.ts"
        with av.open(str(path), "w") as out:
            target = None
            for part in (first, second):
                with av.open(str(part)) as given:
                    target = target or out.add_stream_from_template(given.streams.video[0])
                    for packet in given.demux(video=0):
                        if packet.dts is not None:
                            packet.stream = target
                            out.mux(packet)
        return path

    return make


def _time_backwards(folder: Path) -> Path:
    """One frame in the middle claims to be shown 20 s later than those that follow it."""
    source = plain_mp4(folder)
    path = folder / "backwards.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        target = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            if packet.dts is not None and packet.pts is not None:
                packet.stream = target
                packet.pts += 20 * TICKS if number == 30 else 0
                out.mux(packet)
    return path


def _joined_streams(folder: Path) -> Path:
    """Two MPEG-TS files one after the other: counters and times start again."""
    part = write_video(folder / "a.ts", [number / 5 for number in range(50)]).read_bytes()
    path = folder / "twice.ts"
    path.write_bytes(part + part)
    return path


def _no_keyframes(folder: Path) -> Path:
    """Only the packets between the keyframes."""
    source = _mp4(folder, "whole.mp4")
    path = folder / "video.mkv"
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        target = out.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None and not packet.is_keyframe:
                packet.stream = target
                out.mux(packet)
    return path


def _no_samples(folder: Path) -> Path:
    """A complete MP4 in which every sample table is empty."""
    path = _mp4(folder)
    data = path.read_bytes()
    for table, at in ((b"stts", 12), (b"stsz", 16), (b"stsc", 12), (b"stco", 12)):
        patched(path, box_at(data, *STBL, table)[0] + at, struct.pack(">I", 0))
    return path


def _subtitles_only(folder: Path) -> Path:
    return _bytes(b"1\n00:00:00,000 --> 00:00:01,000\nHello\n", "video.mkv")(folder)


def _playlist(text: str, name: str) -> Callable[[Path], Path]:
    """A list that names a good video beside it (and things farther away)."""

    def make(folder: Path) -> Path:
        secret = _mp4(folder, "secret.mp4")
        (folder / name).write_text(text.format(secret=secret), encoding="utf-8")
        return folder / name

    return make


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "video.mp4")
    return folder / "video.mp4"


def _socket(folder: Path) -> Path:
    """Bound from inside its folder: the full path may be longer than a socket's name can be."""
    descriptor = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{descriptor}/video.mp4")
    os.close(descriptor)
    return folder / "video.mp4"


def _directory(folder: Path) -> Path:
    (folder / "video.mp4").mkdir()
    return folder / "video.mp4"


def _link_to(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "video.mp4").symlink_to(target)
        return folder / "video.mp4"

    return make


def _many_frames(folder: Path) -> Path:
    """A still picture of a few kilobytes that decodes to thousands of frames."""
    still = picture(0, 48, 64)
    path = folder / "still.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 100_000
        frame = av.VideoFrame.from_ndarray(still, format="rgb24").reformat(format="yuv420p")
        for number in range(HOSTILE_LIMITS.max_decoded_frames + 100):
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def _sparse(folder: Path) -> Path:
    path = _mp4(folder)
    os.truncate(path, HOSTILE_LIMITS.max_bytes + 1)
    return path


def _fragmented_cut(folder: Path) -> Path:
    flags = {"movflags": "frag_keyframe+empty_moov"}
    times_s = [number / 2 for number in range(120)]
    return cut(write_video(folder / "video.mp4", times_s, container="mp4", container_options=flags), -700)


@dataclass(frozen=True)
class Hostile:
    """One file nobody should be hurt by."""

    make: Callable[[Path], Path]
    """Writes it (and what it needs) into an empty folder and returns its path."""
    error: type[VideoError]
    words: str
    """Part of the reason in the message."""


_HTTP = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
_HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:60\n#EXTINF:60,\n{secret}\n#EXTINF:60,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"
_noise = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()

HOSTILE: dict[str, Hostile] = {
    "empty": Hostile(_bytes(b""), VideoEmptyError, "0 bytes"),
    "one_byte": Hostile(_bytes(b"\0"), VideoDamagedError, "cannot read"),
    "zeros": Hostile(_bytes(bytes(100_000)), VideoDamagedError, "cannot read"),
    "random_bytes": Hostile(_bytes(_noise), VideoDamagedError, "cannot read"),
    "text": Hostile(_bytes(b"this is not a video\n" * 100), VideoDamagedError, "cannot read"),
    "web_page": Hostile(_bytes(_HTTP), VideoDamagedError, "cannot read"),
    "lfs_pointer": Hostile(_bytes(_LFS), VideoDamagedError, "cannot read"),
    "gzipped": Hostile(lambda folder: _bytes(gzip.compress(_mp4(folder).read_bytes()))(folder), VideoDamagedError, "cannot read"),
    "png": Hostile(_png, VideoDamagedError, "cannot read"),
    "cut_in_header": Hostile(lambda folder: cut(_mp4(folder), 0.005), VideoDamagedError, "truncated"),
    "cut_third": Hostile(lambda folder: cut(_mp4(folder), 0.34), VideoDamagedError, "truncated"),
    "cut_half": Hostile(lambda folder: cut(_mp4(folder), 0.5), VideoDamagedError, "truncated"),
    "cut_last_byte": Hostile(lambda folder: cut(_mp4(folder), -1), VideoDamagedError, "truncated"),
    "cut_index_last": Hostile(lambda folder: cut(_mp4(folder, faststart=False), 0.5), VideoDamagedError, "cannot read"),
    "cut_mkv": Hostile(_other_container("video.mkv", 0.34), VideoDamagedError, "truncated"),
    "cut_avi": Hostile(_other_container("video.avi", 0.34, "mpeg4", 2), VideoDamagedError, "truncated"),
    "cut_fragmented": Hostile(_fragmented_cut, VideoDamagedError, "truncated"),
    "index_missing": Hostile(_moov_missing, VideoDamagedError, "cannot read"),
    "data_zeroed": Hostile(_data_zeroed, VideoDamagedError, ""),
    "data_noise": Hostile(_data_noise, VideoDamagedError, ""),
    "codec_header_noise": Hostile(_codec_header_noise, VideoDamagedError, ""),
    "unknown_codec": Hostile(_unknown_codec, VideoDamagedError, "codec"),
    "no_keyframes": Hostile(_no_keyframes, VideoDamagedError, "no keyframe"),
    "no_samples": Hostile(_no_samples, VideoEmptyError, "no frame"),
    "frame_of_2_gb": Hostile(_sample_sizes_huge, VideoDamagedError, "index"),
    "index_of_100_million": Hostile(_sample_count_huge, VideoDamagedError, "index"),
    "chunks_outside": Hostile(_chunk_offsets_outside, VideoDamagedError, "truncated"),
    "deltas_absurd": Hostile(_deltas_absurd, VideoLimitError, "s long"),
    "time_scale_one": Hostile(_time_scale_one, VideoLimitError, "s long"),
    "time_backwards": Hostile(_time_backwards, VideoDamagedError, "backwards"),
    "joined_streams": Hostile(_joined_streams, VideoDamagedError, "data is missing"),
    "size_change": Hostile(_size_change(64, 80), VideoDamagedError, "size changes"),
    "size_change_huge": Hostile(_size_change(720, 1280), VideoLimitError, "1280x720"),
    "frame_0x0": Hostile(lambda folder: _raw_avi(folder, 0, 0), VideoDamagedError, ""),
    "frame_60000x60000": Hostile(lambda folder: _raw_avi(folder, 60_000, 60_000), VideoLimitError, "pixels"),
    "frame_over_limit": Hostile(lambda folder: good_mp4(folder / "v.mp4", 1, height=480, width=640), VideoLimitError, "640x480"),
    "too_long": Hostile(lambda folder: write_video(folder / "v.mp4", [0.0, 400.0, 800.0]), VideoLimitError, "s long"),
    "too_many_frames": Hostile(_many_frames, VideoLimitError, "frames"),
    "too_many_bytes": Hostile(_sparse, VideoLimitError, "bytes"),
    "audio_only": Hostile(lambda folder: write_audio(folder / "video.mp4"), VideoNoStreamError, "no video stream"),
    "wav": Hostile(lambda folder: write_audio(folder / "v.mp4", "pcm_s16le", container="wav"), VideoNoStreamError, "no video stream"),
    "song_with_cover": Hostile(_mp3_with_cover, VideoNoStreamError, "no video stream"),
    "subtitles_only": Hostile(_subtitles_only, VideoDamagedError, "cannot read"),
    "playlist_hls": Hostile(_playlist(_HLS, "video.m3u8"), VideoDamagedError, "cannot read"),
    "playlist_as_mp4": Hostile(_playlist(_HLS, "video.mp4"), VideoDamagedError, "cannot read"),
    "concat_list": Hostile(_playlist("ffconcat version 1.0\nfile {secret}\n", "video.mp4"), VideoDamagedError, "cannot read"),
    "sdp": Hostile(_playlist("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "v.sdp"), VideoDamagedError, "cannot read"),
    "missing": Hostile(lambda folder: folder / "video.mp4", VideoMissingError, "No such file"),
    "dangling_link": Hostile(_link_to("nowhere.mp4"), VideoMissingError, "No such file"),
    "device_link": Hostile(_link_to("/dev/zero"), VideoMissingError, "not a regular file"),
    "directory": Hostile(_directory, VideoMissingError, "not a regular file"),
    "fifo": Hostile(_fifo, VideoMissingError, "not a regular file"),
    "socket": Hostile(_socket, VideoMissingError, ""),
}
"""Name -> file. Under `HOSTILE_LIMITS` each gives its error when all its frames are asked for."""
