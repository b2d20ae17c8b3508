"""Small views of a text that several checks share."""

from __future__ import annotations

import re

from longtake.answers.texts import ARTICLES, fold, normalise

QUOTED = re.compile(
    r'"[^"\n]{1,300}"|\u201c[^\u201d\n]{1,300}\u201d|\u00ab[^\u00bb\n]{1,300}\u00bb|(?<![\w\u2019\'])[\'\u2018][^\'\u2019\n]{1,300}[\'\u2019](?!\w)'
)
"""Words that somebody in the video says or that stand in the picture. An apostrophe (`dog's`, `dogs'`) opens no quotation."""
RUN = re.compile(r"\s{2,}|[^\S \n]")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d)\]]*\s+|\n+")
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
}
MAX_EXCERPT_CHARS = 80


def without_quotes(text: str) -> str:
    """The text with a space for each quotation."""
    return QUOTED.sub(" ", text)


def tidy(text: str) -> str:
    """Runs of white space as one: the time that patterns take is then linear in the length of the text."""
    return RUN.sub(lambda run: "\n" if "\n" in run[0] else " ", text).strip()


def sentences(text: str) -> list[str]:
    """In order. A point inside a number ends none.

    >>> sentences("It rains (1.5 s - 2.5 s). He runs!")
    ['It rains (1.5 s - 2.5 s).', 'He runs!']
    """
    return [one for one in SENTENCE_END.split(text) if one.strip()]


def excerpt(text: str) -> str:
    """In quotation marks, on one line, not too long."""
    flat = " ".join(text.split())
    return f'"{flat}"' if len(flat) <= MAX_EXCERPT_CHARS else f'"{flat[: MAX_EXCERPT_CHARS - 3]}..."'


def words_of(text: str) -> list[str]:
    """Folded, without articles and marks, numbers up to twenty as digits.

    >>> words_of("The dog's two balls, (1.5 kg)")
    ['dogs', '2', 'balls', '1.5', 'kg']
    """
    return [NUMBER_WORDS.get(word, word) for word in normalise(text).split()]


def contains(words: list[str], part: list[str]) -> bool:
    """Whether `part`, not empty, stands in `words` in one piece."""
    return bool(part) and f" {' '.join(part)} " in f" {' '.join(words)} "


def bare(text: str) -> str:
    """Folded, without articles and without the marks at its ends: options that differ in no more are the same."""
    return " ".join(word for word in fold(text).strip(" .,;:!?'\"").split() if word not in ARTICLES)
