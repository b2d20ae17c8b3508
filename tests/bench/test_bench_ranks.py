"""Benches that start processes of their own, at small sizes: memory per rank and sharded encoding. Nothing here depends on time."""

from __future__ import annotations

import json
import os

import pytest

from longtake.bench import encode
from longtake.bench.activations import splits
from longtake.bench.ranks import run_on_ranks
from longtake.bench.shapes import SCALED, costs_of, published_costs, tower_share
from longtake.cli import main
from longtake.config.benches import BenchEncodeConfig
from longtake.errors import LongtakeError


def test_memory(capfd: pytest.CaptureFixture[str]) -> None:
    small = ["bench", "memory", "--prompt", "512", "--response", "32", "--group", "4", "--degrees", "1", "2", "--json"]
    assert main(small) == 0
    found = json.loads(capfd.readouterr().out)  # nothing else on stdout
    assert [(one["degree"], one["ulysses"], one["ring"]) for one in found["layouts"]] == [(1, 1, 1), (2, 1, 2), (2, 2, 1)]
    one, ring, ulysses = found["layouts"]
    # Measured: 0.501 on a ring, 0.534 by Ulysses, which holds the attention's output before and after its exchange.
    assert 0.49 <= ring["bytes"] / one["bytes"] <= 0.52
    assert 0.50 <= ulysses["bytes"] / one["bytes"] <= 0.55
    assert ring["deviation"] == pytest.approx(2 * ring["bytes"] / one["bytes"] - 1)
    assert len(ring["ranks"]) == 2 and max(ring["ranks"]) == ring["bytes"]
    assert found["largest_deviation"] <= found["wanted"]


def test_layouts_of_four() -> None:
    assert list(splits(4)) == [(1, 4), (2, 2), (4, 1)]
    assert list(splits(16)) == [(1, 16), (2, 8), (4, 4), (8, 2)]  # 8 heads


def test_encode(capfd: pytest.CaptureFixture[str]) -> None:
    small = ["bench", "encode", "--frames", "11", "--height", "56", "--width", "56", "--groups-per-chunk", "2", "--repeats", "2", "--json"]
    assert main(small) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["identical"] and found["processes"] == 2 and len(found["rounds"]) == 2
    assert found["tokens"] == 6 * 4  # the last frame repeated
    assert found["ratio"] == pytest.approx(found["one_s"] / found["several_s"])


def test_embeddings_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [{"rounds": [(1.0, 1.0)], "digests": [digest], "tokens": 1} for digest in ("a", "b")]
    monkeypatch.setattr(encode, "run_on_ranks", lambda *_, **__: told)
    with pytest.raises(LongtakeError, match="2 different embeddings"):
        encode.measure_encode(BenchEncodeConfig())


def fails_on_rank_1() -> str:
    if os.environ["RANK"] == "1":
        raise RuntimeError("a reason")
    return os.environ["WORLD_SIZE"]


def rank_and_size() -> list[str]:
    return [os.environ["RANK"], os.environ["WORLD_SIZE"]]


def test_results_come_in_the_order_of_ranks() -> None:
    assert run_on_ranks(rank_and_size, 2, timeout_s=120) == [["0", "2"], ["1", "2"]]


def test_a_rank_that_dies_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LongtakeError, match="rank 1 of 2 died"):
        run_on_ranks(fails_on_rank_1, 2, timeout_s=120)
    assert "a reason" in capfd.readouterr().err


def test_the_scaled_model_has_the_proportions_of_the_7b() -> None:
    """4 patches of 630 M and a projection of 45 M parameters against 6.5 G: 0.394."""
    seven = published_costs("7b")
    assert (seven.decoder_parameters, published_costs("3b").decoder_parameters) == (6_525_621_760, 2_774_773_760)
    assert tower_share(seven) == pytest.approx(0.394, abs=1e-3)
    assert tower_share(costs_of(SCALED)) == pytest.approx(tower_share(seven), rel=0.02)
