"""Prompts and responses as tokens, through the model's own chat template. Shape legend: types.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtake.config.sections import PromptConfig, VideoConfig
from longtake.errors import PromptTooLongError, RowError
from longtake.models.family import Message, Model
from longtake.observe.digest import digest_of
from longtake.types import Example, Prompt, VideoSpan, VideoTokens

TEMPLATE_TOKENS = 256
"""More than a chat template puts around a question, its own system message included."""
FORMAT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def render_prompt(example: Example, tokens: VideoTokens | None, model: Model, config: PromptConfig) -> Prompt:
    """The question as the model reads it; `tokens` None asks blind (text only).

    The video comes first, then the subtitles if the example has any, the question and the instruction. Texts cannot forge
    special tokens: `<|im_end|>` in a question stays ten characters. Raises PromptTooLongError over `config.max_prompt_tokens`.
    """
    messages = [Message("user", user_text(example, config), num_videos=0 if tokens is None else 1)]
    if config.system is not None:
        messages.insert(0, Message("system", config.system))
    token_ids = model.token_ids(messages, add_generation_prompt=True)
    spans: tuple[VideoSpan, ...] = ()
    if tokens is not None:
        start = token_ids.index(model.video_token_id)
        spans = (VideoSpan(start, start + model.num_video_tokens(tokens.grid), tokens),)
        token_ids[start : start + 1] = [model.video_token_id] * (spans[0].stop - start)
    _check_length(len(token_ids), spans, example, config)
    videos = [span.tokens for span in spans]
    position_ids, next_position = model.position_ids(
        token_ids, [video.grid for video in videos], [video.seconds_per_grid for video in videos]
    )
    ids = torch.tensor(token_ids, dtype=torch.int64)
    digest = digest_of("prompt 1", ids, position_ids, [video.digest for video in videos])
    return Prompt(ids, position_ids, spans, next_position, digest)


def longest_prompt(examples: Sequence[Example], model: Model, video: VideoConfig, config: PromptConfig) -> int:
    """No prompt of these examples has more tokens: found without opening a video or asking the tokenizer, so a bound from above."""
    pixels = video.max_pixels_per_frame or max(model.max_pixels_per_frame, video.min_pixels_per_frame)
    of_video = -(-video.max_frames // model.temporal_patch) * max(1, pixels // model.patch_multiple**2)
    if video.max_video_tokens is not None:
        of_video = min(of_video, video.max_video_tokens)
    of_text = max((len(user_text(example, config).encode()) for example in examples), default=0)  # a token is at least a byte
    return min(config.max_prompt_tokens, of_video + of_text + len((config.system or "").encode()) + TEMPLATE_TOKENS)


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
        for tag in FORMAT_TAGS:
            if tag in text:
                raise RowError(
                    f"problem {example.problem_id}: {tag} inside its {name}",
                    rule="the tags are put around reasoning and answer when they are rendered",
                    remedy=f"remove the tags from the row's {name}",
                )
    return f"<think>{example.reasoning}</think><answer>{example.answer}</answer>"


def response_ids(example: Example, model: Model) -> torch.Tensor:
    """`response_text` and the end token, int64 [R]. Raises RowError as `response_text` does."""
    return torch.tensor([*model.text_ids(response_text(example)), model.end_id], dtype=torch.int64)


def _check_length(length: int, spans: tuple[VideoSpan, ...], example: Example, config: PromptConfig) -> None:
    if length > config.max_prompt_tokens:
        of_video = sum(span.stop - span.start for span in spans)
        raise PromptTooLongError(
            f"problem {example.problem_id}: a prompt of {length} tokens, {of_video} of them video",
            rule=f"at most {config.max_prompt_tokens} tokens (prompt.max_prompt_tokens); a prompt is never cut",
            remedy="lower video.max_frames, video.max_pixels_per_frame or video.max_video_tokens, or raise prompt.max_prompt_tokens",
        )
