"""Rows of embeddings from the ranks that encoded them to the ranks that need them, and gradients the same way back.

`held[i]` are the rows of a video that rank i encoded (unbroken, in the order of ranks), `needs[i]` those that rank i asks for: any
number of ranges, overlapping ones too. Both are known to every rank. All ranks of the axis must call these functions.

Shapes: L rows held here, n rows of a need, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.parallel.chunks import Range, overlap
from longtake.parallel.collectives import all_to_all
from longtake.parallel.mesh import Axis

Needs = Sequence[Sequence[Range]]
"""For each rank of the axis, what it asks for."""


def send_rows(rows: Tensor, held: Sequence[Range], needs: Needs, axis: Axis) -> list[Tensor]:
    """From the rows [L, D] held here to a tensor [n, D] for each need of this rank."""
    if axis.size == 1:
        return [rows[start:stop] for start, stop in needs[0]]
    sent = [rows[slice(*overlap(held[axis.rank], need))] for own in needs for need in own]
    send_sizes = [sum(_lengths(held[axis.rank], own)) for own in needs]
    incoming = [_lengths(part, needs[axis.rank]) for part in held]
    received = all_to_all(torch.cat([rows[:0], *sent]), send_sizes, [sum(lengths) for lengths in incoming], axis)
    by_rank = [part.split(lengths) for part, lengths in zip(received.split([sum(one) for one in incoming]), incoming, strict=True)]
    return [torch.cat([parts[need] for parts in by_rank]) for need in range(len(needs[axis.rank]))]


def collect_gradients(gradients: Sequence[Tensor], held: Sequence[Range], needs: Needs, axis: Axis, like: Tensor) -> Tensor:
    """From the gradient [n, D] of each need of this rank to the sum [L, D], over all ranks, of the gradients of the rows held here.

    Summed in the order of ranks and needs, in float32 at least, so that the bits repeat. `like`: any tensor of the dtype, device and
    width of the embeddings.
    """
    pieces = [
        gradient[slice(*overlap(need, part))].to(like) for part in held for need, gradient in zip(needs[axis.rank], gradients, strict=True)
    ]
    send_sizes = [sum(_lengths(part, needs[axis.rank])) for part in held]
    receive_sizes = [sum(_lengths(held[axis.rank], own)) for own in needs]
    received = all_to_all(torch.cat([like.new_empty(0, like.shape[-1]), *pieces]), send_sizes, receive_sizes, axis)
    start, stop = held[axis.rank]
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    total = torch.zeros(stop - start, like.shape[-1], dtype=wide, device=like.device)
    reached = 0
    for own in needs:
        for need in own:
            first, last = overlap(held[axis.rank], need)
            total[first:last] += received[reached : reached + last - first].to(wide)
            reached += last - first
    return total.to(like.dtype)


def _lengths(part: Range, needs: Sequence[Range]) -> list[int]:
    return [stop - start for start, stop in (overlap(part, need) for need in needs)]
