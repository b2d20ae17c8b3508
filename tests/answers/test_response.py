"""Taking responses apart, well-formed or not, in linear time."""

import time

import pytest

from longtake.answers import format_response, parse_response

GOOD = "<think>first red, then blue</think><answer>B</answer>"


def test_good_response() -> None:
    parsed = parse_response(f"\n {GOOD} \n")
    assert (parsed.think, parsed.answer, parsed.well_formed) == ("first red, then blue", "B", True)


def test_format_response_is_read_back() -> None:
    parsed = parse_response(format_response("why", "B"))
    assert (parsed.think, parsed.answer, parsed.well_formed) == ("why", "B", True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> a </think>\n\n<answer> B </answer>", "B"),
        ("<think>a\nb\nc</think><answer>two\nlines</answer>", "two\nlines"),
        ("<think>1 < 2 and <b>bold</b></think><answer>B</answer>", "B"),
    ],
)
def test_well_formed(text: str, answer: str) -> None:
    assert parse_response(text).well_formed and parse_response(text).answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", None),
        ("B", None),
        ("<answer>B</answer>", "B"),  # no reasoning: right answer, wrong format
        ("<think>a</think>B", None),
        ("<think>a</think><answer>B", None),  # cut at the length limit
        ("<think>a</think>B</answer>", None),
        ("<think>a<answer>B</answer>", "B"),  # reasoning never closed
        ("<answer>B</answer><think>a</think>", None),  # the answer is looked for AFTER the reasoning
        ("<think>a</think><answer>A</answer><answer>B</answer>", None),  # a hedge
        ("<think>a</think><answer>B</answer><answer>B</answer>", None),
        ("<think>a</think><answer><answer>B</answer></answer>", None),
        ("<think>I shall write <answer>A</answer></think><answer>B</answer>", "B"),
        ("<think>a</think><think>b</think><answer>B</answer>", "B"),
        ("<think><think>a</think></think><answer>B</answer>", "B"),
        ("<think>a</think> so <answer>B</answer>", "B"),
        ("<think>a</think><answer>B</answer> thanks", "B"),
        ("well, <think>a</think><answer>B</answer>", "B"),
        ("<think></think><answer>B</answer>", "B"),  # a format reward must not pay for saying nothing
        ("<think>a</think><answer> </answer>", ""),
        ("<Think>a</Think><Answer>B</Answer>", None),
        ("< think>a</think><answer>B</answer>", "B"),
        ("</think>a<think><answer>B</answer>", "B"),
        ("<think>a</think></answer>B<answer>", None),
    ],
)
def test_not_well_formed(text: str, answer: str | None) -> None:
    parsed = parse_response(text)
    assert not parsed.well_formed
    assert parsed.answer == answer


@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "<answer>", "</answer>", "<", "<answer>B</answer>", "<think></think>", " ", "\\boxed{", "a\n"]
)
def test_a_million_characters_take_no_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    parsed = parse_response(text)
    # measured 1 to 20 ms here; a quadratic scan would take minutes
    assert time.perf_counter() - start < 2.0
    assert not parsed.well_formed
