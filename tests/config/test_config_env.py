"""The environment is read in one place only, and little of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import longtake
from longtake.config import env
from longtake.config.meta import git_commit, run_meta
from longtake.errors import ConfigError

SOURCE = Path(longtake.__file__).parent


def test_only_env_reads_the_environment() -> None:
    readers = [path for path in SOURCE.rglob("*.py") if re.search(r"\bos\.(environ|getenv|putenv)|\bfrom os import", path.read_text())]
    assert [path.relative_to(SOURCE).as_posix() for path in readers] == ["config/env.py"]


def test_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert env.world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert env.world_size() == 4
    monkeypatch.setenv("WORLD_SIZE", "0")
    with pytest.raises(ConfigError, match="counts the processes"):
        env.world_size()


def test_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert env.launch() == env.Launch(rank=0, local_rank=0, world_size=1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="no RANK and no MASTER_ADDR and no MASTER_PORT"):
        env.launch()
    for name, value in zip(names, ("4", "3", "1", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert env.launch() == env.Launch(rank=3, local_rank=1, world_size=4, address="localhost", port=29500)
    for wrong in ("4", "-1", "x"):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(ConfigError, match=r"RANK = .* below WORLD_SIZE = 4"):
            env.launch()


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_wants_traceback(monkeypatch: pytest.MonkeyPatch, value: str | None, wanted: bool) -> None:
    monkeypatch.delenv("LONGTAKE_TRACEBACK", raising=False)
    if value is not None:
        monkeypatch.setenv("LONGTAKE_TRACEBACK", value)
    assert env.wants_traceback() is wanted


def test_run_meta() -> None:
    meta = run_meta(["longtake", "rl"])
    assert meta["longtake"] == longtake.__version__
    assert meta["argv"] == ["longtake", "rl"]
    assert re.fullmatch(r"\d+\.\d+.*", meta["packages"]["torch"])
    assert meta["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", meta["git_commit"])


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_commit() is None
