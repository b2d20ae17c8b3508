"""Encoding the videos of a batch together: each rank decodes and encodes some chunks, embeddings travel, pixels never do.

    batch = Encoder(model, groups_per_chunk, axis, phases).encode(videos)   # every rank of the axis, the same videos in the same order
    batch.gather()              # VideoTokens of each video on every rank, or the error of one that failed, the same on all ranks
    batch.pieces(needs)         # or only the rows that each rank's part of the sequence needs
    batch.backward(gradients)   # trained tower: the gradient of each frame is computed once, on the rank that encoded it

Chunks are those of an unsharded encoding (chunks.py), so the bits are the same on any number of ranks. On an axis of one rank nothing is
sent. A tower that is itself sharded over ranks must run equally often on all of them (`equal_calls`): missing turns are idle passes.

Shapes: V tokens of a video, L of them encoded on this rank, D model width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from longtake.errors import LongtakeError, PathError, PromptTooLongError, VideoError
from longtake.models.family import Model
from longtake.observe.timing import Phases
from longtake.parallel.chunks import Chunk, Range, VideoSize, assign_chunks, rows_by_rank
from longtake.parallel.collectives import gather_texts
from longtake.parallel.encode_records import Record, error_of, error_record, facts_of, frames_record
from longtake.parallel.mesh import Axis
from longtake.parallel.rows import Needs, collect_gradients, send_rows
from longtake.types import FrameFacts, Frames, VideoTokens

FAILURES = (VideoError, PathError, PromptTooLongError)
"""What a video may raise; it then fails on every rank, and the others go on."""
Features = tuple[Tensor, ...]
"""Embeddings, then the deepstack features of the same shape, if any."""


class Video(Protocol):
    """One video as the encoder asks for it."""

    def size(self) -> VideoSize:
        """Found without decoding, on one rank only. Raises one of FAILURES."""
        ...

    def load(self, start: int, stop: int) -> Frames:
        """The frames of temporal groups start..stop. Raises one of FAILURES."""
        ...


@dataclass(eq=False)
class OwnPart:
    """What this rank encoded of one video."""

    chunks: list[Chunk]
    features: Features = ()
    """[L, D] each, without gradient, on the CPU."""
    graphs: list[Features] = field(default_factory=list)
    """What the tower gave for each chunk, with its graph; empty where graphs are not held."""
    record: Record = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedVideo:
    """A video that was encoded, wherever its rows lie."""

    facts: FrameFacts
    size: VideoSize
    held: list[Range]
    """The rows that each rank encoded."""
    width: int
    """D."""
    dtype: torch.dtype
    num_features: int
    """1, and one more for each layer of deepstack."""


@dataclass(frozen=True)
class Encoder:
    """Every rank of `axis` makes one with the same settings, and calls it equally often."""

    model: Model
    groups_per_chunk: int
    axis: Axis
    phases: Phases
    hold_graphs: bool = False
    """Keep the tower's graph in memory for `backward`. Without it `backward` loads and runs each chunk again, one at a time."""
    equal_calls: bool = False

    def encode(self, videos: Sequence[Video]) -> EncodedBatch:
        """Each video once."""
        sizes = self._sizes(videos)
        good = [video for video, size in enumerate(sizes) if isinstance(size, VideoSize)]
        assigned = assign_chunks([size for size in sizes if isinstance(size, VideoSize)], self.groups_per_chunk, self.axis.size)
        chunks = [[Chunk(good[chunk.video], chunk.start, chunk.stop) for chunk in own] for own in assigned]
        parts, idle = self._run(videos, chunks)
        told = gather_texts(json.dumps({video: part.record for video, part in parts.items()}), self.axis)
        records = [{int(video): record for video, record in json.loads(text).items()} for text in told]
        results: list[EncodedVideo | LongtakeError] = []
        for video, size in enumerate(sizes):
            if isinstance(size, VideoSize):
                held = rows_by_rank(size, video, chunks)
                results.append(_result(size, held, [record[video] for record in records if video in record]))
            else:
                results.append(size)
        return EncodedBatch(self, videos, results, parts, chunks, idle)

    def _sizes(self, videos: Sequence[Video]) -> list[VideoSize | LongtakeError]:
        """Each video is looked at by one rank, which tells the others."""
        found: dict[int, Record] = {}
        for video in range(self.axis.rank, len(videos), self.axis.size):
            try:
                found[video] = asdict(videos[video].size())
            except FAILURES as error:
                found[video] = error_record(error)
        told = {int(video): record for text in gather_texts(json.dumps(found), self.axis) for video, record in json.loads(text).items()}
        return [error_of(told[video]) or VideoSize(**told[video]) for video in range(len(videos))]

    def _run(self, videos: Sequence[Video], chunks: list[list[Chunk]]) -> tuple[dict[int, OwnPart], list[Features]]:
        """Decode and encode this rank's chunks, one video after the other. Also the graphs of its idle passes."""
        parts: dict[int, OwnPart] = {}
        for chunk in chunks[self.axis.rank]:
            parts.setdefault(chunk.video, OwnPart([])).chunks.append(chunk)
        done = 0
        for video, part in parts.items():
            try:
                frames = videos[video].load(part.chunks[0].start, part.chunks[-1].stop)
            except FAILURES as error:
                part.record = error_record(error)
                continue
            with self.phases("encode"), self.tower_trains(self.hold_graphs):
                self._encode_part(part, frames)
            done += len(part.chunks)
        return parts, self.idle_passes(max(map(len, chunks)) - done, gradients=self.hold_graphs)

    def _encode_part(self, part: OwnPart, frames: Frames) -> None:
        outputs = [self.model.encode_chunk(pixels, self.hold_graphs) for pixels in self.pixels_of(part.chunks, frames)]
        part.graphs = outputs if self.hold_graphs else []
        part.features = tuple(torch.cat([tensor.detach() for tensor in pieces]).cpu() for pieces in zip(*outputs, strict=True))
        dtype = str(part.features[0].dtype).removeprefix("torch.")
        part.record = frames_record(frames) | {"width": part.features[0].shape[1], "dtype": dtype, "num_features": len(part.features)}

    def pixels_of(self, chunks: Sequence[Chunk], frames: Frames) -> Iterator[np.ndarray]:
        """uint8 [F, Y, X, 3] of each chunk, out of the frames of all of them."""
        for chunk in chunks:
            start, stop = ((group - chunks[0].start) * self.model.temporal_patch for group in (chunk.start, chunk.stop))
            yield frames.pixels[start:stop]

    def idle_passes(self, count: int, *, gradients: bool) -> list[Features]:
        """The tower on the smallest video there is, where its collectives need the turn; the graphs, where gradients are wanted."""
        if not self.equal_calls:
            return []
        shape = (self.model.temporal_patch, self.model.patch_multiple, self.model.patch_multiple, 3)
        with self.tower_trains(gradients):
            outputs = [self.model.encode_chunk(np.zeros(shape, np.uint8), gradients) for _ in range(count)]
        self.model.groups_encoded -= count  # no video had them
        return outputs if gradients else []

    @contextmanager
    def tower_trains(self, gradients: bool) -> Iterator[None]:
        """Train mode where a graph is wanted: a tower set to checkpoint its layers does so only then. It has no dropout."""
        tower = self.model.hf.model.visual
        tower.train(gradients)
        try:
            yield
        finally:
            tower.eval()


@dataclass(frozen=True)
class EncodedBatch:
    """The videos of one `encode`. Its methods are collectives too."""

    encoder: Encoder
    videos: Sequence[Video]
    results: list[EncodedVideo | LongtakeError]
    parts: dict[int, OwnPart]
    chunks: list[list[Chunk]]
    idle: list[Features]

    def gather(self, receivers: Sequence[int] | None = None) -> list[VideoTokens | LongtakeError | None]:
        """The whole of each video on the ranks of the axis that receive (None: all), None on the others; an error on all."""
        found: list[VideoTokens | LongtakeError | None] = []
        for video, result in enumerate(self.results):
            if isinstance(result, LongtakeError):
                found.append(result)
                continue
            features = self._send(video, result, self._whole(result, receivers))
            found.append(self.encoder.model.assemble(features, result.facts, self.encoder.groups_per_chunk) if features else None)
        return found

    def pieces(self, needs: Sequence[Needs]) -> list[list[Features]]:
        """needs[i][rank] are ranges of rows of video i; returns for each video the features [n, D] of each range of this rank."""
        return [
            [] if isinstance(result, LongtakeError) else self._send(video, result, needs[video])
            for video, result in enumerate(self.results)
        ]

    def backward(self, gradients: Sequence[Sequence[Features] | None], needs: Sequence[Needs] | None = None) -> None:
        """Add to the tower's gradients what these gradients of its embeddings make of them, as far as this rank encoded them.

        gradients[i]: for each range of rows that this rank was given of video i (by default the whole), its features' gradients [n, D];
        None where it has none. The gradients of all ranks are summed. What is left in the parameters is this rank's share: the shares
        of all ranks add up. Weights must be those that encoded.
        """
        told = gather_texts(json.dumps([gradient is not None for gradient in gradients]), self.encoder.axis)
        flags = [json.loads(text) for text in told]
        learning = [video for video in range(len(self.results)) if any(own[video] for own in flags)]
        turns = max(sum(chunk.video in learning for chunk in own) for own in self.chunks)
        own_gradients: dict[int, Features] = {}
        for video in learning:
            result = self.results[video]
            if isinstance(result, LongtakeError):
                raise ValueError(f"video {video} failed ({result}), so it has no embeddings and no gradient")
            asked = self._whole(result, None) if needs is None else needs[video]
            present = [own if flags[rank][video] else () for rank, own in enumerate(asked)]
            own_gradients[video] = self._collect(result, gradients[video] or (), present)
        # Only now: a sharded tower exchanges in its passes, of which ranks have different numbers for a video and equally many in all.
        turns -= sum(self._run_backward(video, found) for video, found in own_gradients.items() if video in self.parts)
        self._idle_backward(turns, learning)

    def _whole(self, result: EncodedVideo, receivers: Sequence[int] | None) -> list[list[Range]]:
        ranks = range(self.encoder.axis.size)
        return [[(0, result.size.num_tokens)] if receivers is None or rank in receivers else [] for rank in ranks]

    def _send(self, video: int, result: EncodedVideo, needs: Needs) -> list[Features]:
        part = self.parts.get(video)
        own = part.features if part else tuple(torch.empty(0, result.width, dtype=result.dtype) for _ in range(result.num_features))
        with self.encoder.phases("encode"):
            columns = [send_rows(rows, result.held, needs, self.encoder.axis) for rows in own]
        return list(zip(*columns, strict=True))

    def _collect(self, result: EncodedVideo, gradients: Sequence[Features], needs: Needs) -> Features:
        """The gradient [L, D] of this rank's own rows, for each feature."""
        like = torch.empty(0, result.width, dtype=result.dtype, device=self.encoder.model.device)
        columns = list(zip(*gradients, strict=True)) or [()] * result.num_features
        with self.encoder.phases("encode"):
            return tuple(collect_gradients(column, result.held, needs, self.encoder.axis, like) for column in columns)

    def _run_backward(self, video: int, gradients: Features) -> int:
        """Backward through this rank's chunks of a video; returns how many they are."""
        part, encoder = self.parts[video], self.encoder
        rows = [len(gradients[0]) * (chunk.stop - chunk.start) // _num_groups(part.chunks) for chunk in part.chunks]
        by_chunk = list(zip(*(gradient.split(rows) for gradient in gradients), strict=True))
        frames = None if part.graphs else self.videos[video].load(part.chunks[0].start, part.chunks[-1].stop)
        with encoder.phases("encode"), encoder.tower_trains(True):
            if frames is None:
                for output, gradient in zip(part.graphs, by_chunk, strict=True):
                    torch.autograd.backward(output, gradient)
                part.graphs = []
            else:
                for pixels, gradient in zip(encoder.pixels_of(part.chunks, frames), by_chunk, strict=True):
                    torch.autograd.backward(encoder.model.encode_chunk(pixels, True), gradient)
        return len(part.chunks)

    def _idle_backward(self, count: int, learning: Sequence[int]) -> None:
        """Backward with a gradient of 0, where the tower's collectives need the turn: first through held graphs that nobody wants."""
        if not self.encoder.equal_calls:
            return
        unused = [graph for video, part in self.parts.items() if video not in learning for graph in part.graphs]
        held = [*self.idle, *unused] if self.encoder.hold_graphs else self.encoder.idle_passes(count, gradients=True)
        for output in held[:count]:
            torch.autograd.backward(output, tuple(torch.zeros_like(tensor) for tensor in output))


def _result(size: VideoSize, held: list[Range], records: Sequence[Record]) -> EncodedVideo | LongtakeError:
    facts = facts_of(records)
    if isinstance(facts, LongtakeError):
        return facts
    first = records[0]
    return EncodedVideo(facts, size, held, first["width"], getattr(torch, first["dtype"]), first["num_features"])


def _num_groups(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.stop - chunk.start for chunk in chunks)
