"""`longtake evaluate` with a judge: verdicts, rows that were not judged, and what a second run asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longtake.config.llm import EndpointConfig
from longtake.config.sections import JudgeConfig
from longtake.config.stages import EncodeConfig, EvaluateConfig
from longtake.evaluation.records import AnswerRecord, read_records
from longtake.evaluation.summary import paired_test, summarise
from longtake.stages import evaluate
from longtake.testing.judges import answering_model, asked_of, means_the_same, open_rows, stand_in
from longtake.testing.llm_server import LlmServer, Reply, refused
from longtake.testing.processes import run_processes
from longtake.testing.training import small_world

Make = Callable[..., EvaluateConfig]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve open-ended rows, and two multiple-choice ones about videos of their own."""
    path = open_rows(tmp_path_factory.mktemp("open"))
    choice = small_world(path.parent / "choice")
    more = [json.loads(line) for line in choice.read_text().splitlines()[:2]]
    for number, row in enumerate(more):
        row |= {"problem_id": 100 + number, "videos": f"choice/{row['videos']}"}
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in more)
    return path


@pytest.fixture(scope="module")
def student(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_model(tmp_path_factory.mktemp("student"), rows)


@pytest.fixture
def config(rows: Path, student: Path, tmp_path: Path) -> Make:
    def make(name: str, server: LlmServer | None, **changes: Any) -> EvaluateConfig:
        values: dict[str, Any] = {
            "out": tmp_path / name,
            "model": {"path": str(student), "device": "cpu"},
            "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
            "prompt": {"instruction": ""},
            "data": {"rows": rows},
            "rollout": {"num_takes": 1, "temperature": 0.0, "max_new_tokens": 24, "max_rows": 4},
            "num_threads": 1,
        }
        if server is not None:
            endpoint = {"url": server.url, "model": "stand-in", "max_retries": 0, "bad_answer_retries": 0}
            values["judge"] = {"endpoint": endpoint}
        return EvaluateConfig.model_validate(values | changes)

    return make


def records_of(config: EvaluateConfig) -> list[AnswerRecord]:
    return read_records(config.out / "answers.jsonl")


def failing_on(body: dict[str, Any], answer: str) -> Reply:
    return refused(500) if asked_of(body)["response"] == answer else stand_in(body)


def test_open_ended_rows_are_judged_and_a_failed_call_is_a_failed_row(config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge fails on the most frequent answer; run again, only that is asked, and all is as if it had never failed."""
    by_rules = config("rules", None)
    assert evaluate.run(by_rules)["judge"] is None
    rules = records_of(by_rules)
    answers = [record.predicted for record in rules if not record.letters and record.predicted]
    common = max(answers, key=answers.count)
    with LlmServer(partial(failing_on, answer=common)) as server:
        summary = evaluate.run(config("judged", server))
        assert len(server.requests) == len({request.text for request in server.requests})
    records, shown = records_of(config("judged", server)), " ".join(capsys.readouterr().out.split())
    told = 0
    for record, rule in zip(records, rules, strict=True):
        assert (record.problem_id, record.text, record.predicted) == (rule.problem_id, rule.text, rule.predicted)
        if record.letters:
            assert record == rule and record.verdict is None
        elif not record.predicted:
            assert (record.correct, record.verdict, record.failure) == (False, "no call", None)
        elif record.predicted == common:
            assert (record.correct, record.verdict, record.failure, record.failure_stage) == (False, "http_500", "JudgeFailed", "judge")
            assert "Remedy" in str(record.failure_message)
        else:
            right = means_the_same(record.answer, record.predicted)
            assert (record.correct, record.verdict, record.failure) == (right, "yes" if right else "no", None)
            told += 1
        assert record.letters or record.rule_correct is rule.correct
    failed = answers.count(common)
    assert summary["n"] == 14 and summary["failures"] == {"JudgeFailed": failed}
    judge = summary["judge"]
    assert judge is not None and (judge["n"], judge["calls"], judge["failed"]) == (12, len(answers), failed)
    same = sum(record.correct == record.rule_correct for record in records if record.verdict in ("yes", "no"))
    assert judge["agreement"] == pytest.approx(same / told) and told > 0
    assert f"{failed} calls failed: run again" in shown
    assert summary == summarise(records)

    with LlmServer(stand_in) as server:
        again = evaluate.run(config("judged", server))
        assert {asked_of(request.body)["response"] for request in server.requests} == {common}
    assert again["num_failures"] == 0 and again["judge"] is not None and again["judge"]["failed"] == 0
    calls = json.loads((config("judged", server).out / "results.json").read_text())["calls"]
    assert calls["llm/paid"] == len(server.requests) and calls["llm/failed"] == 0
    test = paired_test(records_of(config("judged", server)), rules)
    assert test["n"] == 14 and test["only_second"] == 0, "this judge is milder than the rules"


def test_at_every_number_of_frames_all_answers_are_judged(config: Make) -> None:
    with LlmServer(stand_in) as server:
        summary = evaluate.run(config("frames", server, frames=(2, 4)))
    records = records_of(config("frames", server))
    assert {record.frames for record in records if record.verdict in ("yes", "no")} == {2, 4}
    judge = summary["judge"]
    assert judge is not None and judge["n"] == 12, "of the headline's number of frames"


def _run(values: dict[str, Any]) -> None:
    evaluate.run(EvaluateConfig.model_validate(values))


def test_two_processes_judge_as_one_does(config: Make) -> None:
    with LlmServer(partial(stand_in, failing=0.3)) as server:
        alone, several = config("alone", server), config("several", server)
        evaluate.run(alone)
        run_processes(_run, 2, several.model_dump(mode="json"), timeout_s=200)
    told = [[(r.problem_id, r.text, r.correct, r.verdict, r.failure) for r in records_of(one)] for one in (alone, several)]
    assert told[0] == told[1] and any(record[-1] for record in told[0])


def test_letters_scoring_has_nothing_to_judge(tmp_path: Path, rows: Path) -> None:
    judge = JudgeConfig(endpoint=EndpointConfig())
    with pytest.raises(ValidationError, match="letters scoring reads no answer"):
        EvaluateConfig(out=tmp_path, data={"rows": rows}, scoring="letters", judge=judge)


def test_one_file_serves_encode_and_an_evaluation_with_a_judge(tmp_path: Path, rows: Path) -> None:
    given = {"data": {"rows": rows}, "cache": {"folder": tmp_path}, "judge": {"endpoint": {}}, "rewards": {"judge": {"endpoint": {}}}}
    assert EncodeConfig.model_validate(given).cache.folder == tmp_path


def test_a_record_from_before_judges_is_read(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    old = {"problem_id": 1, "category": "plot", "frames": 8, "answer": "hall", "letters": [], "predicted": "hall"}
    path.write_text(json.dumps(old | {"correct": True, "well_formed": True}) + "\n")
    (record,) = read_records(path)
    assert record.verdict is None and record.rule_correct is None and summarise([record])["judge"] is None


def test_the_judges_share_by_hand() -> None:
    """Five rows: two verdicts that agree with the rules on one, one failed, one without a call, one multiple choice."""

    def row(number: int, correct: bool, verdict: str | None, rule: bool | None, failure: str | None = None) -> AnswerRecord:
        letters = ("A", "B") if verdict is None else ()
        return AnswerRecord(number, "plot", 8, "A", letters, "A", correct, True, verdict=verdict, rule_correct=rule, failure=failure)

    rows = [
        row(1, True, "yes", True),
        row(2, True, "yes", False),
        row(3, False, "timeout", True, "JudgeFailed"),
        row(4, False, "no call", False),
        row(5, True, None, None),
    ]
    summary = summarise(rows)
    assert summary["judge"] == {"n": 4, "calls": 3, "failed": 1, "yes": 2, "rule_yes": 1, "agreement": 0.5}
    assert summary["accuracy"] == 3 / 5 and summary["n"] == 5
