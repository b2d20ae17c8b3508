"""vLLM in the training process: rollouts by the engine that serves models, fed with token ids and the video embeddings of the trainer.

It computes with weights of its own, which follow the trainer's (`at_weights`), and never sees a pixel. What it reports of each token is
the log-prob under the very distribution that the trainer scores: temperature in, media tokens banned. Imports vLLM (engines.py says how
to get it).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from vllm import LLM
from vllm import SamplingParams as VllmParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

from longtake.config.env import environment
from longtake.config.sections import VllmConfig
from longtake.errors import MismatchError, RolloutError
from longtake.models.family import Model
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.vllm_arguments import sampling_arguments, training_arguments
from longtake.rollout.vllm_prompts import (
    SETTINGS,
    EngineLimits,
    check_length,
    check_prompt_ids,
    content_key,
    engine_prompt,
    sampling_fields,
    take_of,
    video_key,
)
from longtake.rollout.vllm_worker import Received
from longtake.rollout.weights import buckets, language_weights, num_bytes
from longtake.training.rng import rng_state, set_rng_state
from longtake.types import Prompt, Take

VLLM_MAY_RAISE = (
    *(ValueError, RuntimeError, AssertionError, OSError, MemoryError, KeyError, AttributeError, EngineDeadError, EngineGenerateError),
)
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
    """See `Engine`. One per process, or one over `tensor_parallel` of them; `close` frees what it holds."""

    takes_prefilled = False

    def __init__(self, model: Model, folder: Path, limits: EngineLimits, setting: VllmConfig, launch: str = "") -> None:
        """`folder`: a checkpoint of the same sizes, for its configuration and tokenizer; the weights come from `model`. `launch`: a name
        that the ranks of one engine have agreed on, and that no other launch on the machine has."""
        self._model, self._limits, self._setting = model, limits, setting
        self.ranks_per_engine = setting.tensor_parallel
        self._sleeps = setting.sleep and model.device.type == "cuda"  # on a CPU vLLM does as if it slept
        self.counters = EngineCounters()
        self._version: int | None = None
        self._content_keys: dict[str, str] = {}
        """Of each video asked, by its name in vLLM's caches."""
        self.received = Received()
        self._asleep = False
        self._joined = dist.is_initialized()
        with self._own_state():
            with named_launch(launch):
                self._llm = started(model, folder, limits, setting)
            self._llm.apply_model(self.received.watch)
            self._count_tokens()

    @contextmanager
    def at_weights(self) -> Iterator[None]:
        """The engine has the trainer's weights inside. Every rank must enter, whether it has requests or not."""
        if self._version != self._model.weights_version:
            with self._own_state():
                self._take_weights()
            self._version = self._model.weights_version
        with self._own_state():
            self._wake("kv_cache")
        try:
            yield
        finally:
            self._sleep()

    def _take_weights(self) -> None:
        try:
            self._wake("weights")
            self._update()
        except VLLM_MAY_RAISE as error:
            raise RolloutError(
                f"vLLM did not take the trainer's weights: {type(error).__name__}: {error}",
                rule="every rollout is sampled with the weights of now",
                remedy="start the run again, it resumes at its last checkpoint; if memory was short, lower "
                "rollout.vllm.gpu_memory_utilization or rollout.vllm.kv_cache_gb",
            ) from error

    def _wake(self, what: str) -> None:
        if self._asleep:
            self._llm.wake_up(tags=[what])
        self._asleep = self._asleep and what == "weights"

    def _sleep(self) -> None:
        """Weights are let go of too: they come anew before the next rollout."""
        if self._sleeps:
            with self._own_state():
                self._llm.sleep(level=2)
            self._asleep, self._version = True, None

    def generate(self, requests: Sequence[RolloutRequest], params: SamplingParams) -> list[tuple[Take, ...]]:
        """G takes per request, in order. Raises RolloutError when vLLM fails, MismatchError when it has answered something else."""
        for request in requests:
            check_length(request.prompt, params, self._limits.max_tokens, "raise rollout.vllm.kv_cache_gb")
        prompts = [engine_prompt(request.prompt, self._model.placeholder_ids) for request in requests]
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
        """Counters for the log; of an engine of several ranks the first one's count."""
        counts = not self._joined or dist.get_rank() % self.ranks_per_engine == 0
        return {f"engine/{name}": float(value) if counts else 0.0 for name, value in vars(self.counters).items()}

    def close(self) -> None:
        """Free the engine's memory."""
        with self._own_state(), groups_kept() if self._joined else nullcontext():
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
        return VllmParams(**sampling_fields(request, params, self._model.end_ids), output_kind=RequestOutputKind.FINAL_ONLY)

    def _takes(self, output: Any, params: SamplingParams) -> tuple[Take, ...]:
        answers = sorted(output.outputs, key=lambda answer: answer.index)
        takes = [self._take(list(answer.token_ids), answer) for answer in answers]
        self.counters.sampled_tokens += sum(len(take.token_ids) for take in takes)
        return tuple(takes * params.num_takes if params.temperature == 0 else takes)

    def _take(self, token_ids: list[int], answer: Any) -> Take:
        logprobs = [step[token].logprob for step, token in zip(answer.logprobs, token_ids, strict=True)]
        assert self._version is not None
        return take_of(self._model, token_ids, logprobs, answer.finish_reason, self._version)

    def _check_videos(self, prompts: Sequence[Prompt]) -> None:
        """Byte for byte; what vLLM took from its caches arrived earlier under the same name."""
        videos = {video_key(span.tokens): span.tokens for prompt in prompts for span in prompt.spans}
        for key, video in videos.items():
            if key not in self._content_keys:
                self._content_keys[key] = content_key(video.embeddings, video.grid, video.seconds_per_grid)
        strange = [key for key in videos if self._content_keys[key] not in self.received.contents]
        if strange:
            raise MismatchError(
                f"{len(strange)} of the {len(videos)} videos of this step never arrived in vLLM as the trainer has them",
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
        self.forget()
        self.counters.weight_updates += 1
        self.counters.weight_seconds += time.perf_counter() - started_at

    def forget(self) -> None:
        """Keys, values and features of what was asked before."""
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Inside, vLLM may seed generators, set variables and exchange functions of torch; outside, all is the trainer's again."""
        tensors, numbers = rng_state()
        set_num_threads, num_threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
        gpu = torch.cuda.current_device() if self._model.device.type == "cuda" else None
        try:
            with environment(SETTINGS):
                yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(num_threads)
            torch.set_default_dtype(dtype)
            if gpu is not None:
                torch.cuda.set_device(gpu)
            set_rng_state(tensors, numbers)


@contextmanager
def groups_kept() -> Iterator[None]:
    """Inside, nobody ends torch's process groups: vLLM would, the trainer's among them."""
    destroy = dist.destroy_process_group
    dist.destroy_process_group = lambda group=None: None
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


@contextmanager
def named_launch(name: str) -> Iterator[None]:
    """Inside, the ranks of an engine meet under this name. On a CPU vLLM calls its shared memory by how ranks meet, which for processes
    that a launcher started is the same in every launch: two at a time, or one after a crash, would find each other's."""
    plain = ExecutorWithExternalLauncher._distributed_args

    def named(self: Any) -> tuple[str, int, int]:
        _, rank, local_rank = plain(self)
        return f"launch:{name}", rank, local_rank

    ExecutorWithExternalLauncher._distributed_args = named
    try:
        yield
    finally:
        ExecutorWithExternalLauncher._distributed_args = plain


def shared_by(num_ranks: int) -> dict[str, Any]:
    """Arguments of an engine whose ranks are processes of ours, which all ask it the same. On CUDA also of one rank among several
    processes: so vLLM learns which GPU is its own."""
    return {"tensor_parallel_size": num_ranks, "distributed_executor_backend": "external_launcher"}


def started(model: Model, folder: Path, limits: EngineLimits, setting: VllmConfig) -> LLM:
    """A vLLM engine without weights yet. Raises RolloutError when vLLM cannot be started with these settings."""
    on_gpu = model.device.type == "cuda"
    try:
        dtype = str(model.dtype).removeprefix("torch.")
        return LLM(
            model=str(folder),
            load_format="dummy",
            seed=0,
            disable_log_stats=True,
            **sampling_arguments(model, limits, dtype=dtype, eager=not (on_gpu and setting.cuda_graphs)),
            **training_arguments(),
            **({"gpu_memory_utilization": setting.gpu_memory_utilization, "enable_sleep_mode": setting.sleep} if on_gpu else {}),
            **(shared_by(setting.tensor_parallel) if dist.is_initialized() and (on_gpu or setting.tensor_parallel > 1) else {}),
        )
    except VLLM_MAY_RAISE as error:
        small = "max seq len" in str(error)
        more = "raise rollout.vllm.kv_cache_gb or, on CUDA, rollout.vllm.gpu_memory_utilization, or take fewer or smaller frames"
        less = "lower rollout.vllm.gpu_memory_utilization or rollout.vllm.kv_cache_gb, or use rollout.engine = transformers"
        raise RolloutError(
            f"vLLM could not be started: {type(error).__name__}: {error}",
            rule="weights, and keys and values of the longest row, fit the memory that the trainer leaves",
            remedy=f"read vLLM's own message (VLLM_LOGGING_LEVEL=INFO shows more); {more if small else less}",
        ) from error
