"""Tensors of which each rank holds some rows (torch's DTensor over one axis), as whole ones and back; the norm of their gradients.

Every function takes tensors that are whole as well, and gives them back as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, on every rank, all of which must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_here(tensor: DTensor) -> slice:
    """The rows of the whole that this rank holds: ranks have equally many, the last ones fewer or none.

    Raises ValueError for a tensor that is cut otherwise.
    """
    rows, num_ranks = tensor.shape[0], tensor.device_mesh.size()
    each = -(-rows // num_ranks)
    start = min(tensor.device_mesh.get_local_rank() * each, rows)
    here = slice(start, min(start + each, rows))
    if tensor.to_local().shape != (here.stop - here.start, *tensor.shape[1:]):
        raise ValueError(f"a tensor cut as {tensor.placements} over {tensor.device_mesh}; only rows over one axis of ranks are known here")
    return here


def cut(full: Tensor, like: Tensor) -> Tensor:
    """A copy of `full` beside `like`: cut and placed as it is. Nothing is sent, every rank has `full`."""
    if not isinstance(like, DTensor):
        return full.detach().clone().to(like.device)
    local = full.detach()[rows_here(like)].clone().to(like.to_local().device)
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def full_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole of each tensor on the CPU of rank 0, one gathered after the other; other ranks, which must all call this, get {}.

    Where none is sharded nothing is sent or copied, and every rank gets what it gave.
    """
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return dict(tensors)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if dist.get_rank() == 0:
            found[name] = full.cpu()
    return found


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients so that their norm over all parameters is at most `max_norm`; returns what it was, the same on every rank."""
    used = [parameter for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm([parameter.grad for parameter in used if parameter.grad is not None], foreach=True)
    norm = whole(total)
    nn.utils.clip_grads_with_norm_(used, max_norm, norm, foreach=True)
    return float(norm)
