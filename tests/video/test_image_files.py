"""Images: upright, of the right size and colours; every hostile file is one error of the family, quickly."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.config.sections import VideoConfig, VideoLimits
from longtake.errors import VideoDamagedError, VideoEmptyError, VideoError, VideoLimitError, VideoMissingError, VideoNoStreamError
from longtake.types import VideoRef
from longtake.video.image import image_size, load_image, probe_image

CONFIG = VideoConfig(max_pixels_per_frame=56 * 84)
RED, GREEN, BLUE, WHITE = (200, 10, 10), (10, 200, 10), (10, 10, 200), (250, 250, 250)


def quarters(rows: int = 56, columns: int = 84) -> np.ndarray:
    """Red, green over blue, white."""
    top = np.hstack([np.full((rows // 2, columns // 2, 3), colour, np.uint8) for colour in (RED, GREEN)])
    bottom = np.hstack([np.full((rows // 2, columns // 2, 3), colour, np.uint8) for colour in (BLUE, WHITE)])
    return np.vstack([top, bottom])


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours at a quarter and three quarters of either side, row by row."""
    height, width, _ = pixels.shape
    return [tuple(int(value) for value in pixels[y * height // 4, x * width // 4]) for y in (1, 3) for x in (1, 3)]


def load(path: Path, config: VideoConfig = CONFIG):
    return load_image(VideoRef(path, "digest", kind="image"), config, 28, 2)


def close(a: list[tuple[int, ...]], b: list[tuple[int, ...]], by: int) -> bool:
    return bool((np.abs(np.array(a) - np.array(b)) <= by).all())


def test_one_picture_is_one_temporal_group_at_time_0(tmp_path: Path):
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    frames = load(tmp_path / "a.png")
    assert frames.pixels.shape == (2, 56, 84, 3) and (frames.pixels[0] == quarters()).all() and (frames.pixels[1] == quarters()).all()
    assert frames.times_s.tolist() == [0.0, 0.0] and frames.num_decoded == 1
    assert frames.sampling.kind == "image" and frames.source_digest == "digest"


@pytest.mark.parametrize(("name", "by"), [("a.png", 0), ("a.jpg", 6), ("a.webp", 6)])
def test_formats_by_their_bytes_and_never_by_their_name(tmp_path: Path, name: str, by: int):
    Image.fromarray(quarters()).save(tmp_path / name, quality=95)
    (tmp_path / "no_suffix").write_bytes((tmp_path / name).read_bytes())
    assert close(corners(load(tmp_path / "no_suffix").pixels[0]), [RED, GREEN, BLUE, WHITE], by)


UPRIGHT = {  # EXIF orientation -> where the stored colours stand when the picture is upright
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],  # mirrored
    3: [WHITE, BLUE, GREEN, RED],  # upside down
    4: [BLUE, WHITE, RED, GREEN],  # mirrored upside down
    5: [RED, BLUE, GREEN, WHITE],  # rows and columns exchanged
    6: [BLUE, RED, WHITE, GREEN],  # turned clockwise
    7: [WHITE, GREEN, BLUE, RED],  # exchanged along the other diagonal
    8: [GREEN, WHITE, RED, BLUE],  # turned counterclockwise
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=exif)
    info, frames = probe_image(tmp_path / "a.png", CONFIG.limits), load(tmp_path / "a.png")
    assert (info.height, info.width) == ((56, 84) if orientation < 5 else (84, 56))
    assert frames.pixels.shape[1:3] == (info.height, info.width) == image_size(info, CONFIG, 28)
    assert corners(frames.pixels[0]) == UPRIGHT[orientation]


def test_an_orientation_that_means_nothing_is_none(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 77
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=exif)
    assert corners(load(tmp_path / "a.png").pixels[0]) == UPRIGHT[1]


@pytest.mark.parametrize(
    ("size", "most", "wanted"),
    [
        ((1000, 1000), 56 * 56, (56, 56)),
        ((310, 600), 56 * 112, (56, 84)),  # shrunk by sqrt(310 * 600 / 6272) = 5.45 to 56.9 x 110.2, rounded down to patches of 28
        ((30, 30), 56 * 56, (28, 28)),
        ((5, 9), 56 * 84, (28, 56)),  # grown to 28 x 28 pixels at least: 20.9 x 37.6, rounded up
    ],
)
def test_sizes_are_those_of_frames(tmp_path: Path, size: tuple[int, int], most: int, wanted: tuple[int, int]):
    Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", VideoConfig(max_pixels_per_frame=most)).pixels.shape[1:3] == wanted


def modes() -> dict[str, tuple[Image.Image, tuple[int, int, int]]]:
    """A picture of one colour in each mode, and the colour it is seen in."""
    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    half = Image.new("RGBA", (56, 56), (255, 0, 0, 128))  # 255 * 128/255, over white 127/255
    palette = Image.new("P", (56, 56), 0)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.info["transparency"] = 0
    deep = Image.fromarray(np.full((56, 56), 0x80FF, np.uint16))
    return {
        "grey": (Image.new("L", (56, 56), 77), (77, 77, 77)),
        "one bit": (Image.new("1", (56, 56), 1), (255, 255, 255)),
        "transparent": (clear, (255, 255, 255)),
        "half transparent": (half, (255, 127, 127)),
        "grey with alpha": (Image.new("LA", (56, 56), (40, 0)), (255, 255, 255)),
        "palette with alpha": (palette, (255, 255, 255)),
        "16 bits": (deep, (128, 128, 128)),
    }


@pytest.mark.parametrize("name", modes())
def test_modes_become_rgb_over_white(tmp_path: Path, name: str):
    image, colour = modes()[name]
    image.save(tmp_path / "a.png", **({"transparency": 0} if image.mode == "P" else {}))
    assert {tuple(int(v) for v in one) for one in load(tmp_path / "a.png").pixels[0].reshape(-1, 3)} == {colour}


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """A PNG with a header that says so, whatever is in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in every
    )


def encoded(name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(quarters()).save(buffer, name, **options)
    return buffer.getvalue()


def animation(name: str) -> bytes:
    buffer = io.BytesIO()
    other = Image.fromarray(255 - quarters())
    Image.fromarray(quarters()).save(buffer, name, save_all=True, append_images=[other])
    return buffer.getvalue()


HOSTILE: dict[str, tuple[bytes, type[VideoError], str]] = {
    "empty": (b"", VideoEmptyError, "0 bytes"),
    "text": (b"this is no picture", VideoNoStreamError, "no picture"),
    "gif": (encoded("GIF"), VideoNoStreamError, "images are PNG, JPEG, WEBP"),
    "bmp": (encoded("BMP"), VideoNoStreamError, "no picture"),
    "tiff": (encoded("TIFF"), VideoNoStreamError, "no picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", VideoNoStreamError, "no picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', VideoNoStreamError, "no picture"),
    "bomb of 2^30 pixels": (png(32768, 32768), VideoLimitError, "max_frame_pixels"),
    "bomb of 2^60 pixels": (png(1 << 30, 1 << 30), VideoLimitError, "max_frame_pixels"),
    "40 million pixels": (png(8000, 5000), VideoLimitError, "max_frame_pixels"),
    "no width": (png(0, 100), VideoError, ""),
    "no pixels in it": (png(56, 56), VideoDamagedError, ""),
    "text bomb": (png(56, 56, (b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20)))), VideoDamagedError, ""),
    "cut JPEG": (encoded("JPEG")[:400], VideoDamagedError, "whole and undamaged"),
    "cut PNG": (encoded("PNG")[:120], VideoDamagedError, "whole and undamaged"),
    "animated PNG": (animation("PNG"), VideoNoStreamError, "an animation"),
    "animated WebP": (animation("WEBP"), VideoNoStreamError, "an animation"),
    "long picture": (png(28 * 300, 28), VideoLimitError, "200 times"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_error_each(tmp_path: Path, name: str):
    data, kind, told = HOSTILE[name]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(kind) as caught:
        load(path)
    assert told in str(caught.value) and "a.png" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "gone.png"):
        with pytest.raises(VideoMissingError):
            load(path)


def test_a_file_of_too_many_bytes(tmp_path: Path):
    Image.fromarray(quarters()).save(tmp_path / "a.png")
    small = VideoConfig(max_pixels_per_frame=56 * 84, limits=VideoLimits(max_bytes=100))
    with pytest.raises(VideoLimitError, match="max_bytes"):
        load(tmp_path / "a.png", small)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_damage_of_any_kind_is_a_video_error_or_a_picture(tmp_path: Path, name: str):
    """200 files: cut anywhere, or with a few bytes changed, EXIF and header among them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    good, rng = encoded(name, exif=exif), np.random.default_rng(0)
    pictures = failures = 0
    for turn in range(200):
        data = bytearray(good[: rng.integers(1, len(good))] if turn % 2 else good)
        for place in rng.integers(0, min(len(data), 200 if turn % 4 else len(data)), 3):
            data[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(data)
        try:
            frames = load(tmp_path / "a")
            pictures += 1
            assert frames.pixels.dtype == np.uint8
        except VideoError:
            failures += 1
    assert failures > 50 and pictures + failures == 200
