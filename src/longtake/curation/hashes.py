"""What a video looks like, in a few hundred bytes, and which videos look the same whatever their encoding and size.

A video has the perceptual hash (64 bits) of F frames evenly spread over it. Two videos are compared frame by frame, first with first:

* A frame of one colour, or nearly, has no structure; the bits of its hash would be noise. Its hash is `""`. Against another such frame it
  says nothing; against a frame with structure it counts as 32 bits of difference, as two unrelated pictures have on average. With
  structure in less than a quarter of the frames of both, two videos are never the same: a still colour equals no other.
* Frames differ by `distance` bits on average. That alone would take two talks in one studio for one video, since most of the picture is
  the same all the time. So the distance must also be small against what the frames of either video differ among themselves (`spread`):
  at most SHARE_OF_SPREAD of it, or STILL_BITS where a video hardly moves. Two videos that show one and the same picture throughout
  are the same, whatever is heard.
* Their durations differ by at most 5 % or 2 s.

Measured over 16 frames, in bits and as a share of the spread, on 40 worlds and on clips drawn with moving or fixed pictures:

    the same, half the size and strongly compressed         0 to 3.5, at most 0.32
    the same, half the frame rate, or begun 0.5 to 1 s later 0 to 10.9, at most 0.35
    the same, brightened                                    0 to 3.9, at most 0.20 (moving), 0.88 (a fixed camera: missed)
    the same, cropped by 3 % a side, or with a logo         4 to 12, at most 0.48 (moving), over 1 (a fixed camera: missed)
    the same in a black frame                               15 and more: missed
    the same, of soft gradients or noise alone              4 to 31: mostly missed; different ones 14 and more, at least 0.92
    different worlds; pans over different pictures          21 and more, at least 0.71
    different, one background for all: studio, street, slides 3.8, 6.6, 6.5 and more, at least 0.52, 0.71, 0.75

At the defaults none of 32,131 pairs of different ones was taken for one video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from longtake.config.sections import VideoLimits
from longtake.curation.records import SourceVideo
from longtake.video.decode import DECODER, decode_from
from longtake.video.probe import VideoInfo, info_of
from longtake.video.sample import uniform_times
from longtake.video.source import open_source

BITS = 64
SIDE = 64
"""Pixels of the side to which frames are reduced before they are hashed; the hash reduces them further to 32."""
LEAST_CONTRAST = 3.0
"""Standard deviation of the brightness (0 to 255) below which a frame has no structure. Still colours: under 1, the darkest frame of 40
worlds: 5.8."""
SHARE_OF_SPREAD = 0.4
STILL_BITS = 1.0
DURATION_SHARE, DURATION_S = 0.05, 2.0
HOW = f"hashes 1 phash {BITS} {SIDE} {LEAST_CONTRAST} {DECODER}"
"""Names how hashes are made."""
BLOCK = 128
"""Videos compared with all others at a time: several tables of BLOCK x videos x 8 bytes, 20 MB each for 20,000."""


def hashes_of(path: Path, limits: VideoLimits, num_frames: int) -> tuple[VideoInfo, tuple[str, ...]]:
    """What the file is, and the hashes of `num_frames` frames evenly spread over it. Raises a `VideoError`."""
    with open_source(path, limits) as source:
        info = info_of(source)
        decoded = decode_from(source, uniform_times(info.start_s, info.duration_s, num_frames), (SIDE, SIDE))
    return info, tuple(frame_hash(rgb) for rgb in decoded.pixels)


def frame_hash(rgb: np.ndarray) -> str:
    """Hex of the perceptual hash of uint8 [Y, X, 3]; `""` for a picture without structure."""
    picture = Image.fromarray(rgb).convert("L")
    if np.asarray(picture, dtype=np.float64).std() < LEAST_CONTRAST:
        return ""
    return str(imagehash.phash(picture))


@dataclass(frozen=True, eq=False)
class Looks:
    """Hashes of N videos, ready to be compared."""

    signs: np.ndarray
    """float32 [N, F x 64]: 1 and -1 for the bits, 0 for a frame without structure."""
    structured: np.ndarray
    """float32 [N, F]: 1 for a frame with structure."""
    spreads: np.ndarray
    """float64 [N]: bits by which two frames of the video differ on average; 0 with fewer than two."""
    durations_s: np.ndarray
    """float64 [N]"""

    def __len__(self) -> int:
        return len(self.durations_s)

    def __getitem__(self, index: slice | np.ndarray) -> Looks:
        return Looks(self.signs[index], self.structured[index], self.spreads[index], self.durations_s[index])


def looks_of(videos: Sequence[SourceVideo]) -> Looks:
    """4 KB for each video of 16 frames. Raises ValueError when their numbers of frames differ."""
    num_frames = len(videos[0].hashes) if videos else 0
    if any(len(video.hashes) != num_frames for video in videos):
        raise ValueError("all videos have hashes of the same number of frames")
    signs = np.zeros((len(videos), num_frames, BITS), dtype=np.float32)
    for row, video in zip(signs, videos, strict=True):
        for frame, text in zip(row, video.hashes, strict=True):
            if text:
                frame[:] = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)).astype(np.float32) * 2 - 1
    structured = (signs[:, :, 0] != 0).astype(np.float32)
    durations_s = np.array([video.duration_s for video in videos], dtype=np.float64)
    return Looks(signs.reshape(len(videos), num_frames * BITS), structured, _spreads(signs, structured), durations_s)


def _spreads(signs: np.ndarray, structured: np.ndarray) -> np.ndarray:
    """float64 [N] from [N, F, 64] and [N, F]. The dot product of two hashes is 64 - 2 x (bits that differ)."""
    counts = structured.sum(1, dtype=np.float64)
    pairs = counts * (counts - 1)
    dots = np.square(signs.sum(1, dtype=np.float64)).sum(1) - counts * BITS  # over all pairs of different frames
    return np.where(pairs > 0, (BITS - dots / np.maximum(pairs, 1)) / 2, 0.0)


def same(left: Looks, right: Looks, max_distance: float) -> np.ndarray:
    """bool [L, R]: which videos of one are which of the other, by the rules at the head of this module."""
    both = left.structured @ right.structured.T
    either = left.structured.sum(1)[:, None] + right.structured.sum(1)[None, :] - both
    distances = (BITS * both - left.signs @ right.signs.T) / 2 + (either - both) * (BITS / 2)
    distances /= np.maximum(either, 1)
    spread = np.minimum(left.spreads[:, None], right.spreads[None, :])
    limit = np.minimum(max_distance, np.maximum(STILL_BITS, SHARE_OF_SPREAD * spread))
    longer = np.maximum(left.durations_s[:, None], right.durations_s[None, :])
    apart = np.abs(left.durations_s[:, None] - right.durations_s[None, :])
    enough = both >= max(1, left.structured.shape[1] / 4)
    return np.asarray(enough & (distances <= limit) & (apart <= np.maximum(DURATION_S, DURATION_SHARE * longer)))


def first_same(looks: Looks, others: Looks, max_distance: float) -> np.ndarray:
    """int64 [N]: for each video the first of the others that is the same; -1 where none is."""
    found = np.full(len(looks), -1, dtype=np.int64)
    if len(others):
        for block in blocks(len(looks)):
            found[block] = _first_true(same(looks[block], others, max_distance))
    return found


def first_same_before(looks: Looks, max_distance: float) -> np.ndarray:
    """int64 [N]: for each video the first before it that is the same and was kept, that is, has -1 itself; -1 where none is."""
    found = np.full(len(looks), -1, dtype=np.int64)
    for block in blocks(len(looks)):
        equal = same(looks[block], looks[: block.stop], max_distance)
        before = equal[:, : block.start] & (found[: block.start] == -1)
        found[block] = _first_true(before) if block.start else -1
        for number in range(block.start, block.stop):
            earlier = np.flatnonzero(equal[number - block.start, block.start : number] & (found[block.start : number] == -1))
            if found[number] == -1 and len(earlier):
                found[number] = block.start + earlier[0]
    return found


def _first_true(table: np.ndarray) -> np.ndarray:
    """int64 [N] from bool [N, M], M >= 1: the first column of each row that holds; -1 where none does."""
    return np.where(table.any(1), table.argmax(1), -1)


def blocks(count: int) -> Iterator[slice]:
    """0..count in slices of BLOCK at most."""
    yield from (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
