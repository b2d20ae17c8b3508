"""Comparing numbers: plain ones by exact fractions, LaTeX ones by math-verify behind a grammar that bounds its time.

math-verify's reader of plain expressions calls sympy's `parse_expr`, which is Python's `eval`: it never sees any text from here.
Only its LaTeX reader (an ANTLR grammar) is used, and only on short strings of the few symbols below: sympy still turns each literal
into a number through that same function, but all that can reach it there is digits and a point. One small exponent and a few brackets
at most bound the time: math-verify's own timeouts are signals, which work in no thread but the main one.
"""

from __future__ import annotations

import logging
import re
import threading
from fractions import Fraction

from math_verify import LatexExtractionConfig, parse, verify

from longtake.answers.texts import fold, strip_lead

MAX_NUMBER_CHARS = 80
MAX_BRACKETS = 8
"""The grammar's time grows steeply with nesting: measured 1 s at 80."""
RELATIVE_TOLERANCE = Fraction(1, 10**6)
"""Decimals may be rounded to six digits; whole numbers must be equal."""

PLAIN = re.compile(
    r"(?P<sign>[-+]?)\s*[$€£]?\s*(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e(?P<exponent>[-+]?[0-9]{1,2}))?"
    r"(?:\s*/\s*(?P<denominator>[0-9]+))?\s*(?P<unit>%|[^\W\d_]+)?\s*[.!]?"
)
LATEX_NOISE = re.compile(r"\\(?:boxed|text|textbf|mathrm|left|right|displaystyle)(?![a-zA-Z])|\\[,;!()\[\]]|\$")
LATEX = re.compile(r"(?:\\(?:frac|dfrac|tfrac|sqrt|pi|times|cdot|div)(?![a-zA-Z])|\^(?:[0-9]|\{-?[0-9]{1,3}\})|[-+*/(){}., 0-9]|\\?%)+")

_math_verify_lock = threading.Lock()
"""sympy's and ANTLR's caches are not made for threads."""
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off; the grammar stands in for them


def plain_number(text: str) -> tuple[Fraction, str] | None:
    """(value, unit) of a plainly written number with at most one word of unit: `3`, `-1,234.5`, `1/2`, `2e3`, `12 seconds`, `50%`.

    None when it is anything else. The unit is lower case, a plural s dropped; empty when there is none.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    match = PLAIN.fullmatch(fold(text))
    if match is None:
        return None
    value = Fraction(match["digits"].replace(",", "").rstrip(".")) * Fraction(10) ** int(match["exponent"] or 0)
    denominator = int(match["denominator"] or 1)
    if denominator == 0:
        return None
    unit = match["unit"] or ""
    return (-value if match["sign"] == "-" else value) / denominator, unit.rstrip("s") or unit


def same_number(a: str, b: str) -> bool:
    """Whether two texts are the same number, however written: `0.5`, `1/2`, `50%`, `\\boxed{\\frac{1}{2}}`, `The answer is 0.50`.

    Units are compared when both have one. False when either is no number; never raises, never hangs.
    """
    left, right = without_noise(a), without_noise(b)
    plain_left, plain_right = plain_number(left), plain_number(right)
    if plain_left and plain_right:
        return same_plain(plain_left, plain_right)
    return same_latex(left, right)


def without_noise(text: str) -> str:
    """The text without words in front and LaTeX wrapping; as it is when it is a plain number, empty when too long to be one."""
    if len(text) > 2 * MAX_NUMBER_CHARS:
        return ""
    return text if plain_number(text) else strip_lead(LATEX_NOISE.sub(" ", text).strip())


def same_plain(a: tuple[Fraction, str], b: tuple[Fraction, str]) -> bool:
    (left, left_unit), (right, right_unit) = a, b
    if left_unit and right_unit and left_unit != right_unit:
        return False
    if left_unit != right_unit and "%" in (left_unit, right_unit):  # 50% is 0.5; asked for a percentage, 50 is 50% too
        percent, other = (left, right) if left_unit == "%" else (right, left)
        return close(percent / 100, other) or close(percent, other)
    return close(left, right)


def close(a: Fraction, b: Fraction) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def same_latex(a: str, b: str) -> bool:
    """math-verify on two strings of the bounded grammar; False when either is outside of it."""
    if not (bounded_latex(a) and bounded_latex(b)):
        return False
    with _math_verify_lock:
        try:
            parsed = [parse(f"${text}$", [LatexExtractionConfig()], "no_fallback", parsing_timeout=None) for text in (a, b)]
            return bool(parsed[0] and parsed[1]) and verify(parsed[0], parsed[1], timeout_seconds=None)
        except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):  # sympy's ways to say "not a number"
            return False


def bounded_latex(text: str) -> bool:
    few = text.count("^") <= 1 and text.count("{") + text.count("(") <= MAX_BRACKETS
    return 0 < len(text) <= MAX_NUMBER_CHARS and few and LATEX.fullmatch(text) is not None
