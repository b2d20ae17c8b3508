"""`longtake rows`: the report in hand-counted figures, the converted file, the exit code; and a run on rows of another project."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longtake.cli import main
from longtake.config.rows import RowsConfig
from longtake.data.row_formats import read_rows
from longtake.data.row_report import lines_of, reason_of, report_of
from longtake.errors import PathError, RowError
from longtake.stages import rows as stage
from longtake.stages import sft as sft_stage
from longtake.testing import training
from longtake.types import Row

OPTIONS = "A. one\nB. two\nC. three\nD. four"


def published(number: int, letter: str = "B", **changes: Any) -> dict[str, Any]:
    texts = {"problem": f"Question {number}?\n{OPTIONS}", "data_type": "video", "problem_type": "temporal", "reasoning": ""}
    return {"problem_id": number, **texts, "videos": "videos/a.mp4", "answer": f"<answer>{letter}</answer>", **changes}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def report(path: Path, **fields: Any) -> str:
    return "\n".join(lines_of(report_of(RowsConfig(rows=path, **fields))))


def line(text: str, head: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(head)).removeprefix(head).strip()


def test_the_defects_of_the_published_set(tmp_path: Path) -> None:
    """Of 100: the letters 44, 30, 15, 11 of the published key, 6 rows in the order D A B C; and 5 malformed rows behind them."""
    letters = "B" * 44 + "C" * 30 + "A" * 15 + "D" * 11
    other = "\n".join(sorted(OPTIONS.split("\n"), key=lambda option: (option[0] != "D", option)))
    changes: list[dict[str, Any]] = [{"problem": f"Q?\n{other}"} if number < 6 else {} for number in range(100)]
    good = [published(number, letter, **changes[number]) for number, letter in enumerate(letters)]
    bad = [
        published(200, "E"),
        published(201, answer="B"),
        published(202, problem="Q?\nA. one\nB. two\nD. four"),
        published(203, videos=None),
        published(7),
    ]
    text = report(write(tmp_path / "rows.jsonl", *good, *bad))
    assert line(text, "format") == "longvideo_reason" and line(text, "rows") == "105"
    assert line(text, "usable") == "100 (95.2%)" and line(text, "malformed") == "5 (4.8%)"
    assert line(text, "letters") == "A 15  B 44  C 30  D 11: the best constant, B, is right in 44.0%"
    assert line(text, "options") == "100 rows have 4"
    assert "  6 rows list them in another order: D A B C 6" in text
    assert line(text, "duplicate ids") == "1"
    reasons = [one.strip() for one in text.splitlines() if re.match(r"  \d+ x ", one)]
    assert reasons == ["2 x answer ...", "1 x no field videos", "1 x options A, B, D", "1 x problem_id ... is that of row ... too"]


def test_at_most_three_examples_of_a_reason_and_all_are_counted(tmp_path: Path) -> None:
    records = [published(number) for number in range(6)] + ["{"] * 5
    text = report(write(tmp_path / "rows.jsonl", *records))
    (counted,) = [one for one in text.splitlines() if " x not JSON" in one]
    assert counted.startswith("  5 x not JSON: Expecting property name")
    assert re.findall(r"rows\.jsonl row (\d+): not JSON", text) == ["7", "8", "9"]


def test_reasons_are_the_messages_without_place_values_and_numbers() -> None:
    error = RowError("my row 5 rows.jsonl row 12 turn 3: answer 'it''s \\' 5' of 7", rule="r. Rule: x", remedy="m")
    assert reason_of(str(error)) == "answer ...... of ..."
    assert reason_of("row with problem_id 9: empty problem. Rule: r. Remedy: m.") == "empty problem"


def test_contents(tmp_path: Path) -> None:
    records = [
        published(1, problem_type="plot", reasoning="Because."),
        published(2, problem="How many?", answer="<answer>3</answer>"),
        published(3, problem="Who?", answer="<answer>the cook</answer>", data_type="text", videos=""),
        published(4, problem="Q?\nA. one\nB. two", answer="<answer>two</answer>"),
    ]
    text = report(write(tmp_path / "rows.jsonl", *records))
    assert line(text, "categories") == "temporal 3, plot 1"
    assert line(text, "data types") == "video 3, text 1"
    assert line(text, "answers") == "letter 2, number 1, text 1"
    assert line(text, "reasoning").startswith("1 rows have some")
    assert line(text, "options") == "1 rows have 2, 1 rows have 4"
    assert "media" not in text and "another order" not in text


def test_a_conversation_counts_as_its_turns(tmp_path: Path) -> None:
    said = [("human", "<image>\nQ?\nA. one\nB. two"), ("gpt", "A."), ("human", "Why?"), ("gpt", "So."), ("human", "And?"), ("gpt", "")]
    record = {"id": "x", "video": "a.mp4", "conversations": [{"from": speaker, "value": value} for speaker, value in said]}
    text = report(write(tmp_path / "rows.json", record, {**record, "id": "y"}))
    assert line(text, "rows") == "6 of 2 conversations" and line(text, "usable") == "4 (66.7%)"
    assert "rows.json row 2 turn 3: answer '<answer></answer>'" in text


def test_media_are_opened_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    (tmp_path / "empty.mp4").write_bytes(b"")
    image = {"data_type": "image", "videos": ""}
    records = [
        published(1, **image, images="good.png"),
        published(2, **image, images=["good.png", "cut.png"]),
        published(3, videos="gone.mp4"),
        published(4, videos="gone.mp4"),
        published(5, videos="empty.mp4"),
        published(6, videos="../out.mp4"),
    ]
    path = write(tmp_path / "rows.jsonl", *records)
    opened: list[str] = []
    fault_of = report_of.__globals__["fault_of"]
    monkeypatch.setitem(report_of.__globals__, "fault_of", lambda path, *rest: opened.append(path.name) or fault_of(path, *rest))
    blind = report(path)
    assert opened == [] and line(blind, "usable") == "5 (83.3%)" and "1 x path ...: it has `..`" in blind
    text = report(path, media=True)
    assert opened == ["good.png", "cut.png", "gone.mp4", "empty.mp4"]
    assert line(text, "usable") == "1 (16.7%)" and line(text, "media") == "4 files named, 1 missing"
    assert "  2 x VideoMissingError" in text and "  1 x VideoEmptyError" in text and str(tmp_path / "gone.mp4") in text
    assert "row with problem_id 4: " in text and "row with problem_id 2: " in text


def test_out_is_read_back_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"problem": "Q?", "data_type": "video", "problem_type": "multiple choice", "options": ["A. one", "B. two"]}
    more = {"process": "<think>So.</think>", "solution": "<answer>(B) two</answer>", "path": "./a/b.mp4"}
    path = write(tmp_path / "theirs.json", *({**record, **more, "problem_id": number} for number in range(12)), "{}")
    assert main(["rows", str(path), "--out", str(tmp_path / "new" / "ours.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert line(out, "format") == "video_r1" and line(out, "malformed") == "1 (7.7%)"
    assert "12 written" in err and "Traceback" not in err
    rows = [item for item in read_rows(path) if isinstance(item, Row)]
    assert len(rows) == 12 and read_rows(tmp_path / "new" / "ours.jsonl", "longvideo_reason") == rows
    first = json.loads((tmp_path / "new" / "ours.jsonl").read_text().splitlines()[0])
    assert first["answer"] == "<answer>B</answer>" and first["videos"] == "a/b.mp4" and first["problem"] == "Q?\nA. one\nB. two"


@pytest.mark.parametrize(("allowed", "code"), [("0.1", 2), ("0.24", 2), ("0.25", 0)])
def test_exit_code_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], allowed: str, code: int) -> None:
    """1 of 4 rows fails."""
    path = write(tmp_path / "rows.jsonl", *(published(number) for number in range(3)), "{}")
    out = tmp_path / "out.jsonl"
    assert main(["rows", str(path), "--out", str(out), "--max_failed_fraction", allowed]) == code
    shown, told = capsys.readouterr()
    assert line(shown, "malformed") == "1 (25.0%)" and out.exists() == (code == 0)
    assert ("1 of 4 rows" in told) == (code == 2)


def test_no_usable_row_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="2 of 2 rows"):
        stage.run(RowsConfig(rows=write(tmp_path / "rows.jsonl", "{}", "{}"), max_failed_fraction=1))


def test_what_is_read_is_never_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", published(1))
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    for out in (path, tmp_path / "link.jsonl"):
        with pytest.raises(PathError, match="is the file that is read"):
            stage.run(RowsConfig(rows=path, out=out))
    with pytest.raises(PathError, match="cannot be written"):
        stage.run(RowsConfig(rows=path, out=path / "below.jsonl"))
    assert path.read_bytes() == before


def as_video_r1(row: Row) -> dict[str, Any]:
    """A row of the world as Video-R1 would write it."""
    question, *options = row.problem.split("\n")
    return {
        "problem_id": f"world-{row.problem_id}",
        "problem": question,
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": options,
        "process": f"<think>{row.reasoning}</think>",
        "solution": row.answer,
        "path": f"./{row.videos[0]}",
        "data_source": "world",
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield training.small_world(tmp_path_factory.mktemp("world"))


def test_sft_takes_rows_of_video_r1_as_they_are(world: Path, tmp_path: Path) -> None:
    """The first step on theirs and on ours has the same loss: the same prompts, videos and responses."""
    rows = [row for row in read_rows(world) if isinstance(row, Row)]
    theirs = write(world.parent / "theirs.json", *(as_video_r1(row) for row in rows), {"problem": "no more"})
    base = training.small_model(tmp_path / "base")
    losses = []
    for name, path in (("ours", world), ("theirs", theirs)):
        data = {"rows": path, "root": world.parent, "max_failed_fraction": 0.5}
        sft_stage.run(training.sft_config(world, base, tmp_path / name, max_steps=1, data=data))
        losses.append(training.metrics_of(tmp_path / name)[0]["loss/sft"])
    assert losses[0] == losses[1] and losses[0] > 1
