"""What every test starts from: one thread, no network, seeded random generators."""

from __future__ import annotations

import os
import random
import sys

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)  # the same examples in every run, however loaded the machine
settings.load_profile("house")

for variable, value in {
    "OMP_NUM_THREADS": "1",  # workers of pytest-xdist share the cores
    "HF_HUB_OFFLINE": "1",  # a test that would download fails instead
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MPLBACKEND": "agg",
}.items():
    os.environ.setdefault(variable, value)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers whatever ran before; a test that does not import torch does not start to."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
