"""One small world and one small random model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.config.stages import RlConfig, SftConfig
from longtake.testing import training


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.small_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.small_rewards(tmp_path_factory.mktemp("rewards"))


@pytest.fixture
def sft(rows: Path, base: Path, tmp_path: Path) -> Callable[..., SftConfig]:
    """sft("name", **changes): a configuration whose run folder is tmp_path/name."""

    def make(name: str = "run", **changes: Any) -> SftConfig:
        return training.sft_config(rows, base, tmp_path / name, **changes)

    return make


@pytest.fixture
def rl(rows: Path, base: Path, rewards: Path, tmp_path: Path) -> Callable[..., RlConfig]:
    """rl("name", **changes), as `sft`."""

    def make(name: str = "run", **changes: Any) -> RlConfig:
        return training.rl_config(rows, base, tmp_path / name, rewards, **changes)

    return make
