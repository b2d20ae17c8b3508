"""How vLLM is set up, in the training process and on a server alike. Needs no vLLM.

Both must sample from the very distribution that the trainer scores: media tokens banned, temperature in the log-probs, embeddings instead
of pixels. What an engine is given as keyword arguments a server is given as options of the same names.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from longtake.errors import ConfigError
from longtake.models.family import Model
from longtake.rollout.vllm_plugin import WEIGHTS_BACKEND
from longtake.rollout.vllm_prompts import SETTINGS, EngineLimits

BLOCK_TOKENS = 32
"""Tokens per block of keys and values. Only whole blocks are shared between takes, and the CPU's default of 128 would leave short prompts
unshared."""
CHUNK_TOKENS = 8192
"""A longer prompt is prefilled in parts of so many tokens, between which others decode."""
POSITIONS_FACTOR = 4
"""vLLM's rotary tables reach so many times as far as the checkpoint's own number of positions; beyond them it fails."""
BANNED_KEY = "longtake_banned_ids"
"""In the engine's `additional_config`: token ids that no request may sample."""
BAN_TOKENS = "longtake.rollout.vllm_worker:BanTokens"
WATCHED_WORKER = "longtake.rollout.vllm_worker.WatchedWorker"
SERVER_SETTINGS = {name: value for name, value in SETTINGS.items() if name not in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")}
"""Variables of a server's process: `vllm_prompts.SETTINGS` less what is for an engine inside another process."""
TRAINING_SETTINGS = {"VLLM_SERVER_DEV_MODE": "1"}
"""Opens vLLM's addresses for new weights. Whoever reaches the port may then replace them."""


def require_vllm(given: str) -> None:
    """Raises ConfigError when vLLM is not installed; `given`: what needs it."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{given}, and vLLM is not installed",
            rule="rollouts by vLLM need it",
            remedy='pip install "longtake[vllm]" beside CUDA, make vllm-cpu for a CPU; or set rollout.engine = transformers',
        )


def sampling_arguments(model: Model, limits: EngineLimits, *, dtype: str, eager: bool) -> dict[str, Any]:
    """Keyword arguments that every engine of ours has, wherever it runs."""
    known = int(model.hf.config.get_text_config().max_position_embeddings)
    reach = max(known, -(-limits.positions // POSITIONS_FACTOR))
    return {
        "dtype": dtype,
        "enforce_eager": eager,
        "max_model_len": limits.max_tokens,
        "max_num_seqs": limits.max_rows,
        "max_num_batched_tokens": max(CHUNK_TOKENS if limits.in_parts else limits.max_tokens, limits.max_rows),
        "enable_chunked_prefill": limits.in_parts,
        "block_size": BLOCK_TOKENS,
        "kv_cache_memory_bytes": limits.kv_bytes,
        "enable_prefix_caching": True,
        "enable_mm_embeds": True,
        "logprobs_mode": "processed_logprobs",
        "logits_processors": [BAN_TOKENS],
        "additional_config": {BANNED_KEY: model.banned_ids.tolist()},
        "hf_overrides": {"text_config": {"max_position_embeddings": reach}},
        "generation_config": "vllm",
    }


def training_arguments(weights: str = WEIGHTS_BACKEND) -> dict[str, Any]:
    """Of an engine that samples for a trainer: no tower, because only embeddings come, and weights that follow the trainer's by the weight
    transfer engine of that name."""
    return {
        "skip_mm_profiling": True,
        "limit_mm_per_prompt": {"video": 0, "image": 0},
        "mm_processor_cache_gb": 0,
        "weight_transfer_config": {"backend": weights},
    }


def as_options(arguments: Mapping[str, Any]) -> list[str]:
    """The same for a command line; None: not given."""
    options: list[str] = []
    for name, value in arguments.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            options.append(option if value else f"--no-{option.removeprefix('--')}")
        elif isinstance(value, Mapping):
            options += [option, json.dumps(value)]
        elif isinstance(value, list):
            options += [option, *map(str, value)]
        elif value is not None:
            options += [option, str(value)]
    return options
