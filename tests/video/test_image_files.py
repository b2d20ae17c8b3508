"""Images: upright, of the right size and colours; every hostile file is one error of the family, quickly."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.config.sections import VideoConfig, VideoLimits
from longtake.errors import VideoDamagedError, VideoEmptyError, VideoError, VideoLimitError, VideoMissingError, VideoNoStreamError
from longtake.types import VideoRef
from longtake.video.image import image_size, load_image, probe_image
from longtake.video.image_bytes import MAX_PARTS, png_exif, whole_jpeg
from longtake.video.index import DigestIndex

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


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_behind_the_picture_of_a_png_is_applied(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rows = b"".join(b"\0" + row.tobytes() for row in quarters())
    data = png(84, 56, data=rows, behind=(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert data.index(b"eXIf") > data.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(data)
    info, frames = probe_image(tmp_path / "a.png", CONFIG.limits), load(tmp_path / "a.png")
    assert frames.pixels.shape[1:3] == (info.height, info.width) == ((56, 84) if orientation < 5 else (84, 56))
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


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"", behind: tuple[bytes, bytes] | None = None) -> bytes:
    """A PNG with a header that says so, whatever is in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), *([behind] if behind else []), (b"IEND", b"")]
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
    size = (tmp_path / "a.png").stat().st_size
    for most in (size, size - 1):
        limits = VideoLimits(max_bytes=1, max_image_bytes=most)  # that of videos is another
        index = DigestIndex(max_bytes=1, max_image_bytes=most)
        if most == size:
            assert index.ref(tmp_path / "a.png", "image").kind == "image"
            assert probe_image(tmp_path / "a.png", limits).width == 84
            continue
        with pytest.raises(VideoLimitError, match=rf"a.png: {size} bytes. Rule: video.limits.max_image_bytes = {most}. Remedy: raise"):
            index.ref(tmp_path / "a.png", "image")
        with pytest.raises(VideoLimitError, match="max_image_bytes"):
            load(tmp_path / "a.png", VideoConfig(max_pixels_per_frame=56 * 84, limits=limits))
        assert index.num_hashed == 0


HUGE = {
    "webp": (b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + b"WEBPVP8X" + bytes(32), 3 << 30, VideoLimitError),
    "png": (png(10, 10)[:33] + struct.pack(">I", 0x7FFFFFFF) + b"prVt", 200 << 20, VideoDamagedError),
}
"""What stands at the start of a file that holds nothing else, its size, and what opening it is. Pillow takes 6 and 2 GiB for them."""


@pytest.mark.parametrize("name", HUGE)
def test_a_header_takes_no_memory_for_what_it_promises(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    start, size, kind = HUGE[name]
    with (tmp_path / "a").open("wb") as file:
        file.write(start)
        file.truncate(size)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow has seen it"))
    with pytest.raises(kind):
        probe_image(tmp_path / "a", CONFIG.limits)


def photo(rows: int = 240, columns: int = 320) -> Image.Image:
    """Shapes and grain, so that data stand everywhere in the file."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:rows, :columns]
    waves = np.stack([np.sin(x / 17 + y / 31), np.sin(x / 23), np.sin(y / 19 - x / 41)], axis=-1) * 90 + 128
    return Image.fromarray((waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (photo() if image is None else image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def two_pictures() -> bytes:
    """As cameras write a picture with its preview (MPO)."""
    buffer = io.BytesIO()
    photo().save(buffer, "MPO", save_all=True, append_images=[photo(60, 80)])
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
FLAT = Image.new("RGB", (640, 640), (250, 250, 250))
DOTS = Image.fromarray(np.where((np.mgrid[:640, :640] % 8 == 1).all(axis=0), 0, 128).astype(np.uint8))
GOOD_JPEGS: dict[str, Callable[[], bytes]] = {
    **{f"quality {quality}": lambda quality=quality: jpeg(quality=quality) for quality in (1, 5, 25, 50, 75, 90, 95, 100)},
    **{f"subsampling {kind}": lambda kind=kind: jpeg(subsampling=kind) for kind in ("4:4:4", "4:2:2", "4:2:0")},
    "tables of its own": lambda: jpeg(optimize=True),
    "progressive": lambda: jpeg(progressive=True),
    "a restart every row": lambda: jpeg(restart_marker_rows=1),
    "a restart every block": lambda: jpeg(restart_marker_blocks=1),
    "progressive with restarts": lambda: jpeg(restart_marker_blocks=3, progressive=True),
    "grey": lambda: jpeg(photo().convert("L")),
    "CMYK": lambda: jpeg(photo().convert("CMYK")),
    "RGB inside": lambda: jpeg(keep_rgb=True),
    "EXIF, a profile and a comment": lambda: jpeg(exif=b"Exif\0\0" + bytes(3000), icc_profile=bytes(90_000), comment=b"c\xff\xd9" * 300),
    "flat": lambda: jpeg(FLAT),
    "flat, tables of its own": lambda: jpeg(FLAT, optimize=True, quality=10),
    "flat, progressive": lambda: jpeg(FLAT, progressive=True),
    "dots, progressive": lambda: jpeg(DOTS, progressive=True, quality=95),
    "a film behind it": lambda: jpeg() + b"\0\0\0\x18ftypmp42" + bytes(5000) + b"\xff\xda\xff",
    "zeros behind it": lambda: jpeg() + bytes(4096),
    "two pictures": two_pictures,
    "one pixel": lambda: jpeg(Image.new("RGB", (1, 1))),
}


@pytest.mark.parametrize("name", GOOD_JPEGS)
def test_good_jpegs_are_read_to_the_last_bit(name: str):
    data = GOOD_JPEGS[name]()
    checked, plain = Image.open(whole_jpeg(data)), Image.open(io.BytesIO(data))
    assert checked.tobytes() == plain.tobytes() and checked.size == plain.size


def test_zeros_in_a_row_are_good_where_the_tables_say_nothing_is_here():
    """The rule below would refuse these files if it looked at the bytes alone."""
    assert bytes(2000) in GOOD_JPEGS["flat, tables of its own"]()
    assert bytes(256) in GOOD_JPEGS["dots, progressive"]()


def holed(data: bytes, filler: bytes, size: int = 512) -> bytes:
    middle = (len(data) // 2) & -512
    return data[:middle] + (filler * size)[:size] + data[middle + size :]


DAMAGED_JPEGS: dict[str, tuple[Callable[[], bytes], str]] = {
    "second half zeros": (lambda: jpeg(NOISE)[:30_000] + bytes(30_000), "no end of image"),
    "second half zeros, progressive": (lambda: jpeg(progressive=True)[:8000] + bytes(8000), "no end of image"),
    "no end": (lambda: jpeg()[:-2], "no end of image"),
    "cut, with an end": (lambda: jpeg()[:8000] + b"\xff\xd9", "truncated"),
    "cut, with restarts and an end": (lambda: jpeg(restart_marker_rows=1)[:8000] + b"\xff\xd9", "truncated"),
    "a hole": (lambda: holed(jpeg(), b"\0"), "zeros in place of a picture"),
    "a hole of 4 KiB": (lambda: holed(jpeg(quality=95), b"\0", 4096), "zeros in place of a picture"),
    "a hole, grey": (lambda: holed(jpeg(photo().convert("L"), quality=95), b"\0"), "zeros in place of a picture"),
    "a sector lost": (lambda: holed(jpeg(), b""), "truncated"),
    "a foreign sector": (lambda: holed(jpeg(), b"text\xff\x07", 4096), "marker 0x07 behind a scan"),
    "a restart where none is": (lambda: holed(jpeg(), b"\xff\xd0", 2), "marker 0xd0 behind a scan"),
    "a restart lost": (lambda: jpeg(restart_marker_rows=1).replace(b"\xff\xd3", b"\xff\x00", 1), "restart markers out of order"),
}


@pytest.mark.parametrize("name", DAMAGED_JPEGS)
def test_damaged_jpegs_fail(tmp_path: Path, name: str):
    make, told = DAMAGED_JPEGS[name]
    (tmp_path / "a.jpg").write_bytes(make())
    with pytest.raises(VideoDamagedError, match=told):
        load(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_anywhere_fails(tmp_path: Path, name: str):
    buffer = io.BytesIO()
    photo().save(buffer, name)
    good = buffer.getvalue()
    for size in (*range(1, 40), *range(40, len(good), len(good) // 60), *range(len(good) - 20, len(good))):
        (tmp_path / "a").write_bytes(good[:size])
        with pytest.raises(VideoError):
            load(tmp_path / "a")


def test_every_changed_byte_of_a_png_fails_or_changes_nothing(tmp_path: Path):
    good, rng = encoded("PNG"), np.random.default_rng(0)
    (tmp_path / "a").write_bytes(good)
    whole, failures = load(tmp_path / "a").pixels, 0
    for place in rng.permutation(len(good))[:150]:
        data = bytearray(good)
        data[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a").write_bytes(data)
        try:
            assert (load(tmp_path / "a").pixels == whole).all()
        except VideoError:
            failures += 1
    assert failures > 100


PNG_DAMAGE = {
    "no end": (png(10, 10)[:-12], "no IEND chunk"),
    "a chunk beyond the end": (
        png(10, 10)[:33] + struct.pack(">I", 0x7FFFFFFF) + b"prVt" + bytes(99),
        "'prVt' chunk ends at byte 2147483692",
    ),
    "EXIF with another checksum": (png(10, 10, behind=(b"eXIf", b"MM\0*")).replace(b"MM\0*", b"MM\0+"), "wrong checksum"),
    "pixels with another checksum": (png(10, 10, data=b"\7" * 310).replace(b"IDATx\x9c", b"IDATx\x9d"), "wrong checksum of its b'IDAT'"),
    "nothing but chunks": (png(10, 10)[:33] + (bytes(4) + b"prVt" + bytes(4)) * MAX_PARTS, "more than 1000000 chunks"),
}


@pytest.mark.parametrize("name", PNG_DAMAGE)
def test_chunks_of_a_png_lie_inside_it(name: str):
    data, told = PNG_DAMAGE[name]
    with pytest.raises(ValueError, match=told):
        png_exif(io.BytesIO(data), len(data), check_pixels=True)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_no_damage_is_any_other_error_than_one_of_the_family(tmp_path: Path, name: str):
    """200 files: cut anywhere, or with a few bytes changed, EXIF and header among them. JPEG and WebP have no checksum, so that a few
    changed bytes may be another picture; nothing is promised for those but an array of the size that the header gives."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    good, rng = encoded(name, exif=exif), np.random.default_rng(0)
    failures = 0
    for turn in range(200):
        data = bytearray(good[: rng.integers(1, len(good))] if turn % 2 else good)
        for place in rng.integers(0, min(len(data), 200 if turn % 4 else len(data)), 3):
            data[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(data)
        try:
            frames = load(tmp_path / "a")
            assert turn % 2 == 0, "a file that is cut is no picture"
            assert frames.pixels.dtype == np.uint8 and frames.pixels.shape[1:3] == image_size(
                probe_image(tmp_path / "a", CONFIG.limits), CONFIG, 28
            )
        except VideoError:
            failures += 1
    assert failures >= 100
