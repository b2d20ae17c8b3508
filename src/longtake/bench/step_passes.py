"""The parts of a measured step on one rank: encode, sample, score, update. Columns (step_columns.py) put them together.

Every phase is timed by itself; what all columns do alike (decoding token by token, the sum of gradients, AdamW) is the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.algorithms.losses import LossDenominator, policy_loss
from longtake.bench.busy import BusyPhases
from longtake.bench.step_batch import CHUNK, StepBatch, with_tokens
from longtake.config.benches import BenchStepConfig
from longtake.config.sections import AlgorithmConfig, KlConfig
from longtake.models.family import Model
from longtake.parallel.gradients import sum_gradients
from longtake.parallel.mesh import SequenceMesh, World
from longtake.parallel.packed import pack_groups, pack_rows, padded_rows
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.shared_cache import PromptKv
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.training.optimizer import Optimizer
from longtake.training.packed_policy import packed_logprobs
from longtake.types import Layout, PackedGroups, Prompt, VideoTokens

TakeAt = tuple[int, int]
"""(group, take)."""
Encode = Callable[[int], VideoTokens]
"""The tokens of a group's video, however a column gets them."""


@dataclass(frozen=True, eq=False)
class Micro:
    """What goes forward at once."""

    takes: tuple[TakeAt, ...]
    mesh: SequenceMesh
    pack: Callable[[Encode], PackedGroups]


class TimedEngine(TransformersEngine):
    """Prefill and decoding as phases of their own."""

    phases: BusyPhases

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[PromptKv, Tensor]:
        with self.phases("prefill"):
            return super()._prefill(prompts)

    def _decode(self, *given: object) -> list[object]:  # type: ignore[override]
        with self.phases("decode"):
            return super()._decode(*given)  # type: ignore[arg-type, return-value]


@dataclass(frozen=True, eq=False)
class StepRank:
    """One rank with all it needs."""

    world: World
    model: Model
    reference: Model
    optimizer: Optimizer
    config: BenchStepConfig
    batch: StepBatch
    phases: BusyPhases

    @property
    def own_group(self) -> int:
        """The group that this rank samples, and trains on where nothing is spread."""
        return self.world.rank

    def encode_alone(self, group: int) -> VideoTokens:
        with self.phases("encode"):
            return self.model.encode(self.batch.videos[group].frames, CHUNK)

    def sample(self, prompts: Sequence[Prompt], num_takes: int) -> None:
        """Takes of full length (no end token ends one); what was sampled is dropped, training replays the recorded takes."""
        engine = TimedEngine(self.model)
        engine.phases = self.phases
        requests = [RolloutRequest(index, prompt) for index, prompt in enumerate(prompts)]
        with never_ending(self.model):
            engine.generate(requests, SamplingParams(num_takes, 1.0, self.config.response, seed=0, step=0))

    def rows(self, groups: Sequence[int], micro_batch: int, mesh: SequenceMesh) -> list[Micro]:
        """One row per take, so many at a time."""
        takes = [(group, take) for group in groups for take in range(self.config.group)]
        parts = [tuple(takes[start : start + micro_batch]) for start in range(0, len(takes), micro_batch)]
        return [Micro(part, mesh, lambda encode, part=part: self._pack_rows(part, encode)) for part in parts]  # type: ignore[misc]

    def _pack_rows(self, takes: Sequence[TakeAt], encode: Encode) -> PackedGroups:
        prompts = [with_tokens(self.batch.prompts[group], encode(group)) for group, _ in takes]
        return pack_rows(prompts, [self.batch.responses[group][take] for group, take in takes], self.model.device)

    def planned(self, layouts: Sequence[Layout]) -> list[Micro]:
        """This rank's micro-batches of a plan, in order."""
        found: list[Micro] = []
        for layout in layouts:
            mesh = self.world.sequence_mesh(layout.ring, layout.ulysses)
            for micro in (one[mesh.data_rank] for one in layout.rounds):
                pieces = [(piece.group, piece.takes) for piece in micro.pieces]
                takes = tuple((group, take) for group, own in pieces for take in own)
                if not takes:
                    continue
                if layout.shared_prompt:
                    found.append(Micro(takes, mesh, lambda encode, pieces=pieces: self._pack_groups(pieces, encode)))  # type: ignore[misc]
                else:
                    found.append(Micro(takes, mesh, lambda encode, takes=takes: self._pack_rows(takes, encode)))  # type: ignore[misc]
        return found

    def _pack_groups(self, pieces: Sequence[tuple[int, tuple[int, ...]]], encode: Encode) -> PackedGroups:
        prompts = [with_tokens(self.batch.prompts[group], encode(group)) for group, _ in pieces]
        responses = [[self.batch.responses[group][take] for take in takes] for group, takes in pieces]
        return pack_groups(prompts, responses, self.model.device)

    def score_reference(self, micros: Sequence[Micro], encode: Encode) -> list[Tensor]:
        """[M, R] of each micro-batch; nothing without a KL term."""
        if self.config.beta == 0:
            return []
        packed = (micro.pack(encode) for micro in micros)
        found = []
        for micro, groups in zip(micros, packed, strict=True):
            with self.phases("reference"), torch.no_grad():
                found.append(packed_logprobs(self.reference, groups, 1.0, mesh=micro.mesh)[0])
        return found

    def learn(self, micros: Sequence[Micro], encode: Encode, reference: Sequence[Tensor]) -> float:
        """Forward, loss and backward of each micro-batch; returns this rank's share of the loss."""
        total = 0.0
        for index, micro in enumerate(micros):
            packed = micro.pack(encode)
            with self.phases("update"):
                logprobs, _ = packed_logprobs(self.model, packed, 1.0, mesh=micro.mesh)
                loss = self._loss(micro.takes, logprobs, packed.response_mask, reference[index] if reference else None)
                loss.backward()
            total += float(loss.detach()) / micro.mesh.sequence.size
        return total

    def _loss(self, takes: Sequence[TakeAt], logprobs: Tensor, mask: Tensor, reference: Tensor | None) -> Tensor:
        batch = self.batch
        lengths = [len(take) for own in batch.responses for take in own]
        sampler, _ = padded_rows([batch.sampler_logprobs[group][take] for group, take in takes])
        gains = torch.stack([batch.advantages[group][take] for group, take in takes])
        settings = AlgorithmConfig(kl=KlConfig(coefficient=self.config.beta))
        denominator = LossDenominator.of_lengths(lengths, self.config.response)
        return policy_loss(logprobs, sampler, gains, mask, settings, reference, denominator=denominator).loss

    def finish(self) -> float:
        """Sum of gradients over all ranks and AdamW; returns the gradient's norm."""
        with self.phases("optimizer"):
            sum_gradients(self.optimizer.named.values(), self.world.axis)
            return self.optimizer.step()


@contextmanager
def never_ending(model: Model) -> Iterator[None]:
    """No token ends a take inside."""
    before = model.end_ids
    model.end_ids = (-1,)
    try:
        yield
    finally:
        model.end_ids = before
