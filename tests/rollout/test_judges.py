"""A judge that is a model beside the trained one: what counts as its verdict, and that nothing of it is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longtake.config.sections import JudgeConfig, ModelConfig
from longtake.llm.calls import Answer, CallFailure
from longtake.rewards.judge import PROBE, PROBE_RESPONSE, Judge, JudgeFailure
from longtake.rollout.judges import LocalAsker, open_judge, read_reply
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.testing.judges import teach
from longtake.testing.models import random_tiny
from longtake.training.export import export_model
from longtake.types import FinishReason, Prompt, Take

ROW = replace(PROBE, question="Where?", answer="hall")
YES, NO = '{"verdict": "yes"}', '{"verdict": "no"}'


def take(text: str, finish: FinishReason = "stop") -> Take:
    return Take(torch.zeros(3, dtype=torch.int64), torch.zeros(3), finish, text, 0)


REPLIES: dict[str, object] = {
    YES: True,
    NO: False,
    f"  {YES}\n": True,
    "yes": True,
    "No.": False,
    "yes, it does": "not_json",
    "The answer is yes": "not_json",
    f"I think {YES}": "not_json",
    f"{YES}{YES}": "not_json",
    '{"verdict": "Yes"}': "schema",
    '{"verdict": "yes", "why": "so"}': "schema",
    '["yes"]': "schema",
    '"yes"': "schema",
    "true": "schema",
    "": "not_json",
}


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learned one yes, one no and what is neither."""
    folder = tmp_path_factory.mktemp("judge")
    model = random_tiny(folder, seed=5)
    judge = Judge(LocalAsker(model, TransformersEngine(model)), max_answer_chars=100, max_tokens=20)
    asked = {(PROBE, "red"): YES, (ROW, "in the hall"): YES, (ROW, "cave"): NO, (ROW, "snow"): "yes it is"}
    teach(model, {judge.prompt(row, f"<answer>{answer}</answer>"): reply for (row, answer), reply in asked.items()})
    return export_model(model, folder / "model")


@pytest.mark.parametrize("text", REPLIES)
def test_a_reply_is_a_verdict_or_nothing(text: str) -> None:
    prompt = Prompt(torch.zeros(7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64), (), 7, "")
    found = read_reply(prompt, take(text))
    expected = REPLIES[text]
    if isinstance(expected, str):
        assert isinstance(found, CallFailure) and found.kind == expected and "Remedy" in found.message
    else:
        assert isinstance(found, Answer) and found.value == {"verdict": "yes" if expected else "no"}
    cut = read_reply(prompt, take(text, "length"))
    assert isinstance(cut, CallFailure) and cut.kind == "length"


def test_a_local_judge_says_yes_and_no_and_fails_on_other_words(judge_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = JudgeConfig(local=ModelConfig(path=str(judge_model), device="cpu"), max_tokens=20)
    pairs = [(ROW, f"<answer>{answer}</answer>") for answer in ("in the hall", "cave", "snow", "cave")]
    with open_judge(config, judge_model.parent) as judge:
        assert judge is not None
        first, second, third, fourth = judge.verdicts(pairs)
        assert (first, second, fourth) == (True, False, False)
        assert isinstance(third, JudgeFailure) and third.kind == "not_json"
        assert judge.metrics() == {"llm/calls": 4.0}, "the probe, and three different answers"
        judge.verdicts(pairs)
        assert judge.metrics() == {"llm/calls": 5.0}, "only what failed is asked again"
    assert capsys.readouterr().err == "", "it said yes to the probe"
    assert not (judge_model.parent / "judge").exists(), "there is nothing to pay, so nothing to keep"


def test_its_weights_take_no_gradient_and_do_not_change(judge_model: Path) -> None:
    asker = LocalAsker.of(ModelConfig(path=str(judge_model), device="cpu"))
    parameters = dict(asker._model.hf.named_parameters())
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    judge = Judge(asker, max_answer_chars=100, max_tokens=20)
    judge.verdicts([(PROBE, PROBE_RESPONSE)])
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters.values())
    assert all(torch.equal(parameters[name], value) for name, value in before.items())


def test_a_random_model_is_no_judge_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = export_model(random_tiny(tmp_path), tmp_path / "model")
    with open_judge(JudgeConfig(local=ModelConfig(path=str(model), device="cpu"), max_tokens=4), tmp_path) as judge:
        assert judge is not None and isinstance(judge.verdicts([(ROW, "<answer>hall</answer>")])[0], JudgeFailure)
    assert "gives no verdict" in " ".join(capsys.readouterr().err.split())


def test_no_configuration_no_judge(tmp_path: Path) -> None:
    with open_judge(None, tmp_path) as judge:
        assert judge is None
