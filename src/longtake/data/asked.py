"""What a row asks: its options and its answer, read from the texts of the row."""

from __future__ import annotations

import re

from longtake.answers import plain_number, read_letter
from longtake.answers.response import ANSWER, END_ANSWER, between
from longtake.answers.texts import fold
from longtake.errors import RowError
from longtake.types import AnswerKind, Option

OPTION_LINE = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])(?:\)|\.(?=\s|$)))[ \t]*(.*)$", re.MULTILINE)
"""`A. text`, `(A) text` or `A) text` at the start of a line."""


def parse_options(problem: str, where: str) -> tuple[Option, ...]:
    """The options in the order they stand (`D A B C` is one that occurs), each on a line of its own; () for an open-ended question.

    Raises RowError for a single option, a repeated letter or text, a gap in the letters, an option without text.
    """
    options = tuple(Option(first or second, text.strip()) for first, second, text in OPTION_LINE.findall(problem))
    if not options:
        return ()
    letters = [option.letter for option in options]
    texts = [fold(option.text) for option in options]
    fault = None
    if len(set(letters)) < len(letters):
        fault = "an option letter is repeated"
    elif len(options) == 1 or sorted(letters) != [chr(ord("A") + index) for index in range(len(letters))]:
        fault = f"options {', '.join(letters)}"
    elif not all(texts):
        fault = "an option without text"
    elif len(set(texts)) < len(texts):
        fault = "two options with the same text"
    if fault:
        rule = "options are two or more lines `A. text`, lettered from A without a gap, all different"
        raise RowError(f"{where}: {fault}", rule=rule, remedy="mend the options in problem")
    return options


def parse_answer(text: str, options: tuple[Option, ...], where: str) -> tuple[str, AnswerKind]:
    """(answer, kind) from `<answer>...</answer>`: the letter when there are options, else a number or a text. Raises RowError."""
    answer = between(text, ANSWER, END_ANSWER)
    if not answer or not (text.strip().startswith(ANSWER) and text.strip().endswith(END_ANSWER)):
        raise RowError(f"{where}: answer {text[:40]!r}", rule="the answer is `<answer>...</answer>`, not empty", remedy="mend it")
    if options:
        letter = read_letter(answer, options)
        if letter is None:
            rule = f"the answer is one of {', '.join(option.letter for option in options)}"
            raise RowError(f"{where}: answer {answer[:40]!r}", rule=rule, remedy="mend the answer or the options")
        return letter, "letter"
    if len(answer) == 1 and "A" <= answer <= "H":
        rule = "a letter answers a question with options, each on its own line as `A. text`"
        raise RowError(f"{where}: answer {answer!r} and no options", rule=rule, remedy="put the options into problem")
    return answer, "number" if plain_number(answer) else "text"
