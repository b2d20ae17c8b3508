"""What a model is asked and taught, as text. No tensor is needed for it."""

from __future__ import annotations

from longtake.answers.response import ANSWER, END_ANSWER, END_THINK, THINK, format_response
from longtake.config.sections import PromptConfig
from longtake.errors import RowError
from longtake.types import Example


def user_text(example: Example, config: PromptConfig) -> str:
    """What the user says beside the video: subtitles, question, instruction."""
    subtitles = f"Subtitles:\n{example.subtitles}\n\n" if example.subtitles else ""
    instruction = f"\n{config.instruction}" if config.instruction else ""
    return f"{subtitles}{example.question}{instruction}"


def response_text(example: Example) -> str:
    """The response an SFT row teaches, `<think>{reasoning}</think><answer>{answer}</answer>`.

    Raises RowError when a tag stands inside the reasoning or the answer: the model would learn a response that no parser accepts.
    """
    for name, text in (("reasoning", example.reasoning), ("answer", example.answer)):
        for tag in (THINK, END_THINK, ANSWER, END_ANSWER):
            if tag in text:
                raise RowError(
                    f"problem {example.problem_id}: {tag} inside its {name}",
                    rule="the tags are put around reasoning and answer when they are rendered",
                    remedy=f"remove the tags from the row's {name}",
                )
    return format_response(example.reasoning, example.answer)
