"""The sum of gradients over ranks, for parameters that every rank holds whole. Sharded ones (parallel.fsdp) are summed in backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from longtake.parallel.mesh import Axis

BUCKET_BYTES = 64 << 20
"""Gradients travel together in messages of about this size; one message per parameter would wait more than it sends."""


@torch.no_grad()
def sum_gradients(parameters: Iterable[torch.nn.Parameter], axis: Axis) -> None:
    """Replace the gradient of each parameter by its sum over the ranks of the axis; half precision is summed in float32.

    All ranks name the same parameters in the same order. A rank without a gradient adds nothing; a parameter that has none on any rank
    keeps None, so that the optimizer skips it as it would in a single process. Losses must be divided by counts of the whole step.
    Sharded parameters are left as they are.
    """
    if axis.group is None:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad and not isinstance(parameter, DTensor)]
    present = torch.tensor([float(parameter.grad is not None) for parameter in trained])
    dist.all_reduce(present, group=axis.group)
    used = [parameter for parameter, count in zip(trained, present.tolist(), strict=True) if count > 0]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
        _sum_bucket(bucket, axis)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device, up to BUCKET_BYTES together."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (gradient.dtype, gradient.device)
        if bucket and (not alike or size + gradient.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _sum_bucket(bucket: list[Tensor], axis: Axis) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    dist.all_reduce(flat, group=axis.group)
    for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(total.view_as(gradient))
