from __future__ import annotations

import pytest

from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.testing.models import random_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen2_5VL:
    """Shared; no test here changes it."""
    return random_tiny(tmp_path_factory.mktemp("evaluated"))
