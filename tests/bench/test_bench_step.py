"""`longtake bench step` at a small size: every column computes the same, the figures are what they say. Nothing here depends on time."""

from __future__ import annotations

import json

import pytest

from longtake.bench.step import PHASES, check_same
from longtake.bench.step_bound import bound, encodings, left_over
from longtake.bench.step_regret import turned
from longtake.cli import main
from longtake.errors import LongtakeError

COLUMNS = ["published", "modern", "stage_1", "stages_1_2", "planned"]


def test_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    small = ["bench", "step", "--frames", "4", "10", "--response", "6", "--group", "3", "--text", "6", "--repeats", "1"]
    assert main([*small, "--regret-repeats", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)  # nothing else on stdout
    assert [(line["frames"], line["prompt"]) for line in found["lines"]] == [(4, 14), (10, 26)]  # 2 tokens per frame and 6 of text
    for line in found["lines"]:
        assert line["difference"] < 1e-5  # measured 3e-7: loss and gradient of all columns
        for clock in ("wall", "busy"):
            one = line[clock]
            assert list(one["seconds"]) == COLUMNS and all(list(phases) == list(PHASES) for phases in one["phases"].values())
            for baseline in ("published", "modern"):
                assert one["speedups"][baseline] == pytest.approx(one["seconds"][baseline] / one["seconds"]["planned"])
                assert one["fractions"][baseline] == pytest.approx(one["speedups"][baseline] / one["bounds"][baseline])
                again = bound(baseline, one["phases"][baseline], 3, line["flop_ratio"], reference=True)
                assert one["bounds"][baseline] == pytest.approx(again)
    assert [tuple(one["frames"]) for one in found["regrets"]] == [(4, 4), (10, 10), (4,), (10,)]
    for one in found["regrets"]:
        assert one["regret"]["wall"] == pytest.approx(one["medians"]["wall"][one["chosen"]] / one["medians"]["wall"][one["best"]["wall"]])
    assert found["regret_max"]["wall"] == max(one["regret"]["wall"] for one in found["regrets"])


def test_the_bound_by_hand() -> None:
    """Published with G = 4 and a KL term: 12 encodings for one, 4 prefills for one, training by its operations; decoding stays."""
    seconds = {"encode": 24.0, "prefill": 8.0, "decode": 3.0, "reference": 4.0, "update": 12.0, "optimizer": 1.0}
    assert left_over("published", seconds, 4, 2.0, reference=True) == 2 + 2 + 3 + 2 + 6 + 1
    assert bound("published", seconds, 4, 2.0, reference=True) == pytest.approx(52 / 16)
    # modern: 1 + 4 + 4 encodings, one prefill
    assert left_over("modern", seconds, 4, 2.0, reference=True) == pytest.approx(24 / 9 + 8 + 3 + 2 + 6 + 1)
    assert encodings("modern", 4, reference=False) == 5 and encodings("published", 4, reference=False) == 8


def test_columns_that_differ_are_refused() -> None:
    assert check_same({"a": (2.0, 1.0), "b": (2.0 + 1e-6, 1.0)}) == pytest.approx(5e-7)
    with pytest.raises(LongtakeError, match="all compute the same"):
        check_same({"a": (2.0, 1.0), "b": (2.0, 1.1)})


def test_another_one_begins_each_round() -> None:
    assert [turned(["a", "b", "c"], number) for number in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
