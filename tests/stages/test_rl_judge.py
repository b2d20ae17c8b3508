"""RL with a judged reward: what is masked and what is learned, resumed, over processes, without an answer, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from longtake.answers import is_correct, parse_response
from longtake.config.sections import ModelConfig, RewardConfig
from longtake.config.stages import EvaluateConfig, ExportConfig, RlConfig
from longtake.data.rows import read_examples
from longtake.errors import BudgetError, CheckpointError, LlmError
from longtake.evaluation.records import read_records
from longtake.observe.digest import file_digest
from longtake.observe.lines import read_lines
from longtake.rewards.judge import Judge, visible
from longtake.rollout.judges import LocalAsker
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.stages import evaluate, export
from longtake.stages import rl as stage
from longtake.testing import training
from longtake.testing.judges import KINDS, answering_model, asked_of, failure_of, means_the_same, open_rows, stand_in, teach
from longtake.testing.llm_server import LlmServer, Reply, refused, said
from longtake.testing.models import random_tiny
from longtake.testing.processes import run_processes
from longtake.testing.training import assert_same_run, largest_difference, last_weights, metrics_of
from longtake.training.checkpoint import check_same_experiment
from longtake.training.export import export_model
from longtake.types import Example
from longtake.video.index import DigestIndex
from longtake.world.server import OracleServer

FAILING = 0.3
Make = Callable[..., RlConfig]


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_rows(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def student(open_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_model(tmp_path_factory.mktemp("student"), open_world)


@pytest.fixture
def judged(open_world: Path, student: Path, tmp_path: Path) -> Make:
    """judged("name", server, **changes): a run of steps of three prompts with four takes, no call made twice."""

    def make(
        name: str, server: LlmServer, endpoint: dict[str, Any] | None = None, judge: dict[str, Any] | None = None, **changes: Any
    ) -> RlConfig:
        asked = {"url": server.url, "model": "stand-in", "max_retries": 0, "bad_answer_retries": 0, "timeout_s": 10.0} | (endpoint or {})
        base = {"rewards": {"judge": {"endpoint": asked} | (judge or {})}, "rollout": {"num_takes": 4, "max_new_tokens": 24}}
        return training.rl_config(open_world, student, tmp_path / name, Path("none"), **training.merged(base, changes))

    return make


@pytest.fixture
def faulty() -> Iterator[LlmServer]:
    """Fails at a share of the questions, always the same ones."""
    with LlmServer(partial(stand_in, failing=FAILING)) as server:
        yield server


@contextmanager
def after_every_step(told: Callable[[int], None]) -> Iterator[None]:
    """`told(n)` when the nth step's update is done."""
    original, steps = stage.take_records, iter(range(1, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "take_records", lambda *given: (told(next(steps)), original(*given))[1])
        yield


def examples(rows: Path) -> dict[int, Example]:
    found = read_examples(training.rl_config(rows, Path("none"), Path("none"), Path("none")).data, DigestIndex())
    return {item.problem_id: item for item in found if isinstance(item, Example)}


def expected(example: Example, text: str) -> tuple[bool | str, bool]:
    """What the stand-in makes of a response, or the kind of the failure; and whether it is asked at all."""
    answer = visible(parse_response(text).answer or "")
    if not answer:
        return False, False
    failure = failure_of(example.question, answer, FAILING)
    return (KINDS[failure] if failure is not None else means_the_same(example.answer, answer)), True


def test_a_failed_call_masks_its_take_and_the_rest_is_learned_from(judged: Make, open_world: Path, faulty: LlmServer) -> None:
    """Every reward, mask and advantage worked out from the texts; every metric from those."""
    config = judged("run", faulty, steps=4)
    stage.run(config)
    rows, lines = examples(open_world), metrics_of(config.out)
    kinds = set()
    for line in lines:
        takes = [take for take in read_lines(config.out / "takes.jsonl") if take["step"] == line["step"]]
        found = [expected(rows[take["problem_id"]], take["text"]) for take in takes]
        for take, (verdict, _) in zip(takes, found, strict=True):
            if isinstance(verdict, str):
                assert take["rewards"]["accuracy"] is None and take["total_reward"] is None and take["unjudged"] == verdict
                assert take["valid"] is False and take["advantage"] == 0.0
            else:
                assert take["rewards"]["accuracy"] == float(verdict) and take["valid"] is True and take["unjudged"] is None
                assert take["total_reward"] == pytest.approx(0.9 * verdict + 0.1 * take["rewards"]["format"])
        for start in range(0, len(takes), 4):
            assert_advantages(takes[start : start + 4])
        known = [verdict for verdict, _ in found if not isinstance(verdict, str)]
        asked = [verdict for verdict, is_asked in found if is_asked]
        failed = [verdict for verdict in asked if isinstance(verdict, str)]
        kinds |= set(failed)
        rules = [
            is_correct(rows[take["problem_id"]], take["text"])
            for take, (verdict, is_asked) in zip(takes, found, strict=True)
            if is_asked and not isinstance(verdict, str)
        ]
        told = [verdict for verdict in asked if not isinstance(verdict, str)]
        assert line["reward/accuracy"] == pytest.approx(fmean(known))
        assert line["reward/format"] == pytest.approx(fmean(take["rewards"]["format"] for take in takes))
        assert (line["count/judge_asked"], line["count/judge_failed"]) == (len(asked), len(failed))
        assert line["judge/failed"] == pytest.approx(len(failed) / len(asked))
        assert line["judge/yes"] == pytest.approx(fmean(told)) and line["judge/rule_yes"] == pytest.approx(fmean(rules))
        assert line["judge/agreement"] == pytest.approx(fmean(one == other for one, other in zip(told, rules, strict=True)))
        assert all(line[f"count/judge_failed/{kind}"] == failed.count(kind) for kind in failed)
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
    assert len(kinds) >= 3, "the test saw failures of several kinds"
    assert any(line["judge/agreement"] < 1 for line in lines), "judge and rules differ somewhere"
    assert largest_difference(last_weights(config.out), training.base_weights(Path(config.model.path))) > 1e-4


def assert_advantages(takes: list[dict[str, Any]]) -> None:
    """GRPO's, over the takes with a reward alone."""
    totals = [take["total_reward"] for take in takes if take["valid"]]
    differ = len(totals) > 1 and max(totals) - min(totals) > 1e-6
    for take in takes:
        by_hand = (take["total_reward"] - fmean(totals)) / (stdev(totals) + 1e-6) if differ and take["valid"] else 0.0
        assert take["advantage"] == pytest.approx(by_hand, abs=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "dynamic": {"algorithm": {"dynamic_sampling": {"max_rounds": 3}}},
    "kl in the reward": {"algorithm": {"kl": {"coefficient": 0.1, "place": "reward"}}},
    "kl in the loss": {"algorithm": {"kl": {"coefficient": 0.1}}},
    "one step behind": {"rollout": {"staleness": 1}},
    "two updates": {"updates_per_step": 2, "algorithm": {"advantage": "reinforce_pp", "importance": {"kind": "truncate"}}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_not_known_reaches_no_number(judged: Make, faulty: LlmServer, name: str) -> None:
    """NaN stands for a reward that is not known: it must not come out anywhere."""
    config = judged("run", faulty, steps=3, **VARIANTS[name])
    stage.run(config)
    assert sum(line["count/judge_failed"] for line in metrics_of(config.out)) > 0
    for line in metrics_of(config.out):
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float)) and "non_finite" not in line
    for take in read_lines(config.out / "takes.jsonl"):
        assert math.isfinite(take["advantage"]) and "non_finite" not in take and (take["valid"] or take["advantage"] == 0.0)
        assert take["dropped"] or take["policy_logprobs"] is not None
    assert all(bool(tensor.isfinite().all()) for tensor in last_weights(config.out).values())


def test_stopped_and_resumed_it_is_the_same_run_and_pays_nothing_twice(judged: Make, faulty: LlmServer) -> None:
    whole, parts = judged("whole", faulty, steps=6), judged("parts", faulty, steps=2, checkpoint={"every": 2})
    stage.run(whole)
    paid = answered(faulty)
    faulty.requests.clear()
    for steps in (2, 4, 6):
        stage.run(parts.model_copy(update={"steps": steps}))
    assert_same_run(whole.out, parts.out)
    assert answered(faulty) == paid and len(paid) == len(set(paid))


def answered(server: LlmServer) -> list[str]:
    """Questions that a verdict was given to."""
    return sorted(request.text for request in server.requests if "verdict" in str(stand_in(request.body, FAILING).text))


def test_a_step_that_is_done_again_asks_only_what_failed(judged: Make, faulty: LlmServer) -> None:
    """As after a kill behind the last checkpoint: verdicts come from the folder."""
    first = judged("first", faulty, steps=3)
    stage.run(first)
    faulty.requests.clear()
    again = judged("again", faulty, judge={"folder": str(first.out / "judge")}, steps=3)
    stage.run(again)
    assert_same_run(first.out, again.out)
    assert answered(faulty) == [] and faulty.requests


def _run(values: dict[str, Any]) -> None:
    stage.run(RlConfig.model_validate(values))


def test_two_processes_judge_as_one_does(judged: Make, faulty: LlmServer) -> None:
    """Each its own takes, with the same verdicts, failures and masks. Weights: rounding apart, as without a judge."""
    changes: dict[str, Any] = {"steps": 4, "prompts_per_step": 4, "optimizer": {"eps": 1e-4}}
    alone, several = judged("alone", faulty, **changes), judged("several", faulty, **changes)
    stage.run(alone)
    faulty.requests.clear()
    run_processes(_run, 2, several.model_dump(mode="json"), timeout_s=240)
    names = ("step", "problem_id", "take", "token_ids", "rewards", "total_reward", "valid", "unjudged")
    mine, theirs = ([[take[name] for name in names] for take in read_lines(config.out / "takes.jsonl")] for config in (alone, several))
    assert mine == theirs and any(take[-1] is not None for take in mine)
    assert largest_difference(last_weights(alone.out), last_weights(several.out)) <= 1e-5
    for one, other in zip(metrics_of(alone.out), metrics_of(several.out), strict=True):
        assert {k: v for k, v in one.items() if "judge" in k} == {k: v for k, v in other.items() if "judge" in k}
    assert len(list((several.out / "judge").glob("*.jsonl"))) == 2, "each writes a file of its own"


def test_nobody_answers_for_three_steps_and_the_run_ends_saved(judged: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so in every step, and goes on from there once the judge is well."""
    with LlmServer(partial(stand_in, failing=1.0)) as server, LlmServer(stand_in) as well:
        broken = judged("run", server, steps=6)
        with pytest.raises(LlmError, match="3 steps in a row"):
            stage.run(broken)
        told = " ".join(capsys.readouterr().err.split())
        lines = metrics_of(broken.out)
        assert [line["step"] for line in lines] == [1, 2, 3]
        for line in lines:
            asked = int(line["count/judge_asked"])
            assert line["judge/failed"] == 1.0 and "judge/agreement" not in line
            assert f"step {line['step']}: {asked} of {asked} answers were NOT judged and are left out: " in told
            assert line.get("reward/accuracy", 0.0) == 0.0, "what has no readable answer is known to be wrong"
        assert largest_difference(last_weights(broken.out), training.base_weights(Path(broken.model.path))) == 0.0, "nothing was learned"
        mended = judged("run", well, steps=6)
        stage.run(mended)
        assert [line["step"] for line in metrics_of(mended.out)] == [1, 2, 3, 4, 5, 6]
        assert largest_difference(last_weights(mended.out), training.base_weights(Path(broken.model.path))) > 1e-4


def test_two_bad_steps_are_bad_luck(judged: Make) -> None:
    """The judge is well from the third step on."""
    answered_by = {"function": partial(stand_in, failing=1.0)}

    def heal(step: int) -> None:
        if step == 2:
            answered_by["function"] = partial(stand_in, failing=0.0)

    with LlmServer(lambda body: answered_by["function"](body)) as server, after_every_step(heal):
        config = judged("run", server, steps=4)
        stage.run(config)
    assert [line["judge/failed"] for line in metrics_of(config.out)] == [1.0, 1.0, 0.0, 0.0]


def test_the_budget_ends_the_run_before_a_step_and_a_larger_one_goes_on(judged: Make) -> None:
    """Bit for bit as if there had been enough from the start, and every verdict paid once."""
    with LlmServer(lambda body: replace(stand_in(body), usage=(2000, 20))) as server:  # more than a call is reckoned with
        rich = judged("rich", server, steps=4)
        stage.run(rich)
        paid = len(server.requests)
        server.requests.clear()
        with pytest.raises(BudgetError, match="max_tokens"):
            stage.run(judged("poor", server, judge={"budget": {"max_tokens": 2020 * paid * 3 // 4}}, steps=4))
        done = metrics_of(rich.out.parent / "poor")
        assert 0 < len(done) < 4 and 0 < len(server.requests) < paid
        poor = judged("poor", server, judge={"budget": {"max_tokens": 10**9}}, steps=4)
        stage.run(poor)
        assert len(server.requests) == paid
        assert_same_run(rich.out, poor.out)


def test_a_server_that_goes_ends_the_run_before_the_step(judged: Make) -> None:
    """Nothing is learned from half a step: the same run as one without the fall."""
    with LlmServer(stand_in) as other, LlmServer(stand_in) as falling:
        whole = judged("whole", other, steps=4)
        stage.run(whole)
        with after_every_step(lambda step: falling.stop()), pytest.raises(LlmError, match="no server answers"):
            stage.run(judged("fallen", falling, steps=4))
        fallen = judged("fallen", other, steps=4)
        assert 0 < len(metrics_of(fallen.out)) < 4
        stage.run(fallen)
        assert_same_run(whole.out, fallen.out)


def _run_into_trouble(values: dict[str, Any]) -> str:
    with pytest.raises(LlmError) as caught:
        stage.run(RlConfig.model_validate(values))
    return str(caught.value)


def test_what_one_process_is_refused_ends_all_of_them_saved(judged: Make) -> None:
    """The judge lets nobody in who asks one certain question, which one of two processes does: both leave before that step, and say why."""
    with LlmServer(stand_in) as well:
        alone = judged("alone", well, steps=3, prompts_per_step=4)
        stage.run(alone)
        answers = [(take["step"], parse_response(take["text"]).answer) for take in read_lines(alone.out / "takes.jsonl")]
        early = {answer for step, answer in answers if step < 3}
        late = next(answer for step, answer in answers if step == 3 and answer and answer not in early)

        def choosy(body: dict[str, Any]) -> Reply:
            return refused(401) if asked_of(body)["response"] == visible(late) else stand_in(body)

        with LlmServer(choosy) as server:
            values = judged("both", server, steps=3, prompts_per_step=4).model_dump(mode="json")
            told = run_processes(_run_into_trouble, 2, values, timeout_s=240)
        assert all("answers of step 3 are not judged" in one and "answers 401" in one for one in told)
        assert [line["step"] for line in metrics_of(Path(values["out"]))] == [1, 2]
        stage.run(judged("both", well, steps=3, prompts_per_step=4))
        assert largest_difference(last_weights(alone.out), last_weights(Path(values["out"]))) <= 1e-5


def test_validation_is_judged_and_its_failures_are_wrong_rows(judged: Make, open_world: Path, faulty: LlmServer) -> None:
    validation = {"data": {"rows": open_world}, "num_rows": 12, "every": 2, "max_new_tokens": 24}
    config = judged("run", faulty, steps=2, validation=validation)
    stage.run(config)
    first, last = (line for line in metrics_of(config.out) if "validation/accuracy" in line)
    texts = greedy_texts(config)
    found = [expected(example, texts[problem_id])[0] for problem_id, example in examples(open_world).items()]
    assert last["validation/accuracy"] == pytest.approx(sum(verdict is True for verdict in found) / 12)
    assert last["validation/not_judged"] == sum(isinstance(verdict, str) for verdict in found)
    assert first["step"] == 0 and first["validation/not_judged"] + last["validation/not_judged"] > 0


def greedy_texts(config: RlConfig) -> dict[int, str]:
    """What the run's last weights say to every row."""
    export.run(ExportConfig(run=config.out, out=config.out / "model"))
    values = {name: getattr(config, name) for name in ("video", "prompt", "data", "num_threads")}
    values["rollout"] = {"num_takes": 1, "temperature": 0.0, "max_new_tokens": 24}
    out = config.out / "evaluation"
    evaluate.run(EvaluateConfig(out=out, model=ModelConfig(path=str(config.out / "model"), device="cpu"), **values))
    return {record.problem_id: record.text for record in read_records(out / "answers.jsonl") if record.problem_id is not None}


def test_a_local_judge_is_asked_and_not_trained(judged: Make, open_world: Path, tmp_path: Path) -> None:
    """A model that has learned to say yes. The policy ends bit for bit as with a server that says the same, and the judge as it began."""
    model = random_tiny(tmp_path, seed=9)
    pupil = Judge(LocalAsker(model, TransformersEngine(model)), max_answer_chars=100, max_tokens=20)
    yes = '{"verdict": "yes"}'
    teach(model, {pupil.prompt(row, f"<answer>{row.answer}</answer>"): yes for row in list(examples(open_world).values())[::3]}, steps=40)
    folder = export_model(model, tmp_path / "judge_model")
    before = {path.name: file_digest(path) for path in folder.iterdir()}
    with LlmServer(lambda body: said(yes)) as server:
        remote = judged("remote", server)
        stage.run(remote)
    values = remote.model_dump(mode="json") | {"out": str(tmp_path / "local")}
    values["rewards"]["judge"] |= {"endpoint": None, "local": {"path": str(folder), "device": "cpu"}}
    local = RlConfig.model_validate(values)
    stage.run(local)
    assert_same_run(remote.out, local.out)
    assert metrics_of(local.out)[0]["judge/yes"] == 1.0 and metrics_of(local.out)[0]["llm/calls"] > 0
    assert before == {path.name: file_digest(path) for path in folder.iterdir()}
    assert last_weights(local.out).keys() == training.base_weights(Path(local.model.path)).keys()


@pytest.mark.long
def test_the_worlds_judge_teaches_though_it_fails_now_and_then(judged: Make, open_world: Path) -> None:
    """The oracle behind its own server, one request in ten failing: nothing masked is scored, and the answers get better.

    benchmarks/judged_rl.py does the same at full size, held out. Measured here: 0.19 in the first five steps, 0.56 in the last.
    """
    with OracleServer([open_world.parent], failures=0.1, model="stand-in") as server:
        config = judged("run", server, steps=40, prompts_per_step=12, rollout={"num_takes": 8}, optimizer={"lr": 1e-3})
        stage.run(config)
        assert server.counts["failure/500"] + server.counts["failure/429"] + server.counts["failure/garbage"] > 10
    masked = [take for take in read_lines(config.out / "takes.jsonl") if take["unjudged"] is not None]
    assert masked and all(take["total_reward"] is None and not take["valid"] and take["advantage"] == 0.0 for take in masked)
    accuracy = [line["reward/accuracy"] for line in metrics_of(config.out)]
    assert fmean(accuracy[-5:]) > fmean(accuracy[:5]) + 0.2


def test_a_resumed_run_keeps_its_judge_and_may_find_it_elsewhere(judged: Make) -> None:
    """Address, patience, prices and budget may change; another model, or none, is another experiment. A run from before judges has none."""
    server = LlmServer(stand_in)
    server.url = "http://here/v1"
    before = judged("run", server).model_dump(mode="json")

    def now(endpoint: dict[str, Any] | None = None, judge: dict[str, Any] | None = None) -> dict[str, Any]:
        return judged("run", server, endpoint, judge).model_dump(mode="json")

    patient = {"url": "http://elsewhere/v1", "max_retries": 9, "timeout_s": 1.0, "concurrency": 2, "structured": "off", "input_price": 1.0}
    check_same_experiment(before, now(patient, {"budget": {"max_tokens": 5}, "folder": "other"}))
    for other in (
        now({"model": "another"}),
        now({"extra_body": {"top_k": 1}}),
        now(judge={"max_answer_chars": 9}),
        now(judge={"max_tokens": 9}),
    ):
        with pytest.raises(CheckpointError, match=r"rewards\.judge"):
            check_same_experiment(before, other)
    unjudged = before | {"rewards": RewardConfig().model_dump(mode="json")}
    with pytest.raises(CheckpointError, match=r"rewards\.judge"):
        check_same_experiment(before, unjudged)
    of_old = {"rewards": {name: value for name, value in unjudged["rewards"].items() if name != "judge"}}
    check_same_experiment(before | of_old, unjudged)
