"""Reading rows in three formats; every hostile row is one Failure with one line of its own, in its place."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longtake.data import row_files
from longtake.data.row_files import read_rows, write_rows
from longtake.errors import RowError
from longtake.types import Failure, Row

GOOD: dict[str, Any] = {
    "problem_id": 1,
    "problem": "Where is it?\nA. here\nB. there",
    "data_type": "video",
    "problem_type": "spatial",
    "reasoning": "It is there.",
    "videos": "videos/one.mp4",
    "answer": "<answer>B</answer>",
}
ROW = Row(**{**GOOD, "videos": ("videos/one.mp4",)})


def lines(path: Path, *records: object) -> Path:
    """A JSON lines file; str and bytes stand as they are."""
    raw = [
        record if isinstance(record, bytes) else (record if isinstance(record, str) else json.dumps(record)).encode() for record in records
    ]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_json_lines(tmp_path: Path) -> None:
    extras = {"subtitles": "one.srt", "duration_s": 12.5}
    path = lines(tmp_path / "rows.jsonl", GOOD, "", {**GOOD, **extras, "problem_id": 2}, {**GOOD, "problem_id": 3, "duration": 7})
    assert read_rows(path) == [
        ROW,
        replace(ROW, problem_id=2, subtitles="one.srt", duration_s=12.5),
        replace(ROW, problem_id=3, duration_s=7.0),
    ]


def test_three_formats_give_the_same_rows(tmp_path: Path) -> None:
    records = [{**GOOD, "problem_id": number, "duration_s": 1.5 * number} for number in range(1, 6)]
    want = [replace(ROW, problem_id=number, duration_s=1.5 * number) for number in range(1, 6)]
    (tmp_path / "array.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "lines.json").write_text("\n".join(json.dumps(record) for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    for name in ("array.json", "lines.json", "rows.parquet"):
        assert read_rows(tmp_path / name) == want, name


def test_unknown_fields_are_ignored_and_videos_may_be_a_list(tmp_path: Path) -> None:
    assert read_rows(lines(tmp_path / "rows.jsonl", {**GOOD, "fps": [1, {}], "videos": ["videos/one.mp4"], "x" * 1000: None})) == [ROW]
    table = pa.Table.from_pylist([{**GOOD, "videos": ["videos/one.mp4"], "score": 0.5}])
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == [ROW]


def test_several_videos_images_and_none(tmp_path: Path) -> None:
    """One path is written as the published string, several as a list; what is not there is not written."""
    rows = [
        replace(ROW, videos=("b.mp4", "a.mp4"), images=("x.png",)),
        replace(ROW, problem_id=2, data_type="image", videos=(), images=("x.png", "x.png")),
        replace(ROW, problem_id=3, data_type="text", videos=()),
    ]
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["videos"], one.get("images")) for one in written] == [(["b.mp4", "a.mp4"], "x.png"), ("", ["x.png", "x.png"]), ("", None)]
    records = [{**without("videos"), "data_type": "image", "images": ["x.png"]}, {**GOOD, "problem_id": 2, "images": []}]
    read = read_rows(lines(tmp_path / "unset.jsonl", *records))
    assert [(row.videos, row.images) for row in read] == [((), ("x.png",)), (("videos/one.mp4",), ())]


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert read_rows(tmp_path / "rows.jsonl") == [ROW]


def test_write_rows_is_read_back_in_the_published_form(tmp_path: Path) -> None:
    rows = [
        ROW,
        replace(ROW, problem_id=2, problem="Größe?\n\u2028", subtitles="a.srt", duration_s=3.25),
        replace(ROW, problem_id=3, videos=()),
    ]
    path = tmp_path / "new" / "rows.jsonl"
    assert write_rows(path, rows) == 3
    assert read_rows(path) == rows
    assert list(json.loads(path.read_text().splitlines()[0])) == list(GOOD), "exactly the published fields, in their order"
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_write_rows_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [ROW])
    with pytest.raises(UnicodeEncodeError):
        write_rows(path, [replace(ROW, problem="x"), replace(ROW, problem="\ud800")])
    assert read_rows(path) == [ROW]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


HOSTILE: dict[str, tuple[object, str]] = {
    "empty_object": ({}, "no field problem_id, problem, data_type, problem_type, reasoning, answer, videos"),
    "no_answer": (without("answer"), "no field answer"),
    "null_problem": ({**GOOD, "problem": None}, "no field problem"),
    "list": ([1, 2], "a JSON list"),
    "string": ('"row"', "a JSON str"),
    "number": ("7", "a JSON int"),
    "null": ("null", "a JSON NoneType"),
    "truncated": ('{"problem_id": 1, "problem": "x', "not JSON: Invalid control character"),
    "two_objects": ("{} {}", "not JSON: Extra data"),
    "python": ("{'problem_id': 1}", "not JSON"),
    "not_utf8": (b'{"problem": "\xff\xfe"}', "not UTF-8 at byte 13"),
    "utf16": (json.dumps(GOOD).encode("utf-16"), "not UTF-8 at byte 0"),
    "binary": (bytes(byte for byte in range(256) if byte not in b"\n\r"), "not UTF-8"),
    "nested_bomb": ("[" * 200_000, "JSON nested too deep"),
    "nested_object_bomb": ('{"a":' * 100_000, "JSON nested too deep"),
    "too_long": ({**GOOD, "reasoning": "x" * (1 << 20)}, "longer than 1048576 bytes"),
    "huge_int": ('{"problem_id": ' + "9" * 100_000 + "}", "not JSON: Exceeds the limit"),
    "large_int": ({**GOOD, "problem_id": 10**4000}, "problem_id of 13288 bits of type int"),
    "nan": (json.dumps({**GOOD, "duration_s": float("nan")}), "not JSON: NaN is not a JSON number"),
    "infinity": (json.dumps({**GOOD, "duration_s": float("inf")}), "Infinity is not a JSON number"),
    "field_twice": (json.dumps(GOOD)[:-1] + ', "answer": "<answer>A</answer>"}', "'answer' stands there twice"),
    "nested_field_twice": (json.dumps(GOOD)[:-1] + ', "more": [[{"a": 1, "b": 2, "a": 1}]]}', "'a' stands there twice"),
    "nested_nan": (json.dumps({**GOOD, "more": [[{"a": [float("nan")]}]]}), "not JSON: NaN is not a JSON number"),
    "overflow": (json.dumps(GOOD)[:-1] + ', "duration_s": 1e999}', "duration inf"),
    "negative_duration": ({**GOOD, "duration": -1}, "duration -1"),
    "bool_duration": ({**GOOD, "duration": True}, "duration True of type bool"),
    "text_duration": ({**GOOD, "duration": "12"}, "duration '12' of type str"),
    "huge_duration": ({**GOOD, "duration": 10**400}, "duration of 1329 bits"),
    "bool_id": ({**GOOD, "problem_id": True}, "problem_id True of type bool"),
    "text_id": ({**GOOD, "problem_id": "1"}, "problem_id '1' of type str"),
    "float_id": ({**GOOD, "problem_id": 1.0}, "problem_id 1.0 of type float"),
    "negative_id": ({**GOOD, "problem_id": -1}, "problem_id -1"),
    "id_beyond_63_bits": ({**GOOD, "problem_id": 2**63}, "problem_id of 64 bits"),
    "number_as_problem": ({**GOOD, "problem": 5}, "problem is of type int"),
    "list_as_answer": ({**GOOD, "answer": ["<answer>B</answer>"]}, "answer is of type list"),
    "empty_video_in_list": ({**GOOD, "videos": ["a.mp4", ""]}, "videos is a list of 2, 1 of them empty"),
    "too_many_videos": ({**GOOD, "videos": ["a.mp4"] * 65}, "videos is a list of 65, 0 of them empty"),
    "nested_images": ({**GOOD, "images": [["a.png"]]}, "images is of type list"),
    "nested_videos": ({**GOOD, "videos": [["a.mp4"]]}, "videos is of type list"),
    "object_as_video": ({**GOOD, "videos": {"path": "a.mp4"}}, "videos is of type dict"),
    "nul_in_path": ({**GOOD, "videos": "a\0.mp4"}, "videos holds a NUL"),
    "nul_in_problem": ({**GOOD, "problem": "a\0"}, "problem holds a NUL"),
    "half_surrogate": ({**GOOD, "reasoning": "\ud800"}, "half of a surrogate pair"),
    "audio": ({**GOOD, "data_type": "audio"}, "data_type 'audio'"),
    "no_category": ({**GOOD, "problem_type": ""}, "problem_type is empty"),
    "category_with_line_feed": ({**GOOD, "problem_type": "a\nb"}, "problem_type is empty, too long or not printable"),
    "long_category": ({**GOOD, "problem_type": "x" * 65}, "problem_type is empty, too long"),
    "number_as_subtitles": ({**GOOD, "subtitles": 3}, "subtitles is of type int"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_row_is_one_failure_between_its_neighbours(name: str, tmp_path: Path) -> None:
    record, message = HOSTILE[name]
    path = lines(tmp_path / "rows.jsonl", {**GOOD, "problem_id": 100}, record, {**GOOD, "problem_id": 101})
    start = time.perf_counter()
    before, failure, after = read_rows(path)
    assert time.perf_counter() - start < 2.0
    assert isinstance(before, Row) and isinstance(after, Row) and (before.problem_id, after.problem_id) == (100, 101)
    assert isinstance(failure, Failure)
    assert message in failure.message and "rows.jsonl row 2" in failure.message and "Remedy: " in failure.message
    assert len(failure.message) < 400 and "\n" not in failure.message and failure.message.isprintable()
    assert (failure.stage, failure.kind) == ("rows", "RowError")


def test_all_hostile_rows_in_one_file_are_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", *(record for record, _ in HOSTILE.values()), {**GOOD, "problem_id": 500})
    rows = read_rows(path)
    assert len(rows) == len(HOSTILE) + 1 >= 31
    assert sum(isinstance(row, Failure) for row in rows) == len(HOSTILE)
    assert isinstance(rows[-1], Row)


def test_failure_keeps_id_and_category_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", without("answer"), {**GOOD, "problem_id": True, "problem_type": "x" * 65}, "{")
    assert [(row.problem_id, row.category) for row in read_rows(path) if isinstance(row, Failure)] == [
        (1, "spatial"),
        (None, "unknown"),
        (None, "unknown"),
    ]


def test_repeated_problem_id(tmp_path: Path) -> None:
    """Two rows with one id would overwrite each other's answers: the second one fails."""
    path = lines(tmp_path / "rows.jsonl", GOOD, {**GOOD, "problem_id": 2}, {**GOOD, "problem": "other"})
    first, second, third = read_rows(path)
    assert isinstance(first, Row) and isinstance(second, Row) and isinstance(third, Failure)
    assert "row 3: problem_id 1 is that of row 1 too" in third.message


def test_hostile_rows_in_an_array_and_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([GOOD, 5, without("videos"), {**GOOD, "problem_id": 2}]))
    kinds = [type(row) for row in read_rows(tmp_path / "rows.json")]
    assert kinds == [Row, Failure, Failure, Row]
    table = pa.Table.from_pylist([{**GOOD, "duration_s": float("nan")}, {**GOOD, "answer": None}, {**GOOD, "duration_s": None}])
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read_rows(tmp_path / "rows.parquet")
    assert [type(row) for row in rows] == [Failure, Failure, Row]
    assert "duration nan" in str(rows[0]) and "rows.parquet row 2: no field answer" in str(rows[1])


@pytest.mark.parametrize("name", ["nan", "infinity", "field_twice", "nested_field_twice", "nested_nan"])
def test_a_flaw_in_an_array_is_one_failure_as_in_lines(tmp_path: Path, name: str) -> None:
    record, message = HOSTILE[name]
    texts = [json.dumps(GOOD), str(record), json.dumps({**GOOD, "problem_id": 2})]
    (tmp_path / "rows.json").write_text(f"[{', '.join(texts)}, [NaN], NaN]")
    first, failure, second, *last = read_rows(tmp_path / "rows.json")
    assert isinstance(first, Row) and isinstance(second, Row) and isinstance(failure, Failure)
    assert message in failure.message and failure.message.startswith("rows.json row 2: ")
    assert [isinstance(one, Failure) and one.message.split(": ")[0] for one in last] == ["rows.json row 4", "rows.json row 5"]
    (tmp_path / "rows.jsonl").write_text("\n".join(texts))
    assert [replace(one, message="") for one in read_rows(tmp_path / "rows.jsonl")[1:2]] == [replace(failure, message="")]


def test_a_deep_array_is_a_failure_or_ignored(tmp_path: Path) -> None:
    """At each depth near the limit of the interpreter: never a RecursionError."""
    for depth in range(100, 1100, 50):
        deep = "[" * depth + "NaN" + "]" * depth
        path = lines(tmp_path / "rows.jsonl", GOOD, json.dumps({**GOOD, "problem_id": 2})[:-1] + f', "more": {deep}}}')
        assert [type(row) for row in read_rows(path)] == [Row, Failure]


def test_parquet_with_wrong_column_types(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**GOOD, "problem_id": "1"}]), tmp_path / "rows.parquet")
    (row,) = read_rows(tmp_path / "rows.parquet")
    assert isinstance(row, Failure) and "problem_id '1' of type str" in row.message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "holds no row"),
        ("rows.jsonl", b"\n\n \n", "holds no row"),
        ("rows.json", b"[]", "holds no row"),
        ("rows.json", b"[1, 2", "not JSON"),
        ("rows.json", b"[" * 200_000, "nested too deep"),
        ("rows.json", b"[\xff]", "not UTF-8"),
        ("rows.parquet", b"", "no readable Parquet file"),
        ("rows.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "deserialize thrift"),
        ("rows.parquet", b"not parquet at all", "no readable Parquet file"),
        ("rows.csv", b"a,b", "rows files end in"),
        ("rows", b"{}", "rows files end in"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError, match=message) as caught:
        read_rows(tmp_path / name)
    assert name in str(caught.value)


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**GOOD, "problem_id": number} for number in range(500)]), path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-20])
    with pytest.raises(RowError, match="no readable Parquet file"):
        read_rows(path)
    data[60:300] = b"\xff" * 240  # footer whole, a page damaged
    path.write_bytes(data)
    with pytest.raises(RowError, match=r"cannot be read|no readable Parquet file"):
        read_rows(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="No such file"):
        read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for ever
    for name in ("folder.jsonl", "pipe.jsonl"):
        with pytest.raises(RowError, match="not a regular file"):
            read_rows(tmp_path / name)
    with pytest.raises(RowError, match="cannot be read"):
        read_rows(tmp_path / "rows.parquet")


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n" + b"x" * 1_000_003 + b"\n" + good.replace(b'"problem_id": 1', b'"problem_id": 2') + b"\n" + b"y" * 5000)
    assert [type(row) for row in read_rows(path)] == [Row, Failure, Row, Failure]


def test_large_json_array_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_ARRAY_BYTES", 100)
    (tmp_path / "rows.json").write_text(json.dumps([GOOD]))
    with pytest.raises(RowError, match="JSON lines"):
        read_rows(tmp_path / "rows.json")


def test_ten_thousand_rows_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, (replace(ROW, problem_id=number) for number in range(10_000)))
    start = time.perf_counter()
    rows = read_rows(path)
    assert time.perf_counter() - start < 5.0  # measured 0.2 s
    assert asdict(rows[-1]) == asdict(replace(ROW, problem_id=9999))  # type: ignore[type-var]
