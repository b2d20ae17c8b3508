"""The one rule of what counts as a right answer, used by the accuracy reward and by evaluation alike."""

from __future__ import annotations

from longtake.answers.letters import read_letter
from longtake.answers.numbers import same_number
from longtake.answers.response import parse_response
from longtake.answers.texts import same_text
from longtake.types import Example


def is_correct(example: Example, response_text: str) -> bool:
    """Whether a response is right. Its answer must stand in ONE `<answer>...</answer>` after the reasoning; without it, it is wrong.

    That is as strict as the published scorer about the tags, so that the reasoning can never be read as the answer, and
    milder inside them: letters in any usual spelling, numbers by value, texts after the same normalisation as the key.
    """
    answer = parse_response(response_text).answer
    return answer is not None and is_right_answer(example, answer)


def is_right_answer(example: Example, answer: str) -> bool:
    """The same for a bare answer, without tags."""
    if example.answer_kind == "letter":
        return read_letter(answer, example.options) == example.answer
    if example.answer_kind == "number":
        return same_number(answer, example.answer)
    return same_text(answer, example.answer)
