"""What a row asks: its options and its answer, read from the texts of the row."""

from __future__ import annotations

import re
import string
import unicodedata

from longtake.answers import plain_number, read_letter
from longtake.answers.letters import WRAPPERS
from longtake.answers.response import ANSWER, END_ANSWER, between
from longtake.answers.texts import fold, strip_lead
from longtake.errors import RowError
from longtake.types import AnswerKind, Option

OPTION_LINE = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])(?:\)|\.(?=\s|$)))[ \t]*(.*)$", re.MULTILINE)
"""`A. text`, `(A) text` or `A) text` at the start of a line."""
OTHER_LINE = re.compile(r"(\*{0,2}\(?)([A-Za-z])(?!\.\w\.)([).:]\*{0,2}|\*{2}[).:])([ \t]*)(.*)")
"""A line that lists an option as `A: text`, `A.text`, `(a) text`, `**A.** text` and the like: what stands before the letter, the letter,
what stands behind it, a space or none, the text."""
OPTION_MARK = re.compile(
    r"[(\[]([A-H])[)\]]|(?<!\S)[*_]{0,3}([A-H])[*_]{0,3}(?!\.\w\.)(?:[).:\]]|\s[-\u2013\u2014]\s)", re.IGNORECASE | re.ASCII
)
"""What stands before an option wherever it is listed; `a.m.`, `D.C.` and `e.g.` are none."""
LETTER_ANSWER = re.compile(r"[(\[<]?\s*[A-Za-z]\s*(?:$|(?!\.\w\.)[).:\]>])")
"""A lone letter, or a letter and its mark at the start."""
QUOTED = re.compile(r'"([^"]+)"')
"""An answer that says of itself that it is a text."""


def parse_options(problem: str, where: str) -> tuple[Option, ...]:
    """The options in the order they stand (`D A B C` is one that occurs), each on a line of its own; () for an open-ended question.

    Raises RowError for a single option, a repeated letter or text, a gap in the letters, an option without text.
    """
    options = tuple(Option(first or second, text.strip()) for first, second, text in OPTION_LINE.findall(problem))
    options = options or otherwise_listed(problem)
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


def otherwise_listed(problem: str) -> tuple[Option, ...]:
    """Options in another spelling (OTHER_LINE), where nothing else can be meant: they are the last lines of the question, two or more,
    all spelled alike, lettered A, B, ... in order, and no mark of an option stands before them. Else ()."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    matches = [OTHER_LINE.fullmatch(line) for line in lines]
    first = next((place for place, match in enumerate(matches) if match), len(lines))
    found = [match for match in matches[first:] if match]
    letters = "".join(match[2] for match in found)
    spellings = {(match[1], match[3], bool(match[4])) for match in found}
    alike = len(spellings) == 1 and letters in (string.ascii_uppercase[: len(found)], string.ascii_lowercase[: len(found)])
    if first == 0 or len(found) < 2 or len(found) < len(lines) - first or not alike or OPTION_MARK.search("\n".join(lines[:first])):
        return ()
    return tuple(Option(match[2].upper(), match[5].strip()) for match in found)


def parse_answer(text: str, options: tuple[Option, ...], where: str, problem: str = "", *, is_open: bool = False) -> tuple[str, AnswerKind]:
    """(answer, kind) from `<answer>...</answer>`: the letter when there are options, else a number or a text. Raises RowError.

    Without options the answer may belong to some that were not recognised (`like_choice`, of `problem` too). It is refused then, unless
    `is_open`, or it stands in double quotes, which are taken off.
    """
    answer = between(text, ANSWER, END_ANSWER)
    if not answer or not (text.strip().startswith(ANSWER) and text.strip().endswith(END_ANSWER)):
        raise RowError(f"{where}: answer {text[:40]!r}", rule="the answer is `<answer>...</answer>`, not empty", remedy="mend it")
    if options:
        letter = read_letter(answer, options)
        if letter is None:
            rule = f"the answer is one of {', '.join(option.letter for option in options)}"
            raise RowError(f"{where}: answer {answer[:40]!r}", rule=rule, remedy="mend the answer or the options")
        return letter, "letter"
    reason = like_choice(answer, problem)
    quoted = QUOTED.fullmatch(answer)
    if reason is not None and quoted and quoted[1].strip():
        answer = quoted[1].strip()
    elif reason is not None and not is_open:
        raise RowError(
            f"{where}: answer {answer[:40]!r} and no options that can be read{reason}",
            rule="a letter answers a question with options, each on its own line as `A. text`",
            remedy=f'put the options into problem so; if the question is open-ended, quote its answer: {ANSWER}"..."{END_ANSWER}',
        )
    return answer, "number" if plain_number(answer) else "text"


def like_choice(answer: str, problem: str) -> str | None:
    """What else makes this look like one of several options, though none were read: "" for the answer itself, None for nothing."""
    bare = WRAPPERS.sub(" ", unicodedata.normalize("NFKC", answer)).strip()
    if LETTER_ANSWER.match(bare) or LETTER_ANSWER.match(strip_lead(bare)):
        return ""
    marks = {(first or second).upper() for first, second in OPTION_MARK.findall(unicodedata.normalize("NFKC", problem))}
    return f", though the question marks {', '.join(sorted(marks))}" if len(marks) > 1 else None
