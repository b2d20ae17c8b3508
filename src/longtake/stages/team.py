"""The processes of a launch as a stage sees them: who does what, what they tell each other, who speaks and writes.

    with joined(config.parallel) as team:
        shares = team.share(costs)              # the same on every rank: which items each rank works on
        own = {i: work(i) for i in shares[team.rank]}
        everything = team.exchange(own, to_json, from_json)

Every rank knows all rows, prompts and takes of a step (token ids and numbers, which are small) and the embeddings of its videos; what is
divided is the work. So a loop reads the same for one process and for many, and only what is written is written by the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch

from longtake.config.env import launch
from longtake.config.sections import ParallelConfig
from longtake.errors import ConfigError
from longtake.observe.progress import muted, say
from longtake.parallel.balance import balanced
from longtake.parallel.collectives import gather_texts, reduced_metrics
from longtake.parallel.heartbeat import Heartbeat
from longtake.parallel.mesh import Axis, SequenceMesh, World, start_world

T = TypeVar("T")


@dataclass(frozen=True)
class RollCall:
    """Who is there at the end of a step, and how."""

    complete: bool
    """Every rank has answered: what needs all of them can be done."""
    fault: bool
    """Some rank has an error on its way."""
    metrics: dict[str, float]
    """Of all ranks; of this one alone where not all are there and well."""


@dataclass(frozen=True, eq=False)
class Team:
    """The processes of this launch, seen from one of them."""

    world: World
    mesh: SequenceMesh
    heartbeat: Heartbeat

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def axis(self) -> Axis:
        return self.world.axis

    @property
    def is_first(self) -> bool:
        """The one that writes files and speaks to people."""
        return self.world.rank == 0

    @property
    def speaks_for_sequence(self) -> bool:
        """Of the ranks that share a sequence, and so have found the same, the one whose numbers count."""
        return self.mesh.sequence.rank == 0

    def share(self, costs: Sequence[float], ranks_together: int = 1) -> list[list[int]]:
        """Items of each rank, loads balanced: indices of `costs`. Of so many ranks in order, that work together, each has the same."""
        parts = [sorted(part) for part in balanced(costs, self.world.size // ranks_together)]
        return [parts[rank // ranks_together] for rank in range(self.world.size)]

    def shares_of_data(self, costs: Sequence[float]) -> list[list[int]]:
        """Items of each sequence axis, all of whose ranks get the same."""
        return [sorted(part) for part in balanced(costs, self.mesh.num_data)]

    def share_of_data(self, costs: Sequence[float]) -> list[int]:
        """Items of this rank's sequence axis."""
        return self.shares_of_data(costs)[self.mesh.data_rank]

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank."""
        return any(text == "1" for text in gather_texts(str(int(flag)), self.axis))

    def roll_call(self, fault: BaseException | None, metrics: dict[str, float]) -> RollCall:
        """Every rank calls it before they do something together, with the error that it has on its way. One that leaves at once (a second
        Ctrl-C) does not wait for the others, and they find it gone."""
        if fault is not None and not isinstance(fault, Exception):
            return RollCall(complete=False, fault=True, metrics=metrics)
        try:
            told = self.tell({"fault": fault is not None, "metrics": metrics})
        except RuntimeError as error:
            say(f"the other ranks do not answer: {error}", style="yellow")
            return RollCall(complete=False, fault=False, metrics=metrics)
        if any(one["fault"] for one in told):
            return RollCall(complete=True, fault=True, metrics=metrics)
        return RollCall(complete=True, fault=False, metrics=reduced_metrics([one["metrics"] for one in told]))

    def tell(self, record: Any) -> list[Any]:
        """JSON of every rank, in their order."""
        return [json.loads(text) for text in gather_texts(json.dumps(record), self.axis)] if self.world.size > 1 else [record]

    def exchange(self, own: Mapping[int, T], to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> dict[int, T]:
        """The items of all ranks by their numbers; this rank's own are the very objects given."""
        if self.world.size == 1:
            return dict(own)
        told = self.tell({str(index): to_json(item) for index, item in own.items()})
        others = {int(index): from_json(record) for one in told for index, record in one.items() if int(index) not in own}
        return others | dict(own)

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """The first rank runs the body before the others, which find what it left on the disk."""
        if not self.is_first:
            gather_texts("", self.axis)
        yield
        if self.is_first:
            gather_texts("", self.axis)


class Nowhere:
    """In place of a log, on ranks that write none."""

    def append(self, step: int, record: Mapping[str, Any]) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


def refuse_sharded(can_shard: bool) -> None:
    if not can_shard:
        raise ConfigError(
            "parallel.sharded = true in a stage that does not train",
            rule="rl and sft cut their weights over the processes; to sample or to score every process holds them whole",
            remedy="leave parallel.sharded out",
        )
    if launch().world_size == 1:
        raise ConfigError(
            "parallel.sharded = true in a single process",
            rule="weights are cut over the processes of a launch",
            remedy="start several with torchrun --nproc-per-node N -m longtake ..., or set parallel.sharded to false",
        )


@contextmanager
def joined(config: ParallelConfig, device: str = "auto", *, can_shard: bool = False) -> Iterator[Team]:
    """Meet the other processes of the launch, watch over each other, and let only the first speak (errors are told by all).

    Raises ConfigError for degrees that do not divide the number of processes, or sharded weights where there is nothing to cut.
    """
    if config.sharded:
        refuse_sharded(can_shard)
    if launch().world_size == 1 and config.ring * config.ulysses > 1:
        raise ConfigError(
            f"parallel.ring = {config.ring}, parallel.ulysses = {config.ulysses} in a single process",
            rule="their product divides the number of processes",
            remedy=f"start with torchrun --nproc-per-node {config.ring * config.ulysses} -m longtake ..., or set both to 1",
        )
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    with start_world(torch.device(kind), config.timeout_s) as world, Heartbeat(world.launch, config.heartbeat_s) as heartbeat:
        team = Team(world, world.sequence_mesh(config.ring, config.ulysses), heartbeat)
        with muted(not team.is_first):
            yield team
