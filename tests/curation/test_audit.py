"""Precision and recall of the checks: counted by hand over a dozen rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.curation.audit import FAILED, LOST, OVER_QUOTA, PUBLISHED, Label, Share, audit_checks, read_labels, row_verdicts
from longtake.curation.records import CheckedRow, Draft, Drop, Finding
from longtake.errors import CurationError, PathError
from longtake.evaluation.intervals import wilson

CHAIN = ("options", "blind", "supported", "quota")


def draft(key: str) -> Draft:
    return Draft("v.mp4", "d", "plot", f"Who? {key}", ("a", "b"), "a", "", (), key)


def passed(key: str) -> CheckedRow:
    return CheckedRow(draft(key), tuple(Finding(name, passed=True) for name in CHAIN))


def drop(key: str, reason: str, stage: str = "check", told: bool = True) -> Drop:
    """`told`: the check that failed is among the findings too."""
    before = CHAIN[: CHAIN.index(reason) + told] if reason in CHAIN else ()
    findings = tuple(Finding(name, passed=name != reason) for name in before)
    return Drop(stage, reason, "", "v.mp4", key, "plot", draft(key), findings)  # type: ignore[arg-type]


WRONG = {"w0": "lie", "w1": "lie", "w2": "lie", "w3": "guess", "w4": "guess", "w5": "lie", "w6": "lie"}
RIGHT = ("r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9")
DROPS = (
    drop("w0", "options"),
    drop("w1", "options", told=False),
    drop("w2", "supported"),
    drop("w3", "blind"),
    drop("w5", "http_500"),
    drop("w6", "always_right", "difficulty"),
    drop("r0", "options"),
    drop("r1", "supported"),
    drop("r2", "quota"),
    drop("r3", "timeout", "rewrite"),
    drop("r4", "eval_surplus", "split"),
    drop("u0", "blind"),
    Drop("ingest", "too_short", "", "other.mp4"),
)
PASSED = ("w4", "w6", "r4", "r5", "r6", "r7", "r8", "r9")
FINAL = {"w4", "r5", "r6", "r7", "r8", "r9"}
LABELS = (
    {key: Label(key, right=False, fault=fault) for key, fault in WRONG.items()}
    | {key: Label(key, right=True) for key in RIGHT}
    | {"elsewhere": Label("elsewhere", right=False, fault="lie")}
)
DRAFTS = tuple(draft(key) for key in (*WRONG, *RIGHT, "u0"))


@pytest.fixture
def verdicts():
    return row_verdicts(DRAFTS, DROPS, [passed(key) for key in PASSED], FINAL)


def test_what_became_of_each_draft(verdicts):
    found = {one.key: one for one in verdicts}
    assert {key: one.fate for key, one in found.items()} == (
        dict.fromkeys(("w0", "w1", "w2", "w3", "r0", "r1", "u0"), FAILED)
        | dict.fromkeys(FINAL, PUBLISHED)
        | {"w5": LOST, "r3": LOST, "r2": OVER_QUOTA, "w6": "left out by difficulty", "r4": "left out by split"}
    )
    assert found["w0"].reached == found["w1"].reached == ("options",)
    assert found["w2"].reached == ("options", "blind", "supported") and found["w2"].failed == "supported"
    assert found["w5"].reached == () and found["w5"].failed is None
    assert found["r4"].reached == CHAIN and found["r2"].failed is None


def test_scores_of_the_checks_by_hand(verdicts):
    """options: failed w0 w1 r0; wrong ones that reached it: all but w5. blind: w3, of w2 w3 w4 w6. supported: w2 and r1, of w2 w4 w6."""
    audit = audit_checks(verdicts, LABELS)
    options, blind, supported = audit.checks
    assert [one.name for one in audit.checks] == ["options", "blind", "supported"]
    assert (options.precision, options.recall, options.recall_overall) == (Share(2, 3), Share(2, 6), Share(2, 7))
    assert (blind.precision, blind.recall, blind.recall_overall) == (Share(1, 1), Share(1, 4), Share(1, 7))
    assert (supported.precision, supported.recall, supported.recall_overall) == (Share(1, 2), Share(1, 3), Share(1, 7))
    assert [one.right_lost for one in audit.checks] == [Share(1, 10), Share(0, 10), Share(1, 10)]


def test_shares_before_and_after_by_hand(verdicts):
    """17 labelled drafts, 7 of them wrong; 11 failed no check, 3 of them wrong (w4 w5 w6); 6 are published, 1 of them wrong."""
    audit = audit_checks(verdicts, LABELS)
    assert (audit.wrong_before, audit.wrong_after, audit.wrong_published) == (Share(7, 17), Share(3, 11), Share(1, 6))
    assert (audit.wrong_removed, audit.right_lost) == (Share(4, 7), Share(2, 10))
    assert (audit.num_labels, audit.unknown, audit.num_drafts) == (18, 1, 18)
    assert dict(audit.fates) == {
        PUBLISHED: (1, 5),
        FAILED: (4, 2),
        OVER_QUOTA: (0, 1),
        LOST: (1, 1),
        "left out by difficulty": (1, 0),
        "left out by split": (0, 1),
    }


def test_faults_by_hand(verdicts):
    guess, lie = audit_checks(verdicts, LABELS).faults
    assert (guess.fault, guess.removed, dict(guess.by), guess.published) == ("guess", Share(1, 2), {"blind": 1}, 1)
    assert (lie.fault, lie.removed, dict(lie.by), lie.published) == ("lie", Share(3, 5), {"options": 2, "supported": 1}, 0)


def test_no_labels_no_shares(verdicts):
    audit = audit_checks(verdicts, {})
    assert audit.wrong_before == Share(0, 0) and audit.wrong_before.share is None and audit.checks == () and audit.faults == ()


def test_intervals_are_wilsons():
    assert Share(80, 100).interval == wilson(80, 100)
    assert Share(80, 100).interval == pytest.approx((0.7112, 0.8666), abs=1e-4)  # by the formula


def test_a_row_that_is_nowhere_is_an_error():
    with pytest.raises(CurationError, match="r5 is neither published nor dropped"):
        row_verdicts(DRAFTS, DROPS, [], FINAL - {"r5"})


def test_labels_are_read(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"key": "a", "right": true, "fault": null}\n\n{"key": "b", "right": false, "fault": "lie"}\n{"key": "c", "right": false}\n'
        '{"key": "a", "right": true}\n'
    )
    assert read_labels(path) == {"a": Label("a", True), "b": Label("b", False, "lie"), "c": Label("c", False)}


def test_all_bad_labels_are_told_at_once(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    lines = [
        '{"key": "a", "right": true}',
        "{",
        '{"key": 1, "right": true}',
        '{"key": "b", "right": "yes"}',
        '{"key": "a", "right": false}',
    ]
    lines += ['{"key": "d", "right": true, "fault": "lie"}', '{"key": "d", "right": false, "fault": 3}', "[" * 100_000]
    path.write_text("\n".join(lines))
    with pytest.raises(CurationError) as caught:
        read_labels(path)
    for told in (
        "line 2: no JSON",
        "line 3: no object",
        "line 4: no object",
        "line 5: a was said to be something else",
        "line 6: a right row",
    ):
        assert told in str(caught.value)
    assert "line 7: fault is a text or null" in str(caught.value) and "line 8: no JSON" in str(caught.value)
    assert "line 1:" not in str(caught.value)


def test_a_labels_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(PathError):
        read_labels(tmp_path / "none.jsonl")
