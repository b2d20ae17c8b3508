"""Responses in JSON lines: read and checked line by line, written back with what was found. A bad line keeps its place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.data.row_files import decode_json, id_field, shown
from longtake.errors import LongtakeError, ModelError, RowError
from longtake.observe.lines import encode_line
from longtake.types import Failure

MAX_LINE_BYTES = 64 << 20
"""Longest line read: a response of some million tokens."""
KEPT_CHARACTERS = 1000
"""Of a line that is longer."""
RESERVED = ("logprobs", "entropies", "error")
"""What scoring adds to a line."""
LINE_RULE = "a line is one JSON object with problem_id, a whole number, and token_ids, a list of whole numbers"


@dataclass(frozen=True)
class Vocabulary:
    """Which token ids a response may have."""

    size: int
    banned: frozenset[int]
    """Media placeholders and the padding of the vocabulary: their log-prob is -inf."""


@dataclass(frozen=True, eq=False)
class Response:
    """What one line asks to be scored."""

    problem_id: int
    token_ids: Tensor
    """int64 [R], R = 0 allowed."""
    source: str = ""
    """What stands in the field of that name, where it is a text; it counts for a mixture."""


@dataclass(frozen=True, eq=False)
class Line:
    """One line of the file that is not blank."""

    number: int
    """From 1."""
    text: str
    """As given."""
    is_record: bool
    """Whether it is an object that the result may be added to."""
    content: Response | Failure


@dataclass(frozen=True, eq=False)
class Scored:
    """Of the R tokens of a response."""

    logprobs: list[float]
    entropies: list[float]


def read_responses(path: Path, vocabulary: Vocabulary) -> list[Line]:
    """All lines in order, a Failure where one cannot be scored. Raises RowError when there is no such file or no line in it."""
    if not path.is_file():
        raise RowError(f"responses = {path} is no file", rule="responses are a file of JSON lines", remedy="check the path")
    lines = [read_line(number, data, path.name, vocabulary) for number, data in numbered(path)]
    if not lines:
        raise RowError(f"{path} holds no response", rule="at least one line asks something to be scored", remedy="check the path")
    return lines


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line), at most MAX_LINE_BYTES + 1 bytes of each; blank ones are left out."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = data
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
            if data.strip():
                yield number, data


def read_line(number: int, data: bytes, name: str, vocabulary: Vocabulary) -> Line:
    where, text = f"{name} line {number}", data.decode("utf-8", "backslashreplace").strip()
    try:
        record = read_record(data, where)
    except RowError as error:
        kept = text if len(data) <= MAX_LINE_BYTES else text[:KEPT_CHARACTERS]
        return Line(number, kept, False, failure_of(error, None))
    try:
        problem_id = read_id(record, where)
    except RowError as error:
        return Line(number, text, True, failure_of(error, None))
    try:
        return Line(number, text, True, Response(problem_id, read_tokens(record, where, vocabulary), source_of(record)))
    except RowError as error:
        return Line(number, text, True, failure_of(error, problem_id))


def failure_of(error: LongtakeError, problem_id: int | None, stage: str = "responses") -> Failure:
    return Failure(problem_id, stage=stage, kind=type(error).__name__, message=str(error))


def read_record(data: bytes, where: str) -> dict[str, Any]:
    """The object on a line. Raises RowError for one that cannot be written back with a result."""
    if len(data) > MAX_LINE_BYTES:
        problem = f"longer than {MAX_LINE_BYTES} bytes; of it {KEPT_CHARACTERS} characters are kept"
        raise line_error(where, problem, "remove what is not needed from it")
    value = decode_json(data, where)
    if isinstance(value, RowError):
        raise line_error(value.given, "", value.remedy)
    if not isinstance(value, dict):
        raise line_error(where, f"a JSON {type(value).__name__}", "write one JSON object per line")
    taken = [name for name in RESERVED if name in value]
    if taken:
        raise line_error(where, f"it has a field {', '.join(taken)} already", "rename it: nothing that was given is replaced")
    return value


def read_id(record: dict[str, Any], where: str) -> int:
    if "problem_id" not in record:
        raise line_error(where, "no field problem_id", "add it: the row that the response answers")
    try:
        return id_field(record["problem_id"], where)
    except RowError as error:
        raise line_error(error.given, "", error.remedy) from error


def source_of(record: dict[str, Any]) -> str:
    source = record.get("source")
    return source if isinstance(source, str) else ""


def read_tokens(record: dict[str, Any], where: str, vocabulary: Vocabulary) -> Tensor:
    if "token_ids" not in record:
        raise line_error(where, "no field token_ids", "add it: the response as token ids, [] for an empty one")
    value = record["token_ids"]
    if not isinstance(value, list):
        raise line_error(where, f"token_ids is of type {type(value).__name__}", "write a list of token ids, [] for an empty response")
    for place, token_id in enumerate(value):
        check_token(token_id, f"{where}: token_ids[{place}]", vocabulary)
    return torch.tensor(value, dtype=torch.int64)


def check_token(token_id: object, where: str, vocabulary: Vocabulary) -> None:
    """Raises RowError for what is no token of a response."""
    if type(token_id) is not int:
        raise RowError(f"{where} = {shown(token_id)} of type {type(token_id).__name__}", rule=LINE_RULE, remedy="write whole numbers")
    if not 0 <= token_id < vocabulary.size:
        raise RowError(
            f"{where} = {shown(token_id)}",
            rule=f"the model's token ids are 0 to {vocabulary.size - 1}",
            remedy="score with the model whose tokenizer made them",
        )
    if token_id in vocabulary.banned:
        raise RowError(
            f"{where} = {token_id}, which can never be sampled",
            rule="media placeholders and the padding of the vocabulary are banned from responses; their probability is 0",
            remedy="give the response alone, without its prompt",
        )


def line_error(where: str, problem: str, remedy: str) -> RowError:
    return RowError(f"{where}: {problem}" if problem else where, rule=LINE_RULE, remedy=remedy)


def checked(scored: Scored, response: Response) -> Scored | Failure:
    """A model that computes nonsense is told, and not written down as a number."""
    wrong = [place for place, value in enumerate(scored.logprobs) if not math.isfinite(value)]
    if not wrong:
        return scored
    error = ModelError(
        f"problem {response.problem_id}: the log-prob of token_ids[{wrong[0]}] is {scored.logprobs[wrong[0]]}",
        rule="the model gives finite log-probs",
        remedy="check the weights; try model.dtype = float32",
    )
    return failure_of(error, response.problem_id, "score")


def write_scored(path: Path, lines: Sequence[Line], outcomes: Sequence[Scored | Failure], *, entropies: bool) -> None:
    """The lines in their order, each with what was found. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for line, outcome in zip(lines, outcomes, strict=True):
            file.write(encode_line(given(line) | found(outcome, entropies)))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def given(line: Line) -> dict[str, Any]:
    """What the line said; the text of one that nothing can be added to."""
    if line.is_record:
        record: dict[str, Any] = json.loads(line.text.removeprefix("\ufeff"))
        return record
    return {"line": line.number, "given": line.text}


def found(outcome: Scored | Failure, entropies: bool) -> dict[str, Any]:
    if isinstance(outcome, Failure):
        return {"error": {"kind": outcome.kind, "message": outcome.message}}
    return {"logprobs": outcome.logprobs} | ({"entropies": outcome.entropies} if entropies else {})
