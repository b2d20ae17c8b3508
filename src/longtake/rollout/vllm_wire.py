"""Embeddings of videos and images as vLLM's server reads them, written by vLLM's own functions. Imports vLLM.

vllm/entrypoints/scale_out/token_in_token_out/mm_serde.py: a base64 text of named tensors, each with the rule by which vLLM joins those of
several videos. The names and rules are those of the family in vLLM (vllm/model_executor/models/qwen2_5_vl.py).
"""

from __future__ import annotations

import threading

import torch
from transformers import BatchFeature
from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

from longtake.rollout.vllm_prompts import engine_tensors
from longtake.types import VideoTokens

_ONE_AT_A_TIME = threading.Lock()
"""vLLM's encoder is one object, not made for several threads."""


def encoded_video(tokens: VideoTokens) -> str:
    """Embeddings, grid and, of a video, spacing of one video or image."""
    kind = tokens.kind
    inputs = {name: tensor.cpu().contiguous() for name, tensor in engine_tensors(kind, [tokens]).items()}
    fields = {
        name: MultiModalFieldConfig.flat_from_sizes(kind, torch.tensor([len(tensor)]))
        if name.endswith("_embeds")
        else MultiModalFieldConfig.batched(kind, keep_on_cpu=True)
        for name, tensor in inputs.items()
    }
    (item,) = MultiModalKwargsItems.from_hf_inputs(BatchFeature(inputs), fields)[kind]
    with _ONE_AT_A_TIME:
        return encode_mm_kwargs_item(item)
