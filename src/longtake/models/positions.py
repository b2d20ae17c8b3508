"""Three-axis rotary positions of the Qwen2.5-VL family, by its PUBLISHED rule, and the time step of a video.

Ours because transformers 5.3 - 5.23 `get_rope_index` starts the text behind a video at `start + max(grid_h, grid_w) / merge`, inside
the video's own time range; the published rule (and vLLM's) is the largest position so far + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from longtake.errors import ModelError
from longtake.types import MediaKind

Grid = tuple[int, int, int]
"""(temporal groups, patch rows, patch columns), before spatial merging."""


class Shape(Protocol):
    """What positions need to know of a video or an image: `VideoTokens` is one."""

    @property
    def kind(self) -> MediaKind: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def seconds_per_grid(self) -> float: ...


def num_video_tokens(grid: Grid, merge: int) -> int:
    """V: tokens the language model sees of a video with this grid."""
    groups, rows, columns = grid
    return groups * (rows // merge) * (columns // merge)


def mrope_positions(
    token_ids: Sequence[int],
    media: Sequence[Shape],
    *,
    placeholder_ids: Mapping[MediaKind, int],
    merge: int,
    tokens_per_second: float,
) -> tuple[torch.Tensor, int]:
    """Positions (time, row, column) of a prompt whose placeholders are expanded.

    Text counts on from the largest position so far + 1, equal on all axes. A video that starts at s has, for group g, row y and
    column x of merged patches: (s + floor(g * tokens_per_second * seconds_per_grid), s + y, s + x). The product is taken in
    float64, as vLLM does. An image is a video of one group.

    Returns int64 [3, P] and the position of the first token after the prompt. Raises ModelError when placeholders and media disagree.
    """
    pieces: list[np.ndarray] = []
    cursor = position = 0
    spans = media_spans(token_ids, media, placeholder_ids, merge)
    for (start, stop), one in zip(spans, media, strict=True):
        pieces.append(_text(start - cursor, position))
        position += start - cursor
        video = _video(one.grid, one.seconds_per_grid * tokens_per_second, merge) + position
        pieces.append(video)
        position, cursor = int(video.max()) + 1, stop
    pieces.append(_text(len(token_ids) - cursor, position))
    return torch.from_numpy(np.concatenate(pieces, axis=1)), position + len(token_ids) - cursor


def media_spans(
    token_ids: Sequence[int], media: Sequence[Shape], placeholder_ids: Mapping[MediaKind, int], merge: int
) -> list[tuple[int, int]]:
    """Where the placeholders of each video and image lie, [start, stop). Raises ModelError when they do not fit them."""
    ids = np.asarray(token_ids, dtype=np.int64)
    runs = sorted((start, stop, kind) for kind, placeholder in placeholder_ids.items() for start, stop in _runs(ids == placeholder))
    found = [(stop - start, kind) for start, stop, kind in runs]
    wanted = [(num_video_tokens(one.grid, merge), one.kind) for one in media]
    if found != wanted:
        raise ModelError(
            f"a prompt with {_listed(found)} placeholders for media of {_listed(wanted)} tokens",
            rule="each video or image has one unbroken run of as many of its own placeholders as it has tokens",
            remedy="expand the placeholders of the rendered prompt with the grids of its own media",
        )
    return [(start, stop) for start, stop, _ in runs]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each unbroken run of True in bool [T]."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _listed(sizes: Sequence[tuple[int, MediaKind]]) -> str:
    return ", ".join(f"{size} {kind}" for size, kind in sizes) or "no"


def time_step(times_s: np.ndarray, temporal_patch: int) -> tuple[float, float]:
    """Seconds between temporal groups, and by how much real times deviate from equal spacing (seconds, largest |difference|).

    The family knows ONE spacing per video: the mean spacing of the chosen times, times `temporal_patch`, rounded to float32 (what
    vLLM receives). A video of one frame has no spacing; it has one group, at time 0, so any value gives the same positions.
    """
    if len(times_s) < 2:
        return 0.0, 0.0
    times = times_s.astype(np.float64)
    mean = (times[-1] - times[0]) / (len(times) - 1)
    deviation = np.abs(times - (times[0] + mean * np.arange(len(times)))).max()
    return float(np.float32(mean * temporal_patch)), float(deviation)


def _text(length: int, start: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int64), (3, length))


def _video(grid: Grid, steps_per_group: float, merge: int) -> np.ndarray:
    groups, rows, columns = grid
    positions = np.indices((groups, rows // merge, columns // merge), dtype=np.int64).reshape(3, -1)
    positions[0] = np.floor(positions[0] * steps_per_group).astype(np.int64)
    return positions
