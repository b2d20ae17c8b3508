"""Which takes go through the model together, on which ranks: as the configured degrees say, or as the planner chooses for each update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import zip_longest
from operator import or_

import torch
from torch import Tensor

from longtake.config.stages import RlConfig
from longtake.models.costs import model_costs
from longtake.parallel.calibrate import calibrate, kept_rates
from longtake.parallel.layouts import Allowed, Plan
from longtake.parallel.mesh import SequenceMesh
from longtake.parallel.planner import plan_batch
from longtake.parallel.prediction import PredictionErrors, layout_metrics
from longtake.parallel.setting import Cluster, DeviceRates, Setting
from longtake.stages.plan_hardware import assumed_cpu_rates, host_bytes_here, training_costs_of
from longtake.stages.team import Team
from longtake.training.packed_policy import Passes, passes_of
from longtake.types import Group, Layout, MicroBatch, PackedGroup, Prompt, Take

USABLE = 0.9
"""Share of a memory that a plan may fill."""


@dataclass(frozen=True, eq=False)
class UpdateGroup:
    """One group as the update sees it."""

    group: Group
    advantages: tuple[float, ...]
    """Of each take."""
    valid: tuple[bool, ...]
    """Whether a gradient may be taken from it."""
    first: int
    """Index of its first take among the takes of the step."""
    proximal: tuple[Tensor, ...] | None = None
    """[R] of each take: log-probs before the step's first update. None: nobody asks for them, or no update was made since."""

    @property
    def responses(self) -> list[Tensor]:
        return [take.token_ids for take in self.group.takes]

    @property
    def shape(self) -> PackedGroup:
        return PackedGroup(len(self.group.prompt.token_ids), tuple(map(len, self.responses)))

    @property
    def num_tokens(self) -> int:
        """The prompt once, then its takes."""
        return self.shape.num_tokens

    def learns(self, config: RlConfig) -> bool:
        """A take with advantage 0 and no KL term adds exactly nothing to the gradient: it is only compared with the sampler."""
        pairs = zip(self.advantages, self.valid, strict=True)
        return any(usable and (advantage != 0.0 or has_kl_loss(config)) for advantage, usable in pairs)


def has_kl_loss(config: RlConfig) -> bool:
    return config.algorithm.kl.coefficient > 0 and config.algorithm.kl.place == "loss"


@dataclass(frozen=True, eq=False)
class Batch:
    """What this rank's sequence axis runs forward and backward at once."""

    pieces: tuple[tuple[UpdateGroup, tuple[int, ...]], ...]
    """Groups, each with the takes of it that go. A group may come more than once: then its prompt does too."""
    needs_gradient: bool
    mesh: SequenceMesh
    max_tokens: int | None
    """A single piece of more tokens is split (`score_groups`)."""
    passes: Passes | None = None
    """Sharded weights: what every rank runs in this round, so that a batch may have no pieces; None: whole weights."""

    @property
    def prompts(self) -> list[Prompt]:
        return [group.group.prompt for group, _ in self.pieces]

    @property
    def responses(self) -> list[list[Tensor]]:
        return [[group.responses[index] for index in takes] for group, takes in self.pieces]

    def each(self) -> Iterator[tuple[UpdateGroup, int]]:
        """(group, index in it) of every take, in the order in which they are scored."""
        return ((group, index) for group, takes in self.pieces for index in takes)

    def takes(self) -> list[Take]:
        return [group.group.takes[index] for group, index in self.each()]


def micro_batches(config: RlConfig, groups: Sequence[UpdateGroup], mesh: SequenceMesh) -> Iterator[Batch]:
    """Whole groups of at most micro_batch_tokens per rank together, those that need a gradient first; a larger group is alone."""
    most = config.micro_batch_tokens * mesh.sequence.size
    for needs_gradient in (True, False):
        part: list[UpdateGroup] = []
        for group in groups:
            if group.learns(config) != needs_gradient:
                continue
            if part and sum(other.num_tokens for other in part) + group.num_tokens > most:
                yield _whole(part, needs_gradient, mesh, most)
                part = []
            part.append(group)
        if part:
            yield _whole(part, needs_gradient, mesh, most)


def _whole(groups: Sequence[UpdateGroup], needs_gradient: bool, mesh: SequenceMesh, max_tokens: int) -> Batch:
    return Batch(tuple((group, tuple(range(len(group.advantages)))) for group in groups), needs_gradient, mesh, max_tokens)


def in_step(every: Sequence[Sequence[Batch]], mesh: SequenceMesh) -> Iterator[Batch]:
    """Sharded weights: this rank's of the batches of every data rank, in rounds in which all need gradients, or none does."""
    for learns in (True, False):
        for one in zip_longest(*([batch for batch in own if batch.needs_gradient == learns] for own in every)):
            yield one_round(one, mesh, learns)


def one_round(batches: Sequence[Batch | None], mesh: SequenceMesh, learns: bool) -> Batch:
    """This rank's of the batches of one round, by data rank; one without pieces where it has none."""
    made = [batch for batch in batches if batch is not None]
    passes = reduce(or_, (passes_of(batch.prompts, batch.responses, batch.max_tokens) for batch in made), Passes())
    return replace(batches[mesh.data_rank] or Batch((), learns, mesh, None), passes=passes)


class Batches:
    """Makes the batches of each update, the same on every rank of the run.

    Degrees of 1 in a launch of several processes leave the choice to the planner; with other degrees, and in a single process, groups are
    dealt out by tokens.
    """

    def __init__(self, config: RlConfig, team: Team, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._team = config, team
        self._planned = team.world.size > 1 and config.parallel.ulysses * config.parallel.ring == 1
        if self._planned:
            self._setting = setting_of(config, team, device, dtype)
            self._allowed = Allowed(checkpointing=config.model.gradient_checkpointing, max_tokens=config.micro_batch_tokens)
        self._errors = PredictionErrors()
        self._plans: list[Plan] = []

    def of(self, groups: Sequence[UpdateGroup]) -> list[Batch]:
        """This rank's, in the order in which all ranks run theirs."""
        if self._planned:
            return [
                batch
                for learns in (True, False)
                for batch in self._planned_batches([g for g in groups if g.learns(self._config) == learns], learns)
            ]
        mesh = self._team.mesh
        shares = self._team.shares_of_data([group.num_tokens for group in groups])
        every = [list(micro_batches(self._config, [groups[index] for index in own], mesh)) for own in shares]
        return list(in_step(every, mesh)) if self._config.parallel.sharded else every[mesh.data_rank]

    def to_score(self, groups: Sequence[UpdateGroup]) -> list[Batch]:
        """As `of`, for a pass without gradient beside the updates, of which the metrics say nothing."""
        num_plans = len(self._plans)
        batches = self.of(groups)
        del self._plans[num_plans:]
        return batches

    def metrics(self, measured_s: float) -> dict[str, float]:
        """What was chosen for the updates since the last call, and how far the prediction was off."""
        if not self._planned:
            return {}
        plans, self._plans = self._plans, []
        return layout_metrics(plans) | self._errors.metrics(plans, measured_s)

    def _planned_batches(self, groups: Sequence[UpdateGroup], learns: bool) -> Iterator[Batch]:
        if not groups:
            return
        plan = plan_batch(self._setting, [group.shape for group in groups], self._allowed)
        self._plans.append(plan)
        for layout in plan.layouts:
            yield from self._of_layout(layout, groups, learns)

    def _of_layout(self, layout: Layout, groups: Sequence[UpdateGroup], learns: bool) -> Iterator[Batch]:
        mesh = self._team.world.sequence_mesh(layout.ring, layout.ulysses)
        for one in layout.rounds:
            batches = [_planned_batch(micro, groups, learns, mesh) for micro in one]
            own = one_round(batches, mesh, learns) if self._config.parallel.sharded else batches[mesh.data_rank]
            if own is not None:
                yield own


def _planned_batch(micro: MicroBatch, groups: Sequence[UpdateGroup], learns: bool, mesh: SequenceMesh) -> Batch | None:
    pieces = tuple((groups[piece.group], piece.takes) for piece in micro.pieces)
    return Batch(pieces, learns, mesh, micro.split_tokens) if pieces else None


def setting_of(config: RlConfig, team: Team, device: torch.device, dtype: torch.dtype) -> Setting:
    """What the planner needs to know of this run."""
    costs = model_costs(config.model.path, config.model.dtype)
    training = training_costs_of(config.model, costs, reference_passes=has_kl_loss(config), sharded=config.parallel.sharded)

    def measure() -> DeviceRates:
        return calibrate(costs, device, dtype, team.axis)

    rates = kept_rates(config.out / "rates.json", measure, team.axis) if device.type == "cuda" else assumed_cpu_rates()
    return Setting(costs, training, cluster_of(team, device), rates)


def cluster_of(team: Team, device: torch.device) -> Cluster:
    """The ranks of the launch, with the least memory of any; on a CPU those of a node share its memory."""
    on_device = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0
    told = team.tell([team.world.launch.local_rank, host_bytes_here(), on_device])
    nodes = [place for place, _, _ in told].count(0)
    per_node = team.world.size // nodes
    host, rank_bytes = (round(min(one[column] for one in told) * USABLE) for column in (1, 2))
    if device.type == "cuda":
        return Cluster(nodes, per_node, rank_bytes, host)
    return Cluster(nodes, per_node, host // per_node, host, "cpu")
