"""Rows as other projects write them, read as our own: LongVideo-Reason (ours), Video-R1 and LLaVA-Video.

Nothing is guessed and nothing left out in silence: what has one meaning is converted, all else is a `Failure` in its place.

* `longvideo_reason`: the published fields, see `row_files`; `options` listed apart as in Video-R1.
* `video_r1`: problem_id, problem, data_type (video | image), problem_type (KINDS), options listed apart (`["A. red", ...]`), process
  (the reasoning, with or without think tags), solution (`<answer>B</answer>`), path.
* `llava_video`: id, conversations of `{"from": "human" | "gpt", "value": text}`, video or image. Every question with its answer is a
  row of its own: a later one is asked without those before it.

Category of the last two: their field `category` where it names one of ours (CATEGORIES), else `general`; neither the kind of question
nor the data set is a category. Number: a whole number is kept; where there is none, or a text, and for every row of a conversation of
several turns, it is PLACE_IDS + 1000 x row + turn, which stays the same as long as the file does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from longtake.answers.letters import MAX_ANSWER_CHARS
from longtake.answers.response import ANSWER, END_ANSWER, END_THINK, THINK, between
from longtake.answers.texts import fold
from longtake.config.sections import RowFormat
from longtake.data.asked import OPTION_LINE, OTHER_LINE, like_choice, parse_answer, parse_options
from longtake.data.row_files import (
    id_field,
    parse_row,
    paths_field,
    read_records,
    row_error,
    row_failure,
    shown,
    subtitles_field,
    text_field,
)
from longtake.errors import RowError
from longtake.types import Failure, Option, Row

FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
PLACE_IDS = 10**12
"""Numbers made from places begin here, above those that people give."""
MAX_TURNS = 1000
CATEGORIES = {
    "general": "general",
    **dict.fromkeys(("temporal", "temporal reasoning"), "temporal"),
    **dict.fromkeys(("goal", "purpose", "goal and purpose", "goal & purpose", "goal and purpose reasoning"), "goal"),
    **dict.fromkeys(("plot", "narrative", "plot and narrative", "plot & narrative", "plot and narrative reasoning"), "plot"),
    **dict.fromkeys(("spatial", "spatial reasoning"), "spatial"),
}
"""Names of a category, case folded -> ours."""
CHOICE = "multiple choice"
NUMBER_KINDS = ("numerical", "regression")
KINDS = (CHOICE, *NUMBER_KINDS, "free-form", "OCR")
"""problem_type of Video-R1. A regression is scored by us as any number: right or wrong."""
PLACEHOLDERS = ("<image>", "<video>")
REPLY_HINTS = frozenset(
    {
        "please respond with only the letter of the correct answer.",
        "please provide your answer by stating the letter followed by the full option.",
        "answer with the option's letter from the given choices directly.",
        "answer the question using a single word or phrase.",
        "please answer the question with a single word or phrase.",
    }
)
"""Last lines of a question, case folded, that say how to reply: they contradict `prompt.instruction`, so they are taken off."""


@dataclass(frozen=True)
class RowsFile:
    """A rows file as read."""

    format: RowFormat
    num_records: int
    """Lines, array items or table rows; a conversation of several turns is several items."""
    items: list[Row | Failure]


def read_rows(path: Path, format: RowFormat = "auto") -> list[Row | Failure]:
    """As `row_files.read_rows`, of any format. Raises RowError when the file as a whole cannot be read or holds no row."""
    return read_rows_file(path, format).items


def read_rows_file(path: Path, format: RowFormat = "auto") -> RowsFile:
    """All rows in order. `auto`: the format of the first record that has one (the published one when none has) is that of the file."""
    records = read_records(path)
    head = []
    while format == "auto" and (record := next(records, None)) is not None:
        head.append(record)
        format = detect(record[1])
    format = "longvideo_reason" if format == "auto" else format
    items: list[Row | Failure] = []
    first_seen: dict[int, int] = {}
    num_records = 0
    for number, value in chain(head, records):
        num_records += 1
        where = f"{path.name} row {number}"
        items += [without_twin(item, number, where, first_seen) for item in convert(value, format, number, where)]
    if not items:
        raise RowError(f"{path} holds no row", rule="a rows file has at least one row", remedy="check the path in data.rows")
    return RowsFile(format, num_records, items)


def without_twin(item: Row | Failure, number: int, where: str, first_seen: dict[int, int]) -> Row | Failure:
    """The item, or the Failure of a row whose id stands in an earlier row too; `first_seen`, id -> row, is kept up."""
    if isinstance(item, Failure) or item.problem_id not in first_seen:
        if isinstance(item, Row):
            first_seen[item.problem_id] = number
        return item
    given = f"problem_id {item.problem_id} is that of row {first_seen[item.problem_id]} too"
    return failure_of(row_error(where, given, "give each row its own id"), item.problem_id, item.problem_type)


def named_format(name: object) -> RowFormat:
    """The format of this name; `auto` for what is none, as in the configurations of older runs."""
    return next((known for known in FORMATS if known == name), FORMATS[0])


def detect(record: object) -> RowFormat:
    """The format whose fields a decoded record has; `auto` when it has those of none. A field that is null is not there."""
    fields = {name for name, value in record.items() if value is not None} if isinstance(record, dict) else set()
    if {"problem", "answer"} <= fields:
        return "longvideo_reason"
    if "conversations" in fields:
        return "llava_video"
    if "problem" in fields and fields & {"solution", "path"}:
        return "video_r1"
    return "longvideo_reason" if fields & {"videos", "images", "answer", "reasoning"} else "auto"


def convert(value: object, format: RowFormat, number: int, where: str) -> list[Row | Failure]:
    """The rows of one record, each a Row or the Failure of it; `number` is its place in the file, `where` names it in messages.

    `value` is what `read_records` gives: a decoded JSON value, or a RowError. Raises nothing.
    """
    found = detect(value)
    try:
        if found not in ("auto", format):
            remedy = "keep one format per file, or name the right one in data.format"
            raise row_error(where, f"a row of {found} in a file read as {format}", remedy)
        if format == "longvideo_reason":
            row, listed = parse_row(value, where), value.get("options") if isinstance(value, dict) else None
            return [replace(row, problem=with_options(row.problem, listed, where)[0]) if listed else row]
        if isinstance(value, RowError):
            raise value
        if not isinstance(value, dict):
            raise row_error(where, f"a JSON {type(value).__name__}", "write one JSON object per row")
        return [video_r1_row(value, number, where)] if format == "video_r1" else list(llava_rows(value, number, where))
    except RowError as error:
        if format == "longvideo_reason" or not isinstance(value, dict):
            return [row_failure(error, value)]
        given = value.get("id" if format == "llava_video" else "problem_id")
        return [failure_of(error, given, category_of(value))]


def failure_of(error: RowError, problem_id: object, category: str) -> Failure:
    return row_failure(error, {"problem_id": problem_id, "problem_type": category})


def video_r1_row(record: Mapping[str, Any], number: int, where: str) -> Row:
    """Raises RowError."""
    require(record, ("problem", "data_type", "problem_type", "solution", "path"), where)
    kind = text_field(record["problem_type"], "problem_type", where)
    if kind not in KINDS:
        raise row_error(where, f"problem_type {kind[:40]!r}", f"use {', '.join(KINDS)}")
    problem, options = with_options(text_field(record["problem"], "problem", where).strip(), record.get("options"), where)
    if bool(options) != (kind == CHOICE):
        raise row_error(where, f"problem_type {kind!r} and {len(options)} options", f"only {CHOICE!r} has options, and it has some")
    media = paths(record["path"], "path", where)
    data_type = text_field(record["data_type"], "data_type", where)
    if data_type not in ("video", "image") or len(media) != 1:
        raise row_error(where, f"data_type {data_type[:40]!r} and {len(media)} paths", "use video or image, and one path")
    return Row(
        problem_id=id_of(record.get("problem_id"), number, 0, where),
        problem=problem,
        data_type=data_type,
        problem_type=category_of(record),
        reasoning=reasoning_of(record.get("process"), where),
        videos=media if data_type == "video" else (),
        images=media if data_type == "image" else (),
        answer=answer_of(text_field(record["solution"], "solution", where), options, where, problem, kind),
        subtitles=subtitles_field(record.get("subtitles"), where),
    )


def with_options(problem: str, listed: object, where: str) -> tuple[str, tuple[Option, ...]]:
    """The question with its options inline, and these; listed and inline they must be the same. Raises RowError."""
    inline = parse_options(problem, where)
    if not problem:
        raise row_error(where, "an empty problem", "fill in problem")
    if not listed:
        return problem, inline
    if not isinstance(listed, list):
        raise row_error(where, f"options of type {type(listed).__name__}", "list them as texts")
    lines = [" ".join(text_field(option, "an option", where).split()) for option in listed]
    for line in lines:
        if not (OPTION_LINE.fullmatch(line) or OTHER_LINE.fullmatch(line)):
            raise row_error(where, f"option {line[:40]!r} without a letter", "write each as `A. text`")
    options = parse_options("\n".join(["?", *lines]), where)
    if len(options) < len(lines):
        raise row_error(where, "options that are not spelled alike, or not in order", "write each as `A. text`")
    if inline and inline != options:
        raise row_error(where, "options in problem and others in options", "keep one of them")
    return problem if inline else "\n".join([problem, *lines]), options


def reasoning_of(process: object, where: str) -> str:
    """The text between the think tags, the whole text where there are none; nothing when there is no process. Raises RowError."""
    if process is None:
        return ""
    text = text_field(process, "process", where).strip()
    if THINK not in text and END_THINK not in text:
        return text
    inner = between(text, THINK, END_THINK)
    if inner is None or not (text.startswith(THINK) and text.endswith(END_THINK)):
        raise row_error(where, "process is not one pair of think tags", f"write {THINK} ... {END_THINK}, or no tags")
    return inner


def llava_rows(record: Mapping[str, Any], number: int, where: str) -> Iterator[Row | Failure]:
    """One item per question, a Failure where it or its answer cannot be read. Raises RowError when the conversation cannot."""
    require(record, ("conversations",), where)
    turns = turns_of(record["conversations"], where)
    videos, images = (paths(record.get(name), name, where) for name in ("video", "image"))
    if videos and images:
        raise row_error(where, "a video and an image", "name one of them: their order is not known")
    if misnamed := [name for name in ("videos", "images") if record.get(name)]:
        raise row_error(where, f"a field {' and '.join(misnamed)}", "name media in the fields video or image")
    if not (videos or images) and (empty := [name for name in ("video", "image", "videos", "images") if record.get(name) is not None]):
        raise row_error(where, f"an empty {' and '.join(empty)}", "name the file, or leave the field out where there is none")
    own_id = id_of(record.get("id"), number, 0, where)
    data_type, category = "video" if videos else "image" if images else "text", category_of(record)
    subtitles = subtitles_field(record.get("subtitles"), where)
    for turn, (question, reply) in enumerate(turns):
        here = where if len(turns) == 1 else f"{where} turn {turn + 1}"
        problem_id = own_id if len(turns) == 1 else id_of(None, number, turn, here)
        try:
            problem = question_of(question, len(videos + images) if turn == 0 else 0, here)
            answer = answer_of(f"{ANSWER}{reply}{END_ANSWER}", parse_options(problem, here), here, problem)
            yield Row(problem_id, problem, data_type, category, "", videos, answer, images=images, subtitles=subtitles)
        except RowError as error:
            yield failure_of(error, problem_id, category)


def turns_of(conversations: object, where: str) -> list[tuple[str, str]]:
    """(question, answer) of each turn. Raises RowError unless human and gpt take turns, the human first."""
    if not isinstance(conversations, list) or not 0 < len(conversations) <= 2 * MAX_TURNS:
        raise row_error(where, "conversations is not a list, empty or too long", f"write 1 to {MAX_TURNS} questions with their answers")
    if not all(isinstance(part, dict) for part in conversations):
        raise row_error(where, "conversations holds what is no object", 'write {"from": ..., "value": ...}')
    speakers = [part.get("from") for part in conversations]
    if len(speakers) % 2 or speakers != ["human", "gpt"] * (len(speakers) // 2):
        said = ", ".join(shown(speaker) for speaker in speakers[:4])
        raise row_error(where, f"conversations of {said}", "let human and gpt take turns, the human first, every question answered")
    values = [text_field(part.get("value"), "value", where).strip() for part in conversations]
    return list(zip(values[::2], values[1::2], strict=True))


def question_of(text: str, num_media: int, where: str) -> str:
    """Without the placeholders of its media, which the chat template writes, and without a last line of REPLY_HINTS. Raises RowError."""
    found = sum(text.count(placeholder) for placeholder in PLACEHOLDERS)
    if found not in (0, num_media):
        raise row_error(where, f"{found} placeholders for {num_media} new videos and images", "write one for each, in the first question")
    question = text.strip()
    while question.startswith(PLACEHOLDERS):
        question = question[len(PLACEHOLDERS[0]) :].lstrip()
    while question.endswith(PLACEHOLDERS):
        question = question[: -len(PLACEHOLDERS[0])].rstrip()
    if any(placeholder in question for placeholder in PLACEHOLDERS):
        raise row_error(where, "a placeholder inside the question", "put media in front: they are shown before the question")
    head, _, last = question.rpartition("\n")
    question = head.strip() if fold(last) in REPLY_HINTS else question
    if not question:
        raise row_error(where, "an empty question", "fill in its value")
    return question


def answer_of(text: str, options: tuple[Option, ...], where: str, problem: str, kind_given: str = CHOICE) -> str:
    """`<answer>B</answer>` with the letter where there are options, else what stands between the tags: in quotes where it would be taken
    for that of a choice, and is none by the kind of the row. Raises RowError."""
    answer, kind = parse_answer(text, options, where, problem, is_open=kind_given != CHOICE)
    if kind_given in NUMBER_KINDS and kind != "number":
        raise row_error(where, f"answer {answer[:40]!r} is not one plain number", "write one, or make the question free-form")
    if len(answer) > MAX_ANSWER_CHARS:
        raise row_error(where, f"an answer of {len(answer)} characters", f"at most {MAX_ANSWER_CHARS} can be compared")
    if kind != "letter" and like_choice(answer, problem) is not None:
        if '"' in answer:
            raise row_error(where, f"answer {answer[:40]!r} looks like an option", "write it without quotes inside")
        answer = f'"{answer}"'
    return f"{ANSWER}{answer}{END_ANSWER}"


def id_of(value: object, number: int, turn: int, where: str) -> int:
    """A whole number as it is, a number made from the place when there is none or a text. Raises RowError for other types."""
    if value is None or isinstance(value, str):
        return PLACE_IDS + number * MAX_TURNS + turn
    return id_field(value, where)


def category_of(record: Mapping[str, Any]) -> str:
    given = record.get("category")
    return CATEGORIES.get(fold(given), "general") if isinstance(given, str) else "general"


def paths(value: object, name: str, where: str) -> tuple[str, ...]:
    """Relative paths without `./` in front. Raises RowError."""
    return tuple(re.sub(r"^(?:\./+)+", "", path) for path in paths_field(value, name, where))


def require(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    missing = [name for name in names if record.get(name) is None]
    if missing:
        raise row_error(where, f"no field {', '.join(missing)}", "add it")
