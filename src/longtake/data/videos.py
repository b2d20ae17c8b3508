"""Videos as the language model sees them: decoded once and encoded once while the memory budget holds."""

from __future__ import annotations

import logging
from collections import Counter

from longtake.config.sections import VideoConfig
from longtake.errors import VideoError
from longtake.models.family import Model
from longtake.models.positions import time_step
from longtake.observe.timing import Phases
from longtake.types import Frames, VideoRef, VideoTokens
from longtake.video.decode import load_frames

logger = logging.getLogger(__name__)


class VideoSource:
    """Serves the `VideoTokens` of video files.

    Keys are the digest of the file's bytes and the digest of the tower's weights, never a name; the other settings are fixed per
    source. A frozen tower: embeddings are kept. A trained tower: frames are kept, and embeddings only until its weights change.
    A full memory keeps what it has: the passes of training scan all videos in turn, where dropping the oldest never hits.
    """

    def __init__(self, model: Model, config: VideoConfig, phases: Phases, memory_bytes: int = 4 << 30) -> None:
        if config.max_pixels_per_frame is None:
            config = config.model_copy(update={"max_pixels_per_frame": max(model.max_pixels_per_frame, config.min_pixels_per_frame)})
        self._model, self._config, self._phases = model, config, phases
        self._memory_bytes = memory_bytes
        self._frames: dict[str, Frames] = {}
        self._tokens: dict[str, VideoTokens] = {}
        self._tower = ""
        self._counts: Counter[str] = Counter()
        self._max_deviation_s = 0.0

    def tokens(self, ref: VideoRef, *, gradients: bool = False) -> VideoTokens:
        """The tokens of one video. Raises VideoError (counted); nothing ever stands in for a video that fails.

        `gradients`: encode now, with the graph of the tower, and keep nothing of it; for the update of a trained tower.
        """
        self._drop_stale()
        kept = None if gradients else self._tokens.get(ref.digest)
        if kept is not None:
            self._counts["hits"] += 1
            return kept
        self._counts["misses"] += 1
        frames = self._load(ref)
        with self._phases("encode"):
            tokens = self._model.encode(frames, self._config.encode_groups, gradients=gradients)
        self._counts["encoded"] += 1
        if not gradients and self._fits(_num_bytes(tokens)):
            self._tokens[ref.digest] = tokens
        return tokens

    def metrics(self) -> dict[str, float]:
        """Counts since the start, bytes held, and how far real frame times were from the equal spacing the family assumes."""
        names = ("hits", "misses", "decoded", "encoded", "failed", "reduced", "frames_decoded")
        counts = {f"video/{name}": float(self._counts[name]) for name in names}
        return counts | {"video/bytes_held": float(self.bytes_held), "video/max_time_deviation_s": self._max_deviation_s}

    @property
    def bytes_held(self) -> int:
        frames = sum(kept.pixels.nbytes for kept in self._frames.values())
        return frames + sum(_num_bytes(kept) for kept in self._tokens.values())

    def _load(self, ref: VideoRef) -> Frames:
        if ref.digest in self._frames:
            return self._frames[ref.digest]
        try:
            with self._phases("decode"):
                frames = load_frames(ref, self._config, self._model.patch_multiple, self._model.temporal_patch)
        except VideoError:
            self._counts["failed"] += 1
            raise
        self._counts["decoded"] += 1
        self._counts["frames_decoded"] += frames.num_decoded
        self._counts["reduced"] += frames.sampling.reduced
        self._note_deviation(ref, frames)
        if self._model.train_vision and self._fits(frames.pixels.nbytes):
            self._frames[ref.digest] = frames
        return frames

    def _drop_stale(self) -> None:
        """Embeddings of other weights than the tower's present ones are gone before anything is looked up."""
        tower = self._model.tower_digest()
        if tower != self._tower:
            self._tokens.clear()
            self._tower = tower

    def _fits(self, num_bytes: int) -> bool:
        return self.bytes_held + num_bytes <= self._memory_bytes

    def _note_deviation(self, ref: VideoRef, frames: Frames) -> None:
        _, deviation_s = time_step(frames.times_s, self._model.temporal_patch)
        self._max_deviation_s = max(self._max_deviation_s, deviation_s)
        if deviation_s * self._model.tokens_per_second >= 1:
            logger.info(
                "%s: variable frame rate, times up to %.2f s from equal spacing; the family knows one spacing per video",
                ref.path.name,
                deviation_s,
            )


def _num_bytes(tokens: VideoTokens) -> int:
    return sum(tensor.nbytes for tensor in (tokens.embeddings, *tokens.deepstack))
