"""Free text compared with the SAME normalisation on both sides. Everything here takes time linear in the length of the text."""

from __future__ import annotations

import re
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
LEAD_WORDS = frozenset(
    """so thus therefore hence then i think believe choose select pick my final correct right best answer option choice letter
    the is it it's would should must be : = - > * ,""".split()  # noqa: SIM905 (reads better than forty quoted words)
)
"""What may stand in front of an answer without changing it: `Therefore, the final answer is: option B`."""

APOSTROPHES = re.compile("['\u2019\u02bc`]")
INNER_MARK = re.compile(r"(?<=[0-9])[.,:/](?=[0-9])|(?<![^\s(\[])-(?=[0-9.])|(?<![0-9])\.(?=[0-9])")
"""Punctuation that is part of a number: 1.5, 1,000, 3:45, 1/2, -3, .5."""
WORD_OR_MARK = re.compile(r"\w+(?:['\u2019]\w+)?|[^\w\s]")


def fold(text: str) -> str:
    """NFKC, case folded, invisible format characters dropped, white space collapsed: differences nobody can see."""
    text = unicodedata.normalize("NFKC", text)
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return " ".join(visible.replace("\u2212", "-").casefold().split())


def normalise(text: str, drop_articles: bool = True) -> str:
    """`fold`, and apostrophes, punctuation outside numbers and (unless nothing else is left) English articles dropped."""
    text = APOSTROPHES.sub("", fold(text))
    kept = {match.start() for match in INNER_MARK.finditer(text)}
    spaced = "".join(char if char.isalnum() or unicodedata.combining(char) or index in kept else " " for index, char in enumerate(text))
    words = spaced.split()
    content = [word for word in words if word not in ARTICLES] if drop_articles else words
    return " ".join(content or words)


def same_text(a: str, b: str) -> bool:
    """Equal after `normalise` on both sides. Texts of which nothing is left (only punctuation) must be equal as they are, and not blank."""
    left, right = normalise(a), normalise(b)
    if left or right:
        return left == right
    return bool(a.strip()) and a.strip() == b.strip()


def strip_lead(text: str) -> str:
    """The text without `The answer is:` and its like (LEAD_WORDS) in front; unchanged when nothing else would be left."""
    for match in WORD_OR_MARK.finditer(text):
        word = match.group().casefold().replace("\u2019", "'")
        is_minus = word == "-" and not text[match.end() : match.end() + 1].isspace()
        if is_minus or word not in LEAD_WORDS:
            return text[match.start() :]
    return text
