"""The processes of a run as a mesh: world = data x ring x ulysses. The only builder of process groups and of a DeviceMesh.

Rank = (data_rank * ring + ring_rank) * ulysses + ulysses_rank: Ulysses ranks, which exchange the most, are neighbours (one node), then the
ranks of a ring. Groups for every ring and Ulysses degree that fit the number of processes are made once at the start, by all ranks in
the same order, so that the layout may change from batch to batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from longtake.config.env import Launch, launch
from longtake.errors import ConfigError

Ranks = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Axis:
    """The ranks along one axis of the mesh, seen from this process."""

    ranks: Ranks
    """World ranks, this process's own among them."""
    rank: int
    """This process's index in `ranks`."""
    group: dist.ProcessGroup | None
    """None where the axis is this process alone: then nothing is sent."""

    @property
    def size(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True, eq=False)
class SequenceMesh:
    """The axes of one ring x Ulysses layout. The ranks of `sequence` share a packed sequence; each data rank has one of its own."""

    data_rank: int
    num_data: int
    ring: Axis
    ulysses: Axis
    sequence: Axis
    """Ring and Ulysses together, ring-major."""
    world: Axis


@dataclass(frozen=True, eq=False)
class World:
    """All processes of the run. A context manager: on leaving it, the process group is gone. Build it with `start_world`, once."""

    launch: Launch
    device: torch.device
    axis: Axis
    """All ranks: gradients and metrics are summed over it, parameters are sharded over it."""
    device_mesh: DeviceMesh | None
    """1-D over all ranks, for torch's own sharding; None in a single process."""
    _groups: dict[Ranks, dist.ProcessGroup] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.world_size

    def sequence_mesh(self, ring: int = 1, ulysses: int = 1) -> SequenceMesh:
        """The axes of a layout; builds nothing. Raises ConfigError for degrees whose product does not divide the number of processes."""
        check_degrees(self.size, ring, ulysses)
        ring_ranks, ulysses_ranks, sequence_ranks = mesh_ranks(self.rank, ring, ulysses)
        degree = ring * ulysses
        return SequenceMesh(
            data_rank=self.rank // degree,
            num_data=self.size // degree,
            ring=self._axis(ring_ranks),
            ulysses=self._axis(ulysses_ranks),
            sequence=self._axis(sequence_ranks),
            world=self.axis,
        )

    def _axis(self, ranks: Ranks) -> Axis:
        return Axis(ranks, ranks.index(self.rank), self._groups[ranks] if len(ranks) > 1 else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.axis.group is not None:
            dist.destroy_process_group()


def start_world(device: torch.device, timeout_s: float) -> World:
    """Meet the other processes of this launch (torchrun's environment) and make every group. Without a launcher: one process, no group.

    On CUDA each process takes the GPU of its local rank; tensors on it travel by NCCL, those of the host by gloo. A collective that waits
    longer than `timeout_s` ends the process. Raises ConfigError for an environment that is no launch or a node with too few GPUs.
    """
    this = launch()
    device = _own_device(device, this)
    everyone = tuple(range(this.world_size))
    if this.world_size == 1:
        return World(this, device, Axis(everyone, 0, None), None)
    timeout = timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    groups = {everyone: dist.group.WORLD}
    for ranks in every_group(this.world_size):
        if ranks not in groups:
            made = dist.new_group(list(ranks), timeout=timeout, backend=backend)
            groups[ranks] = made
    own = {ranks: group for ranks, group in groups.items() if this.rank in ranks and isinstance(group, dist.ProcessGroup)}
    mesh = init_device_mesh(device.type, (this.world_size,), mesh_dim_names=("world",))
    return World(this, device, Axis(everyone, this.rank, own[everyone]), mesh, own)


def _own_device(device: torch.device, this: Launch) -> torch.device:
    if device.type != "cuda":
        return device
    if this.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {this.local_rank} on a node with {torch.cuda.device_count()} GPUs",
            rule="one GPU per process",
            remedy="start as many processes per node as it has GPUs (torchrun --nproc-per-node)",
        )
    torch.cuda.set_device(this.local_rank)
    return torch.device("cuda", this.local_rank)


def divisors(number: int) -> list[int]:
    """Ascending.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def check_degrees(world_size: int, ring: int, ulysses: int) -> None:
    """Raises ConfigError, naming the degrees that would do."""
    if ring < 1 or ulysses < 1 or world_size % (ring * ulysses):
        raise ConfigError(
            f"ring {ring} x Ulysses {ulysses} on {world_size} processes",
            rule="the product of the two divides the number of processes",
            remedy=f"choose them so that their product is one of {_listed(divisors(world_size))}",
        )


def mesh_ranks(rank: int, ring: int, ulysses: int) -> tuple[Ranks, Ranks, Ranks]:
    """World ranks on the ring, Ulysses and sequence axis of `rank`, each in axis order.

    >>> mesh_ranks(5, ring=2, ulysses=2)
    ((5, 7), (4, 5), (4, 5, 6, 7))
    """
    degree = ring * ulysses
    first = rank // degree * degree
    sequence = tuple(range(first, first + degree))
    start = rank // ulysses * ulysses
    return sequence[rank % ulysses :: ulysses], tuple(range(start, start + ulysses)), sequence


def every_group(world_size: int) -> Iterator[Ranks]:
    """The ranks of every group of two or more that some layout needs, in the same order on every rank; each once."""
    seen: set[Ranks] = set()
    for degree in divisors(world_size):
        for ulysses in divisors(degree):
            for rank in range(world_size):
                for ranks in mesh_ranks(rank, degree // ulysses, ulysses):
                    if len(ranks) > 1 and ranks not in seen:
                        seen.add(ranks)
                        yield ranks


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
