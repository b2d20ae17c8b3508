"""What a run of curation would ask and pay, before anything is asked: from the lengths of the videos alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longtake.config.curate import CurateConfig
from longtake.config.llm import EndpointConfig
from longtake.curation.prompts import Prompts
from longtake.llm.estimate import IMAGE_TOKENS, PATCH, text_tokens
from longtake.llm.prompts import shipped_text

JUDGE = "judge"
CAPTION_TOKENS = 110
"""Of an answer: a paragraph."""
LINE_TOKENS = 14
"""Of the times in front of a caption."""
OBJECT_TOKENS = 30
"""Of an object with its box."""
OBJECTS = 5
QUESTION_TOKENS = 120
"""Of a question with its options."""
REASONING_TOKENS = 260
VOTE_TOKENS = 10
CITED_CLIPS = 3
"""Whose captions a vote on the support is shown."""
KEPT_AT_RULES = 0.9
"""Share of the drafts that the checks without a model leave."""
VOTES_OF_MAJORITY = 0.65
"""Share of the votes that are asked for: a majority is settled earlier."""


@dataclass(frozen=True)
class CallEstimate:
    """Calls of one kind."""

    purpose: str
    calls: float
    input_tokens: float
    """Of all of them."""
    output_tokens: float
    cost: float


def estimate_calls(durations_s: Sequence[float], config: CurateConfig, prompts: Prompts) -> list[CallEstimate]:
    """Of all calls for videos of these durations, none of them answered before.

    Answers are as long as usual (the constants above), no call fails, and nine in ten drafts reach the votes.
    """
    clips = sum(max(1.0, round(duration_s / config.segment.target_s)) for duration_s in durations_s)
    of_frame = IMAGE_TOKENS + config.caption.max_pixels_per_frame / PATCH**2
    per_video = sum(config.question.per_video.values())
    open_per_video = sum(config.question.open_per_video.values())
    drafts = len(durations_s) * (per_video + open_per_video)
    checked = drafts * KEPT_AT_RULES
    row = QUESTION_TOKENS + REASONING_TOKENS
    lines = CAPTION_TOKENS + LINE_TOKENS
    check, off = config.check, set(config.check.off)
    asked = [*(("question", name) for name in config.question.per_video), *(("open", name) for name in config.question.open_per_video)]
    each = [
        ("caption", config.vlm, clips, config.caption.frames_per_clip * of_frame, CAPTION_TOKENS),
        (
            "ground",
            config.vlm,
            clips * (config.ground.frames_per_clip > 0),
            config.ground.frames_per_clip * of_frame,
            OBJECTS * OBJECT_TOKENS,
        ),
        *((f"{kind}_{name}", config.reasoner, *_questions(config, kind, name, durations_s, clips * lines, row)) for kind, name in asked),
        ("rewrite", config.reasoner, checked, row, REASONING_TOKENS),
        (
            "support",
            config.reasoner,
            checked * check.support_votes * VOTES_OF_MAJORITY * ("supported" not in off),
            CITED_CLIPS * lines,
            VOTE_TOKENS,
        ),
        (
            "watch",
            config.vlm,
            checked * check.watch_votes * VOTES_OF_MAJORITY * ("watched" not in off),
            check.watch_frames * of_frame,
            VOTE_TOKENS,
        ),
        ("blind", config.reasoner, checked * check.blind_votes * VOTES_OF_MAJORITY * ("blind" not in off), QUESTION_TOKENS, VOTE_TOKENS),
    ]
    difficulty = config.difficulty
    if difficulty is not None and difficulty.judge is not None and difficulty.judge.endpoint is not None:
        answers = len(durations_s) * open_per_video * KEPT_AT_RULES * difficulty.rollout.num_takes
        words = text_tokens(shipped_text(JUDGE))
        each.append((JUDGE, difficulty.judge.endpoint, answers, words + QUESTION_TOKENS, VOTE_TOKENS))
    found = (
        _estimate(purpose, endpoint, calls, _prompt_tokens(prompts, purpose) + told, said) for purpose, endpoint, calls, told, said in each
    )
    return [one for one in found if one.calls]


def total(estimates: Iterable[CallEstimate]) -> CallEstimate:
    """The sum."""
    every = list(estimates)
    sums = (sum(getattr(one, name) for one in every) for name in ("calls", "input_tokens", "output_tokens", "cost"))
    return CallEstimate("all", *sums)


def _questions(
    config: CurateConfig, kind: str, category: str, durations_s: Sequence[float], captions: float, row: float
) -> tuple[float, float, float]:
    """(calls, tokens of a question, tokens of an answer): one call per video, which is shown all captions."""
    counts = config.question.per_video if kind == "question" else config.question.open_per_video
    count, videos = counts[category], max(1, len(durations_s))
    return len(durations_s) * (count > 0), captions / videos, count * row


def _prompt_tokens(prompts: Prompts, purpose: str) -> float:
    """Of the words around the data; those of a category come into the words of its kind."""
    kind, _, category = purpose.partition("_")
    files = [name for name in (kind, f"category_{category}") if name in prompts.purposes]
    return sum(text_tokens(prompts.text(name)) for name in files)


def _estimate(purpose: str, endpoint: EndpointConfig, calls: float, told: float, said: float) -> CallEstimate:
    cost = (calls * told * endpoint.input_price + calls * said * endpoint.output_price) / 1e6
    return CallEstimate(purpose, calls, calls * told, calls * said, cost)
