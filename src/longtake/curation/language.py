"""Whether a text is in the language that was asked for."""

from __future__ import annotations

import functools
import re
import unicodedata

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from longtake.curation.plain import excerpt, without_quotes
from longtake.errors import ConfigError

LEAST_PROBABILITY = 0.01
"""A text is in another language when its own has less. Measured: English questions down to `Why?`, or full of foreign names, have 0.066 or
more; whole questions in 20 other languages at most 0.0001, of two words (`Chi vince?`) up to 0.022."""
MAX_FOREIGN_SHARE = 0.1
"""Of letters of another script than Latin, in a language written in it: a name or a sign, not a sentence."""
PIECE_CHARS = 300
"""A longer text is looked at in pieces of about this length, so that it cannot change its language half-way."""
LATIN = frozenset(
    [
        "af",
        "ca",
        "cs",
        "cy",
        "da",
        "de",
        "en",
        "es",
        "et",
        "eu",
        "fi",
        "fr",
        "ga",
        "gl",
        "hr",
        "hu",
        "id",
        "is",
        "it",
        "lt",
        "lv",
        "ms",
        "nl",
        "no",
        "nb",
        "nn",
        "pl",
        "pt",
        "ro",
        "sk",
        "sl",
        "sq",
        "sv",
        "sw",
        "tl",
        "tr",
        "vi",
    ]
)
SENTENCE = re.compile(r".*?(?:[.!?\u3002\uff01\uff1f]+\s*|\n+|$)", re.DOTALL)
LETTER = re.compile(r"[^\W\d_]")
BEYOND_LATIN = re.compile(r"[^\W\d_\u0041-\u024f\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\uff21-\uff5a]")


def foreign(text: str, language: str) -> str | None:
    """In words, why this is not a text in the language; None when it is, or has no letters. What it quotes may be in any language.

    Raises ConfigError for an unknown code.
    """
    plain = without_quotes(unicodedata.normalize("NFC", text))
    letters = len(LETTER.findall(plain))
    beyond = len(BEYOND_LATIN.findall(plain))
    if language in LATIN and beyond > MAX_FOREIGN_SHARE * letters:
        return f"{beyond} of {letters} letters are of another script"
    return next((found for piece in pieces(plain) if (found := _foreign_piece(piece, language))), None)


def pieces(text: str) -> list[str]:
    """Sentences put together until a piece has PIECE_CHARS; a short rest belongs to the last one.

    >>> [len(piece) for piece in pieces("Six words are in this sentence. " * 16)]
    [320, 192]
    """
    found, now = [], ""
    for sentence in SENTENCE.findall(text):
        now += sentence
        if len(now) >= PIECE_CHARS:
            found.append(now)
            now = ""
    if found and len(now) < PIECE_CHARS // 2:
        found[-1] += now
    elif now:
        found.append(now)
    return found


def _foreign_piece(text: str, language: str) -> str | None:
    if not LETTER.search(text):
        return None
    if identifier().classify(text)[0] == language:
        return None
    ranked = identifier().rank(text)
    probability = dict(ranked).get(language)
    if probability is None:
        raise ConfigError(
            f"question.language = {language!r}",
            rule="the check of the language knows " + " ".join(sorted(code for code, _ in ranked)),
            remedy='write one of these codes, or switch the check off: check.off = ["language"]',
        )
    if probability >= LEAST_PROBABILITY:
        return None
    return f"{excerpt(text)} reads as {ranked[0][0]} ({ranked[0][1]:.0%}), not {language}"


@functools.cache
def identifier() -> LanguageIdentifier:
    """Read once: it takes a second."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
