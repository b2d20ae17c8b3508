"""Which engine a configuration asks for, and what it needs to be made."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from longtake.config.env import environment
from longtake.config.sections import RolloutConfig
from longtake.data.prepared_videos import ALONE
from longtake.errors import ConfigError
from longtake.models.family import Model
from longtake.observe.digest import digest_of
from longtake.parallel.collectives import gather_texts
from longtake.parallel.mesh import Axis
from longtake.rollout.engine import Engine
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.rollout.vllm_arguments import BLOCK_TOKENS, require_vllm
from longtake.rollout.vllm_http import VllmHttp
from longtake.rollout.vllm_prompts import SETTINGS, EngineLimits
from longtake.rollout.vllm_server import Sender, VllmServerEngine

SHARE_OF_FREE_MEMORY = 0.25
"""For keys and values on a CPU, whose memory the trainer uses too."""


def make_engine(
    model: Model,
    folder: Path,
    rollout: RolloutConfig,
    max_prompt_tokens: int,
    num_prompts: int,
    *,
    axis: Axis = ALONE,
    out: Path | None = None,
) -> Engine:
    """The engine of `rollout.engine` for steps of `num_prompts` prompts per process, each of at most `max_prompt_tokens`.

    `folder`: the checkpoint that `model` was loaded from. `axis`: the ranks that sample for one trainer; `out`: its run's folder. Raises
    ConfigError when vLLM is asked for and not installed, RolloutError when it does not start or no server answers.
    """
    if rollout.engine == "transformers":
        return TransformersEngine(model, rollout.max_rows)
    require_vllm("rollout.engine = vllm")
    if rollout.vllm.server is not None:
        server = VllmHttp(rollout.vllm.server, rollout.vllm.timeout_s)
        to_server = weights_folder(rollout.vllm.weights_folder, out)
        nccl = nccl_sender(model, server, axis) if rollout.vllm.weights == "nccl" else None
        return server_engine(model, server, axis=axis, folder=to_server, check_videos=rollout.vllm.check_videos, nccl=nccl)
    if axis.size % rollout.vllm.tensor_parallel:
        raise ConfigError(
            f"rollout.vllm.tensor_parallel = {rollout.vllm.tensor_parallel} in a launch of {axis.size}",
            rule="the processes that share an engine divide those of the launch",
            remedy="start as many processes as a multiple of it, or lower it",
        )
    limits = engine_limits(model, rollout, max_prompt_tokens, num_prompts)
    with environment(SETTINGS):  # vLLM reads and writes variables when it is imported
        engine = importlib.import_module("longtake.rollout.vllm_engine").VllmEngine
    launch = gather_texts(uuid.uuid4().hex, axis)[0]
    made: Engine = engine(model, folder, limits, rollout.vllm, launch)
    return made


def nccl_sender(model: Model, server: VllmHttp, axis: Axis) -> Callable[[int], Sender]:
    """Makes this rank's end of the line to so many GPUs of the server. Raises ConfigError without CUDA."""
    if model.device.type != "cuda":
        raise ConfigError(
            f"rollout.vllm.weights = nccl with a model on {model.device.type}",
            rule="NCCL carries weights from GPU to GPU",
            remedy="set rollout.vllm.weights = files",
        )
    with environment(SETTINGS):
        kind = importlib.import_module("longtake.rollout.vllm_nccl").NcclSender
    return lambda num_gpus: kind(model, server.url, num_gpus, axis.rank, server.timeout_s)


def server_engine(
    model: Model,
    server: VllmHttp,
    *,
    axis: Axis = ALONE,
    folder: Path | None = None,
    check_videos: bool = False,
    nccl: Callable[[int], Sender] | None = None,
) -> VllmServerEngine:
    """An engine that asks `server`; with a folder it sends weights there. Raises RolloutError when none answers."""
    with environment(SETTINGS):
        encode = importlib.import_module("longtake.rollout.vllm_wire").encoded_video
    return VllmServerEngine(model, server, encode, axis=axis, folder=folder, check_videos=check_videos, nccl=nccl)


def weights_folder(given: Path | None, out: Path | None) -> Path:
    """Where the weights of the run in `out` lie on their way to a server; a folder that several runs share has one for each.

    Raises ConfigError when there is none.
    """
    if given is not None:
        return given / f"weights-{digest_of('weights folder 1', str((out or given).resolve()))[:12]}"
    if out is None:
        raise ConfigError(
            "rollout.vllm.server without a folder for weights",
            rule="weights reach a server as files on a folder that both machines see",
            remedy="set rollout.vllm.weights_folder",
        )
    return out / "weights_to_server"


def engine_limits(model: Model, rollout: RolloutConfig, max_prompt_tokens: int, num_prompts: int) -> EngineLimits:
    """Room for the longest row at least, and on a CPU for all takes of a step at once as far as memory allows."""
    longest = max_prompt_tokens + rollout.max_new_tokens
    per_token = bytes_per_token(model, rollout.vllm.tensor_parallel)
    given = rollout.vllm.kv_cache_gb
    if given is None and model.device.type == "cuda":
        return EngineLimits.of(model, longest, rollout.max_rows, None)
    if given is None:
        of_takes = rollout.num_takes * (rollout.max_new_tokens + 2 * BLOCK_TOKENS)  # a take has two blocks that are not full
        wanted = (num_prompts * (max_prompt_tokens + of_takes) + 2 * BLOCK_TOKENS) * per_token
        given_bytes = min(wanted, int(psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY))
    else:
        given_bytes = int(given * 1e9)
    return EngineLimits.of(model, min(longest, longest_row(given_bytes, per_token)), rollout.max_rows, given_bytes)


def longest_row(kv_bytes: int, per_token: int) -> int:
    """Tokens of a row that so much memory for keys and values holds: whole blocks, one of which vLLM keeps for itself. Raises ConfigError
    when it holds none."""
    tokens = (kv_bytes // (per_token * BLOCK_TOKENS) - 1) * BLOCK_TOKENS
    if tokens <= 0:
        raise ConfigError(
            f"{kv_bytes:,} bytes for keys and values of {per_token:,} bytes a token",
            rule=f"vLLM needs room for two blocks of {BLOCK_TOKENS} tokens at least",
            remedy="raise kv_cache_gb, or free some memory",
        )
    return tokens


def bytes_per_token(model: Model, num_parts: int = 1) -> int:
    """Of keys and values, over all layers, on one of so many GPUs that share the heads."""
    text = model.hf.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * max(1, text.num_key_value_heads // num_parts) * head_dim * model.dtype.itemsize
