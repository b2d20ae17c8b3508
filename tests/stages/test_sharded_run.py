"""`parallel.sharded`: a run whose weights are cut over its processes is the run of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from longtake.config.stages import EvaluateConfig, ExportConfig, RlConfig, SftConfig
from longtake.errors import ConfigError
from longtake.observe.lines import read_lines
from longtake.stages import evaluate, export, rl, sft
from longtake.testing.processes import run_processes
from longtake.testing.training import base_weights, largest_difference, last_weights, metrics_of

MakeRl = Callable[..., RlConfig]
MakeSft = Callable[..., SftConfig]
GENTLE = {"eps": 1e-4}
"""AdamW's: without it the rounding of gradients near 0 becomes steps of full length."""


def run(stage: str, values: dict[str, Any]) -> None:
    module, kind = {"rl": (rl, RlConfig), "sft": (sft, SftConfig)}[stage]
    module.run(kind.model_validate(values))


def alone(stage: str, config: Any) -> None:
    run(stage, config.model_dump(mode="json"))


def sharded(config: Any, ring: int = 1, ulysses: int = 1) -> dict[str, Any]:
    values: dict[str, Any] = config.model_dump(mode="json")
    return values | {
        "parallel": values["parallel"] | {"sharded": True, "ring": ring, "ulysses": ulysses, "timeout_s": 60, "heartbeat_s": 50}
    }


def together(stage: str, config: Any, processes: int = 2, ring: int = 1, ulysses: int = 1) -> None:
    run_processes(run, processes, stage, sharded(config, ring, ulysses), timeout_s=240)


def said(config: RlConfig) -> list[tuple[Any, ...]]:
    takes = read_lines(config.out / "takes.jsonl")
    return [(take["step"], take["problem_id"], take["take"], tuple(take["token_ids"])) for take in takes]


KL = {"kl": {"coefficient": 0.1}}
RL_CASES: dict[str, dict[str, Any]] = {
    "whole language model": {},
    "tower trains": {"model": {"train_vision": True}},
    "tower trains, graphs not held": {"model": {"train_vision": True, "gradient_checkpointing": True}},
    "adapters": {"model": {"lora": {"rank": 4}}, "optimizer": {"lr": 1e-2}},
    "split groups": {"micro_batch_tokens": 8, "model": {"gradient_checkpointing": True}},
    "reference": {"algorithm": KL, "micro_batch_tokens": 40},
    "reference, adapters": {"algorithm": KL, "model": {"lora": {"rank": 4}}, "optimizer": {"lr": 1e-2}},
    "KL from the reward": {"algorithm": {"kl": {"coefficient": 0.1, "place": "reward"}, "dynamic_sampling": {"max_rounds": 2}}},
    "one prompt, two updates": {"prompts_per_step": 3, "updates_per_step": 2},
    "one prompt": {"prompts_per_step": 1},
    "importance, three updates": {
        "updates_per_step": 3,
        "micro_batch_tokens": 40,
        "algorithm": {"importance": {"kind": "mask"}},
    },
}
RL_LAYOUTS = {"planned": (2, 1, 1), "Ulysses 2": (2, 1, 2), "ring 2": (2, 2, 1)}


def rl_case(rl: MakeRl, rows: Path, name: str, out: str) -> RlConfig:
    changes = RL_CASES[name]
    optimizer = GENTLE | changes.get("optimizer", {})
    validation = {"data": {"rows": rows}, "num_rows": 3, "every": 2, "max_new_tokens": 4}
    base = {"steps": 5, "prompts_per_step": 4, "validation": validation}
    return rl(out, **{**base, **changes, "optimizer": optimizer})


def assert_same(base: Path, one: RlConfig, other: RlConfig) -> None:
    assert said(one) == said(other)
    if one.model.lora is None:
        assert largest_difference(last_weights(one.out), base_weights(base)) > 1e-3
    assert largest_difference(last_weights(one.out), last_weights(other.out)) <= 1e-5
    for line, their in zip(metrics_of(one.out), metrics_of(other.out), strict=True):
        assert line.get("validation/accuracy") == their.get("validation/accuracy") and their.get("validation/failed", 0.0) == 0.0
        if line["step"]:
            assert line["optimizer/grad_norm"] == pytest.approx(their["optimizer/grad_norm"], rel=1e-4, abs=1e-9)
            assert line["reward/total"] == pytest.approx(their["reward/total"], abs=1e-6)


@pytest.mark.parametrize("name", RL_CASES)
def test_rl_in_two_processes(rl: MakeRl, rows: Path, base: Path, name: str) -> None:
    """Five steps: the same takes, and weights within 1e-5 where they moved by more than 1e-3."""
    one, other = rl_case(rl, rows, name, "alone"), rl_case(rl, rows, name, "sharded")
    alone("rl", one)
    together("rl", other)
    assert_same(base, one, other)


@pytest.mark.parametrize("layout", [name for name in RL_LAYOUTS if name != "planned"])
def test_rl_with_a_shared_sequence(rl: MakeRl, rows: Path, base: Path, layout: str) -> None:
    one, other = rl_case(rl, rows, "split groups", "alone"), rl_case(rl, rows, "split groups", "sharded")
    alone("rl", one)
    together("rl", other, *RL_LAYOUTS[layout])
    assert_same(base, one, other)


@pytest.mark.long
@pytest.mark.parametrize("name", ["split groups", "tower trains", "reference, adapters"])
def test_rl_in_four_processes(rl: MakeRl, rows: Path, base: Path, name: str) -> None:
    """Two data ranks of Ulysses 2."""
    one, other = rl_case(rl, rows, name, "alone"), rl_case(rl, rows, name, "sharded")
    alone("rl", one)
    together("rl", other, 4, 1, 2)
    assert_same(base, one, other)


SFT_CASES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "data ranks, uneven": ({"batch_size": 5, "micro_batch_size": 2}, 2, 1, 1),
    "one row": ({"batch_size": 1}, 2, 1, 1),
    "Ulysses, tower trains": ({"batch_size": 6, "model": {"train_vision": True}}, 2, 1, 2),
    "ring, adapters": ({"batch_size": 6, "model": {"lora": {"rank": 4}}}, 2, 2, 1),
}
SFT_LONG = {"two data ranks of Ulysses 2": ({"batch_size": 5, "micro_batch_size": 1, "model": {"train_vision": True}}, 4, 1, 2)}


@pytest.mark.parametrize("name", [*SFT_CASES, *(pytest.param(name, marks=pytest.mark.long) for name in SFT_LONG)])
def test_sft(sft: MakeSft, base: Path, name: str) -> None:
    changes, *layout = {**SFT_CASES, **SFT_LONG}[name]
    one, other = (sft(out, **{"max_steps": 5, "optimizer": GENTLE, **changes}) for out in ("alone", "sharded"))
    alone("sft", one)
    together("sft", other, *layout)
    if one.model.lora is None:
        assert largest_difference(last_weights(one.out), base_weights(base)) > 1e-3
    assert largest_difference(last_weights(one.out), last_weights(other.out)) <= 1e-5
    for line, their in zip(metrics_of(one.out), metrics_of(other.out), strict=True):
        assert line["loss/sft"] == pytest.approx(their["loss/sft"], rel=1e-5)
        assert line["optimizer/grad_norm"] == pytest.approx(their["optimizer/grad_norm"], rel=1e-4)


def own_gradients_only(values: dict[str, Any]) -> None:
    """Every rank's gradient taken for the sum."""
    honest = dist.reduce_scatter_tensor

    def without_others(output: Tensor, input: Tensor, *given: Any, **more: Any) -> Any:
        work = honest(output, input, *given, **more)
        output.copy_(input.view(dist.get_world_size(), -1)[dist.get_rank()].view_as(output))
        return work

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "reduce_scatter_tensor", without_others)
        patch.setattr(dist, "reduce_scatter_single", without_others, raising=False)
        run("rl", values)


def test_it_fails_when_gradients_are_not_summed(rl: MakeRl, rows: Path) -> None:
    """Negative control."""
    changes = {"steps": 1, "prompts_per_step": 4, "optimizer": GENTLE}
    one, other = rl("alone", **changes), rl("sharded", **changes)
    alone("rl", one)
    run_processes(own_gradients_only, 2, sharded(other), timeout_s=240)
    assert said(one) == said(other)
    assert largest_difference(last_weights(one.out), last_weights(other.out)) > 1e-4


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["full", "adapters"])
def test_a_run_goes_on_with_other_processes(rl: MakeRl, rows: Path, before: int, after: int, kind: str) -> None:
    name = "adapters" if kind == "adapters" else "tower trains"
    whole, cut = rl_case(rl, rows, name, "whole"), rl_case(rl, rows, name, "cut")
    alone("rl", whole)
    for steps, processes in ((2, before), (5, after)):
        config = cut.model_copy(update={"steps": steps})
        alone("rl", config) if processes == 1 else together("rl", config, processes)
    assert said(whole) == said(cut)
    assert largest_difference(last_weights(whole.out), last_weights(cut.out)) <= 1e-5


def test_an_export_of_a_sharded_run_is_a_plain_model(sft: MakeSft, tmp_path: Path) -> None:
    config = sft("run", max_steps=2)
    together("sft", config)
    export.run(ExportConfig(run=config.out, out=tmp_path / "plain"))
    found = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "plain")
    weights = {f"weights/{name}": parameter.detach() for name, parameter in found.named_parameters()}
    assert found.lm_head.weight is found.model.language_model.embed_tokens.weight
    assert largest_difference(weights, last_weights(config.out)) == 0.0


def test_one_process_has_nothing_to_cut(rl: MakeRl) -> None:
    with pytest.raises(ConfigError, match=r"single process.*torchrun"):
        run("rl", sharded(rl()))


def test_an_evaluation_is_not_sharded(rows: Path, base: Path, tmp_path: Path) -> None:
    values = {"model": {"path": str(base)}, "data": {"rows": rows}, "out": tmp_path / "out", "parallel": {"sharded": True}}
    with pytest.raises(ConfigError, match="does not train"):
        evaluate.run(EvaluateConfig.model_validate(values))
