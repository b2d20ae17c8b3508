"""Sizes from config.json against the parameters that transformers really makes of it, and against hand-computed figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longtake.errors import ModelError
from longtake.models.costs import max_pixels_per_frame, model_costs
from longtake.models.tiny import TINY_PATH
from longtake.testing.models import random_tiny

HERE = Path(__file__).parent
THREE, SEVEN = str(HERE / "qwen2_5_vl_3b"), str(HERE / "qwen2_5_vl_7b")


@pytest.mark.parametrize(("path", "parameters"), [(THREE, 3_754_622_976), (SEVEN, 8_292_166_656)])
def test_parameters_are_the_published_totals(path: str, parameters: int):
    assert model_costs(path, "bfloat16").parameters == parameters


@pytest.mark.parametrize("path", [THREE, SEVEN, str(TINY_PATH)])
def test_parameters_are_those_of_the_model_that_transformers_builds(path: str):
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    config = AutoConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.tie_weights()
    costs = model_costs(path, "float32")
    tower, text = model.model.visual, model.model.language_model
    assert costs.parameters == count(model)
    assert costs.language_parameters == count(model) - count(tower)
    assert costs.decoder_parameters == count(text.layers) + count(text.norm)
    assert costs.tower.parameters == count(tower)
    assert costs.tower.patch_parameters == count(tower.patch_embed) + count(tower.blocks)
    assert costs.tower.token_parameters == count(tower.merger.mlp)
    assert (costs.head_dim, costs.heads) == (text.layers[0].self_attn.head_dim, text.layers[0].self_attn.num_heads)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_keys_and_values_of_a_token():
    assert model_costs(SEVEN, "bfloat16").kv_bytes_per_token == 57_344  # 2 x 28 layers x 4 heads x 128 x 2 bytes
    assert model_costs(THREE, "bfloat16").kv_bytes_per_token == 36_864  # 2 x 36 x 2 x 128 x 2
    assert model_costs(SEVEN, "float32").kv_bytes_per_token == 114_688


def test_resolution_and_patches_are_those_of_the_loaded_model(tmp_path: Path):
    model = random_tiny(tmp_path)
    costs = model_costs(str(tmp_path / "random_tiny_0"), "float32")
    assert costs.max_pixels_per_frame == model.max_pixels_per_frame == 784
    assert (costs.patch_multiple, costs.tower.temporal_patch) == (model.patch_multiple, model.temporal_patch)


def test_published_processors_ask_for_more_than_the_default():
    assert max_pixels_per_frame(Path(SEVEN)) == 448 * 448


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[]", "a list"),
        ('{"model_type": "llama"}', "model_type 'llama'"),
        ('{"model_type": ["qwen2_5_vl"]}', "model_type"),
        ('{"model_type": "qwen2_5_vl"}', "KeyError: 'hidden_size'"),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path, content: str | None, said: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="Remedy") as error:
        model_costs(str(tmp_path), "float32")
    assert said in str(error.value)


def test_a_size_that_is_no_number_is_refused(tmp_path: Path):
    values = json.loads((Path(SEVEN) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_attention_heads": 0}))
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        model_costs(str(tmp_path), "float32")
