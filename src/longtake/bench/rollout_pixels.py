"""vLLM as others feed it: frames go in, its own processor and tower make tokens of them. A side of `bench rollout`. Imports vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import LLM
from vllm import SamplingParams as VllmParams

from longtake.config.env import environment
from longtake.models.family import Model
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.vllm_arguments import sampling_arguments
from longtake.rollout.vllm_prompts import SETTINGS, EngineLimits, check_prompt_ids, collapsed_ids, sampling_fields
from longtake.types import Frames


class PixelEngine:
    """Random weights of the same sizes: only seconds are asked of it."""

    def __init__(self, model: Model, folder: Path, limits: EngineLimits, frames: Sequence[Frames]) -> None:
        self._model, self._frames = model, frames
        arguments = sampling_arguments(model, limits, dtype=str(model.dtype).removeprefix("torch."), eager=True)
        with environment(SETTINGS):
            self._llm = LLM(
                model=str(folder),
                load_format="dummy",
                seed=0,
                disable_log_stats=True,
                mm_processor_cache_gb=0,
                limit_mm_per_prompt={"video": 1, "image": 0},
                **arguments,
            )
        self.computed_tokens = 0
        scheduler = self._llm.llm_engine.engine_core.engine_core.scheduler
        schedule = scheduler.schedule

        def counting(*given: Any, **named: Any) -> Any:
            scheduled = schedule(*given, **named)
            self.computed_tokens += scheduled.total_num_scheduled_tokens
            return scheduled

        scheduler.schedule = counting

    def generate(self, requests: Sequence[RolloutRequest], params: SamplingParams) -> int:
        """Sample the takes; how many tokens they have. Raises MismatchError when a video has become another number of tokens than ours."""
        prompts = [self._prompt(request, video) for request, video in zip(requests, self._frames, strict=True)]
        sampling = [VllmParams(**sampling_fields(request, params, self._model.end_ids)) for request in requests]
        with environment(SETTINGS):
            outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        for request, output in zip(requests, outputs, strict=True):
            check_prompt_ids(request.prompt, output.prompt_token_ids)
        return sum(len(answer.token_ids) for output in outputs for answer in output.outputs)

    def forget(self) -> None:
        """All prompts and videos."""
        with environment(SETTINGS):
            self._llm.reset_prefix_cache()
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        """It goes with the process: ending it would end the groups that other engines of the process use."""

    def _prompt(self, request: RolloutRequest, frames: Frames) -> dict[str, Any]:
        count = len(frames.times_s)
        about = {
            "fps": 2.0,
            "total_num_frames": count,
            "duration": count / 2,
            "frames_indices": list(range(count)),
            "video_backend": "none",
        }
        return {
            "prompt_token_ids": collapsed_ids(request.prompt, self._model.placeholder_ids),
            "multi_modal_data": {"video": [(frames.pixels, about | {"video_backend": "none", "do_sample_frames": False})]},
            "mm_processor_kwargs": {"do_sample_frames": False},
        }
