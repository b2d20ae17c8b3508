"""A world on disk that all tests of this folder look at."""

from pathlib import Path

import pytest

from longtake.config.stages import WorldConfig
from longtake.world.oracle import Oracle
from longtake.world.write import write_world


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 videos of 40 to 60 seconds, small ones."""
    folder = tmp_path_factory.mktemp("worlds") / "known"
    write_world(WorldConfig(out=folder, num_videos=20, seconds=(40.0, 60.0), size=64, seed=11, workers=1))
    return folder


@pytest.fixture(scope="session")
def honest(world_folder: Path) -> Oracle:
    """Never lies."""
    return Oracle([world_folder])
