"""`longtake bench update` at a small size: both sides compute the same, the figures are what they say. Nothing here depends on time."""

from __future__ import annotations

import json

import pytest
import torch

from longtake.bench import update
from longtake.bench.memory import peak_bytes
from longtake.cli import main

NAMES = ["naive_s", "shared_s", "speedup", "flop_ratio", "fraction", "naive_bytes", "shared_bytes"]
"""What issue 3 asks for."""
SMALL = ["bench", "update", "--prompt", "192", "--response", "16", "--group", "4", "--repeats", "2", "--num-threads", "1"]


def test_the_figures(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)  # nothing else on stdout
    assert list(found)[:7] == NAMES
    assert found["loss_difference"] < 1e-6  # measured 1e-7: a wrong mask or position moves the loss by 1e-3 and more
    assert found["micro_batch"] in (1, 2, 4) and len(found["rounds"]) == 2
    naive, shared = (sorted(side) for side in zip(*found["rounds"], strict=True))
    assert found["naive_s"] == pytest.approx(sum(naive) / 2) and found["shared_s"] == pytest.approx(sum(shared) / 2)
    assert found["speedup"] == pytest.approx(found["naive_s"] / found["shared_s"])
    assert found["fraction"] == pytest.approx(found["speedup"] / found["flop_ratio"])
    # 4 takes of 16 behind 192 tokens: 256 tokens against 208 of one row. Measured 46.4 and 37.9 MB.
    assert found["bytes_limit"] == round(1.1 * 256 / 208 * found["naive_bytes"])
    assert found["naive_bytes"] < found["shared_bytes"] <= found["bytes_limit"]


def test_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    out, err = capfd.readouterr()
    assert out == "" and "192 prompt tokens, 4 takes of 16" in " ".join(err.split())


def test_operations_by_hand() -> None:
    """N = 10, L = 1, d = 2, P = 3, R = 1, G = 2: naive 2 (2 10 4 + 2 2 16) = 288, shared 2 10 5 + 2 2 (9 + 2 (6 + 1)) = 192."""
    assert update.flop_ratio(10, 1, 2, 3, 1, 2) == pytest.approx(288 / 192)
    assert update.flop_ratio(10, 1, 2, 3, 1, 1) == pytest.approx(1.0)


def test_both_sides_score_the_same_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of `loss_difference`: takes that do not see their prompt give another loss."""
    honest = update.pack_groups
    rows = lambda prompts, responses, device: honest(prompts, [own[::-1][:-1] for own in responses], device)  # noqa: E731
    monkeypatch.setattr(update, "pack_groups", rows)
    config = update.BenchUpdateConfig(prompt=24, response=4, group=2, repeats=1)
    assert update.measure_update(config).loss_difference > 1e-2


def test_the_peak_is_what_is_held_at_once() -> None:
    """4 kB, then 8 kB while the 4 kB are still held, then 8 kB after they were let go: 12 kB."""

    def work() -> None:
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(1000)
        del second, third

    assert peak_bytes(work, torch.device("cpu")) == pytest.approx(12_000, abs=200)  # rounded up to the allocator's alignment
    assert peak_bytes(lambda: None, torch.device("cpu")) == 0
