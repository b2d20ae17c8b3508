from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.testing.models import random_tiny
from longtake.types import Frames, Sampling


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Qwen2_5VL:
    """Shared: a test that changes weights makes its own."""
    return random_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def noise() -> Callable[..., Frames]:
    """Frames of noise: every patch differs, so that a patch in the wrong place shows."""

    def make(num: int = 8, height: int = 56, width: int = 84, seed: int = 0, spacing_s: float = 0.5, digest: str = "source") -> Frames:
        pixels = np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)
        return Frames(pixels, np.arange(num) * spacing_s, digest, Sampling(num, height, width, "uniform", "area"), num)

    return make
