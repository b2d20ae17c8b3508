"""The reasoning told anew, as by somebody who watched the video. Nothing else of a row changes."""

from __future__ import annotations

from dataclasses import replace

from longtake.config.curate import QuestionConfig
from longtake.curation.prompts import Prompts, block, option_lines, range_lines
from longtake.curation.question import CHARS_PER_TOKEN, TOKENS_AROUND, unwritable
from longtake.curation.records import Draft, Drop
from longtake.curation.schemas import rewrite_schema
from longtake.llm.calls import Ask, CallFailure, ChatCall


async def rewrite(draft: Draft, config: QuestionConfig, prompts: Prompts, ask: Ask) -> Draft | Drop:
    """The draft with another reasoning and the same key. A failed call costs the row. Raises BudgetError as `ask` does."""
    answer = await ask(rewrite_call(draft, config, prompts))
    if isinstance(answer, CallFailure):
        return _drop(draft, answer.kind, answer.message)
    reasoning = answer.value["reasoning"].strip()
    if unwritable(reasoning):
        return _drop(draft, "text", "control characters, or halves of characters, in the reasoning")
    return replace(draft, reasoning=reasoning)


def rewrite_call(draft: Draft, config: QuestionConfig, prompts: Prompts) -> ChatCall:
    """What `rewrite` asks. The options are in the order of the draft, which says nothing about their final one."""
    text = prompts.render(
        "rewrite",
        question=block("question", draft.question),
        options=block("options", option_lines(draft.options)) if draft.options else "",
        answer=block("answer", draft.answer),
        reasoning=block("reasoning", draft.reasoning),
        ranges=block("ranges", range_lines(draft.ranges)),
        language=config.language,
        max_reasoning_chars=config.max_reasoning_chars,
    )
    return ChatCall(
        purpose="rewrite",
        parts=(text,),
        schema=rewrite_schema(config),
        max_tokens=config.max_reasoning_chars // CHARS_PER_TOKEN + TOKENS_AROUND,
        temperature=config.temperature,
    )


def _drop(draft: Draft, reason: str, message: str) -> Drop:
    return Drop("rewrite", reason, message, draft.video, draft.key, draft.category, draft)
