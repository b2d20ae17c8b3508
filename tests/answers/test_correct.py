"""What counts as right: the tag is required, inside it every usual spelling is read."""

import pytest

from longtake.answers import is_correct
from longtake.types import AnswerKind, Example, Option

OPTIONS = (Option("D", "four"), Option("A", "one"), Option("B", "two"), Option("C", "three"))


def example(answer: str, kind: AnswerKind) -> Example:
    return Example(
        problem_id=7,
        question="How many?",
        options=OPTIONS if kind == "letter" else (),
        answer=answer,
        answer_kind=kind,
        category="temporal",
        reasoning="",
        media=(),
        subtitles=None,
        duration_s=None,
    )


@pytest.mark.parametrize(
    ("key", "kind", "answer", "right"),
    [
        ("B", "letter", "B", True), ("B", "letter", "(b) two", True), ("B", "letter", "two", True), ("B", "letter", "A", False),
        ("B", "letter", "A or B", False), ("D", "letter", "four", True), ("D", "letter", "one", False),
        ("3", "number", "3.0", True), ("3", "number", "three", False), ("0.5", "number", r"\frac{1}{2}", True),
        ("3", "number", "33", False),
        ("The red ball", "text", "red ball.", True), ("red ball", "text", "The Red  Ball", True), ("red ball", "text", "blue ball", False),
        ("red ball", "text", "red ball and blue ball", False),
    ],
)  # fmt: skip
def test_right_inside_the_tag_only(key: str, kind: AnswerKind, answer: str, right: bool) -> None:
    assert is_correct(example(key, kind), f"<think>a</think><answer>{answer}</answer>") is right
    assert is_correct(example(key, kind), f"I say <answer>{answer}</answer>") is right, "accuracy does not ask for the format"
    assert not is_correct(example(key, kind), answer), "no tag, no answer"
    assert not is_correct(example(key, kind), f"<think>a</think><answer>{answer}"), "a response that was cut"
    assert not is_correct(example(key, kind), f"<think>a</think><answer>{answer}</answer><answer>{answer}</answer>"), "a hedge"


def test_the_reasoning_is_never_read_as_the_answer() -> None:
    assert not is_correct(example("B", "letter"), "<think>B <answer>B</answer></think> no idea")
    assert not is_correct(example("B", "letter"), "<think>B <answer>B</answer></think><answer>A</answer>")


def test_a_list_of_all_options_is_wrong() -> None:
    for everything in ("A B C D", "A, B, C, D", "D. four A. one B. two C. three", "one, two, three, four", "ABCD"):
        assert not any(is_correct(example(key, "letter"), f"<answer>{everything}</answer>") for key in "ABCD")
