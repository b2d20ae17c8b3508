"""Pieces of the report whose results can be worked out by hand."""

import json
import random
import re

import pytest

from longtake.report.html import write_report
from longtake.report.markup import Html, el, table, text
from longtake.report.plots import STAND_INS, Band, Bar, Series, _reach, interval_chart, line_chart, running_mean, shown
from longtake.report.read import MAX_TAKES_BYTES, Evaluation, read_groups
from longtake.report.samples import by_problem, choose, find, take_group
from longtake.report.sections import p_value
from longtake.report.strips import clock
from longtake.testing.synthetic_run import answers


def test_text_becomes_markup_only_through_el():
    assert el("td", "<b>", class_="x", data_k='"', hidden=True, none=None) == '<td class="x" data-k="&quot;" hidden>&lt;b&gt;</td>'
    assert el("p", el("b", "&"), Html("<i></i>"), None, 3) == "<p><b>&amp;</b><i></i>3</p>"
    assert text("a\x00b\ud800\u00a0\n") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\u00a0\n"
    assert "&lt;th&gt;" in table(["<th>"], [["<td>"]])


def test_a_plain_string_operation_on_markup_is_text_again():
    """Html + str is str: it is escaped when used, so forgetting shows as visible tags, never as a hole."""
    assert el("p", el("b", "x") + "<script>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;script&gt;</p>"


def test_running_mean_by_hand():
    assert running_mean([0, 3, 6, 3], 1) == [1.5, 3.0, 4.0, 4.5]
    assert running_mean([5.0], 3) == [5.0]


def test_charts_use_the_colours_of_the_page_and_show_values_and_labels_as_text():
    chart = interval_chart(
        [Bar("<Base> $1$", 0.25, 0.2, 0.3, "grey"), Bar("RL", 0.8, 0.7, 0.9, "vermillion")], band=Band(0.2, 0.3, "guessing"), title="<t>"
    )
    assert "&lt;Base&gt; $1$" in chart and "25.0\u00a0%" in chart and "80.0\u00a0%" in chart and "guessing" in chart
    assert "var(--vermillion)" in chart and 'aria-label="&lt;t&gt;"' in chart
    assert not any(stand_in in chart for stand_in in STAND_INS.values()) and "<script" not in chart


def test_no_colour_of_a_chart_is_fixed():
    lines = [
        Series("a", range(60), [index % 7 for index in range(60)], "blue", smooth=True),
        Series("b", [1, 9], [2, 3], "sky", dashed=True),
    ]
    chart = line_chart(lines, x_label="step", title="t")
    assert re.findall(r"(?:fill|stroke): *(?:#[0-9a-f]+|rgb|black)", chart) == []
    assert "var(--blue)" in chart and "var(--sky)" in chart  # control: colours are there


def test_labels_from_data_are_short_and_printable():
    assert shown("a\x00\ud800\n b") == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} b"
    assert shown("x" * 28) == "x" * 28 and shown("x" * 29) == "x" * 25 + "..."


P_VALUES = [
    (0.5, "0.500"),
    (0.0123, "0.012"),
    (2e-9, "2e-9"),
    (6.4e-26, "6e-26"),
    (1e-300, "< 1e-99"),
    (0.0, "< 1e-99"),
    (None, "not computed"),
]


@pytest.mark.parametrize(("p", "told"), P_VALUES)
def test_p_values_are_never_shown_as_zero(p, told):
    assert p_value(p) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0:00.0"), (59.96, "1:00.0"), (83.25, "1:23.2"), (3599.0, "59:59.0"), (3725.4, "1:02:05")]
)
def test_clock(seconds, told):
    assert clock(seconds) == told


def test_choice_of_questions_follows_its_rule():
    draw = random.Random(0)
    evaluations = [Evaluation(stage, {}, answers(stage, 80, draw)) for stage in ("sft", "rl")]
    own = by_problem(evaluations)
    assert all(record.frames == 32 for stages in own.values() for record in stages.values())
    chosen = choose(own, "rl", "sft")
    assert [reason for _, reason in chosen] == ["wrong before, right now"] * 2 + ["right before, wrong now"] + ["right"] * 2 + ["wrong"]
    for problem_id, reason in chosen:
        assert own[problem_id]["rl"].correct == reason.endswith(("right now", "right"))
    first = min(number for number, stages in own.items() if stages["rl"].correct and not stages["sft"].correct)
    assert chosen[0][0] == first and choose(own, "rl", "sft") == chosen
    assert len({own[number]["rl"].category for number, _ in chosen}) == 4
    assert {reason for _, reason in choose(own, "rl", None)} == {"right", "wrong"}
    few = {number: stages for number, stages in own.items() if not stages["rl"].correct and not stages["sft"].correct}
    assert [reason for _, reason in choose(few, "rl", "sft")] == ["wrong"] * 6  # none of the other kinds: filled up


def test_a_users_own_reward_has_its_curve_and_a_kl_that_was_never_taken_has_none(tmp_path):
    lines = [{"step": step, "reward/total": 1.0, "reward/brevity": 0.5, "reward/x/max": 9.0, "loss/kl": 0.0} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "takes.jsonl").write_text("")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert ">brevity</text>" in page and ">x/max</text>" not in page
    assert "Not logged: Validation accuracy, Loss, Response length, Entropy of the policy, KL to the reference" in page


def test_an_axis_of_zeros_reaches_to_one():
    assert _reach([0.0, 0.0]) == (0.0, 1.0)
    assert _reach([1.0, 2.0]) == (0.0, pytest.approx(2.12))
    assert _reach([-1.0, 1.0]) == (pytest.approx(-1.12), pytest.approx(1.12))


def take(step, problem_id, reward, index=0):
    return {"step": step, "problem_id": problem_id, "take": index, "total_reward": reward, "text": "x"}


def test_a_take_that_was_not_judged_makes_no_group_differ_and_says_why(tmp_path):
    path = tmp_path / "takes.jsonl"
    lines = [take(1, 5, 1.0), take(1, 5, None) | {"unjudged": "http_500"}, take(1, 6, 1.0), take(1, 6, 0.0)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    assert read_groups(path, []) == ()
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[2:], take(1, 6, None) | {"unjudged": "http_500"}]))
    (group,) = read_groups(path, [])
    assert group.is_mixed and group.totals == [1.0, 0.0]
    page = str(take_group(group, {}))
    assert "Take 2: not judged (http_500), left out" in page and "Take 0: reward 1.00" in page


def test_groups_are_the_first_and_the_last_with_differing_rewards(tmp_path):
    path = tmp_path / "takes.jsonl"
    lines = [
        take(1, 5, 1.0),
        take(1, 5, 1.0),
        take(1, 6, 0.0),
        take(1, 6, 1.0),
        take(2, 6, 0.1),
        take(2, 6, 0.2),
        take(2, 7, 0.0),
        take(2, 7, 0.0),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes = []
    assert [(group.step, group.row, len(group.takes)) for group in read_groups(path, notes)] == [(1, 6, 2), (2, 6, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:4]))
    assert [group.row for group in read_groups(path, notes)] == [6]
    path.write_text(json.dumps(lines[0]) + "\n")
    assert read_groups(path, notes) == () and notes == []


def test_a_huge_log_of_takes_is_read_at_both_ends_only(tmp_path, monkeypatch):
    monkeypatch.setattr("longtake.report.read.MAX_TAKES_BYTES", 2000)
    path = tmp_path / "takes.jsonl"
    path.write_text("".join(json.dumps(take(step, step, step % 2 + index)) + "\n" for step in range(1, 1000) for index in (0, 1)))
    notes = []
    assert [group.step for group in read_groups(path, notes)] == [1, 999] and notes == []
    assert MAX_TAKES_BYTES == 64 << 20


def test_rows_are_found_where_the_run_folder_is_now(tmp_path):
    """Configurations hold the path of the day; the folder may have been moved, and the command may run from anywhere."""
    rows = tmp_path / "moved" / "data" / "held_out" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("")
    for named in ("runs/quickstart/data/held_out/rows.jsonl", "/gone/runs/quickstart/data/held_out/rows.jsonl", str(rows)):
        assert find(tmp_path / "moved", named) == rows
    assert find(tmp_path / "moved", "runs/quickstart/data/held_out") == rows.parent
    for named in ("nowhere.jsonl", None, 3, "x" * 5000, "a\0b"):
        assert find(tmp_path / "moved", named) is None
