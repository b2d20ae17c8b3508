"""A prompt and its sampling as vLLM takes them, and its answers as takes. Needs no vLLM.

Prompts are token ids with one placeholder per video or image, and embeddings instead of pixels. vLLM expands every placeholder it finds by
the size of the video, so a span that is expanded already would become longer once more: each is collapsed here, and the ids that vLLM
answers for are compared with ours. Its own keys for videos know embeddings and grid, but not the spacing in time that positions depend on:
it is given ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from longtake.errors import MismatchError, RolloutError
from longtake.models.family import Model
from longtake.observe.digest import digest_of
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.types import FinishReason, MediaKind, Prompt, Take, VideoTokens

SETTINGS = {
    "LONGTAKE_ENGINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
"""vLLM in this process, on the trainer's threads; positions of a long video pass what a checkpoint was trained for."""
REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
"""vLLM has others for what it breaks off."""
MAX_VIDEO_SECONDS = 86_400
_SEED_BITS = 62
"""vLLM's seeds are signed 64-bit numbers; the seed of a take is that of its request plus its index."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine is made for."""

    max_tokens: int
    """P + R of the longest row."""
    max_rows: int
    """Takes decoded together."""
    kv_bytes: int | None
    """For keys and values; None: what vLLM finds (CUDA)."""
    in_parts: bool
    """A long prompt is prefilled in several passes. Not on a CPU: there vLLM 0.32 cannot take back the number that it draws at the end of
    each part for a take with a seed of its own."""
    positions: int
    """Rotary tables reach so far."""

    @staticmethod
    def of(model: Model, max_tokens: int, max_rows: int, kv_bytes: int | None) -> EngineLimits:
        """For `model` on its device, and a day of video."""
        of_video = math.ceil(MAX_VIDEO_SECONDS * model.tokens_per_second)
        return EngineLimits(max_tokens, max_rows, kv_bytes, in_parts=model.device.type == "cuda", positions=max_tokens + of_video)


def collapsed_ids(prompt: Prompt, placeholder_ids: Mapping[MediaKind, int]) -> list[int]:
    """The prompt's token ids with the placeholders of each video and image replaced by one."""
    ids = prompt.token_ids.tolist()
    collapsed: list[int] = []
    end = 0
    for span in prompt.spans:
        collapsed += [*ids[end : span.start], placeholder_ids[span.tokens.kind]]
        end = span.stop
    return collapsed + ids[end:]


def video_key(tokens: VideoTokens) -> str:
    """Name of a video or image in vLLM's caches: everything that the keys and values of its tokens depend on, weights apart."""
    return digest_of("vllm video 1", tokens.digest, tokens.grid, tokens.seconds_per_grid)


def content_key(embeddings: torch.Tensor, grid: Sequence[int], seconds_per_grid: float) -> str:
    """Digest of what stands for a video itself, embeddings [V, D]: computed by the trainer and, over what arrived, by the engine."""
    return digest_of("video content 1", embeddings.detach().cpu(), tuple(map(int, grid)), float(seconds_per_grid))


def engine_prompt(prompt: Prompt, placeholder_ids: Mapping[MediaKind, int]) -> dict[str, Any]:
    """vLLM's `TokensPrompt`."""
    given: dict[str, Any] = {"prompt_token_ids": collapsed_ids(prompt, placeholder_ids)}
    media = by_kind(prompt)
    if media:
        given["multi_modal_data"] = {kind: engine_tensors(kind, own) for kind, own in media.items()}
        given["multi_modal_uuids"] = {kind: [video_key(one) for one in own] for kind, own in media.items()}
    return given


def by_kind(prompt: Prompt) -> dict[MediaKind, list[VideoTokens]]:
    """Videos and images of a prompt apart, as vLLM wants them, each kind in order; a kind that it has none of is not there."""
    found: dict[MediaKind, list[VideoTokens]] = {}
    for span in prompt.spans:
        found.setdefault(span.tokens.kind, []).append(span.tokens)
    return found


def engine_tensors(kind: MediaKind, media: Sequence[VideoTokens]) -> dict[str, torch.Tensor]:
    """What vLLM's model of the family is given for media of one kind: embeddings [V, D] behind each other, grids, spacings."""
    given = {
        f"{kind}_embeds": torch.cat([one.embeddings.detach() for one in media]),
        f"{kind}_grid_thw": torch.tensor([one.grid for one in media]),
    }
    if kind == "video":
        given["second_per_grid_ts"] = torch.tensor([one.seconds_per_grid for one in media])
    return given


def request_seed(seed: int, step: int, key: int) -> int:
    """Seed of a request; its takes have the numbers from it on. Keyed as the embedded engine's uniforms are."""
    return int(digest_of("vllm seed 1", seed, step, key), 16) % (1 << _SEED_BITS)


def sampling_fields(request: RolloutRequest, params: SamplingParams, end_ids: Sequence[int]) -> dict[str, Any]:
    """vLLM's `SamplingParams` for the takes of a request, as plain data. Greedy takes are all alike: one is asked for."""
    greedy = params.temperature == 0
    return {
        "n": 1 if greedy else params.num_takes,
        "temperature": params.temperature,
        "max_tokens": params.max_new_tokens,
        "logprobs": 0,
        "seed": None if greedy else request_seed(params.seed, params.step, request.key),
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,
        "detokenize": False,
    }


def take_of(model: Model, token_ids: Sequence[int], logprobs: Sequence[float], reason: str | None, version: int) -> Take:
    """One answer of vLLM as a take. Raises RolloutError for one that was broken off."""
    if reason not in REASONS:
        raise RolloutError(
            f"vLLM ended a take with {reason!r}",
            rule="a take ends with an end token or at its longest",
            remedy="start the run again, it resumes at its last checkpoint",
        )
    (text,) = model.tokenizer.batch_decode([list(token_ids)], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Take(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        sampler_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        finish_reason=REASONS[reason],
        text=text,
        weights_version=version,
    )


def check_length(prompt: Prompt, params: SamplingParams, max_tokens: int, remedy: str) -> None:
    """Raises RolloutError for a prompt whose takes might not fit. vLLM would cut them short and say nothing."""
    if len(prompt.token_ids) + params.max_new_tokens > max_tokens:
        raise RolloutError(
            f"a prompt of {len(prompt.token_ids)} tokens and {params.max_new_tokens} new ones; the engine holds {max_tokens}",
            rule="the keys and values of a whole row fit the engine's memory",
            remedy=f"{remedy}, or take fewer or smaller frames",
        )


def check_prompt_ids(prompt: Prompt, answered: Sequence[int] | None) -> None:
    """Raises MismatchError when vLLM answered another prompt than ours."""
    if answered is None or list(answered) != prompt.token_ids.tolist():
        raise MismatchError(
            f"vLLM answered a prompt of {len(answered or ())} tokens; ours has {len(prompt.token_ids)} or other ones",
            rule="the engine sees the tokens that the trainer scores",
            remedy="report it: the expansion of video placeholders differs in this version of vLLM",
        )
