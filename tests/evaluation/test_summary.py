"""Figures of an evaluation, computed by hand; FACTS fault 9 (keys, denominators) cannot happen."""

from dataclasses import replace

import pytest

from longtake.errors import RowError
from longtake.evaluation.intervals import wilson
from longtake.evaluation.records import AnswerRecord, read_records, write_records
from longtake.evaluation.summary import headline_rows, paired_test, summarise

LETTERS = ("A", "B", "C", "D")


def record(problem_id, answer="A", predicted="A", **changes):
    base = AnswerRecord(
        problem_id=problem_id,
        category="temporal",
        frames=16,
        answer=answer,
        letters=LETTERS,
        predicted=predicted,
        correct=answer == predicted,
        well_formed=True,
        text=f"<think>x</think><answer>{predicted}</answer>",
        response_tokens=10,
        finish_reason="stop",
        video=f"video{problem_id}",
    )
    return replace(base, **changes)


def failed(problem_id, **changes):
    return record(problem_id, predicted=None, correct=False, well_formed=False, text="", response_tokens=0, finish_reason=None,
                  failure="VideoDamagedError", failure_stage="video", failure_message="broken", **changes)  # fmt: skip


def test_headline_figures_by_hand():
    rows = [
        record(1, "A", "A", category="plot", response_tokens=10, video="v1"),
        record(2, "B", "A", category="plot", response_tokens=20, video="v1"),
        record(3, "B", "B", category="goal", response_tokens=60, video="v2"),
        record(4, "B", None, category="goal", response_tokens=30, well_formed=False, finish_reason="length", video="v3"),
        failed(5, category="goal", answer="C", video=None),
    ]
    summary = summarise(rows)
    assert summary["accuracy"] == pytest.approx(2 / 5) and summary["n"] == 5
    assert summary["ci95"] == pytest.approx(wilson(2, 5))
    assert {name: (part["accuracy"], part["n"]) for name, part in summary["by_category"].items()} == {"goal": (1 / 3, 3), "plot": (0.5, 2)}
    letters = {name: (part["accuracy"], part["n"], part["predicted"]) for name, part in summary["by_letter"].items()}
    assert letters == {"A": (1.0, 1, 2), "B": (pytest.approx(1 / 3), 3, 1), "C": (0.0, 1, 0), "D": (0.0, 0, 0)}
    assert summary["num_unread"] == 2
    assert summary["format_rate"] == pytest.approx(3 / 5)
    assert summary["response_tokens"] == {"mean": 30.0, "median": 25.0, "max": 60}
    assert summary["truncated_rate"] == pytest.approx(1 / 5)
    assert summary["failures"] == {"VideoDamagedError": 1} and summary["num_failures"] == 1
    assert summary["best_constant"] == pytest.approx(3 / 5)  # always "B"
    assert summary["chance"] == pytest.approx(4 * 0.25 / 5)  # the failed row cannot be guessed right
    assert summary["num_videos"] == 3


def test_a_failure_is_wrong_and_stays_whatever_its_record_claims():
    right = [record(number) for number in range(9)]
    assert summarise([*right, failed(9)])["accuracy"] == pytest.approx(0.9)
    assert summarise([*right, replace(failed(9), correct=True)])["accuracy"] == pytest.approx(0.9)
    assert summarise(right)["accuracy"] == 1.0  # control: without the failure the denominator is 9


def test_rows_without_a_readable_id_all_stay_in_the_denominator():
    lost = [failed(None), failed(None)]
    assert summarise([record(1), *lost])["n"] == 3


def test_two_questions_on_one_video_are_two_rows():
    """Keyed by video, the second question would get the first one's answer."""
    summary = summarise([record(1, "A", "A", video="same"), record(2, "B", "A", video="same")])
    assert (summary["n"], summary["accuracy"], summary["num_videos"]) == (2, 0.5, 1)


def test_a_problem_id_twice_is_refused_and_named():
    with pytest.raises(RowError, match="problem id 7 occurs twice at 16 frames"):
        summarise([record(7), record(8), record(7, "B")])
    assert summarise([record(7), record(7, frames=32)])["n"] == 1  # another number of frames is another evaluation


def test_frames_headline_is_the_largest_and_each_has_all_rows():
    rows = [record(number, predicted="A" if number < 2 else "B", frames=8) for number in range(4)]
    rows += [record(number, predicted="A" if number < 3 else "B", frames=32) for number in range(4)]
    summary = summarise(rows)
    assert summary["frames"] == 32 and summary["accuracy"] == 0.75
    assert {name: part["accuracy"] for name, part in summary["by_frames"].items()} == {"8": 0.5, "32": 0.75}
    assert [row.frames for row in headline_rows(rows)] == [32] * 4
    with pytest.raises(RowError, match="not the same problem ids"):
        summarise(rows[:-1])


def test_letters_scoring_measures_no_format():
    rows = [record(number, well_formed=None, text="", finish_reason=None) for number in range(3)]
    assert summarise(rows)["format_rate"] is None
    assert summarise([record(1, well_formed=False)])["format_rate"] == 0.0


def test_no_rows_claim_nothing():
    summary = summarise([])
    assert summary["n"] == 0 and summary["ci95"] == [0.0, 1.0] and summary["by_frames"] == {}


def test_by_video_interval_is_wider_where_the_rows_of_a_video_stand_or_fall_together():
    rows = [record(4 * video + row, predicted="A" if video % 2 else "B", video=f"v{video}") for video in range(40) for row in range(4)]
    summary = summarise(rows)
    width = {name: summary[name][1] - summary[name][0] for name in ("ci95", "ci95_by_video")}
    assert width["ci95_by_video"] / width["ci95"] > 1.7  # measured 2.0 (4 rows per video: sqrt 4)


def test_paired_test_counts_and_p():
    first = [record(number, predicted="A" if number < 9 else "B") for number in range(12)]
    second = [record(number, predicted="A" if number in (0, 1, 9) else "B") for number in range(12)]
    result = paired_test(first, list(reversed(second)))
    assert (result["both"], result["only_first"], result["only_second"], result["neither"]) == (2, 7, 1, 2)
    assert result["difference"] == pytest.approx(0.5)
    assert result["p"] == pytest.approx(2 * (1 + 8) / 256)
    assert paired_test(first, first)["p"] == 1.0


def test_paired_test_compares_the_headline_frames_and_counts_failures_as_wrong():
    first = [record(1, frames=8, predicted="B"), record(1, frames=32)]
    assert paired_test(first, [failed(1, frames=32)])["only_first"] == 1


def test_paired_test_keeps_rows_without_an_id_as_wrong_on_both_sides():
    result = paired_test([record(1), failed(None)], [record(1, predicted="B"), failed(None)])
    assert (result["n"], result["only_first"], result["neither"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([record(1)], "on one side only"),
        ([record(1), record(3)], "on one side only"),
        ([record(1), record(2), record(2)], "occurs twice"),
        ([record(1), failed(None)], "on one side only, e.g. problem ids 2, unreadable 0"),
        ([record(1), record(2), record(None)], "answered row without problem id"),
    ],
)
def test_paired_test_refuses_other_rows(second, message):
    with pytest.raises(RowError, match=message):
        paired_test([record(1), record(2)], second)


def test_records_survive_the_file_with_hostile_text(tmp_path):
    rows = [record(1, text="line\nbreak \u2028 <script>alert(1)</script> \x00 lone \ud83d"), failed(2)]
    write_records(tmp_path / "answers.jsonl", rows)
    assert read_records(tmp_path / "answers.jsonl") == rows


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"problem_id": 1}', '{"letters": 5}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / "answers.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(RowError, match=r"answers.jsonl line 2"):
        read_records(tmp_path / "answers.jsonl")
