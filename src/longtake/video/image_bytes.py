"""What the bytes of an image file tell without decoding: whether all of it is there, and whether it is what an encoder wrote.

libjpeg fills in what it cannot read and says nothing, and JPEG (ITU-T T.81, annex B) has no checksum, so damage is looked for here: a
missing end, markers that make no sense, and zeros (a hole in a sparse file, a lost sector) where no encoder writes any. PNG has
checksums. WebP has none: libwebp checks that the chunks fill the file exactly, and zeros are legal in them (for one colour beside
noise it writes 23,315 of them in a row in lossy files, and 652,608 in lossless ones).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from longtake.errors import VideoLimitError

PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MAX_PARTS = 1_000_000
"""More chunks, segments or restart markers than a picture has; a file full of empty ones would take minutes."""
ZEROS = bytes(256)
"""As many zeros in a row are no picture, see `_zeros_are_damage`; half of the smallest sector."""
PADDING = b"\xff\x00" * 16
"""Ones, as the data of a scan are padded with; more than a decoder reads ahead (64 bits)."""
MARKER = re.compile(rb"\xff([\x01-\xfe])")
SCAN_END, RESTART = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]"), re.compile(rb"\xff([\xd0-\xd7])")
TEM, DHT, SOI, EOI, SOS, DQT, DNL, DRI, COM = 0x01, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE
RST, APP = range(0xD0, 0xD8), range(0xE0, 0xF0)
SOF = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)
"""Frames that are neither progressive nor arithmetic."""
BEHIND_A_SCAN = frozenset((DHT, EOI, SOS, DQT, DNL, DRI, *APP, COM))


def image_limit_error(path: Path, given: str, name: str, limit: int) -> VideoLimitError:
    """The error for passing `video.limits.<name>`."""
    remedy = f"raise video.limits.{name}, or shrink the image"
    return VideoLimitError(f"{path}: {given}", rule=f"video.limits.{name} = {limit}", remedy=remedy)


def png_exif(file: BinaryIO, size_bytes: int, check_pixels: bool) -> bytes:
    """The EXIF data of a PNG, wherever they stand (empty: none), by the headers of its chunks. Leaves `file` at its start.

    Raises ValueError unless all chunks lie inside the file, IEND the last of them. `check_pixels`: the checksums of the pixels must be
    right, which Pillow does not look at; all is read then.
    """
    exif, at = b"", len(PNG_MAGIC)
    for _ in range(MAX_PARTS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            raise ValueError("truncated, it has no IEND chunk")
        size, kind = struct.unpack(">I4s", header)
        at += 12 + size
        if at > size_bytes:
            raise ValueError(f"truncated, its {kind!r} chunk ends at byte {at} but it has only {size_bytes}")
        if kind == b"IEND":
            file.seek(0)
            return exif
        if kind == b"eXIf" or (kind == b"IDAT" and check_pixels):
            body = file.read(size)
            if file.read(4) != struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))):
                raise ValueError(f"wrong checksum of its {kind!r} chunk that ends at byte {at}")
            exif = exif or (body if kind == b"eXIf" else b"")
    raise ValueError(f"more than {MAX_PARTS} chunks")


def whole_jpeg(data: bytes) -> BinaryIO:
    """The first picture of the file, for the decoder; what cameras put behind its end is left out. Raises ValueError where it is damaged.

    Where all pixels come from one scan, padding takes the place of EOI: a decoder that meets EOI too early fills up with grey, but one
    that runs out of data says so.
    """
    frame, interval, num_scans, first_symbols = 0, 0, 0, dict[int, int]()
    at = 2
    for _ in range(MAX_PARTS):
        found = _next(MARKER, data, at)
        kind, at = found[1][0], found.end()
        if num_scans and kind not in BEHIND_A_SCAN:
            raise ValueError(f"marker {kind:#04x} behind a scan at byte {found.start()}")
        if kind == EOI:
            one_scan = num_scans == 1 and frame in SEQUENTIAL
            return io.BytesIO(data[: found.start()] + PADDING if one_scan else data[:at])
        if kind in (TEM, SOI, *RST):
            continue
        body = data[at + 2 : at + struct.unpack_from(">H", data, at)[0]]
        at += 2 + len(body)
        if kind in SOF:
            frame = kind
        elif kind == DRI:
            interval = struct.unpack_from(">H", body)[0]
        elif kind == DHT:
            first_symbols.update(_first_symbols(body))
        elif kind == SOS:
            num_scans += 1
            start, at = at, _next(SCAN_END if interval else MARKER, data, at).start()
            if interval:
                _check_restarts(data, start, at)
            if frame in SEQUENTIAL and _zeros_are_damage(body, first_symbols) and (hole := data.find(ZEROS, start, at)) >= 0:
                raise ValueError(f"zeros in place of a picture from byte {hole}")
    raise ValueError(f"more than {MAX_PARTS} segments")


def _next(pattern: re.Pattern[bytes], data: bytes, at: int) -> re.Match[bytes]:
    found = pattern.search(data, at)
    if found is None:
        raise ValueError("truncated, it has no end of image (EOI)")
    return found


def _check_restarts(data: bytes, start: int, end: int) -> None:
    """Raises ValueError unless the restart markers of a scan count from 0 to 7 again and again."""
    kinds = b"".join(found[1] for found in islice(RESTART.finditer(data, start, end), MAX_PARTS))
    if kinds != (bytes(RST) * (len(kinds) // 8 + 1))[: len(kinds)] or len(kinds) == MAX_PARTS:
        raise ValueError(f"restart markers out of order in the scan from byte {start}")


def _first_symbols(body: bytes) -> Iterator[tuple[int, int]]:
    """(class and number, symbol whose code is all zeros) of each Huffman table of a DHT segment."""
    at = 0
    while at + 17 < len(body):
        yield body[at], body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])


def _zeros_are_damage(scan: bytes, first_symbols: Mapping[int, int]) -> bool:
    """Whether zeros alone would fill block after block of this sequential scan (its SOS segment) with one and the same coefficient.

    No picture has that: of 10,000 good files by libjpeg-turbo and FFmpeg, flat ones and tiles of 8 x 8 pixels made to come close among
    them, none had more than 22 zeros in a row in such a scan. Others have any number: in the tables made for a flat picture zeros mean
    "nothing in this block", and a progressive scan of a pattern may have nothing else.
    """
    selectors = scan[2 : 2 + 2 * scan[0] : 2]
    return any(first_symbols.get(0x10 | selector & 15, 0) & 15 for selector in selectors)
