"""`longtake serve`: the vLLM server for an exported model. It prints the command and runs it until it is stopped."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil

from longtake.config.env import environment
from longtake.config.sections import ModelConfig
from longtake.config.serve import ServeConfig
from longtake.errors import RolloutError
from longtake.models import Model, load_model
from longtake.models.loading import model_folder
from longtake.models.torchvision_shim import extension_loads
from longtake.observe.progress import say
from longtake.observe.signals import StopFlag
from longtake.rollout.engines import bytes_per_token, longest_row
from longtake.rollout.vllm_arguments import (
    BLOCK_TOKENS,
    SERVER_SETTINGS,
    TRAINING_SETTINGS,
    WATCHED_WORKER,
    as_options,
    require_vllm,
    sampling_arguments,
    training_arguments,
)
from longtake.rollout.vllm_plugin import WEIGHTS_BACKEND
from longtake.rollout.vllm_prompts import EngineLimits

ROWS = 16
SHARE_OF_FREE_MEMORY = 0.5
STRUCTURED = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
"""Answers of a given form hold no white space between their parts: a small model that begins to write some does not stop."""
LOOK_AGAIN_S = 0.2
GRACE_S = 20.0
"""For vLLM to end its own processes, before they are killed."""


def run(config: ServeConfig) -> None:
    """The command on stdout, then the server's own messages. Raises RolloutError when it ends by itself with an error, StopRequested after
    Ctrl-C or SIGTERM, when it and all its processes have ended."""
    require_vllm("longtake serve")
    command, variables = serve_command(config), SERVER_SETTINGS | (TRAINING_SETTINGS if config.rollouts else {})
    print(shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *command]), flush=True)
    if not config.only_print:
        supervise(command, variables)


def serve_command(config: ServeConfig) -> list[str]:
    """vLLM's command line. Raises ModelError for a model that is none of ours."""
    setting = ModelConfig(path=config.model, dtype=config.dtype, device=config.device)
    model = load_model(setting, on_meta=True)  # its sizes and the tokens that it must not sample
    on_gpu = model.device.type == "cuda"
    eager = not (on_gpu and config.cuda_graphs)
    backend = WEIGHTS_BACKEND if config.weights == "files" else config.weights
    arguments = {
        "host": config.host,
        "port": config.port,
        "enable_scale_out": True,
        **sampling_arguments(model, limits_of(config, model), dtype=config.dtype, eager=eager),
        **(training_arguments(backend) | {"worker_extension_cls": WATCHED_WORKER} if config.rollouts else STRUCTURED),
        **({"gpu_memory_utilization": config.gpu_memory_utilization, "tensor_parallel_size": config.num_gpus} if on_gpu else {}),
    }
    return [*program(), "serve", str(model_folder(setting).resolve()), *as_options(arguments)]


def program() -> list[str]:
    """`vllm`, or a module of ours that does the same where that cannot be started (rollout.vllm_serve)."""
    if not (extension_loads() and list(metadata.distributions(name="vllm"))):
        return [sys.executable, "-m", "longtake.rollout.vllm_serve"]
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which("vllm")
    return ["vllm"] if found is not None and Path(found) == beside else [str(beside)]


def limits_of(config: ServeConfig, model: Model) -> EngineLimits:
    """Longest row and memory for keys and values; where only one is given the other follows."""
    longest = config.max_tokens or int(model.hf.config.get_text_config().max_position_embeddings)
    if config.kv_cache_gb is None and model.device.type == "cuda":
        return EngineLimits.of(model, longest, config.max_rows, None)
    free = int(psutil.virtual_memory().available * SHARE_OF_FREE_MEMORY)
    per_token = bytes_per_token(model, config.num_gpus)
    given = int(config.kv_cache_gb * 1e9) if config.kv_cache_gb is not None else min(ROWS * (longest + 2 * BLOCK_TOKENS) * per_token, free)
    return EngineLimits.of(model, min(longest, longest_row(given, per_token)), config.max_rows, given)


def supervise(command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run the server until it ends or is to end. Raises as `run` does."""
    with StopFlag() as stop:
        with environment(variables):
            server = subprocess.Popen(command, start_new_session=True)
        try:
            while server.poll() is None and not stop.requested:
                with suppress(subprocess.TimeoutExpired):
                    server.wait(LOOK_AGAIN_S)
        finally:
            code = end(server)
        if stop.requested:
            stop.leave("the server has ended")
    if code != 0:
        raise RolloutError(
            f"the server ended with exit code {code}",
            rule="it runs until it is stopped",
            remedy="see its messages above; for memory lower --kv-cache-gb, --max-tokens or --gpu-memory-utilization, for a port that is "
            "taken give another --port",
        )
    say("the server has ended")


def end(server: subprocess.Popen[bytes]) -> int:
    """End it and whatever it has started; its exit code."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    return server.wait()
