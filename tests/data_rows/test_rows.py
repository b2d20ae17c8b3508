"""Checked examples: paths, options and answers; failures keep their place, their count and their denominators."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longtake.answers import is_correct
from longtake.config.sections import DataConfig
from longtake.data.row_files import write_rows
from longtake.data.rows import check_failures, check_row, media_ref, parse_options, read_examples
from longtake.errors import PathError, RowError, VideoError, VideoLimitError, VideoMissingError
from longtake.types import Example, Failure, Option, Row
from longtake.video.index import DigestIndex

ROW = Row(
    problem_id=1,
    problem="Where is it?\nA. here\nB. there\nC. nowhere",
    data_type="video",
    problem_type="spatial",
    reasoning="It is there.",
    videos=("videos/one.mp4",),
    answer="<answer>B</answer>",
    subtitles="videos/one.srt",
    duration_s=12.0,
)
BYTES = b"these are not decoded here"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "videos").mkdir(parents=True)
    (root / "videos" / "one.mp4").write_bytes(BYTES)
    (root / "videos" / "two.mp4").write_bytes(BYTES + b"!")
    (root / "videos" / "one.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\nthere\n\n2\n00:00:03,000 --> 00:00:04,000\nbye\n")
    (tmp_path / "outside.mp4").write_bytes(BYTES)
    return root


def read(root: Path, *rows: Row, **fields: Any) -> list[Example | Failure]:
    write_rows(root / "rows.jsonl", rows)
    return read_examples(DataConfig.model_validate({"rows": root / "rows.jsonl", **fields}))


def test_a_good_row(root: Path) -> None:
    example = check_row(ROW, root, DigestIndex(None), with_subtitles=True)
    (video,) = example.media
    assert (video.path, video.digest, video.kind) == (root / "videos" / "one.mp4", hashlib.sha256(BYTES).hexdigest(), "video")
    assert example.options == (Option("A", "here"), Option("B", "there"), Option("C", "nowhere"))
    assert (example.answer, example.answer_kind) == ("B", "letter")
    assert (example.problem_id, example.question, example.category) == (1, ROW.problem, "spatial")
    assert example.subtitles == "hello there\nbye"
    assert (example.reasoning, example.duration_s) == ("It is there.", 12.0)


def test_blind_needs_no_video(root: Path) -> None:
    gone = replace(ROW, videos=("videos/gone.mp4",))
    example = check_row(gone, root, None)
    assert example.media == () and example.subtitles is None and example.question == ROW.problem
    with pytest.raises(VideoMissingError):
        check_row(gone, root, DigestIndex(None))


def test_text_row_has_no_video(root: Path) -> None:
    assert check_row(replace(ROW, data_type="text", videos=()), root, DigestIndex(None)).media == ()
    with pytest.raises(RowError, match="no path in videos"):
        check_row(replace(ROW, videos=()), root, DigestIndex(None))


def test_videos_then_images_in_the_rows_order(root: Path) -> None:
    (root / "x.png").write_bytes(b"not looked at here")
    row = replace(ROW, videos=("videos/two.mp4", "videos/one.mp4"), images=("x.png", "videos/one.mp4"))
    media = check_row(row, root, DigestIndex(None)).media
    assert [(ref.path.name, ref.kind) for ref in media] == [
        ("two.mp4", "video"),
        ("one.mp4", "video"),
        ("x.png", "image"),
        ("one.mp4", "image"),
    ]
    assert media[1].digest == media[3].digest and media[1] != media[3], "the same bytes as a video and as an image are two things"
    assert check_row(row, root, None).media == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_type": "video", "videos": (), "images": ("x.png",)}, "no path in videos"),
        ({"data_type": "image", "videos": ()}, "0 videos and 0 images"),
        ({"data_type": "image", "images": ("x.png",)}, "1 videos and 1 images"),
        ({"data_type": "text"}, "data_type text and the path 'videos/one.mp4'"),
        ({"data_type": "text", "videos": (), "images": ("x.png",)}, "data_type text and the path 'x.png'"),
    ],
)
def test_media_that_are_not_those_of_the_data_type(root: Path, fields: dict[str, Any], message: str) -> None:
    (root / "x.png").write_bytes(b"not looked at here")
    with pytest.raises(RowError, match=message):
        check_row(replace(ROW, **fields), root, DigestIndex(None))


def test_an_image_outside_the_root_is_refused(root: Path) -> None:
    with pytest.raises(PathError):
        check_row(replace(ROW, data_type="image", videos=(), images=("../outside.mp4",)), root, DigestIndex(None))


@pytest.mark.parametrize(
    ("problem", "letters"),
    [
        ("Q?\nA. one\nB. two", "AB"),
        ("Q?\n(A) one\n(B) two\n(C) three", "ABC"),
        ("Q?\nA) one\nB) two", "AB"),
        ("Q?\n  A. one\n\tB. two\n", "AB"),
        ("Q?\r\nA. one\r\nB. two\r\n", "AB"),
        ("Q?\nD. four\nA. one\nB. two\nC. three", "DABC"),
        ("A man. Or B. two?\nA. one\nB. two", "AB"),
        ("Where?\nAnd when?", ""),
        ("A dog runs.\nU.S. or not?", ""),
        ("What is 1. or 2.?", ""),
    ],
)
def test_options(problem: str, letters: str) -> None:
    options = parse_options(problem, "row")
    assert "".join(option.letter for option in options) == letters
    words = {"A": "one", "B": "two", "C": "three", "D": "four"}
    assert all(option.text == words[option.letter] for option in options)


OTHERWISE = [
    "What?\nA: red\nB: blue",
    "What?\nA:red\nB:blue",
    "What?\nA.red\nB.blue\n",
    "What?\na. red\nb. blue",
    "What?\n(a) red\n(b) blue",
    "What?\na) red\n\nb) blue",
    "What?\r\n**A.** red\r\n**B.** blue",
    "What?\n**(A)** red\n**(B)** blue",
    "What?\n**A**: red\n**B**: blue",
]


@pytest.mark.parametrize("problem", OTHERWISE)
@pytest.mark.parametrize("key", ["B", "b", "(B)", "B.", "B. blue", "b. blue", "blue", "**B.** blue"])
def test_options_spelled_otherwise(root: Path, problem: str, key: str) -> None:
    """Read where nothing else can be meant, and scored as any letter."""
    example = check_row(replace(ROW, problem=problem, answer=f"<answer>{key}</answer>"), root, None)
    assert example.options == (Option("A", "red"), Option("B", "blue"))
    assert (example.answer, example.answer_kind, example.question) == ("B", "letter", problem)
    for answer, right in (
        ("B", True),
        ("(B)", True),
        ("B. blue", True),
        ("blue", True),
        ("A", False),
        ("A. red", False),
        ("b or a", False),
    ):
        assert is_correct(example, f"<answer>{answer}</answer>") == right, answer


@pytest.mark.parametrize(
    "problem",
    [
        "What? A. red B. blue",
        "What? (A) red (B) blue",
        "What? (a)red(b)blue",
        "What?\nA - red\nB - blue",
        "What?\n[A] red\n[B] blue",
        "What?\nA: red\nb: blue",
        "What?\nA: red\nB:blue",
        "What?\nB: blue\nA: red",
        "What?\nA: red\nC: blue",
        "What?\nA: red\nB: blue\nAnswer with the letter.",
        "What? A: now\nA: red\nB: blue",
        "A: Hello.\nB: Hi.\nWho speaks first?",
        "A: red\nB: blue",
        "\uff21\uff0e red\n\uff22\uff0e blue",
    ],
)
@pytest.mark.parametrize("key", ["B", "B. blue", "blue", "3"])
def test_what_may_be_options_is_no_open_question(root: Path, problem: str, key: str) -> None:
    """Two readings: refused, and quotes say that it is open-ended."""
    with pytest.raises(RowError, match="no options that can be read") as caught:
        check_row(replace(ROW, problem=problem, answer=f"<answer>{key}</answer>"), root, None)
    assert "problem_id 1" in str(caught.value) and 'quote its answer: <answer>"..."</answer>' in str(caught.value)
    example = check_row(replace(ROW, problem=problem, answer=f'<answer>"{key}"</answer>'), root, None)
    assert (example.answer, example.answer_kind, example.options) == (key, "number" if key == "3" else "text", ())


@pytest.mark.parametrize("key", ["B", "x", "(B)", "B.", "b: blue", "C) it is", "**B.** blue", "\\boxed{B}", "The answer is B.", "[B]"])
def test_an_answer_that_looks_like_a_letter_needs_options(root: Path, key: str) -> None:
    with pytest.raises(RowError, match="no options that can be read"):
        check_row(replace(ROW, problem="Which one?", answer=f"<answer>{key}</answer>"), root, None)


@pytest.mark.parametrize(
    ("problem", "key"),
    [
        ("What is on the flag?", "U.S. Army"),
        ("Is it 5 a.m. or 8 p.m. in Washington, D.C. and e.g. Paris?", "a.m. probably"),
        ("Who wrote it?", "A man"),
        ("Did Plan B. fail?", "I think so"),
        ("Was it J. K. Rowling or J. R. R. Tolkien?", "neither"),
        ("Which flask(s) of type (a) are full?", '"the second"'),
    ],
)
def test_open_questions_are_still_read(root: Path, problem: str, key: str) -> None:
    example = check_row(replace(ROW, problem=problem, answer=f"<answer>{key}</answer>"), root, None)
    assert (example.answer, example.answer_kind) == (key, "text")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("Q?\nA: one\nB: One", "two options with the same text"),
        ("Q?\nA. one\nA. two", "an option letter is repeated"),
        ("Q?\nA. one\nB. two\n(A) three", "an option letter is repeated"),
        ("Q?\nA. one", "options A"),
        ("Q?\nA. one\nB. two\nD. four", "options A, B, D"),
        ("Q?\nB. two\nC. three", "options B, C"),
        ("Q?\nA. one\nB.\nC. three", "an option without text"),
        ("Q?\nA. one\nB. two\nC.  One ", "two options with the same text"),
    ],
)
def test_malformed_options(problem: str, message: str, root: Path) -> None:
    with pytest.raises(RowError, match=message):
        check_row(replace(ROW, problem=problem), root, DigestIndex(None))


@pytest.mark.parametrize(
    ("problem", "answer", "want", "kind"),
    [
        ("Q?\nA. one\nB. two", "<answer>B</answer>", "B", "letter"),
        ("Q?\nA. one\nB. two", " <answer> (b) two </answer> ", "B", "letter"),
        ("Q?\nA. one\nB. two", "<answer>two</answer>", "B", "letter"),
        ("Q?\nA. B\nB. A", "<answer>A</answer>", "A", "letter"),
        ("How many?", "<answer>3</answer>", "3", "number"),
        ("How many?", "<answer>1,200.5</answer>", "1,200.5", "number"),
        ("How long?", "<answer>12 seconds</answer>", "12 seconds", "number"),
        ("Who?", "<answer>the red ball</answer>", "the red ball", "text"),
        ("Who?", "<answer>3 red balls\nand 2 blue ones</answer>", "3 red balls\nand 2 blue ones", "text"),
        ("When?", "<answer>3:45</answer>", "3:45", "text"),
    ],
)
def test_answers(problem: str, answer: str, want: str, kind: str, root: Path) -> None:
    example = check_row(replace(ROW, problem=problem, answer=answer), root, DigestIndex(None))
    assert (example.answer, example.answer_kind) == (want, kind)


@pytest.mark.parametrize(
    ("problem", "answer", "message"),
    [
        (ROW.problem, "", "answer ''"),
        (ROW.problem, "B", "answer 'B'"),
        (ROW.problem, "<answer></answer>", "answer '<answer></answer>'"),
        (ROW.problem, "<answer> \n </answer>", "not empty"),
        (ROW.problem, "<answer>A</answer><answer>B</answer>", "the answer is `<answer>"),
        (ROW.problem, "It is <answer>B</answer>", "the answer is `<answer>"),
        (ROW.problem, "<answer>B", "the answer is `<answer>"),
        (ROW.problem, "<answer>D</answer>", "the answer is one of A, B, C"),
        (ROW.problem, "<answer>A or B</answer>", "the answer is one of A, B, C"),
        ("Where is it? A. here B. there", "<answer>B</answer>", "no options"),
        (" \n", "<answer>3</answer>", "empty problem"),
    ],
)
def test_malformed_answers(problem: str, answer: str, message: str, root: Path) -> None:
    with pytest.raises(RowError) as caught:
        check_row(replace(ROW, problem=problem, answer=answer), root, DigestIndex(None))
    assert message in str(caught.value) and "problem_id 1" in str(caught.value)


PATHS = {
    "absolute": "/etc/passwd",
    "parent": "../outside.mp4",
    "parent_inside": "videos/../../outside.mp4",
    "home": "~/one.mp4",
    "url": "https://example.org/one.mp4",
    "file_url": "file:///etc/passwd",
    "protocol": "concat:videos/one.mp4|videos/two.mp4",
    "back_slash": "..\\outside.mp4",
    "link_out": "videos/link.mp4",
    "link_folder_out": "out/outside.mp4",
    "blank": " ",
    "line_feed": "videos/one.mp4\nvideos/two.mp4",
    "root_itself": ".",
    "endless": "x/" * 5000,
    "long_name": "x" * 300,
}


@pytest.mark.parametrize("name", PATHS)
def test_hostile_paths_are_refused(name: str, root: Path) -> None:
    """FACTS fault 12, for the video and for the subtitles."""
    (root / "videos" / "link.mp4").symlink_to(root.parent / "outside.mp4")
    (root / "out").symlink_to(root.parent)
    with pytest.raises(PathError):
        check_row(replace(ROW, videos=(PATHS[name],)), root, DigestIndex(None))
    with pytest.raises(PathError):
        check_row(replace(ROW, subtitles=PATHS[name]), root, DigestIndex(None), with_subtitles=True)


def test_a_link_that_stays_inside_is_fine(root: Path) -> None:
    (root / "videos" / "link.mp4").symlink_to("one.mp4")
    assert check_row(replace(ROW, videos=("videos/link.mp4",)), root, DigestIndex(None)).media


@pytest.mark.parametrize("name", ["videos/gone.mp4", "videos", "videos/pipe.mp4"])
def test_no_such_video(name: str, root: Path) -> None:
    os.mkfifo(root / "videos" / "pipe.mp4")
    with pytest.raises(VideoError) as caught:
        check_row(replace(ROW, videos=(name,)), root, DigestIndex(None))
    assert name in str(caught.value)


def test_failures_keep_their_place_and_are_never_replaced(root: Path) -> None:
    """FACTS faults 4 and 9: no other video in the place of a bad one; every row keeps its own id and category."""
    rows = [
        ROW,
        replace(ROW, problem_id=2, videos=("../outside.mp4",), problem_type="goal"),
        replace(ROW, problem_id=3, videos=("videos/two.mp4",)),
        replace(ROW, problem_id=4, videos=("videos/gone.mp4",), problem_type="plot"),
        replace(ROW, problem_id=5, answer="<answer>Z</answer>"),
        replace(ROW, problem_id=6),
    ]
    items = read(root, *rows)
    assert [item.problem_id for item in items] == [1, 2, 3, 4, 5, 6]
    assert [item.kind if isinstance(item, Failure) else "" for item in items] == ["", "PathError", "", "VideoMissingError", "RowError", ""]
    assert [item.stage for item in items if isinstance(item, Failure)] == ["rows", "video", "rows"]
    assert [item.category for item in items] == ["spatial", "goal", "spatial", "plot", "spatial", "spatial"]
    one, two, again = (item.media[0] for item in items if isinstance(item, Example))
    assert one == again and one.digest != two.digest, "two questions on one video share it; another video is another"
    assert all("\n" not in item.message for item in items if isinstance(item, Failure))
    blind = read(root, *rows, with_video=False)
    assert [isinstance(item, Failure) for item in blind] == [False, False, False, False, True, False]


def test_missing_subtitles_fail_only_when_asked_for(root: Path) -> None:
    row = replace(ROW, subtitles="videos/gone.srt")
    assert isinstance(read(root, row)[0], Example)
    assert isinstance(read(root, row, with_subtitles=True)[0], Failure)


def test_rows_with_subtitles_are_counted(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Once per file; rows without any are shown as they are, and a file in which none has them is refused."""
    rows = [replace(ROW, problem_id=number, subtitles="videos/one.srt" if number == 2 else None) for number in range(3)]
    items = read(root, *rows, with_subtitles=True)
    assert [item.subtitles for item in items if isinstance(item, Example)] == [None, None, "hello there\nbye"]
    assert capfd.readouterr().err.count("rows.jsonl: 1 of 3 rows have subtitles") == 1
    read(root, *rows)
    assert capfd.readouterr().err == ""
    with pytest.raises(RowError, match=r"rows\.jsonl: 0 of 2 rows have subtitles.*set data\.with_subtitles = false"):
        read(root, *rows[:2], with_subtitles=True)
    parts = {"with": {"rows": root / "rows.jsonl", "with_subtitles": True}}
    with pytest.raises(RowError, match=r"set data\.sources\.with\.with_subtitles = false"):
        read_examples(DataConfig.model_validate({"sources": parts}))


def test_subtitles_stand_in_order_of_time(root: Path) -> None:
    cues = "1\n00:00:05,000 --> 00:00:06,000\nlater\n\n2\n00:00:01,000 --> 00:00:09,000\nearlier\n"
    (root / "videos" / "one.srt").write_text(cues)
    assert check_row(ROW, root, None, with_subtitles=True).subtitles == "earlier\nlater"


def test_damaged_subtitles(root: Path) -> None:
    (root / "videos" / "one.srt").write_bytes(b"1\n00:00:01,000 --> nonsense\nx\n")
    (item,) = read(root, ROW, with_subtitles=True)
    assert isinstance(item, Failure) and "one.srt" in item.message


def test_categories_first_then_max_rows(root: Path) -> None:
    rows = [replace(ROW, problem_id=number, problem_type=("goal", "plot")[number % 2]) for number in range(10)]
    assert [item.problem_id for item in read(root, *rows, max_rows=3)] == [0, 1, 2]
    assert [item.problem_id for item in read(root, *rows, max_rows=3, categories=["plot"])] == [1, 3, 5]
    with pytest.raises(RowError, match="no row of category nothing"):
        read(root, *rows, categories=["nothing"])


def test_a_row_whose_category_cannot_be_read_counts_in_every_category(root: Path) -> None:
    good = {key: value for key, value in vars(ROW).items() if value is not None}
    (root / "rows.jsonl").write_text(
        "{\n" + json.dumps(good) + "\n" + json.dumps({**good, "problem_id": "x", "problem_type": "goal"}) + "\n"
    )
    config = DataConfig.model_validate({"rows": root / "rows.jsonl", "categories": ["spatial"]})
    first, second = read_examples(config)
    assert isinstance(first, Failure) and isinstance(second, Example)


def test_root_apart_from_the_rows_file(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_rows(elsewhere / "rows.jsonl", [ROW])
    assert isinstance(read_examples(DataConfig(rows=elsewhere / "rows.jsonl"))[0], Failure)
    assert isinstance(read_examples(DataConfig(rows=elsewhere / "rows.jsonl", root=root))[0], Example)


def test_the_index_is_kept_by_the_caller(root: Path) -> None:
    index = DigestIndex(None)
    write_rows(root / "rows.jsonl", [replace(ROW, problem_id=number) for number in range(5)])
    for _ in range(2):
        read_examples(DataConfig(rows=root / "rows.jsonl"), index)
    assert index.num_hashed == 1, "one file, read once"


def failure(number: int, kind: str = "RowError") -> Failure:
    return Failure(number, "rows", kind, f"row {number} is bad")


def test_check_failures_below_and_above_the_share() -> None:
    items: list[object] = ["example"] * 9 + [failure(9)]
    assert check_failures(items, 0.1) == 1
    assert check_failures(["example"], 0.0) == 0
    with pytest.raises(RowError) as caught:
        check_failures([*items, failure(10, "PathError"), failure(11, "PathError")], 0.1)
    assert "3 of 12 rows cannot be used (2 PathError, 1 RowError)" in str(caught.value)
    assert "row 9 is bad" in str(caught.value) and "at most 10% fail" in str(caught.value)


def test_check_failures_wants_something_left() -> None:
    for items in ([], [failure(1)]):
        with pytest.raises(RowError, match="at least one is left"):
            check_failures(items, 1.0)


def test_check_failures_shows_a_few_of_many() -> None:
    with pytest.raises(RowError) as caught:
        check_failures([failure(number) for number in range(10_000)], 0.5)
    assert len(str(caught.value)) < 1000 and "10000 of 10000" in str(caught.value)


def test_an_image_beyond_its_limit_is_not_digested(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(11))
    index = DigestIndex(max_image_bytes=10)
    with pytest.raises(VideoLimitError, match="max_image_bytes"):
        media_ref(index, tmp_path / "a.png", "image")
    assert media_ref(index, tmp_path / "a.png", "video").kind == "video" and index.num_hashed == 1
