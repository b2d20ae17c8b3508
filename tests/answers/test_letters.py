"""Letters in every usual spelling; None whenever two could be meant. FACTS fault 10."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.answers import read_letter
from longtake.types import Option

OPTIONS = (Option("A", "red"), Option("B", "blue"), Option("C", "A green ball"), Option("D", "the man leaves"))


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", " B ", "(B)", "[B]", "(b)", "B.", "B)", "B:", "B,", "B!", "'B'", '"B"', "\u201cB\u201d", "\uff22", "\u24b7",
        "B) blue", "B. blue", "B.blue", "(B) blue", "B: blue", "B - blue", "B \u2013 blue", "B, blue", "B blue", "B\nblue", "b. Blue.",
        "Answer: B", "answer is B", "The answer is B", "The answer is: B.", "The correct answer is (B)", "My final answer is option B.",
        "Option B", "option (B) blue", "choice b", "So it's B", "It is B", "I think the answer is B", "I choose B", "Therefore, B.",
        "The answer is B) blue", "B is correct", "B is the correct answer.", "B. It is blue, one sees.", "B, because the ball is not red",
        "B. A ball that is blue", "B.\n\nExplanation: the ball is blue",
        "blue", "Blue", "BLUE.", "the blue", "The answer is blue", "It is blue.", "**blue**",
        r"\boxed{B}", r"$\boxed{\text{B}}$", r"\(\boxed{B}\)", r"\text{(B)}", r"\boxed{blue}", "**B**", "__B__", "`B`", "**B. blue**",
        "**Answer:** B", "Answer: **(B)**",
    ],
)  # fmt: skip
def test_reads_b(text: str) -> None:
    assert read_letter(text, OPTIONS) == "B"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("a", "A"), ("The answer is a", "A"), ("a) red", "A"), ("A red", "A"), ("a red", "A"),
        ("a green ball", "C"), ("A green ball", "C"), ("green ball", "C"), ("C. green ball", "C"), ("C) A green ball", "C"),
        ("The man leaves.", "D"), ("man leaves", "D"), ("D - the man leaves", "D"),
    ],
)  # fmt: skip
def test_articles_are_not_letters(text: str, letter: str) -> None:
    assert read_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "()", "?", "E", "e", "AB", "ABCD", "BB", "Blue ball B2", "x",
        "A or B", "A and B", "A/B", "A, B", "A & B", "(A) (B)", "(A)(B)", "[A, B]", "B or C", "B, or maybe C", "b, c", "A B", "A B C D",
        "either B or C", "B. or C.", "B: C", "B; D", "B (or C)", "B. Not sure, could be C", "B - C", "A. B",
        "not B", "The answer is not B", "B is wrong", "B is incorrect", "anything but B", "none", "neither", "None of the above",
        "B) red", "B. the man leaves", "A. blue", "red or blue", "red, blue", "A man walks", "A-frame house", "I", "Bad", "B2", "B's", 
        "A. green ball",
        "Because", "be", "option", "the answer", "Answer:", r"\boxed{}", r"\boxed{A, B}", "\u0412", "the red and the blue one",
    ],
)  # fmt: skip
def test_reads_none(text: str) -> None:
    assert read_letter(text, OPTIONS) is None


def test_order_of_options_does_not_matter() -> None:
    """`D A B C` occurs in the published test split: the letter counts, not the place."""
    shuffled = (Option("D", "four"), Option("A", "one"), Option("B", "two"), Option("C", "three"))
    assert [read_letter(text, shuffled) for text in ("four", "D", "A", "one", "two.")] == ["D", "D", "A", "A", "B"]


def test_option_text_that_is_a_letter_loses_to_the_letter() -> None:
    plates = (Option("A", "B"), Option("B", "A"), Option("C", "both"))
    assert read_letter("B", plates) == "B"
    assert read_letter("A) B", plates) == "A"


def test_option_texts_that_differ_in_punctuation_only() -> None:
    times = (Option("A", "3:45"), Option("B", "345"), Option("C", "-5"), Option("D", "5"))
    assert [read_letter(text, times) for text in ("3:45", "345", "-5", "5", "C. -5", "D. 5")] == ["A", "B", "C", "D", "C", "D"]
    assert read_letter("C. 5", times) is None


def test_multi_word_options_match_with_spaces_on_both_sides() -> None:
    """FACTS fault 10: spaces stripped from the response but not from the key."""
    moves = (Option("A", "He walks  home"), Option("B", "He  drives home"))
    assert read_letter("he walks home", moves) == "A"
    assert read_letter(" He drives\thome. ", moves) == "B"
    assert read_letter("hewalkshome", moves) is None


def test_no_options() -> None:
    assert read_letter("B", ()) is None


HOSTILE = [
    "(" * 4000, "B" * 4096, "B " * 2000, "B." * 2000, "the " * 1000, "answer: " * 500, "\\boxed{" * 500, "B) " + "a " * 2000, " " * 4096,
    "x" * 10_000_000, "B\n" * 2000, "((((B))))" * 400, "B. " + "-" * 4000, "'" * 4000, "\ufdfa" * 4000, "\ufdfa" * 10_000_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_takes_no_time(text: str) -> None:
    start = time.perf_counter()
    read_letter(text, OPTIONS)
    assert time.perf_counter() - start < 1.0  # measured at most 30 ms


@given(st.text(alphabet="ABCDabcd ().,:;-\n*'\"\\{}$ orandthebluered/", max_size=40))
def test_never_raises_and_gives_a_letter_of_the_options_or_none(text: str) -> None:
    assert read_letter(text, OPTIONS) in {"A", "B", "C", "D", None}
