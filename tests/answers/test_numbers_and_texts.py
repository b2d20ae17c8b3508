"""Numbers by value, texts by the same normalisation on both sides; nothing is ever evaluated."""

import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.answers import plain_number, same_number, same_text
from longtake.answers.texts import normalise


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("3", "3.0"), ("3", "3."), ("3", " 3 "), ("1/2", "0.5"), (".5", "0.5"), ("50%", "0.5"), ("50%", "50"), ("50 %", "50%"),
        ("-3", "-3.0"), ("\u22123", "-3"), ("+3", "3"), ("1,234", "1234"), ("1,234,567.5", "1234567.5"), ("2e3", "2000"), ("2E-1", "0.2"),
        ("12 seconds", "12"), ("12 second", "12 seconds"), ("3 apples", "3"), ("$5", "5"), ("\uff13", "3"), ("0.333333", "1/3"),
        ("The answer is 3.", "3"), ("Answer: -3", "-3"), ("It is 3", "3"),
        (r"\boxed{7}", "7"), (r"$7$", "7"), (r"\frac{1}{2}", "0.5"), (r"\boxed{\frac{3}{4}}", "0.75"), (r"-\frac{3}{4}", "-0.75"),
        (r"\sqrt{4}", "2"), (r"2\times 10^{3}", "2000"), (r"2^{10}", "1024"), (r"\dfrac{1}{4}", "25%"), (r"10^{-3}", "0.001"),
    ],
)  # fmt: skip
def test_same_number(a: str, b: str) -> None:
    assert same_number(a, b) and same_number(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("3", "4"), ("3", "-3"), ("3", "30"), ("1000000", "1000001"), ("0.5", "0.51"), ("12 seconds", "12 minutes"), ("50%", "51"),
        ("50%", "5"), ("", ""), ("", "0"), ("three", "3"), ("3 of 5", "3"), ("3 or 4", "3"), ("3, 4", "3"), ("3 4", "34"), ("5-3", "-3"),
        ("1,23", "123"), ("1/0", "0"), ("1/0", "1/0"), ("nan", "nan"), ("inf", "inf"), ("-", "0"), (".", "0"), ("abc", "abc"),
        (r"\frac{1}{3}", "0.34"), (r"\frac{1}{0}", "0"), (r"\frac{", "1"), (r"\sqrt{}", "0"), ("()", "0"), ("not 3", "3"), ("3!", "6"),
    ],
)  # fmt: skip
def test_different_number(a: str, b: str) -> None:
    assert not same_number(a, b) and not same_number(b, a)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", (Fraction(3), "")), ("-1,234.5", (Fraction(-2469, 2), "")), ("12 seconds", (Fraction(12), "second")),
        ("50%", (Fraction(50), "%")), ("1/4 s", (Fraction(1, 4), "s")), ("two", None), ("3 red balls", None), ("1 2", None), ("3:45", None),
    ],
)  # fmt: skip
def test_plain_number(text: str, value: tuple[Fraction, str] | None) -> None:
    assert plain_number(text) == value


HOSTILE = [
    "__import__('os').system('touch {}')", "open('{}', 'w')", "exec(\"open('{}','w')\")", "().__class__.__bases__[0].__subclasses__()",
    "9**9**9**9", "9^{999}", "9^9^9", "9^{9^{9}}", "(9^{99})^{99}", "10!!!!", "1e99", "1e999999999", "9" * 5000, "1/" + "9" * 70, "(" * 80,
    r"\frac{1}{" * 9, r"\sqrt{" * 13, "{" * 80, "1+" * 40, "-" * 80, "." * 80, "1" + "," * 79, r"\sum_{n=1}^{10^9} n", r"\int x", "\\" * 80,
    "factorial(10**9)", "lambda: 1", "x" * 1_000_000, "1 " * 500_000,
    r"\pi" * 26, "2" + r"\times 10^{999}", "%" * 80, "/" * 80, 
    r"\text{3}",    r"\input{/etc/passwd}", "3\0", "\ud800", "1_000", "0x10", "١٢", "²", "½",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_numbers_do_nothing(text: str, tmp_path: Path) -> None:
    """FACTS fault 12: no eval. No hang, no error, no file, and not equal to 7."""
    mark = tmp_path / "mark"
    text = text.replace("{}", str(mark))
    start = time.perf_counter()
    assert not same_number(text, "7") and not same_number("7", text)
    same_number(text, text)
    assert time.perf_counter() - start < 2.0  # measured at most 0.35 s
    assert not mark.exists()


def test_only_digits_reach_pythons_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """math-verify reads plain expressions by sympy's parse_expr (eval): never called. Its LaTeX reader makes literals so: digits only."""
    import math_verify.parser

    plain: list[str] = []
    evaluated: list[str] = []
    eval_expr = sys.modules["sympy.parsing.sympy_parser"].eval_expr

    def note(code: str, *rest: object) -> object:
        evaluated.append(code)
        return eval_expr(code, *rest)

    monkeypatch.setattr(math_verify.parser, "parse_expr", plain.append)
    monkeypatch.setattr(sys.modules["sympy.parsing.sympy_parser"], "eval_expr", note)
    for text in (*HOSTILE, "1 + 1", "(1)(2)", r"\frac{1}{2}", "2(3)", "3 * 4", "2 ^ 3", r"1.5\cdot 4"):
        same_number(text, r"\frac{6}{1}")
    assert same_number(r"2\times 3", "6"), "the LaTeX grammar did read it"
    assert plain == []
    assert evaluated, "the test does see what is evaluated"
    assert all(re.fullmatch(r"(Integer|Float) \('?[0-9.]+'? ?\)", code.strip()) for code in evaluated), set(evaluated)


def test_works_in_threads() -> None:
    """math-verify's own timeouts are signals and would raise in any thread but the main one."""
    cases = [(r"\frac{1}{2}", "0.5", True), (r"\sqrt{9}", "3", True), (r"\frac{1}{3}", "0.5", False), ("4", "4.0", True)] * 8
    seen: set[int] = set()

    def check(case: tuple[str, str, bool]) -> bool:
        seen.add(threading.get_ident())
        return same_number(case[0], case[1]) is case[2]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, cases))
    assert threading.get_ident() not in seen


@given(st.text(alphabet="0123456789.,/%+-e^{}()\\ fracsqtpi*$", max_size=30))
def test_same_number_never_raises(text: str) -> None:
    assert same_number(text, "1") in (True, False)


@given(st.fractions(min_value=-10_000, max_value=10_000, max_denominator=999))
def test_a_number_equals_itself_in_all_spellings(value: Fraction) -> None:
    texts = [f"{value.numerator}/{value.denominator}", f"The answer is {value}.", f"${value}$"]
    assert all(same_number(text, str(value)) for text in texts)
    assert not same_number(texts[0], str(value + 1))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The red ball.", "red ball"), ("red  ball", "Red\tBall"), ("a red-ball", "the red ball"), ("Caf\u00e9", "cafe\u0301"),
        ("\uff32ed", "red"), ("it's red", "its red"), ("it\u2019s red", "it's red"), ("STRASSE", "stra\u00dfe"), 
        ("red\u200b ball", "red ball"),
        ('"red"', "red"), ("red, then blue", "red then blue"), ("-5 degrees", "-5 degrees."), ("3:45", "3:45."), ("the", "The"),
        ("A", "a."), ("!?", "!?"), ("He walks\nhome", "he walks home"),
    ],
)  # fmt: skip
def test_same_text(a: str, b: str) -> None:
    assert same_text(a, b) and same_text(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("red", "blue"), ("red ball", "redball"), ("-5 degrees", "5 degrees"), ("3:45", "345"), ("1.5", "15"), ("1/2", "12"), ("", ""),
        (" ", ""), ("!", "?"), ("...", ""), ("red", ""), ("not red", "red"), ("red ball", "ball red"), ("the", "a"),
    ],
)  # fmt: skip
def test_different_text(a: str, b: str) -> None:
    assert not same_text(a, b) and not same_text(b, a)


@given(st.text(max_size=60))
def test_normalise_is_idempotent(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


def test_long_texts_take_linear_time() -> None:
    start = time.perf_counter()
    assert same_text("the red ball, " * 30_000, "a Red ball " * 30_000)
    assert time.perf_counter() - start < 5.0  # measured 0.5 s for 2 x 0.4 M characters
