"""Videos and images as the language model sees them: decoded once and encoded once while the cache holds them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from longtake.config.sections import VideoConfig
from longtake.data.embedding_cache import EmbeddingCache
from longtake.data.prefetch import Ahead, Prefetch
from longtake.data.prepared_videos import ALONE, LiveBatch, PlannedVideo, as_leaf, first_writes, missing_anywhere
from longtake.data.token_folder import Answer
from longtake.errors import LongtakeError, VideoDamagedError, VideoError
from longtake.models.family import Model
from longtake.models.positions import time_step
from longtake.observe.digest import digest_of
from longtake.observe.timing import Phases
from longtake.parallel.chunks import VideoSize, assign_chunks
from longtake.parallel.encode import EncodedBatch, Encoder
from longtake.parallel.mesh import Axis
from longtake.types import FrameFacts, Frames, MediaKind, VideoRef, VideoTokens
from longtake.video.decode import DECODER, load_frames
from longtake.video.image import IMAGE_DECODER, image_size, load_image, probe_image
from longtake.video.probe import probe
from longtake.video.sample import plan_frames

logger = logging.getLogger(__name__)


class VideoSource:
    """Serves the `VideoTokens` of video and image files, for one model and one way of sampling. Several sources may share a cache.

    Looked up first is the request: the digest of the file's bytes, the sampling, the decoder, the model's side. A request answered before,
    in this process or by another that filled the same folder, needs no decoding. A frozen tower: embeddings are kept. A trained
    tower: frames are kept, and embeddings only until its weights change.

    `axis`: ranks that encode together what `prepare` is told, each some chunks of each video (data.prepared_videos).
    `hold_graphs`: a trained tower keeps its graph from `prepare` to `backward`; otherwise its chunks run again there, one at a time.
    """

    def __init__(
        self,
        model: Model,
        config: VideoConfig,
        phases: Phases,
        cache: EmbeddingCache | None = None,
        *,
        axis: Axis = ALONE,
        hold_graphs: bool = True,
        prefetch_bytes: int = 0,
    ) -> None:
        if config.max_pixels_per_frame is None:
            config = config.model_copy(update={"max_pixels_per_frame": max(model.max_pixels_per_frame, config.min_pixels_per_frame)})
        self._model, self._config, self._phases = model, config, phases
        self.cache = EmbeddingCache() if cache is None else cache
        sampling = config.model_dump_json(exclude={"encode_groups"})
        image = (config.min_pixels_per_frame, config.max_pixels_per_frame, config.limits.model_dump_json())
        self._frames_settings: dict[MediaKind, str] = {
            "video": digest_of("frames 1", sampling, DECODER, model.patch_multiple, model.temporal_patch),
            "image": digest_of("image frames 1", image, IMAGE_DECODER, model.patch_multiple, model.temporal_patch),
        }
        self._counts: Counter[str] = Counter()
        self._noted: set[str] = set()
        self._max_deviation_s = 0.0
        self._axis, self._hold_graphs = axis, hold_graphs
        self._prepared: dict[str, VideoTokens | LongtakeError] = {}
        self._live: list[LiveBatch] = []
        self._ahead = Prefetch(prefetch_bytes)

    def prefetch(self, refs: Sequence[VideoRef]) -> None:
        """Begin to decode what the next `prepare` or `tokens` of these videos will want of this process; never more than the budget."""
        missing = {request: ref for ref in refs if not self.cache.has(request := self._request(ref))}
        if missing:
            self._ahead.start(partial(self._plan_ahead, list(missing.values())))
        else:
            self._ahead.stop()

    def close(self, *, wait: bool = True) -> None:
        """End the thread that decodes ahead."""
        self._ahead.stop(wait=wait)

    def prepare(self, refs: Sequence[VideoRef], *, again: bool = False) -> None:
        """Encode what is not there yet, all ranks of the axis together; every rank calls this with the same videos.

        A frozen tower in one process has no use for it. A trained tower: the tokens collect gradients until `backward`; `again`: the
        weights have moved, so even what was prepared is encoded anew. A video that fails is an error of `tokens`, on every rank.
        """
        if self._axis.size == 1 and not self._model.train_vision:
            return
        wanted = {self._request(ref): ref for ref in refs}
        if not again:
            wanted = {request: ref for request, ref in wanted.items() if request not in self._prepared}
        if self._model.train_vision:
            self._prepare_live(wanted)
            return
        for request, ref in wanted.items():
            found = self.cache.find(request)
            if found is not None:
                self._note(ref, found[1])
                self._prepared[request] = found[0]
        missing = missing_anywhere(list(wanted), [request for request in wanted if request not in self._prepared], self._axis)
        todo = {request: ref for request, ref in wanted.items() if request in missing}
        if todo:
            self._prepare_frozen(todo)

    def backward(self) -> None:
        """Trained tower: what losses left in the prepared tokens goes on into its weights. Shares of all ranks add up."""
        for live in self._live:
            live.backward()
        self._live.clear()

    def release(self) -> None:
        """Let go of what was prepared."""
        self._prepared.clear()
        self._live.clear()

    def tokens(self, ref: VideoRef) -> VideoTokens:
        """The tokens of one video. Raises VideoError (counted); nothing ever stands in for a video that fails."""
        tower, request = self._tower(), self._request(ref)
        prepared = self._prepared.get(request)
        if isinstance(prepared, LongtakeError):
            raise prepared
        if prepared is not None:
            return prepared
        found = self.cache.find(request)
        if found is not None:
            self._note(ref, found[1])
            return found[0]
        frames = self._load(ref)
        answer = self._answer(frames.facts)
        self._note(ref, answer)
        tokens = self.cache.get(answer.tokens)
        if tokens is not None:  # another sampling chose the same frames
            self.cache.remember(request, answer, tower)
            return tokens
        return self.cache.put(request, self._encode(frames), answer, tower)

    def num_tokens(self, ref: VideoRef) -> int:
        """V, found without decoding the file; 0 where it cannot be read, which is told when its turn comes."""
        size = self._size_or_none(ref)
        return 0 if size is None else size.num_tokens

    def is_stored(self, ref: VideoRef) -> bool:
        """Whether the cache's folder has the tokens of this video already."""
        return self.cache.holds(self._request(ref))

    def metrics(self) -> dict[str, float]:
        """Counts since the start, and how far real frame times were from the equal spacing the family assumes; with the cache's own."""
        names = ("decoded", "encoded", "failed", "reduced", "frames_decoded")
        counts = {f"video/{name}": float(self._counts[name]) for name in names}
        groups = {"encode/groups": float(self._model.groups_encoded), "video/prefetched": float(self._ahead.taken)}
        return counts | groups | {"video/max_time_deviation_s": self._max_deviation_s} | self.cache.metrics()

    def _request(self, ref: VideoRef) -> str:
        settings = self._frames_settings[ref.kind]
        return digest_of("video request 1", ref.digest, settings, self._model.encoder_digest(self._config.encode_groups))

    def _prepare_frozen(self, todo: dict[str, VideoRef]) -> None:
        """Each rank keeps every video of the step; with a folder that all share, the first writes and the others map its files."""
        batch = self._encode_together(todo, hold_graphs=False)
        found = dict(zip(todo, zip(batch.gather(), batch.results, strict=True), strict=True))

        def keep() -> None:
            for request, (tokens, result) in found.items():
                if tokens is None or isinstance(tokens, LongtakeError) or isinstance(result, LongtakeError):
                    continue
                answer = self._answer(result.facts)
                self._note(todo[request], answer)
                stored = self.cache.find(request)
                self._prepared[request] = stored[0] if stored is not None else self.cache.put(request, tokens, answer)

        first_writes(keep, self._axis)
        self._keep_errors(todo, batch)

    def _prepare_live(self, todo: dict[str, VideoRef]) -> None:
        batch = self._encode_together(todo, hold_graphs=self._hold_graphs)
        leaves = [as_leaf(tokens) if isinstance(tokens, VideoTokens) else None for tokens in batch.gather()]
        for (request, ref), leaf, result in zip(todo.items(), leaves, batch.results, strict=True):
            if leaf is not None and not isinstance(result, LongtakeError):
                self._note(ref, self._answer(result.facts))
                self._prepared[request] = leaf
        self._keep_errors(todo, batch)
        self._live.append(LiveBatch(batch, leaves))

    def _keep_errors(self, todo: dict[str, VideoRef], batch: EncodedBatch) -> None:
        """Counted on the first rank alone: metrics add up over ranks."""
        failed = {request: result for request, result in zip(todo, batch.results, strict=True) if isinstance(result, LongtakeError)}
        self._prepared.update(failed)
        if self._axis.rank == 0:
            self._counts["failed"] += len(failed)
            self._counts["encoded"] += len(todo) - len(failed)

    def _encode_together(self, todo: dict[str, VideoRef], *, hold_graphs: bool) -> EncodedBatch:
        cut = self._model.root is not None and self._model.train_vision  # a tower that is sharded runs equally often on all ranks
        encoder = Encoder(self._model, self._config.encode_groups, self._axis, self._phases, hold_graphs, equal_calls=cut)
        return encoder.encode([PlannedVideo(partial(self._size, ref), partial(self._load_part, ref)) for ref in todo.values()])

    def _size(self, ref: VideoRef) -> VideoSize:
        _refuse_changed(ref)
        if ref.kind == "image":
            height, width = image_size(probe_image(ref.path, self._config.limits), self._config, self._model.patch_multiple)
            return VideoSize(1, height * width // self._model.patch_multiple**2)
        info = probe(ref.path, self._config.limits)
        plan = plan_frames(info, self._config, self._model.patch_multiple, self._model.temporal_patch)
        num_groups = plan.num_frames // self._model.temporal_patch
        return VideoSize(num_groups, plan.num_tokens // num_groups)

    def _load_part(self, ref: VideoRef, start: int, stop: int) -> Frames:
        """Frames of temporal groups start..stop."""
        key = self._key(ref, (start, stop))
        kept: Frames | None = self.cache.kept(key)
        if kept is not None:
            return kept
        with self._phases("decode"):
            frames = self._ahead.take(key) or self._decode(ref, (start, stop))
        self._counts["decoded"] += start == 0
        self._counts["frames_decoded"] += frames.num_decoded
        if self._model.train_vision:
            self.cache.keep(key, frames, frames.pixels.nbytes)
        return frames

    def _encode(self, frames: Frames) -> VideoTokens:
        with self._phases("encode"):
            tokens = self._model.encode(frames, self._config.encode_groups)
        self._counts["encoded"] += 1
        return tokens

    def _plan_ahead(self, refs: Sequence[VideoRef]) -> Iterator[Ahead]:
        """Whole videos, or with several ranks the chunks that this one will encode if all of `refs` are missing."""
        sizes = {ref: size for ref in refs if (size := self._size_or_none(ref)) is not None}
        if self._axis.size == 1 and not self._model.train_vision:
            for ref, size in sizes.items():
                yield Ahead(self._key(ref), self._frame_bytes(size, size.num_groups), partial(self._decode, ref))
            return
        own = assign_chunks(list(sizes.values()), self._config.encode_groups, self._axis.size)[self._axis.rank]
        for number, (ref, size) in enumerate(sizes.items()):
            chunks = [chunk for chunk in own if chunk.video == number]
            part = (chunks[0].start, chunks[-1].stop) if chunks else (0, 0)
            if chunks and self.cache.kept(self._key(ref, part)) is None:
                yield Ahead(self._key(ref, part), self._frame_bytes(size, part[1] - part[0]), partial(self._decode, ref, part))

    def _size_or_none(self, ref: VideoRef) -> VideoSize | None:
        try:
            return self._size(ref)
        except LongtakeError:
            return None  # told when its turn comes

    def _frame_bytes(self, size: VideoSize, num_groups: int) -> int:
        return num_groups * self._model.temporal_patch * size.tokens_per_group * self._model.patch_multiple**2 * 3

    def _key(self, ref: VideoRef, groups: tuple[int, int] | None = None) -> str:
        name = f"frames {digest_of(ref.digest, self._frames_settings[ref.kind])}"
        return name if groups is None else f"{name} {groups[0]} {groups[1]}"

    def _decode(self, ref: VideoRef, groups: tuple[int, int] | None = None) -> Frames:
        """By the main thread or by the one ahead of it."""
        _refuse_changed(ref)
        patches = self._model.patch_multiple, self._model.temporal_patch
        frames = load_image(ref, self._config, *patches) if ref.kind == "image" else load_frames(ref, self._config, *patches, groups=groups)
        _refuse_changed(ref)
        return frames

    def _load(self, ref: VideoRef) -> Frames:
        key = self._key(ref)
        kept: Frames | None = self.cache.kept(key)
        if kept is not None:
            return kept
        try:
            with self._phases("decode"):
                frames = self._ahead.take(key) or self._decode(ref)
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

    def _answer(self, facts: FrameFacts) -> Answer:
        _, deviation_s = time_step(facts.times_s, self._model.temporal_patch)
        digest = self._model.tokens_digest(facts, self._config.encode_groups)
        return Answer(digest, facts.sampling.reduced, deviation_s)

    def _note(self, ref: VideoRef, answer: Answer) -> None:
        """Once per video and source, whether it was decoded now or is in the cache from before."""
        if ref.digest in self._noted:
            return
        self._noted.add(ref.digest)
        self._counts["reduced"] += answer.reduced and self._axis.rank == 0  # metrics add up over ranks
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
