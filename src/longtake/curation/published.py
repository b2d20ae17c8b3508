"""A row as it is published: the fields of LongVideo-Reason, and a check that whatever trains on it reads what was meant."""

from __future__ import annotations

from pathlib import Path

from longtake.curation.records import LETTERS, Draft
from longtake.data.row_files import parse_row
from longtake.data.rows import check_row
from longtake.data.texts import response_text
from longtake.errors import RowError
from longtake.llm.prompts import flat
from longtake.types import Example, Row


def published_row(draft: Draft, problem_id: int, *, folder: str = "", duration_s: float | None = None) -> Row:
    """`folder`: what stands before the path of the video, e.g. `videos/`."""
    options = "".join(f"\n{letter}. {flat(option)}" for letter, option in zip(LETTERS, draft.options, strict=False))
    return Row(
        problem_id=problem_id,
        problem=f"{draft.question.strip()}{options}",
        data_type="video",
        problem_type=draft.category,
        reasoning=draft.reasoning,
        videos=(f"{folder}{draft.video}",),
        answer=f"<answer>{draft.letter if draft.options else flat(draft.answer)}</answer>",
        duration_s=duration_s,
    )


def published_example(draft: Draft, problem_id: int = 0) -> Example:
    """The row as training reads it, its video not looked for.

    Raises RowError when it would be refused there, or read as something else than the draft: a question with a line that looks like an
    option, tags in the reasoning, an answer that is no option.
    """
    where = f"row {draft.key}"
    if len(draft.options) > len(LETTERS):
        raise RowError(f"{where}: {len(draft.options)} options", rule=f"a question has at most {len(LETTERS)}", remedy="ask for fewer")
    example = check_row(parse_row(published_row(draft, problem_id).as_published(), where), Path(), None)
    read = tuple((option.letter, option.text) for option in example.options)
    meant = tuple((letter, flat(option)) for letter, option in zip(LETTERS, draft.options, strict=False))
    if read != meant:
        raise RowError(
            f"{where}: {len(draft.options)} options are read back as {len(read)}, or with other texts",
            rule="options are read from the lines of the problem",
            remedy="no line of a question begins like an option, and no option is empty",
        )
    answer = draft.letter if draft.options else flat(draft.answer)
    if example.answer != answer:
        raise RowError(
            f"{where}: the answer {answer!r} is read back as {example.answer!r}",
            rule="the answer stands between tags",
            remedy="no tags stand in an answer",
        )
    response_text(example)
    return example
