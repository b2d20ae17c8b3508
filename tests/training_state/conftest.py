"""A tiny model of the family, small enough that a checkpoint takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.config.sections import ModelConfig
from longtake.models import Model, load_model
from longtake.models.tiny import TinySizes, build_tiny

SMALL = TinySizes(
    vocab_size=400, hidden=32, layers=2, heads=2, kv_heads=1, mlp=48, mrope_section=(2, 3, 3), vision_hidden=32, vision_layers=1
)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["the red square walks to the shop and meets the blue circle"] * 3
    return build_tiny(tmp_path_factory.mktemp("base") / "tiny", texts, seed=1, sizes=SMALL)


@pytest.fixture
def new_model(tiny_dir: Path) -> Callable[..., Model]:
    """A fresh copy of the same base at each call."""

    def load(dtype: str = "float32") -> Model:
        return load_model(ModelConfig(path=str(tiny_dir), dtype=dtype, device="cpu"))

    return load
