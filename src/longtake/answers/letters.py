"""Reading the letter of a multiple-choice answer in any usual spelling, and None whenever the text could mean two options."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from longtake.answers.texts import WORD_OR_MARK, fold, normalise, same_text, strip_lead
from longtake.types import Option

MAX_ANSWER_CHARS = 4096
"""A longer text is not an answer; it also bounds the time of everything below."""

WRAPPERS = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|rm|bf)(?![a-zA-Z])|\\[()\[\]]|[${}*_`\"\u201c\u201d]")
"""LaTeX and Markdown around an answer: \\boxed{\\text{B}}, $B$, **B**, "B"."""
LETTER = re.compile(r"[(\[<]?\s*([^\W\d_])(?!\w)(?!['\u2019]\w)")
DELIMITER = re.compile(r"\s*[)\]>][.):,]*|\s*[.:,;](?=\s|$)|\s+[-\u2013\u2014](?=\s)|[^\S\n]*\n")
CONFIRMING = frozenset(f"is {word}" for word in ("correct", "right", "answer", "correct answer", "right answer", "best answer"))
NOT_AFTER_ARTICLE = frozenset({"or", "and", "nor", "is", "but", "as"})


def read_letter(text: str, options: Sequence[Option]) -> str | None:
    """The option letter that `text` names, or None when it names none or may name two.

    Read are a letter alone (`B`, `b`, `(B)`, `B.`, `\\boxed{B}`), a letter with its option's text (`B) blue`), both after words
    like `The answer is` or `option`, and an option's full text (`blue`). `A or B`, `A, B`, `not B` and `B) red` where red is A are None.
    """
    whole = unicodedata.normalize("NFKC", text[: MAX_ANSWER_CHARS + 1]).strip()
    if len(text) > MAX_ANSWER_CHARS or len(whole) > MAX_ANSWER_CHARS:
        return None
    inner = WRAPPERS.sub(" ", whole).strip(" \n\t'\u2018\u2019")
    letters = {option.letter.upper(): option.text for option in options}
    if inner.upper() in letters:
        return inner.upper()
    candidates = (whole, inner, strip_lead(inner))
    for candidate in candidates:
        if named := letter_of_text(candidate, options, (fold,)):
            return named
    for candidate in candidates[1:]:  # `A. blue` is a letter with a text, never the text "a blue"
        if starts_with_letter_and_mark(candidate, letters):
            return leading_letter(candidate, letters)
    for candidate in candidates:
        if named := letter_of_text(candidate, options, (partial(normalise, drop_articles=False), normalise)):
            return named
    return leading_letter(inner, letters) or leading_letter(strip_lead(inner), letters)


def letter_of_text(text: str, options: Sequence[Option], spellings: Sequence[Callable[[str], str]]) -> str | None:
    """The letter of the only option whose text this is, in the first of the spellings in which there is any."""
    for spelling in spellings:
        spelled = spelling(text)
        named = [option.letter.upper() for option in options if spelled and spelling(option.text) == spelled]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def starts_with_letter_and_mark(text: str, letters: dict[str, str]) -> bool:
    match = LETTER.match(text)
    return match is not None and match.group(1).upper() in letters and DELIMITER.match(text, match.end()) is not None


def leading_letter(text: str, letters: dict[str, str]) -> str | None:
    """The letter `text` starts with, when what follows is nothing, its option's text, or an explanation that names no other option."""
    match = LETTER.match(text)
    if match is None or (letter := match.group(1).upper()) not in letters:
        return None
    delimiter = DELIMITER.match(text, match.end())
    rest = text[delimiter.end() if delimiter else match.end() :].strip()
    if not normalise(rest):
        return letter
    if same_text(rest, letters[letter]) or normalise(rest) in CONFIRMING:
        return letter
    if delimiter is None or any(same_text(rest, other) for key, other in letters.items() if key != letter):
        return None
    return None if names_other_letter(rest, letter, letters) else letter


def names_other_letter(text: str, letter: str, letters: dict[str, str]) -> bool:
    """Whether another option's letter stands alone in `text`; an article (`a man`, `A man`) is not one."""
    for word, following in pairwise([*WORD_OR_MARK.findall(text), ""]):
        if len(word) != 1 or word.upper() not in letters or word.upper() == letter:
            continue
        is_article = word in "aA" and len(following) > 1 and following.islower() and following not in NOT_AFTER_ARTICLE
        if not is_article:
            return True
    return False
