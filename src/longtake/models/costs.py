"""What a checkpoint costs, from its config.json and preprocessor files alone: no weights, no tokenizer, no transformers model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longtake.errors import ModelError
from longtake.models.tiny import TINY_PATH
from longtake.types import ModelCosts, TowerCosts
from longtake.video.sample import DEFAULT_MAX_PIXELS

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
"""In this order: the second is that of pictures, which older checkpoints use for videos too."""


def model_costs(path: str, dtype: str) -> ModelCosts:
    """Sizes of the checkpoint directory `path` (or `tiny`), computed in `dtype`. Raises ModelError."""
    folder = TINY_PATH if path == "tiny" else Path(path).expanduser()
    config = _read(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILY_COSTS:
        raise ModelError(
            f"{folder} is of model_type {model_type!r}", rule=f"supported: {', '.join(FAMILY_COSTS)}", remedy="use one of these families"
        )
    try:
        return FAMILY_COSTS[model_type](config, DTYPE_BYTES[dtype], max_pixels_per_frame(folder))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{folder}/config.json: {type(error).__name__}: {error}",
            rule="it holds the sizes of the language model and of the vision tower",
            remedy="download the checkpoint's config.json again",
        ) from error


def qwen2_5_vl_costs(config: Mapping[str, Any], dtype_bytes: int, max_pixels: int) -> ModelCosts:
    """Qwen2.5-VL. Published config.json files hold the language model's sizes at the top, newer ones under `text_config`."""
    text = config.get("text_config", config)
    width, heads, kv_heads, mlp = (
        int(text[name]) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    )
    head_dim = width // heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    # Query, key and value have biases; output projection and MLP have none; two norms.
    layer = (width + 1) * (queries + 2 * keys) + queries * width + 3 * width * mlp + 2 * width
    layers = int(text["num_hidden_layers"])
    return ModelCosts(
        model_type="qwen2_5_vl",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp,
        vocabulary=int(text["vocab_size"]),
        tied_head=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        decoder_parameters=layers * layer + width,
        tower=_qwen2_5_vl_tower(config["vision_config"], width),
        dtype_bytes=dtype_bytes,
        max_pixels_per_frame=max_pixels,
    )


def _qwen2_5_vl_tower(vision: Mapping[str, Any], out_width: int) -> TowerCosts:
    width, mlp, layers = (int(vision[name]) for name in ("hidden_size", "intermediate_size", "depth"))
    patch, temporal, merge = (int(vision[name]) for name in ("patch_size", "temporal_patch_size", "spatial_merge_size"))
    embedding = int(vision.get("in_channels", vision.get("in_chans", 3))) * temporal * patch * patch * width
    # Attention and MLP have biases; two norms.
    layer = (width + 1) * 3 * width + (width + 1) * width + 2 * (width + 1) * mlp + (mlp + 1) * width + 2 * width
    merged = width * merge * merge
    projector = (merged + 1) * merged + (merged + 1) * out_width
    windows = int(vision["window_size"]) // patch
    return TowerCosts(
        parameters=embedding + layers * layer + projector + width,
        patch_parameters=embedding + layers * layer,
        token_parameters=projector,
        layers=layers,
        full_attention_layers=len(vision["fullatt_block_indexes"]),
        window_patches=windows * windows,
        width=width,
        mlp_width=mlp,
        patch_size=patch,
        temporal_patch=temporal,
        merge=merge,
    )


FAMILY_COSTS: dict[str, Callable[[Mapping[str, Any], int, int], ModelCosts]] = {"qwen2_5_vl": qwen2_5_vl_costs}
"""`model_type` of config.json -> sizes."""


def max_pixels_per_frame(folder: Path) -> int:
    """The resolution the checkpoint asks for, at most DEFAULT_MAX_PIXELS: what `Model.max_pixels_per_frame` will say."""
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            settings = _read(folder / name)
            largest = settings.get("size", {}).get("longest_edge") or settings.get("max_pixels")
            if largest:
                return min(int(largest), DEFAULT_MAX_PIXELS)
    return DEFAULT_MAX_PIXELS


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        values, reason = None, f"{type(error).__name__}: {error}"
    else:
        reason = f"a {type(values).__name__}"
    if not isinstance(values, dict):
        raise ModelError(f"{path}: {reason}", rule="a JSON object", remedy="give the directory of a checkpoint, or download the file again")
    return values
