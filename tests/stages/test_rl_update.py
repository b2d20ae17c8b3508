"""The update of `longtake rl`: whole groups in micro-batches, every prompt through the decoder once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longtake.config.stages import RlConfig
from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.parallel.mesh import start_world
from longtake.stages import rl as stage
from longtake.stages.rl_batches import UpdateGroup, micro_batches
from longtake.testing.training import metrics_of
from longtake.types import Group, Prompt, Take

Make = Callable[..., RlConfig]
ALONE = start_world(torch.device("cpu"), timeout_s=10).sequence_mesh()


def group_of(prompt: int, takes: list[int], advantages: list[float], valid: list[bool] | None = None) -> UpdateGroup:
    ids = torch.zeros(prompt, dtype=torch.int64)
    made = tuple(Take(torch.zeros(length, dtype=torch.int64), torch.zeros(length), "stop", "", 0) for length in takes)
    group = Group(SimpleNamespace(), Prompt(ids, ids.expand(3, -1), (), prompt, ""), made, {}, torch.zeros(len(takes)))
    return UpdateGroup(group, tuple(advantages), tuple(valid or [True] * len(takes)), 0)


def made(config: RlConfig, groups: list[UpdateGroup]) -> list[tuple[list[UpdateGroup], bool]]:
    """(groups of each batch, whether it learns); every take of a group goes with it."""
    batches = list(micro_batches(config, groups, ALONE))
    assert all(takes == tuple(range(len(group.advantages))) for batch in batches for group, takes in batch.pieces)
    assert {batch.max_tokens for batch in batches} == {config.micro_batch_tokens}
    return [([group for group, _ in batch.pieces], batch.needs_gradient) for batch in batches]


def test_micro_batches_hold_whole_groups(rl: Make) -> None:
    """Prompts counted once: 10 + 5, 10 + 4, 10 + 1 tokens; a group too large is alone; without signal, no gradient, and last."""
    first, second, third = (group_of(10, takes, [1.0, -1.0]) for takes in ([2, 3], [4, 0], [1, 0]))
    huge, uniform = group_of(90, [5, 5], [1.0, -1.0]), group_of(5, [1, 1], [0.0, 0.0])
    unusable = group_of(5, [1, 1], [1.0, -1.0], [False, False])
    assert [group.num_tokens for group in (first, huge)] == [15, 100]
    groups = [first, uniform, second, huge, third, unusable]
    found = made(rl(micro_batch_tokens=29), groups)
    assert found == [([first, second], True), ([huge], True), ([third], True), ([uniform, unusable], False)]
    assert made(rl(micro_batch_tokens=28), [first, second]) == [([first], True), ([second], True)]
    kl = {"kl": {"coefficient": 0.1}}
    assert made(rl(algorithm=kl), groups)[-1] == ([unusable], False)  # a KL term learns from uniform groups too


@pytest.mark.parametrize("micro_batch_tokens", [1, 100_000])
def test_every_prompt_goes_through_the_decoder_once(rl: Make, monkeypatch: pytest.MonkeyPatch, micro_batch_tokens: int) -> None:
    """Groups split or together, the update's tokens are those of the prompts and of the takes. Before, each take brought its prompt."""
    seen: list[int] = []
    honest = Qwen2_5VL.decoder

    def decoder(self, inputs_embeds, *given, packed=None):
        seen.append(inputs_embeds.shape[1] if packed is not None else 0)
        return honest(self, inputs_embeds, *given, packed=packed)

    monkeypatch.setattr(Qwen2_5VL, "decoder", decoder)
    config = rl(steps=1, micro_batch_tokens=micro_batch_tokens)
    stage.run(config)
    (line,) = metrics_of(config.out)
    assert sum(seen) == line["tokens/prompt"] + line["tokens/response"]
    assert line["count/groups"] == 3 and sum(map(bool, seen)) == (1 if micro_batch_tokens > 1 else 3 * (1 + 4))


def test_a_trained_tower_runs_once_per_group(rl: Make, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients: for the group's prompt, not for each of its takes."""
    live: list[bool] = []
    honest = Qwen2_5VL.encode_chunk

    def encode_chunk(self, pixels, gradients=False):
        live.append(gradients)
        return honest(self, pixels, gradients)

    monkeypatch.setattr(Qwen2_5VL, "encode_chunk", encode_chunk)
    stage.run(rl(steps=1, model={"train_vision": True}, micro_batch_tokens=1))
    assert 1 <= sum(live) <= 3  # groups without signal need none
