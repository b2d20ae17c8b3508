from __future__ import annotations

import pytest

from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.testing.models import random_tiny


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("rollout_model")


@pytest.fixture
def model(checkpoint_folder) -> Qwen2_5VL:
    """A fresh one for each test: tests rig its head and its weights."""
    return random_tiny(checkpoint_folder, seed=0)
