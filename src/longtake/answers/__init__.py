"""Reading letters, numbers and texts out of a response."""

from longtake.answers.correct import is_correct, is_right_answer
from longtake.answers.letters import read_letter
from longtake.answers.numbers import plain_number, same_number
from longtake.answers.response import ParsedResponse, format_response, parse_response
from longtake.answers.texts import same_text

__all__ = [
    "ParsedResponse",
    "format_response",
    "is_correct",
    "is_right_answer",
    "parse_response",
    "plain_number",
    "read_letter",
    "same_number",
    "same_text",
]
