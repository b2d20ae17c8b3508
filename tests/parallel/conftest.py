from __future__ import annotations

from collections.abc import Iterator

import pytest

from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.testing.models import norm_in_own_dtype, random_tiny
from longtake.testing.sequence import GROUPED


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory):
    """Holds the checkpoint already: processes that start together must not all write it."""
    folder = tmp_path_factory.mktemp("parallel_model")
    random_tiny(folder, sizes=GROUPED)
    return folder


@pytest.fixture
def model(model_folder) -> Qwen2_5VL:
    """Three layers, four query heads on two KV heads, float32; a fresh one for each test."""
    return random_tiny(model_folder, sizes=GROUPED)


@pytest.fixture
def exact_model(model_folder) -> Iterator[Qwen2_5VL]:
    """The same in float64, norms included, so that faults and rounding cannot be confused."""
    exact = random_tiny(model_folder, dtype="float64", sizes=GROUPED)
    with norm_in_own_dtype(exact):
        yield exact
