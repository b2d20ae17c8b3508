"""What every process of vLLM runs when it starts (entry point `vllm.general_plugins`): its engine and its workers."""

from __future__ import annotations

import importlib
from typing import Any

from longtake.config.env import serves_longtake
from longtake.models.torchvision_shim import extension_loads, make_torchvision_importable

WEIGHTS_BACKEND = "longtake"
"""Name of `vllm_worker.BucketWeights` among vLLM's weight transfer engines."""
ARCHITECTURES = {"Qwen2_5_VLForConditionalGeneration": "vllm.model_executor.models.qwen2_5_vl"}
"""The families of `longtake.models`, and where vLLM keeps them."""


def register() -> None:
    """Make longtake's needs known to vLLM. May be called several times in a process.

    vLLM looks into the class of a model in a fresh interpreter, which imports torchvision before any plugin. Where that needs the
    shim, the class is looked into here.
    """
    make_torchvision_importable()
    transfer = importlib.import_module("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
    if WEIGHTS_BACKEND not in transfer._registry:
        transfer.register_engine(WEIGHTS_BACKEND, "longtake.rollout.vllm_worker", "BucketWeights")
    if serves_longtake():
        make_room_for_long_videos()
    if not extension_loads():
        registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
        for name, module in ARCHITECTURES.items():
            registry.register_model(name, getattr(importlib.import_module(module), name))


def make_room_for_long_videos() -> None:
    """Without a tower of its own vLLM takes no video that is longer than one pass of prefill; here one may fill the whole context.

    Where prompts are not prefilled in parts, the videos of all rows together have room: else vLLM would cut a prompt before its video.
    """
    kind = importlib.import_module("vllm.config.scheduler").SchedulerConfig
    plain = kind.__post_init__
    if plain.__name__ == "with_room":  # done before
        return

    def with_room(self: Any, max_model_len: int, is_encoder_decoder: bool) -> None:
        plain(self, max_model_len, is_encoder_decoder)
        room = max_model_len * (1 if self.enable_chunked_prefill else self.max_num_seqs)
        self.max_num_encoder_input_tokens = max(self.max_num_encoder_input_tokens, room)
        self.encoder_cache_size = max(self.encoder_cache_size, room)

    kind.__post_init__ = with_room
