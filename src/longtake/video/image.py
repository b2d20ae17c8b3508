"""Images as frames: one picture, shown for a temporal group.

A picture comes from a dataset like a video does, so the file is opened in the one safe way, only three formats are tried, and its bytes
and the size its header gives are checked before a pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from longtake.config.sections import VideoConfig, VideoLimits
from longtake.errors import PathError, VideoDamagedError, VideoEmptyError, VideoMissingError, VideoNoStreamError
from longtake.types import Frames, Sampling, VideoRef
from longtake.video.image_bytes import JPEG_MAGIC, PNG_MAGIC, image_limit_error, png_exif, whole_jpeg
from longtake.video.paths import open_regular
from longtake.video.sample import max_pixels, smart_resize

FORMATS = ("PNG", "JPEG", "WEBP")
ONE_PICTURE = ("JPEG", "MPO")
"""Formats whose further pictures are previews and depth maps of the first, by their standard; elsewhere they are an animation."""
IMAGE_DECODER = f"image 2 pillow {PIL.__version__}"
"""Names what decides the pixels beside the file and the size. Raise the number when this module chooses or resizes otherwise."""
RESIZE = "bicubic"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
ORIENTATION_TAG = 0x0112
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for files that are cut or changed."""


@dataclass(frozen=True)
class ImageInfo:
    """Facts about an image, from its header."""

    path: Path
    width: int
    """As shown: after rotation."""
    height: int
    format: str


def probe_image(path: Path, limits: VideoLimits) -> ImageInfo:
    """Open, check and describe an image; decodes nothing. Raises a `VideoError`."""
    with _opened(path, limits) as image:
        return _info(path, image)


def image_size(info: ImageInfo, config: VideoConfig, patch_multiple: int) -> tuple[int, int]:
    """(height, width) that the tower sees: within the same bounds as a frame of a video. Raises VideoLimitError."""
    return smart_resize(info, patch_multiple, config.min_pixels_per_frame, max_pixels(config))


def load_image(ref: VideoRef, config: VideoConfig, patch_multiple: int, temporal_patch: int) -> Frames:
    """The picture at time 0, upright, RGB over white, as often as a temporal group has frames. Raises a `VideoError`."""
    with _opened(ref.path, config.limits, to_decode=True) as image:
        height, width = image_size(_info(ref.path, image), config, patch_multiple)
        orientation = _orientation(image)
        upright = _rgb(image) if orientation not in TURNS else _rgb(image).transpose(TURNS[orientation])
        picture = np.asarray(upright.resize((width, height), Image.Resampling.BICUBIC))
    sampling = Sampling(temporal_patch, height, width, "still", RESIZE, decoder=IMAGE_DECODER)
    return Frames(np.repeat(picture[None], temporal_patch, axis=0), np.zeros(temporal_patch), ref.digest, sampling, num_decoded=1)


@contextmanager
def _opened(path: Path, limits: VideoLimits, to_decode: bool = False) -> Iterator[Image.Image]:
    """The image with its header read and its size checked; what goes wrong inside is told as an error of the file.

    `to_decode`: PNG and JPEG are read to their end and checked for damage.
    """
    try:
        with open_regular(path) as (file, status):
            if status.st_size == 0:
                raise VideoEmptyError(f"{path}: 0 bytes", rule="an image has a picture", remedy="leave the row out")
            if status.st_size > limits.max_image_bytes:
                raise image_limit_error(path, f"{status.st_size} bytes", "max_image_bytes", limits.max_image_bytes)
            source, exif = _source(file, status.st_size, to_decode)
            with Image.open(source, formats=FORMATS) as image:
                if exif:
                    image.info["exif"] = exif
                if image.width * image.height > limits.max_frame_pixels:
                    given = f"a picture of {image.width}x{image.height} pixels"
                    raise image_limit_error(path, given, "max_frame_pixels", limits.max_frame_pixels)
                if getattr(image, "n_frames", 1) > 1 and image.format not in ONE_PICTURE:
                    rule = "an image is one picture"
                    raise VideoNoStreamError(f"{path}: an animation", rule=rule, remedy="save one picture of it, or make it a video")
                yield image
    except PathError as error:
        raise VideoMissingError(error.given, rule=error.rule, remedy=error.remedy) from error
    except Image.DecompressionBombError as error:
        raise image_limit_error(path, str(error), "max_frame_pixels", limits.max_frame_pixels) from error
    except UnidentifiedImageError as error:
        rule = f"images are {', '.join(FORMATS)}"
        raise VideoNoStreamError(f"{path}: no picture in it that can be read", rule=rule, remedy="convert it") from error
    except DAMAGE as error:
        given = f"{path}: {type(error).__name__}: {error}"
        raise VideoDamagedError(given, rule="images are whole and undamaged", remedy="get the file again, or leave the row out") from error


def _source(file: BinaryIO, size_bytes: int, to_decode: bool) -> tuple[BinaryIO, bytes]:
    """What Pillow reads, and the EXIF data of a PNG, which may stand where Pillow finds them only by decoding all. Raises ValueError."""
    magic = file.read(len(PNG_MAGIC))
    file.seek(0)
    exif = png_exif(file, size_bytes, to_decode) if magic == PNG_MAGIC else b""
    return (whole_jpeg(file.read()) if to_decode and magic.startswith(JPEG_MAGIC) else file), exif


def _info(path: Path, image: Image.Image) -> ImageInfo:
    width, height = image.size[::-1] if _orientation(image) >= 5 else image.size
    return ImageInfo(path, width, height, str(image.format))


def _orientation(image: Image.Image) -> int:
    """1 to 8, 1 for upright and for values that mean nothing; nothing is decoded for it."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would decode all to look behind the picture
    found = image.getexif().get(ORIENTATION_TAG, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    """What is transparent is white, as in Qwen's own loader; 16 bits are cut to the upper 8."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGB", over.size, "white")
    white.paste(over, mask=over.getchannel("A"))
    return white
