"""The lower rooms load without torch: a wrong configuration is told in a moment, and tools may read our records."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _loaded(*modules: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after importing these."""
    code = f"import sys; import {', '.join(modules)}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            ["longtake.types", "longtake.errors", "longtake.config.sections", "longtake.config.stages", "longtake.config.load"],
            {"torch", "transformers", "numpy", "av"},
        ),
        (["longtake.video.decode", "longtake.video.encode", "longtake.video.probe"], {"torch", "transformers"}),
        (["longtake.answers", "longtake.answers.correct"], {"torch", "transformers"}),
        (["longtake.cli"], {"torch", "transformers", "av"}),
    ],
    ids=["config", "video", "answers", "cli"],
)
def test_room_does_not_load(modules: list[str], absent: set[str]):
    assert _loaded(*modules) & absent == set()


def test_the_check_sees_torch_where_it_is():
    assert "torch" in _loaded("longtake.algorithms.losses")
