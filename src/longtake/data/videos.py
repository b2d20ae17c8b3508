"""Videos as the language model sees them: decoded once and encoded once while the cache holds them."""

from __future__ import annotations

import logging
from collections import Counter

from longtake.config.sections import VideoConfig
from longtake.data.embedding_cache import EmbeddingCache
from longtake.data.token_folder import Answer
from longtake.errors import VideoDamagedError, VideoError
from longtake.models.family import Model
from longtake.models.positions import time_step
from longtake.observe.digest import digest_of
from longtake.observe.timing import Phases
from longtake.types import Frames, VideoRef, VideoTokens
from longtake.video.decode import DECODER, load_frames

logger = logging.getLogger(__name__)


class VideoSource:
    """Serves the `VideoTokens` of video files, for one model and one way of sampling. Several sources may share a cache.

    Looked up first is the request: the digest of the file's bytes, the sampling, the decoder, the model's side. A request answered before,
    in this process or by another that filled the same folder, needs no decoding. A frozen tower: embeddings are kept. A trained
    tower: frames are kept, and embeddings only until its weights change.
    """

    def __init__(self, model: Model, config: VideoConfig, phases: Phases, cache: EmbeddingCache | None = None) -> None:
        if config.max_pixels_per_frame is None:
            config = config.model_copy(update={"max_pixels_per_frame": max(model.max_pixels_per_frame, config.min_pixels_per_frame)})
        self._model, self._config, self._phases = model, config, phases
        self.cache = EmbeddingCache() if cache is None else cache
        sampling = config.model_dump_json(exclude={"encode_groups"})
        self._frames_settings = digest_of("frames 1", sampling, DECODER, model.patch_multiple, model.temporal_patch)
        self._counts: Counter[str] = Counter()
        self._noted: set[str] = set()
        self._max_deviation_s = 0.0

    def tokens(self, ref: VideoRef, *, gradients: bool = False) -> VideoTokens:
        """The tokens of one video. Raises VideoError (counted); nothing ever stands in for a video that fails.

        `gradients`: encode now, with the graph of the tower, and keep nothing of it; for the update of a trained tower.
        """
        if gradients:
            return self._encode(self._load(ref), gradients=True)
        tower, request = self._tower(), self._request(ref)
        found = self.cache.find(request)
        if found is not None:
            self._note(ref, found[1])
            return found[0]
        frames = self._load(ref)
        answer = self._answer(frames)
        self._note(ref, answer)
        tokens = self.cache.get(answer.tokens)
        if tokens is not None:  # another sampling chose the same frames
            self.cache.remember(request, answer, tower)
            return tokens
        return self.cache.put(request, self._encode(frames), answer, tower)

    def is_stored(self, ref: VideoRef) -> bool:
        """Whether the cache's folder has the tokens of this video already."""
        return self.cache.holds(self._request(ref))

    def metrics(self) -> dict[str, float]:
        """Counts since the start, and how far real frame times were from the equal spacing the family assumes; with the cache's own."""
        names = ("decoded", "encoded", "failed", "reduced", "frames_decoded")
        counts = {f"video/{name}": float(self._counts[name]) for name in names}
        groups = {"encode/groups": float(self._model.groups_encoded)}
        return counts | groups | {"video/max_time_deviation_s": self._max_deviation_s} | self.cache.metrics()

    def _request(self, ref: VideoRef) -> str:
        return digest_of("video request 1", ref.digest, self._frames_settings, self._model.encoder_digest(self._config.encode_groups))

    def _encode(self, frames: Frames, *, gradients: bool = False) -> VideoTokens:
        with self._phases("encode"):
            tokens = self._model.encode(frames, self._config.encode_groups, gradients=gradients)
        self._counts["encoded"] += 1
        return tokens

    def _load(self, ref: VideoRef) -> Frames:
        key = f"frames {digest_of(ref.digest, self._frames_settings)}"
        kept: Frames | None = self.cache.kept(key)
        if kept is not None:
            return kept
        try:
            with self._phases("decode"):
                _refuse_changed(ref)
                frames = load_frames(ref, self._config, self._model.patch_multiple, self._model.temporal_patch)
                _refuse_changed(ref)
        except VideoError:
            self._counts["failed"] += 1
            raise
        self._counts["decoded"] += 1
        self._counts["frames_decoded"] += frames.num_decoded
        if self._model.train_vision:
            self.cache.keep(key, frames, frames.pixels.nbytes)
        return frames

    def _tower(self) -> str | None:
        """The name of trained weights, after embeddings of all others are gone; None for weights as loaded."""
        if not self._model.train_vision:
            return None
        name = self._model.tower_digest()
        self.cache.drop_stale(name)
        return name if self._model.tower_has_changed() else None

    def _answer(self, frames: Frames) -> Answer:
        _, deviation_s = time_step(frames.times_s, self._model.temporal_patch)
        digest = self._model.tokens_digest(frames.facts, self._config.encode_groups)
        return Answer(digest, frames.sampling.reduced, deviation_s)

    def _note(self, ref: VideoRef, answer: Answer) -> None:
        """Once per video and source, whether it was decoded now or is in the cache from before."""
        if ref.digest in self._noted:
            return
        self._noted.add(ref.digest)
        self._counts["reduced"] += answer.reduced
        self._max_deviation_s = max(self._max_deviation_s, answer.deviation_s)
        if answer.deviation_s * self._model.tokens_per_second >= 1:
            logger.info(
                "%s: variable frame rate, times up to %.2f s from equal spacing; the family knows one spacing per video",
                ref.path.name,
                answer.deviation_s,
            )


def _refuse_changed(ref: VideoRef) -> None:
    """Raises VideoDamagedError when the file is no longer the one whose bytes were digested: its embeddings would be kept under a
    wrong key, for ever."""
    if ref.stamp is None:
        return
    try:
        status = ref.path.stat()
    except OSError:
        return  # the decoder says what is wrong with it
    if (status.st_size, status.st_mtime_ns) != ref.stamp:
        raise VideoDamagedError(
            f"{ref.path}: changed after its digest was taken", rule="videos do not change while they are used", remedy="start again"
        )
