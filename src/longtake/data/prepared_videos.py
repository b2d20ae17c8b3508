"""The videos of a step, encoded by all ranks together, and the way back for a tower that trains.

source.prepare(refs)      # every rank, the same videos: what some rank does not have is encoded once, its chunks shared out
source.tokens(ref)        # on every rank: the tokens, or the error of a video that failed
source.backward()         # trained tower: gradients that losses left in the tokens go on into the tower, on the rank that encoded them
source.release()          # the step is over
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longtake.errors import VideoDamagedError
from longtake.parallel.chunks import VideoSize
from longtake.parallel.collectives import gather_texts
from longtake.parallel.encode import EncodedBatch
from longtake.parallel.mesh import Axis
from longtake.types import Frames, VideoTokens

ALONE = Axis((0,), 0, None)
"""A process by itself."""


@dataclass(frozen=True)
class PlannedVideo:
    """Implements `parallel.encode.Video` for a file: what is sampled of it is decided by the source it belongs to."""

    plan: Callable[[], VideoSize]
    read: Callable[[int, int], Frames]

    def size(self) -> VideoSize:
        return self.plan()

    def load(self, start: int, stop: int) -> Frames:
        return self.read(start, stop)


@dataclass(frozen=True, eq=False)
class LiveBatch:
    """Videos that were encoded for an update of the tower, and the tokens that losses leave their gradients in."""

    batch: EncodedBatch
    leaves: list[VideoTokens | None]
    """None where the video failed."""

    def backward(self) -> None:
        """Every rank. A video in which no loss left a gradient gives none."""
        self.batch.backward([None if leaf is None else _gradients(leaf) for leaf in self.leaves])


def as_leaf(tokens: VideoTokens) -> VideoTokens:
    """The same tokens, collecting gradients."""
    first, *deepstack = (tensor.detach().requires_grad_() for tensor in (tokens.embeddings, *tokens.deepstack))
    return replace(tokens, embeddings=first, deepstack=tuple(deepstack))


def _gradients(leaf: VideoTokens) -> list[tuple[Tensor, ...]] | None:
    tensors = (leaf.embeddings, *leaf.deepstack)
    if all(tensor.grad is None for tensor in tensors):
        return None
    return [tuple(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors)]


def missing_anywhere(wanted: Sequence[str], own: Sequence[str], axis: Axis) -> set[str]:
    """Of the requests `wanted`, those that some rank cannot answer (`own` on this one): all ranks then encode the same.

    Raises VideoDamagedError when the ranks want different ones: a video would get another's embeddings.
    """
    told = [json.loads(text) for text in gather_texts(json.dumps([list(wanted), list(own)]), axis)]
    if any(one[0] != told[0][0] for one in told):
        raise VideoDamagedError(
            "the ranks ask for different videos, or for other samplings of them",
            rule="all ranks of a launch read the same rows, videos and configuration, with the same libraries",
            remedy="put rows and videos on a file system that all machines share, and install the same versions",
        )
    return {request for _, missing in told for request in missing}


def first_writes(write: Callable[[], None], axis: Axis) -> None:
    """The first rank runs `write` before the others, which then find in a shared folder what it wrote."""
    if axis.rank == 0:
        write()
    gather_texts("", axis)
    if axis.rank != 0:
        write()
