"""JSON lines: whatever moment a run is killed at, the resumed run ends with the same bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from longtake.errors import CheckpointError
from longtake.observe.lines import JsonLines, encode_line, read_lines, truncate_after


def write_steps(path: Path, steps: range, resume_at: int | None = None) -> None:
    with JsonLines(path, resume_at) as lines:
        for step in steps:
            for take in range(step % 3):  # steps with no line, one and two
                lines.append(step, {"take": take, "text": f"réponse {step}"})
            lines.flush()


def test_every_cut_of_the_file_and_every_checkpoint_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """All moments of a kill: the file ends at any byte after the last checkpoint's step."""
    whole = tmp_path / "whole.jsonl"
    write_steps(whole, range(0, 9))
    content = whole.read_bytes()
    for checkpoint in (-1, 0, 3, 4, 8):
        kept = b"".join(line for line in content.splitlines(keepends=True) if json.loads(line)["step"] <= checkpoint)
        for cut in range(len(kept), len(content) + 1):
            path = tmp_path / "cut.jsonl"
            path.write_bytes(content[:cut])
            write_steps(path, range(checkpoint + 1, 9), resume_at=checkpoint)
            assert path.read_bytes() == content


def test_resume_without_truncation_would_differ(tmp_path: Path) -> None:
    """Negative control: appending after a torn line does not give the same file."""
    path = tmp_path / "log.jsonl"
    write_steps(path, range(0, 5))
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with path.open("ab") as file:
        file.write(content.splitlines(keepends=True)[-1])
    assert path.read_bytes() != content


def test_a_fresh_start_empties_the_file_and_a_missing_one_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    write_steps(path, range(0, 3), resume_at=7)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 2]
    write_steps(path, range(4, 5))
    assert [line["step"] for line in read_lines(path)] == [4]


def test_truncate_after_says_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_steps(path, range(0, 6))
    assert truncate_after(path, 3) == 2  # step 3 has no line
    assert truncate_after(path, 0) == -1
    assert path.read_bytes() == b""


def test_flushed_lines_are_visible_before_close(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.append(1, {"loss": 0.5})
    lines.flush()
    assert (tmp_path / "log.jsonl").read_bytes() == b'{"step": 1, "loss": 0.5}\n'
    lines.append(2, {})
    lines.sync()
    assert len(read_lines(tmp_path / "log.jsonl")) == 2
    lines.close()


def test_steps_never_decrease(tmp_path: Path) -> None:
    write_steps(tmp_path / "log.jsonl", range(0, 6))
    with JsonLines(tmp_path / "log.jsonl", resume_at=4) as lines:
        with pytest.raises(ValueError, match="step 3 after step 4"):
            lines.append(3, {})
        with pytest.raises(ValueError, match="nor stand in the record"):
            lines.append(5, {"step": 5})
        lines.append(4, {})


@pytest.mark.parametrize("damage", [b"not json\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": "1"}\n', b"\0\0\0\n"])
def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_cut(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "log.jsonl"
    content = b'{"step": 1}\n' + damage + b'{"step": 2}\n'
    path.write_bytes(content)
    for attempt in (lambda: truncate_after(path, 2), lambda: read_lines(path)):
        with pytest.raises(CheckpointError, match="line 2 is not a JSON object"):
            attempt()
    assert path.read_bytes() == content


def test_non_finite_numbers_become_null_and_are_named() -> None:
    line = encode_line({"step": 1, "loss": math.nan, "logprobs": [-0.5, -math.inf], "rewards": {"format": math.inf}, "n": 3})
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "logprobs": [-0.5, None],
        "rewards": {"format": None},
        "n": 3,
        "non_finite": ["loss", "logprobs.1", "rewards.format"],
    }
    assert b"non_finite" not in encode_line({"step": 1, "loss": 0.5})


def test_floats_and_text_round_trip_exactly() -> None:
    record = {"step": 1, "value": 0.1 + 0.2, "tiny": 5e-324, "text": 'línea\u2028\n\t"x"'}
    line = encode_line(record)
    assert json.loads(line) == record
    assert line.count(b"\n") == 1


def test_a_lone_surrogate_does_not_stop_a_run() -> None:
    assert json.loads(encode_line({"step": 1, "text": "a\udcffb"}))["text"] == "a\udcffb"
