"""Shapes that are measured: the published ones of Qwen2.5-VL, and a small model in which tower and language model cost as in the 7B."""

from __future__ import annotations

import tempfile
from pathlib import Path

from longtake.bench.published import PUBLISHED
from longtake.models.costs import model_costs, qwen2_5_vl_costs
from longtake.models.tiny import TinySizes, build_tiny
from longtake.types import ModelCosts

WORDS = ("a tokenizer is needed and never asked " * 8,)
SCALED = TinySizes(
    vocab_size=512,
    hidden=256,
    layers=6,
    heads=4,
    kv_heads=2,
    mlp=768,
    mrope_section=(8, 12, 12),
    vision_hidden=128,
    vision_layers=2,
    vision_heads=4,
    vision_mlp=112,
    max_pixels=112 * 112,
)
"""A token of video costs its tower as much of a pass through the decoder as in the 7B (`tower_share`)."""


def published_costs(name: str, dtype_bytes: int = 2) -> ModelCosts:
    """Sizes of `3b` or `7b`."""
    return qwen2_5_vl_costs(PUBLISHED[name], dtype_bytes, 768 * 28 * 28)


def tower_share(costs: ModelCosts) -> float:
    """Products of the tower for one video token over those of the decoder: merge^2 patches and one projection, against N."""
    tower = costs.tower
    return (tower.patch_parameters * tower.merge**2 + tower.token_parameters) / costs.decoder_parameters


def build_scaled(folder: Path, sizes: TinySizes = SCALED) -> Path:
    """A checkpoint directory of random weights."""
    return build_tiny(folder / "model", WORDS, 0, sizes)


def costs_of(sizes: TinySizes) -> ModelCosts:
    """As the planner reads them from the directory."""
    with tempfile.TemporaryDirectory() as folder:
        return model_costs(str(build_scaled(Path(folder), sizes)), "float32")
