"""Rows of other projects: what has one meaning is converted, all else is a Failure in its place with its reason."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.answers import is_correct
from longtake.config.sections import DataConfig
from longtake.data.row_files import write_rows
from longtake.data.row_formats import PLACE_IDS, convert, detect, read_rows, read_rows_file
from longtake.data.rows import check_row, read_examples
from longtake.errors import RowError
from longtake.types import Example, Failure, Row

R1: dict[str, Any] = {
    "problem_id": 17,
    "problem": "Which ball is heavier?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. the red one", "B. the blue one", "C. neither"],
    "process": "<think>The red ball sinks at once.</think>",
    "solution": "<answer>A</answer>",
    "path": "./CLEVRER/train/video_17.mp4",
    "data_source": "CLEVRER",
}
R1_ROW = Row(
    problem_id=17,
    problem="Which ball is heavier?\nA. the red one\nB. the blue one\nC. neither",
    data_type="video",
    problem_type="general",
    reasoning="The red ball sinks at once.",
    videos=("CLEVRER/train/video_17.mp4",),
    answer="<answer>A</answer>",
)
FREE: dict[str, Any] = {**R1, "problem": "What is poured?", "problem_type": "free-form", "options": [], "solution": "<answer>tea</answer>"}

CHOICE = "<image>\nWhat does she pick up?\nA. a pan\nB. a knife\nC. a towel\nPlease respond with only the letter of the correct answer."


def human(text: object) -> dict[str, object]:
    return {"from": "human", "value": text}


def gpt(text: object) -> dict[str, object]:
    return {"from": "gpt", "value": text}


def talk(*texts: str) -> list[dict[str, object]]:
    return [(gpt if index % 2 else human)(text) for index, text in enumerate(texts)]


LLAVA: dict[str, Any] = {"id": "v_abc", "conversations": talk(CHOICE, "B."), "video": "academic/abc.mp4", "data_source": "0_30_s"}
LLAVA_ROW = Row(
    problem_id=PLACE_IDS + 3000,
    problem="What does she pick up?\nA. a pan\nB. a knife\nC. a towel",
    data_type="video",
    problem_type="general",
    reasoning="",
    videos=("academic/abc.mp4",),
    answer="<answer>B</answer>",
)
PUBLISHED: dict[str, Any] = {
    "problem_id": 1,
    "problem": "Where?\nD. there\nA. here\nB. nowhere\nC. everywhere",
    "data_type": "video",
    "problem_type": "spatial",
    "reasoning": "",
    "videos": "one.mp4",
    "answer": "<answer>D</answer>",
}


def one(record: object, format: Any) -> Row | Failure:
    (item,) = convert(record, format, 3, "rows.json row 3")
    return item


def converted(record: object, format: Any) -> Row:
    item = one(record, format)
    assert isinstance(item, Row), item
    return item


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def test_video_r1() -> None:
    assert one(R1, "video_r1") == R1_ROW


def test_video_r1_image_number_and_text() -> None:
    image = converted({**FREE, "data_type": "image", "path": "././a/b.png"}, "video_r1")
    assert (image.data_type, image.videos, image.images) == ("image", (), ("a/b.png",))
    assert image.answer == "<answer>tea</answer>" and image.problem == "What is poured?"
    for kind, solution in (("numerical", "12.5"), ("regression", "-3"), ("OCR", "EXIT 12"), ("free-form", "7")):
        row = converted({**FREE, "problem_type": kind, "solution": f" <answer> {solution} </answer>"}, "video_r1")
        assert row.answer == f"<answer>{solution}</answer>", kind


@pytest.mark.parametrize(
    ("solution", "letter"),
    [("A", "A"), ("b.", "B"), ("(B) the blue one", "B"), ("neither", "C"), ("C. neither", "C"), ("The Blue one", "B")],
)
def test_an_answer_with_one_meaning_becomes_its_letter(solution: str, letter: str) -> None:
    assert converted({**R1, "solution": f"<answer>{solution}</answer>"}, "video_r1").answer == f"<answer>{letter}</answer>"
    question = CHOICE.replace("a pan", "the red one").replace("a knife", "the blue one").replace("a towel", "neither")
    assert converted({**LLAVA, "conversations": talk(question, solution)}, "llava_video").answer == f"<answer>{letter}</answer>"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["D. four", "A. one", "B. two", "C. three"], "Q?\nD. four\nA. one\nB. two\nC. three"),
        (["(A) one", "(B) two"], "Q?\n(A) one\n(B) two"),
        (["A. one\n  and a half", "B. two"], "Q?\nA. one and a half\nB. two"),
    ],
)
def test_listed_options_come_into_the_problem_in_their_order(options: list[str], problem: str) -> None:
    assert converted({**R1, "problem": " Q? \n", "options": options}, "video_r1").problem == problem


def test_options_inline_or_both_and_the_same() -> None:
    inline = "Q?\nA. one\nB. two"
    for options in ([], None, ["A. one", "B. two"]):
        assert converted({**R1, "problem": inline, "options": options}, "video_r1").problem == inline


OPEN = {**R1, "problem": "What does the sign say?", "options": []}


@pytest.mark.parametrize(
    ("kind", "problem", "answer"),
    [
        ("OCR", "What does the sign say?", "A"),
        ("OCR", "What does the sign say?", "A."),
        ("OCR", "What does the sign say?", "B. blue"),
        ("free-form", "Say what (a) or (b) is.", "a cat"),
        ("numerical", "Point A. is here, point B. there. How far?", "3"),
    ],
)
def test_a_kind_that_is_open_makes_a_letter_a_text(tmp_path: Path, kind: str, problem: str, answer: str) -> None:
    """Also once it is written in the published format, which knows no kinds: there it stands in quotes. The same question as one of
    no kind is refused."""
    row = converted({**OPEN, "problem_type": kind, "problem": problem, "solution": f"<answer>{answer}</answer>"}, "video_r1")
    assert row.answer == f'<answer>"{answer}"</answer>'
    write_rows(tmp_path / "rows.jsonl", [row])
    assert read_rows(tmp_path / "rows.jsonl") == [row]
    example = check_row(row, tmp_path, None)
    assert (example.answer, example.answer_kind, example.options) == (answer, "number" if kind == "numerical" else "text", ())
    assert is_correct(example, f"<answer>{answer}</answer>") and not is_correct(example, "<answer>Z</answer>")
    failure = one({**LLAVA, "conversations": talk(problem, answer)}, "llava_video")
    assert isinstance(failure, Failure) and f"answer {answer!r} and no options that can be read" in failure.message
    assert converted({**LLAVA, "conversations": talk(problem, f'"{answer}"')}, "llava_video").answer == row.answer


def test_options_listed_apart_in_the_published_format(tmp_path: Path) -> None:
    apart = {**PUBLISHED, "problem": "Where?", "options": ["A. here", "B. there"], "answer": "<answer>B. there</answer>"}
    path = lines(
        tmp_path / "rows.jsonl",
        apart,
        {**apart, "problem_id": 2, "problem": "Where?\nA. here\nB. there"},
        {**apart, "problem_id": 3, "problem": "Where?\nA. here\nB. nowhere"},
        {**apart, "problem_id": 4, "options": ["here", "there"]},
        {**PUBLISHED, "problem_id": 5, "options": []},
    )
    first, second, *failures, last = read_rows(path)
    assert isinstance(first, Row) and isinstance(second, Row) and first.problem == second.problem == "Where?\nA. here\nB. there"
    assert isinstance(last, Row) and last.problem == PUBLISHED["problem"]
    assert ["options in problem and others" in failures[0].message, "'here' without a letter" in failures[1].message] == [True, True]
    assert (check_row(first, tmp_path, None).answer, check_row(first, tmp_path, None).answer_kind) == ("B", "letter")


def test_subtitles_of_other_formats() -> None:
    assert converted({**R1, "subtitles": "a.srt"}, "video_r1") == replace(R1_ROW, subtitles="a.srt")
    assert converted({**LLAVA, "subtitles": "a.srt"}, "llava_video") == replace(LLAVA_ROW, subtitles="a.srt")
    assert converted({**R1, "subtitles": ""}, "video_r1") == R1_ROW


@pytest.mark.parametrize(
    ("process", "reasoning"),
    [("<think> so </think>", "so"), ("plain", "plain"), ("", ""), (None, ""), ("\n<think>a\nb</think>\n", "a\nb")],
)
def test_process_with_and_without_tags(process: str | None, reasoning: str) -> None:
    assert converted({**R1, "process": process}, "video_r1").reasoning == reasoning


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem": None}, "no field problem"),
        ({"path": None, "solution": None}, "no field solution, path"),
        ({"problem": 5}, "problem is of type int"),
        ({"problem": " "}, "an empty problem"),
        ({"problem_type": "essay"}, "problem_type 'essay'"),
        ({"data_type": "audio"}, "data_type 'audio' and 1 paths"),
        ({"path": ""}, "data_type 'video' and 0 paths"),
        ({"path": ["a.mp4", "b.mp4"]}, "data_type 'video' and 2 paths"),
        ({"options": []}, "problem_type 'multiple choice' and 0 options"),
        ({"options": "A. one B. two"}, "options of type str"),
        ({"options": ["red", "blue"]}, "option 'red' without a letter"),
        ({"options": ["A. one", 2]}, "an option is of type int"),
        ({"options": ["A. one", "C. two"]}, "options A, C"),
        ({"options": ["A. one", "A. two"]}, "an option letter is repeated"),
        ({"options": ["A. one", "B. One"]}, "two options with the same text"),
        ({"problem": "Q?\nA. one\nB. two"}, "options in problem and others in options"),
        ({"solution": "A"}, "answer 'A'"),
        ({"solution": "<answer></answer>"}, "answer '<answer></answer>'"),
        ({"solution": "<answer>A or B</answer>"}, "answer 'A or B'"),
        ({"solution": "<answer>D</answer>"}, "answer 'D'"),
        ({"solution": "<answer>B. the red one</answer>"}, "answer 'B. the red one'"),
        ({"problem_type": "numerical"}, "problem_type 'numerical' and 3 options"),
        ({"problem_type": "numerical", "options": [], "solution": "<answer>many</answer>"}, "answer 'many' is not one plain number"),
        ({"problem_type": "regression", "options": [], "solution": "<answer>1, 2</answer>"}, "answer '1, 2' is not one plain number"),
        ({"options": ["A: one", "b: two"]}, "options that are not spelled alike, or not in order"),
        ({"problem_type": "OCR", "options": [], "solution": f"<answer>{'x' * 5000}</answer>"}, "an answer of 5000 characters"),
        ({"process": "<think>a</think> so <think>b</think>"}, "process is not one pair of think tags"),
        ({"process": "first <think>a</think>"}, "process is not one pair of think tags"),
        ({"process": ["a"]}, "process is of type list"),
        ({"problem_id": -1}, "problem_id -1"),
        ({"problem_id": 1.5}, "problem_id 1.5 of type float"),
        ({"problem_id": True}, "problem_id True of type bool"),
    ],
)
def test_malformed_video_r1(changes: dict[str, Any], reason: str) -> None:
    failure = one({**R1, **changes}, "video_r1")
    assert isinstance(failure, Failure)
    assert failure.message.startswith(f"rows.json row 3: {reason}") and "\n" not in failure.message
    assert (failure.stage, failure.kind, failure.category) == ("rows", "RowError", "general")
    assert failure.problem_id == (None if "problem_id" in changes else 17)


def test_llava_video() -> None:
    assert one(LLAVA, "llava_video") == LLAVA_ROW


def test_llava_media_and_placeholders() -> None:
    two = converted(
        {**LLAVA, "video": None, "image": ["./a.png", "b.png"], "conversations": talk("<image><image>\nQ?", "tea")}, "llava_video"
    )
    assert (two.data_type, two.videos, two.images, two.problem) == ("image", (), ("a.png", "b.png"), "Q?")
    for question in ("Q?\n<video>", "<video> Q?", "Q?"):
        assert converted({**LLAVA, "conversations": talk(question, "tea")}, "llava_video").problem == "Q?"
    assert converted({**LLAVA, "image": "", "images": []}, "llava_video") == LLAVA_ROW, "what it shows is named"
    text = converted({"id": 4, "conversations": talk("2 and 2?", "4")}, "llava_video")
    assert (text.problem_id, text.data_type, text.videos, text.images) == (4, "text", (), ())


def test_only_whole_last_lines_that_say_how_to_reply_are_taken_off() -> None:
    for question, problem in (
        ("Q?\nAnswer the question using a single word or phrase.", "Q?"),
        ("Q? Answer the question using a single word or phrase.", "Q? Answer the question using a single word or phrase."),
        ("Q?\nAnswer in French.", "Q?\nAnswer in French."),
    ):
        assert converted({**LLAVA, "conversations": talk(question, "tea")}, "llava_video").problem == problem


def test_turns_are_rows_with_failures_of_their_own() -> None:
    conversations = talk(CHOICE, "B. a knife", "How often?", "3", "Which?\nA. x\nB. y", "A or B", "Why?", "It is sharp.")
    items = convert({**LLAVA, "id": 9, "conversations": conversations}, "llava_video", 3, "rows.json row 3")
    assert [item.problem_id for item in items] == [PLACE_IDS + 3000 + turn for turn in range(4)]
    answers = [item.answer if isinstance(item, Row) else item.message[:38] for item in items]
    assert answers[:2] == ["<answer>B</answer>", "<answer>3</answer>"] and answers[3] == "<answer>It is sharp.</answer>"
    assert answers[2] == "rows.json row 3 turn 3: answer 'A or B"
    assert all(item.videos == ("academic/abc.mp4",) for item in items if isinstance(item, Row))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conversations": None}, "no field conversations"),
        ({"conversations": "hello"}, "conversations is not a list, empty or too long"),
        ({"conversations": []}, "conversations is not a list, empty or too long"),
        ({"conversations": ["hello", "you"]}, "conversations holds what is no object"),
        ({"conversations": talk(CHOICE)}, "conversations of 'human'"),
        ({"conversations": [gpt("B"), human(CHOICE)]}, "conversations of 'gpt', 'human'"),
        ({"conversations": [human(CHOICE), human("B")]}, "conversations of 'human', 'human'"),
        ({"conversations": [{"from": "system", "value": "x"}, *talk(CHOICE, "B")]}, "conversations of 'system', 'human', 'gpt'"),
        ({"conversations": [human(CHOICE), gpt(None)]}, "value is of type NoneType"),
        ({"conversations": talk(CHOICE, "")}, "answer '<answer></answer>'"),
        ({"conversations": talk(CHOICE, "E")}, "answer 'E'"),
        ({"conversations": talk(CHOICE, "A, B")}, "answer 'A, B'"),
        ({"conversations": talk(CHOICE, "B. a pan")}, "answer 'B. a pan'"),
        ({"conversations": talk("<image>\nWhich?", "B")}, "answer 'B' and no options"),
        ({"conversations": talk("<image>\nWhich?", "<answer>x</answer>")}, "answer '<answer><answer>x"),
        ({"conversations": talk("<image>\nTell all.", "x " * 3000)}, "an answer of 5999 characters"),
        ({"conversations": talk("<image>\n", "yes")}, "an empty question"),
        ({"conversations": talk("<image><image>\nQ?", "yes")}, "2 placeholders for 1 new videos and images"),
        ({"conversations": talk("Is <image> a knife?", "yes")}, "a placeholder inside the question"),
        ({"video": None}, "1 placeholders for 0 new videos and images"),
        ({"video": "", "conversations": talk("Q?", "tea")}, "an empty video"),
        ({"video": None, "image": [], "conversations": talk("Q?", "tea")}, "an empty image"),
        ({"video": None, "videos": "a.mp4", "conversations": talk("Q?", "tea")}, "a field videos"),
        ({"images": ["a.png"]}, "a field images"),
        ({"video": None, "images": [], "conversations": talk("Q?", "tea")}, "an empty images"),
        ({"subtitles": 3}, "subtitles is of type int"),
        ({"image": "a.png"}, "a video and an image"),
        ({"video": 7}, "video is of type int"),
        ({"video": ["a.mp4", ""]}, "video is a list of 2, 1 of them empty"),
        ({"id": [1]}, "problem_id ... of type list"),
        ({"conversations": talk("<image>\nQ?\nA. one", "A")}, "options A"),
    ],
)
def test_malformed_llava_video(changes: dict[str, Any], reason: str) -> None:
    failure = one({**LLAVA, **changes}, "llava_video")
    assert isinstance(failure, Failure)
    assert failure.message.startswith(f"rows.json row 3: {reason}") and "\n" not in failure.message


def test_a_placeholder_in_a_later_turn_is_a_failure_of_that_turn() -> None:
    first, second = convert({**LLAVA, "conversations": talk(CHOICE, "B", "<image>\nAnd now?", "no")}, "llava_video", 3, "rows.json row 3")
    assert isinstance(first, Row) and isinstance(second, Failure)
    assert "row 3 turn 2: 1 placeholders for 0 new" in second.message


@pytest.mark.parametrize("format", ["video_r1", "llava_video", "longvideo_reason"])
@pytest.mark.parametrize("value", [None, 3, "text", [], RowError("rows.json row 3: not JSON", rule="r", remedy="m")], ids=repr)
def test_what_is_no_object(format: Any, value: object) -> None:
    failure = one(value, format)
    assert isinstance(failure, Failure) and failure.message.startswith("rows.json row 3: ") and failure.category == "unknown"


@pytest.mark.parametrize(
    ("given", "category"),
    [("temporal", "temporal"), ("Goal & Purpose", "goal"), (" Plot and Narrative", "plot"), ("counting", "general"), (3, "general")],
)
def test_category(given: object, category: str) -> None:
    assert converted({**R1, "category": given}, "video_r1").problem_type == category
    assert converted({**LLAVA, "category": given}, "llava_video").problem_type == category


def test_detection() -> None:
    assert [detect(record) for record in (R1, LLAVA, PUBLISHED)] == ["video_r1", "llava_video", "longvideo_reason"]
    assert detect({**PUBLISHED, "options": ["A"], "path": "x", "conversations": []}) == "longvideo_reason"
    assert detect({**R1, "videos": None, "conversations": None}) == "video_r1"
    assert [detect(value) for value in ({}, [], None, {"problem": "Q?"}, {"x": 1})] == ["auto"] * 5


def test_the_first_record_with_a_format_decides(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", "{broken", {"x": 1}, R1, PUBLISHED, {**R1, "problem_id": 18})
    read = read_rows_file(path)
    assert (read.format, read.num_records) == ("video_r1", 5)
    assert [isinstance(item, Row) for item in read.items] == [False, False, True, False, True]
    messages = [item.message for item in read.items if isinstance(item, Failure)]
    assert messages[0].startswith("rows.jsonl row 1: not JSON") and messages[1].startswith("rows.jsonl row 2: no field problem")
    assert messages[2].startswith("rows.jsonl row 4: a row of longvideo_reason in a file read as video_r1")


def test_a_named_format_is_not_detected(tmp_path: Path) -> None:
    (failure,) = read_rows(lines(tmp_path / "rows.jsonl", R1), "llava_video")
    assert isinstance(failure, Failure) and "a row of video_r1 in a file read as llava_video" in failure.message
    assert read_rows(tmp_path / "rows.jsonl", "video_r1") == [R1_ROW]


def test_ids_from_places_are_stable_and_twins_fail(tmp_path: Path) -> None:
    """Row 2 has no number: 10^12 + 2000. Row 4 claims that number, row 5 repeats 17."""
    path = lines(tmp_path / "rows.jsonl", R1, {**R1, "problem_id": "x-1"}, "", {**R1, "problem_id": 10**12 + 2000}, R1)
    first = read_rows(path)
    assert [item.problem_id for item in first] == [17, 10**12 + 2000, 10**12 + 2000, 17]
    assert [item.message.partition(". Rule: ")[0] for item in first if isinstance(item, Failure)] == [
        "rows.jsonl row 4: problem_id 1000000002000 is that of row 2 too",
        "rows.jsonl row 5: problem_id 17 is that of row 1 too",
    ]
    assert read_rows(path) == first


@pytest.mark.parametrize("record", [R1, LLAVA, PUBLISHED], ids=["video_r1", "llava_video", "longvideo_reason"])
def test_array_parquet_and_lines_give_the_same_rows(tmp_path: Path, record: dict[str, Any]) -> None:
    key = "id" if "id" in record else "problem_id"
    records = [{**record, key: number} for number in (5, 6)]
    (tmp_path / "rows.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    rows = read_rows(lines(tmp_path / "rows.jsonl", *records))
    assert [item.problem_id for item in rows if isinstance(item, Row)] == [5, 6]
    assert read_rows(tmp_path / "rows.json") == rows == read_rows(tmp_path / "rows.parquet")


def test_examples_are_read_as_they_are_and_bad_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "CLEVRER/train").mkdir(parents=True)
    (tmp_path / "CLEVRER/train/video_17.mp4").write_bytes(b"not decoded here")
    bad = ["/etc/x.mp4", "../x.mp4", "./../x.mp4", "https://x.org/x.mp4"]
    path = lines(tmp_path / "rows.jsonl", R1, *({**R1, "problem_id": 20 + index, "path": one} for index, one in enumerate(bad)))
    example, *failures = read_examples(DataConfig(rows=path))
    assert isinstance(example, Example)
    assert (example.answer, example.reasoning, len(example.options)) == ("A", "The red ball sinks at once.", 3)
    assert example.media[0].path == tmp_path / "CLEVRER/train/video_17.mp4"
    assert [item.kind for item in failures if isinstance(item, Failure)] == ["PathError"] * 4
    (refused, *_) = read_examples(DataConfig(rows=path, format="longvideo_reason"))
    assert isinstance(refused, Failure) and "a row of video_r1" in refused.message


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    rows = [item for record in (R1, LLAVA) for item in [one(record, detect(record))] if isinstance(item, Row)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows == [R1_ROW, LLAVA_ROW]


def test_hostile_texts_take_linear_time() -> None:
    """A megabyte of white space or tags: milliseconds; a pattern that backtracks takes minutes."""
    start = time.perf_counter()
    for text in ("<image>" * 140_000, "Q?" + " \n" * 500_000 + "x", "<think>" * 140_000):
        one({**LLAVA, "conversations": talk(text, text)}, "llava_video")
        one({**R1, "problem": text, "process": text, "solution": text}, "video_r1")
    assert time.perf_counter() - start < 20
