"""vLLM in the training process: rollouts by the engine that serves models, fed with token ids and the video embeddings of the trainer.

It computes with weights of its own, which follow the trainer's (`at_weights`), and never sees a pixel. What it reports of each token is
the log-prob under the very distribution that the trainer scores: temperature in, media tokens banned. Imports vLLM (engines.py says how
to get it).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import LLM
from vllm import SamplingParams as VllmParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from longtake.config.env import environment
from longtake.config.sections import VllmConfig
from longtake.errors import MismatchError, RolloutError
from longtake.models.family import Model
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.vllm_plugin import WEIGHTS_BACKEND
from longtake.rollout.vllm_prompts import SETTINGS, EngineLimits, check_prompt_ids, content_key, engine_prompt, request_seed
from longtake.rollout.vllm_worker import BANNED_KEY, BanTokens, Received
from longtake.rollout.weights import buckets, language_weights, num_bytes
from longtake.training.rng import rng_state, set_rng_state
from longtake.types import Prompt, Take

BLOCK_TOKENS = 32
"""Tokens per block of keys and values. Only whole blocks are shared between takes, and the CPU's default of 128 would leave short prompts
unshared."""
CHUNK_TOKENS = 8192
"""A longer prompt is prefilled in parts of so many tokens, between which others decode."""
VLLM_MAY_RAISE = (ValueError, RuntimeError, AssertionError, OSError, MemoryError, KeyError, EngineDeadError, EngineGenerateError)
"""Of its checks, its scheduler, its kernels, its process."""


@dataclass
class EngineCounters:
    """Since the engine was made."""

    prompts: int = 0
    computed_tokens: int = 0
    """That passed through the model, prefill and decode; what was found in vLLM's prefix cache is not among them."""
    sampled_tokens: int = 0
    weight_updates: int = 0
    weight_bytes: int = 0
    weight_seconds: float = 0.0


class VllmEngine:
    """See `Engine`. One per process; `close` frees what it holds."""

    takes_prefilled = False

    def __init__(self, model: Model, folder: Path, limits: EngineLimits, setting: VllmConfig) -> None:
        """`folder`: a checkpoint of the same sizes, for its configuration and tokenizer; the weights come from `model`."""
        self._model, self._limits, self._setting = model, limits, setting
        self.counters = EngineCounters()
        self._version: int | None = None
        self._sent: set[str] = set()
        self.received = Received()
        with self._own_state():
            self._llm = started(model, folder, limits, setting)
            self._llm.apply_model(self.received.watch)
            self._count_tokens()

    @contextmanager
    def at_weights(self) -> Iterator[None]:
        """The engine has the trainer's weights inside. Every rank must enter, whether it has requests or not."""
        if self._version != self._model.weights_version:
            with self._own_state():
                self._update()
            self._version = self._model.weights_version
        yield

    def generate(self, requests: Sequence[RolloutRequest], params: SamplingParams) -> list[tuple[Take, ...]]:
        """G takes per request, in order. Raises RolloutError when vLLM fails, MismatchError when it has answered something else."""
        for request in requests:
            self._check_length(request.prompt, params)
        prompts = [engine_prompt(request.prompt, self._model.video_token_id) for request in requests]
        with self._own_state():
            outputs = self._answers(prompts, [self._sampling(request, params) for request in requests])
        takes = []
        for request, output in zip(requests, outputs, strict=True):
            check_prompt_ids(request.prompt, output.prompt_token_ids)
            takes.append(self._takes(output, params))
        self.counters.prompts += len(requests)
        if self._setting.check_videos:
            self._check_videos([request.prompt for request in requests])
        return takes

    def metrics(self) -> dict[str, float]:
        """Counters for the log."""
        return {f"engine/{name}": float(value) for name, value in vars(self.counters).items()}

    def close(self) -> None:
        """Free the engine's memory."""
        with self._own_state():
            self._llm.llm_engine.engine_core.shutdown()

    def _count_tokens(self) -> None:
        """Of every pass that vLLM's scheduler makes, from now on."""
        scheduler = self._llm.llm_engine.engine_core.engine_core.scheduler
        schedule = scheduler.schedule

        def counting(*args: Any, **kwargs: Any) -> Any:
            scheduled = schedule(*args, **kwargs)
            self.counters.computed_tokens += scheduled.total_num_scheduled_tokens
            return scheduled

        scheduler.schedule = counting

    def _answers(self, prompts: Sequence[dict[str, Any]], sampling: Sequence[VllmParams]) -> list[Any]:
        try:
            return self._llm.generate(prompts, list(sampling), use_tqdm=False)
        except VLLM_MAY_RAISE as error:
            raise RolloutError(
                f"vLLM failed while {len(prompts)} prompts were answered: {type(error).__name__}: {error}",
                rule="the rollout engine answers every prompt of a step; no take of this step has been learned from",
                remedy="start the run again, it resumes at its last checkpoint; if it fails again, give rollout.vllm more memory, or use "
                "rollout.engine = transformers",
            ) from error

    def _sampling(self, request: RolloutRequest, params: SamplingParams) -> VllmParams:
        greedy = params.temperature == 0
        return VllmParams(
            n=1 if greedy else params.num_takes,
            temperature=params.temperature,
            max_tokens=params.max_new_tokens,
            logprobs=0,
            seed=None if greedy else request_seed(params.seed, params.step, request.key),
            stop_token_ids=list(self._model.end_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _takes(self, output: Any, params: SamplingParams) -> tuple[Take, ...]:
        answers = sorted(output.outputs, key=lambda answer: answer.index)
        takes = [self._take(list(answer.token_ids), answer) for answer in answers]
        self.counters.sampled_tokens += sum(len(take.token_ids) for take in takes)
        return tuple(takes * params.num_takes if params.temperature == 0 else takes)

    def _take(self, token_ids: list[int], answer: Any) -> Take:
        if answer.finish_reason not in ("stop", "length"):
            raise RolloutError(
                f"vLLM ended a take with {answer.finish_reason!r}",
                rule="a take ends with an end token or at its longest",
                remedy="start the run again, it resumes at its last checkpoint",
            )
        (text,) = self._model.tokenizer.batch_decode([token_ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logprobs = [step[token].logprob for step, token in zip(answer.logprobs, token_ids, strict=True)]
        assert self._version is not None
        return Take(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            sampler_logprobs=torch.tensor(logprobs, dtype=torch.float32),
            finish_reason=answer.finish_reason,
            text=text,
            weights_version=self._version,
        )

    def _check_length(self, prompt: Prompt, params: SamplingParams) -> None:
        tokens = len(prompt.token_ids) + params.max_new_tokens
        if tokens > self._limits.max_tokens:
            raise RolloutError(
                f"a prompt of {len(prompt.token_ids)} tokens and {params.max_new_tokens} new ones; "
                f"the engine holds {self._limits.max_tokens}",
                rule="the keys and values of a whole row fit the engine's memory",
                remedy="raise rollout.vllm.kv_cache_gb, or take fewer or smaller frames",
            )

    def _check_videos(self, prompts: Sequence[Prompt]) -> None:
        """What arrived is what the trainer has, byte for byte; what vLLM took from its caches arrived earlier under the same key."""
        arrived, self.received.contents = self.received.contents, []
        videos = {span.tokens.digest: span.tokens for prompt in prompts for span in prompt.spans}
        ours = {content_key(video.embeddings, video.grid, video.seconds_per_grid) for video in videos.values()} if arrived else set()
        self._sent |= ours
        strange = set(arrived) - self._sent
        if strange:
            raise MismatchError(
                f"vLLM computed with {len(strange)} videos that are none of this step's",
                rule="the engine's video tokens are the trainer's",
                remedy="report it, with the versions of vLLM and torch",
            )

    def _update(self) -> None:
        started_at = time.perf_counter()
        call = self._llm.collective_rpc
        call("start_weight_update")
        for bucket in buckets(language_weights(self._model)):
            names, tensors = zip(*bucket, strict=True)
            call("update_weights", args=({"names": list(names), "tensors": list(tensors)},))
            self.counters.weight_bytes += num_bytes(bucket)
        call("finish_weight_update")
        self._forget()
        self.counters.weight_updates += 1
        self.counters.weight_seconds += time.perf_counter() - started_at

    def _forget(self) -> None:
        """Keys, values and features of the old weights."""
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Inside, vLLM may seed generators, set variables and exchange functions of torch; outside, all is the trainer's again."""
        tensors, numbers = rng_state()
        set_num_threads, num_threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
        try:
            with environment(SETTINGS):
                yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(num_threads)
            torch.set_default_dtype(dtype)
            set_rng_state(tensors, numbers)


def started(model: Model, folder: Path, limits: EngineLimits, setting: VllmConfig) -> LLM:
    """A vLLM engine without weights yet. Raises RolloutError when vLLM cannot be started with these settings."""
    on_gpu = model.device.type == "cuda"
    try:
        return LLM(
            model=str(folder),
            dtype=str(model.dtype).removeprefix("torch."),
            load_format="dummy",
            seed=0,
            enforce_eager=not (on_gpu and setting.cuda_graphs),
            max_model_len=limits.max_tokens,
            max_num_seqs=limits.max_rows,
            max_num_batched_tokens=max(CHUNK_TOKENS, limits.max_rows),
            block_size=BLOCK_TOKENS,
            kv_cache_memory_bytes=limits.kv_bytes,
            **({"gpu_memory_utilization": setting.gpu_memory_utilization} if on_gpu else {}),
            enable_prefix_caching=True,
            enable_mm_embeds=True,
            skip_mm_profiling=True,
            limit_mm_per_prompt={"video": 0, "image": 0},
            mm_processor_cache_gb=0,
            logprobs_mode="processed_logprobs",
            logits_processors=[BanTokens],
            additional_config={BANNED_KEY: model.banned_ids.tolist()},
            weight_transfer_config={"backend": WEIGHTS_BACKEND},
            generation_config="vllm",
            disable_log_stats=True,
        )
    except VLLM_MAY_RAISE as error:
        raise RolloutError(
            f"vLLM could not be started: {type(error).__name__}: {error}",
            rule="the engine's weights, keys and values fit the memory that the trainer leaves",
            remedy="read vLLM's own message above (VLLM_LOGGING_LEVEL=INFO shows more); lower rollout.vllm.gpu_memory_utilization or "
            "rollout.vllm.kv_cache_gb, or use rollout.engine = transformers",
        ) from error
