from __future__ import annotations

from collections.abc import Iterator

import pytest

from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.testing.models import norm_in_own_dtype, random_tiny


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("forward_model")


@pytest.fixture
def model(checkpoint_folder) -> Qwen2_5VL:
    """A fresh one for each test: tests rig its head and its weights."""
    return random_tiny(checkpoint_folder, seed=0)


@pytest.fixture
def exact_model(checkpoint_folder) -> Iterator[Qwen2_5VL]:
    """In float64, norms included, so that faults and rounding cannot be confused."""
    exact = random_tiny(checkpoint_folder, seed=0, dtype="float64")
    with norm_in_own_dtype(exact):
        yield exact
