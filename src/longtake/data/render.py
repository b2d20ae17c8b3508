"""Prompts and responses as tokens, through the model's own chat template. Shape legend: types.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from longtake.config.sections import PromptConfig, VideoConfig
from longtake.data.texts import response_text, user_text
from longtake.errors import PromptTooLongError
from longtake.models.family import Message, Model
from longtake.observe.digest import digest_of
from longtake.types import Example, MediaKind, Prompt, VideoSpan, VideoTokens

TEMPLATE_TOKENS = 256
"""More than a chat template puts around a question, its own system message included."""
TEMPLATE_TOKENS_OF_MEDIA = 8
"""More than it puts around a video or an image."""


def render_prompt(example: Example, tokens: Sequence[VideoTokens], model: Model, config: PromptConfig) -> Prompt:
    """The question as the model reads it; `tokens` of each of its media, in their order, or none: asked blind (text only).

    Videos and images come first, then the subtitles if the example has any, the question and the instruction. Texts cannot forge
    special tokens: `<|im_end|>` in a question stays ten characters. Raises PromptTooLongError over `config.max_prompt_tokens`.
    """
    messages = [Message("user", user_text(example, config), media=tuple(one.kind for one in tokens))]
    if config.system is not None:
        messages.insert(0, Message("system", config.system))
    token_ids, spans = expanded(model.token_ids(messages, add_generation_prompt=True), tokens, model)
    _check_length(len(token_ids), spans, example, config)
    position_ids, next_position = model.position_ids(token_ids, tokens)
    ids = torch.tensor(token_ids, dtype=torch.int64)
    digest = digest_of("prompt 1", ids, position_ids, [one.digest for one in tokens])
    return Prompt(ids, position_ids, spans, next_position, digest)


def expanded(template_ids: Sequence[int], tokens: Sequence[VideoTokens], model: Model) -> tuple[list[int], tuple[VideoSpan, ...]]:
    """What the template wrote, each of its placeholders as often as its video or image has tokens, and where these stand."""
    placeholders = set(model.placeholder_ids.values())
    token_ids: list[int] = []
    spans: list[VideoSpan] = []
    waiting = iter(tokens)
    for token in template_ids:
        if token not in placeholders:
            token_ids.append(token)
            continue
        one, start = next(waiting), len(token_ids)
        token_ids += [token] * model.num_video_tokens(one.grid)
        spans.append(VideoSpan(start, len(token_ids), one))
    return token_ids, tuple(spans)


def longest_prompt(examples: Sequence[Example], model: Model, video: VideoConfig, config: PromptConfig) -> int:
    """No prompt of these examples has more tokens: found without opening a video or asking the tokenizer, so a bound from above."""
    pixels = video.max_pixels_per_frame or max(model.max_pixels_per_frame, video.min_pixels_per_frame)
    of_video = -(-video.max_frames // model.temporal_patch) * max(1, pixels // model.patch_multiple**2)
    if video.max_video_tokens is not None:
        of_video = min(of_video, video.max_video_tokens)
    of_image = max(1, pixels // model.patch_multiple**2)
    longest = max((_most_tokens(example, config, {"video": of_video, "image": of_image}) for example in examples), default=of_video)
    return min(config.max_prompt_tokens, longest + len((config.system or "").encode()) + TEMPLATE_TOKENS)


def _most_tokens(example: Example, config: PromptConfig, of_media: Mapping[MediaKind, int]) -> int:
    """Of a row's media, one video at least (they may not have been looked for), and of its text: a token is at least a byte."""
    media = sum(of_media[ref.kind] for ref in example.media) + TEMPLATE_TOKENS_OF_MEDIA * max(0, len(example.media) - 1)
    return max(media, of_media["video"]) + len(user_text(example, config).encode())


def response_ids(example: Example, model: Model) -> torch.Tensor:
    """`response_text` and the end token, int64 [R]. Raises RowError as `response_text` does."""
    return torch.tensor([*model.text_ids(response_text(example)), model.end_id], dtype=torch.int64)


def _check_length(length: int, spans: tuple[VideoSpan, ...], example: Example, config: PromptConfig) -> None:
    if length > config.max_prompt_tokens:
        of_video = sum(span.stop - span.start for span in spans)
        raise PromptTooLongError(
            f"problem {example.problem_id}: a prompt of {length} tokens, {of_video} of them of videos and images",
            rule=f"at most {config.max_prompt_tokens} tokens (prompt.max_prompt_tokens); a prompt is never cut",
            remedy="lower video.max_frames, video.max_pixels_per_frame or video.max_video_tokens, or raise prompt.max_prompt_tokens",
        )
