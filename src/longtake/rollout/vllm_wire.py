"""Video embeddings as vLLM's server reads them, written by vLLM's own functions. Imports vLLM.

vllm/entrypoints/scale_out/token_in_token_out/mm_serde.py: a base64 text of named tensors, each with the rule by which vLLM joins those of
several videos. The names and rules are those of the family in vLLM (vllm/model_executor/models/qwen2_5_vl.py).
"""

from __future__ import annotations

import threading

import torch
from transformers import BatchFeature
from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

from longtake.types import VideoTokens

_ONE_AT_A_TIME = threading.Lock()
"""vLLM's encoder is one object, not made for several threads."""


def encoded_video(tokens: VideoTokens) -> str:
    """Embeddings, grid and spacing of one video."""
    embeddings = tokens.embeddings.detach().cpu().contiguous()
    inputs = BatchFeature(
        {
            "video_embeds": embeddings,
            "video_grid_thw": torch.tensor([tokens.grid]),
            "second_per_grid_ts": torch.tensor([tokens.seconds_per_grid]),
        }
    )
    fields = {
        "video_embeds": MultiModalFieldConfig.flat_from_sizes("video", torch.tensor([len(embeddings)])),
        "video_grid_thw": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
        "second_per_grid_ts": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
    }
    (item,) = MultiModalKwargsItems.from_hf_inputs(inputs, fields)["video"]
    with _ONE_AT_A_TIME:
        return encode_mm_kwargs_item(item)
