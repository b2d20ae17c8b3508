"""Open-ended answers of an evaluation decided by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longtake.evaluation.records import JUDGE_FAILED, NO_CALL, AnswerRecord
from longtake.rewards.judge import Judge, JudgeFailure, Verdict
from longtake.types import Example, Failure


def judge_records(judge: Judge, items: Sequence[Example | Failure], records: Sequence[AnswerRecord]) -> list[AnswerRecord]:
    """The records with the judge's verdict on every open-ended answer, asked about all at once. `records[i]` belongs to `items[i]`.

    A row of which there is no verdict is a failed one: it stays in the denominator.
    """
    places = [
        (index, item)
        for index, (item, record) in enumerate(zip(items, records, strict=True))
        if isinstance(item, Example) and judge.judges(item) and record.failure is None
    ]
    verdicts = judge.verdicts([(item, records[index].text) for index, item in places])
    judged = list(records)
    for (index, item), verdict in zip(places, verdicts, strict=True):
        judged[index] = _judged(records[index], verdict, judge.asks(item, records[index].text))
    return judged


def _judged(record: AnswerRecord, verdict: Verdict, asked: bool) -> AnswerRecord:
    if isinstance(verdict, JudgeFailure):
        return replace(
            record,
            correct=False,
            rule_correct=record.correct,
            verdict=verdict.kind,
            failure=JUDGE_FAILED,
            failure_stage="judge",
            failure_message=verdict.message,
        )
    told = ("yes" if verdict else "no") if asked else NO_CALL
    return replace(record, correct=verdict, rule_correct=record.correct, verdict=told)
