"""The five ways to run one and the same RL step that `bench step` compares. A column returns (loss, norm of the gradient): equal in all.

published   encode per take and per phase, prefill per take, one row per take, no sequence parallelism
modern      encoded and prefilled once for the rollout; encoded and forwarded per take in every training phase
stage_1     as modern, but each video encoded once, by all ranks together, and used in every phase
stages_1_2  as stage 1, rows spread over all ranks (Ulysses), whatever their length
planned     encoded once, prefilled once, and the layout that the planner chooses: prompts shared, sequences spread where that is faster
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from longtake.bench.encode import whole
from longtake.bench.step_batch import CHUNK, with_tokens
from longtake.bench.step_passes import Encode, Micro, StepRank
from longtake.parallel.collectives import sum_over_ranks
from longtake.parallel.encode import Encoder
from longtake.parallel.planner import plan_batch
from longtake.parallel.setting import Setting

Found = tuple[float, float]
"""(loss, norm of the gradient) of the whole step."""
Column = Callable[[], Found]


@dataclass(frozen=True, eq=False)
class Columns:
    """All columns over one batch."""

    rank: StepRank
    setting: Setting
    alone_rows: int
    """Rows at a time of a rank by itself, measured fastest."""
    spread_rows: int
    """The same where rows are spread over all ranks."""

    def all(self) -> dict[str, Column]:
        return {
            "published": self.published,
            "modern": self.modern,
            "stage_1": self.stage_1,
            "stages_1_2": self.stages_1_2,
            "planned": self.planned,
        }

    def published(self) -> Found:
        rank, own = self.rank, self.rank.own_group
        prompts = [with_tokens(rank.batch.prompts[own], rank.encode_alone(own)) for _ in range(rank.config.group)]
        rank.sample(prompts, 1)
        return self._train(self._alone(), rank.encode_alone)

    def modern(self) -> Found:
        self._rollout(self.rank.encode_alone)
        return self._train(self._alone(), self.rank.encode_alone)

    def stage_1(self) -> Found:
        encode = self._encode_together()
        self._rollout(encode)
        return self._train(self._alone(), encode)

    def stages_1_2(self) -> Found:
        encode = self._encode_together()
        self._rollout(encode)
        rank = self.rank
        mesh = rank.world.sequence_mesh(ulysses=rank.world.size)
        return self._train(rank.rows(range(len(rank.batch.prompts)), self.spread_rows, mesh), encode)

    def planned(self) -> Found:
        encode = self._encode_together()
        self._rollout(encode)
        with self.rank.phases("plan"):
            plan = plan_batch(self.setting, self.rank.batch.shapes(range(len(self.rank.batch.prompts))))
            micros = self.rank.planned(plan.layouts)
        return self._train(micros, encode)

    def _alone(self) -> list[Micro]:
        return self.rank.rows([self.rank.own_group], self.alone_rows, self.rank.world.sequence_mesh())

    def _encode_together(self) -> Encode:
        """Every video once; a rank asks for its part of the work only."""
        rank = self.rank
        encoder = Encoder(rank.model, CHUNK, rank.world.axis, rank.phases)
        return whole(encoder, rank.batch.videos).__getitem__

    def _rollout(self, encode: Encode) -> None:
        """The own prompt prefilled once, all its takes decoded from it."""
        own = self.rank.own_group
        self.rank.sample([with_tokens(self.rank.batch.prompts[own], encode(own))], self.rank.config.group)

    def _train(self, micros: list[Micro], encode: Encode) -> Found:
        reference = self.rank.score_reference(micros, encode)
        loss = self.rank.learn(micros, encode, reference)
        norm = self.rank.finish()
        return sum_over_ranks([loss], self.rank.world.axis)[0], norm
