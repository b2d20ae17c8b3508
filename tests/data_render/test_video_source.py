"""Decoded once, encoded once, nothing stale, and a failure is a failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.config.sections import VideoConfig
from longtake.data import videos
from longtake.data.videos import VideoSource
from longtake.errors import VideoDamagedError, VideoError
from longtake.observe.digest import file_digest
from longtake.observe.timing import Phases
from longtake.testing.models import random_tiny
from longtake.types import Frames, Sampling, VideoRef
from longtake.video.encode import VideoWriter

CONFIG = VideoConfig(max_frames=4, max_pixels_per_frame=56 * 56)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_tiny(tmp_path_factory.mktemp("videos"))


def ref(name="a.mp4", digest=None):
    return VideoRef(path=Path(name), digest=digest or f"digest of {name}")


@pytest.fixture
def decodes(monkeypatch):
    """Counts calls of the decoder and stands in for it: pixels follow from the digest of the file."""
    calls = []

    def load_frames(ref, config, patch_multiple, temporal_patch):
        calls.append(ref.digest)
        if "damaged" in ref.digest:
            raise VideoDamagedError(f"{ref.path.name} is damaged", rule="a video decodes", remedy="mend it")
        pixels = np.random.default_rng(list(ref.digest.encode())).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
        return Frames(pixels, np.array([0.0, 1.0, 2.0, 6.0]), ref.digest, Sampling(4, 56, 56, "uniform", "area"), 9)

    monkeypatch.setattr(videos, "load_frames", load_frames)
    return calls


def test_decoded_and_encoded_once(model, decodes):
    source = VideoSource(model, CONFIG, Phases())
    first, second = source.tokens(ref("a")), source.tokens(ref("b"))
    assert source.tokens(ref("a")) is first and source.tokens(ref("b")) is second
    assert decodes == ["digest of a", "digest of b"]
    metrics = source.metrics()
    wanted = {"hits": 2, "misses": 2, "decoded": 2, "encoded": 2, "failed": 0, "frames_decoded": 18}
    assert {name: metrics[f"video/{name}"] for name in wanted} == wanted
    assert metrics["video/bytes_held"] == 2 * first.embeddings.nbytes == 2 * 8 * 64 * 4
    # times 0 1 2 6: mean spacing 2, the third frame is 2 s early
    assert metrics["video/max_time_deviation_s"] == 2.0


def test_the_key_is_the_content_never_the_name(model, decodes):
    """Fault: a cache keyed by file name gives one video's embeddings to another."""
    source = VideoSource(model, CONFIG, Phases())
    first, other = source.tokens(ref("x.mp4", "one")), source.tokens(ref("x.mp4", "two"))
    assert not torch.equal(first.embeddings, other.embeddings)
    assert source.tokens(ref("renamed.mp4", "one")) is first


def test_full_memory_keeps_what_it_has_and_counts_misses(model, decodes):
    one = 8 * 64 * 4
    source = VideoSource(model, CONFIG, Phases(), memory_bytes=one + one // 2)
    first = source.tokens(ref("a"))
    for _ in range(3):
        assert source.tokens(ref("a")) is first
        source.tokens(ref("b"))
    assert decodes == ["digest of a"] + ["digest of b"] * 3
    assert source.bytes_held == one
    assert source.metrics()["video/hits"] == 3


def test_damaged_video_raises_each_time_and_nothing_stands_in(model, decodes):
    """Fault: a video that fails to decode becomes black frames or another sample's video."""
    source = VideoSource(model, CONFIG, Phases())
    source.tokens(ref("a"))
    for _ in range(2):
        with pytest.raises(VideoError, match="damaged"):
            source.tokens(ref("damaged.mp4"))
    assert source.metrics()["video/failed"] == 2
    assert source.metrics()["video/encoded"] == 1


def test_seconds_are_charged_to_decode_and_encode(model, decodes):
    phases = Phases()
    VideoSource(model, CONFIG, phases).tokens(ref("a"))
    assert set(phases.seconds) == {"decode", "encode"}
    with pytest.raises(VideoError):
        VideoSource(model, CONFIG, phases).tokens(ref("damaged.mp4"))
    with phases("another"):
        pass  # the phase was closed by the error


def test_trained_tower_keeps_frames_and_serves_nothing_stale(tmp_path, decodes):
    model = random_tiny(tmp_path, train_vision=True)
    source = VideoSource(model, CONFIG, Phases())
    before = source.tokens(ref("a"))
    assert source.tokens(ref("a")) is before
    weight = model.hf.model.visual.blocks[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.mul_(1.5)
    model.weights_version += 1
    after = source.tokens(ref("a"))
    assert not torch.equal(before.embeddings, after.embeddings)
    assert before.digest != after.digest
    assert source.tokens(ref("a")) is after
    assert decodes == ["digest of a"]  # the frames were kept
    assert source.metrics()["video/encoded"] == 2
    assert source.bytes_held == 4 * 56 * 56 * 3 + after.embeddings.nbytes


def test_update_without_a_new_version_is_noticed_too(tmp_path, decodes):
    model = random_tiny(tmp_path, train_vision=True)
    source = VideoSource(model, CONFIG, Phases())
    before = source.tokens(ref("a"))
    with torch.no_grad():
        model.hf.model.visual.merger.mlp[0].weight.mul_(1.5)
    assert not torch.equal(source.tokens(ref("a")).embeddings, before.embeddings)


def test_gradients_are_fresh_and_never_kept(tmp_path, decodes):
    model = random_tiny(tmp_path, train_vision=True)
    source = VideoSource(model, CONFIG, Phases())
    kept = source.tokens(ref("a"))
    graph = source.tokens(ref("a"), gradients=True)
    assert graph.embeddings.requires_grad and not kept.embeddings.requires_grad
    assert graph.digest == kept.digest
    torch.testing.assert_close(graph.embeddings.detach(), kept.embeddings, rtol=0, atol=1e-6)
    assert source.tokens(ref("a"), gradients=True) is not graph
    assert source.tokens(ref("a")) is kept


def test_real_file(model, tmp_path):
    """The real decoder: a file of 40 frames at 4 a second, 4 of them chosen at the middles of quarters."""
    from longtake.video.encode import VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, width=64, height=64, gop=10, fps=4) as writer:
        for index in range(40):
            writer.write(np.full((64, 64, 3), 6 * index, dtype=np.uint8), index / 4)
    source = VideoSource(model, CONFIG, Phases())
    tokens = source.tokens(VideoRef(path, file_digest(path)))
    assert tokens.grid[0] == 2
    assert tokens.seconds_per_grid == pytest.approx(5.0, abs=0.5)
    assert len(tokens.embeddings) == model.num_video_tokens(tokens.grid)
    assert source.metrics()["video/decoded"] == 1
    other = VideoSource(model, VideoConfig(max_frames=2, max_pixels_per_frame=56 * 56), Phases())
    assert other.tokens(VideoRef(path, file_digest(path))).digest != tokens.digest


@pytest.mark.parametrize(("budget", "num_reduced"), [(2, 1), (8, 0)])
def test_a_video_that_the_token_budget_shrinks_is_counted(model, tmp_path, budget, num_reduced):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 64, gop=4) as writer:
        for index in range(8):
            writer.write(np.full((64, 64, 3), 20 * index, np.uint8), index / 2)
    config = VideoConfig(max_frames=4, max_pixels_per_frame=56 * 56, max_video_tokens=budget)
    source = VideoSource(model, config, Phases())
    assert len(source.tokens(VideoRef(path, "a")).embeddings) == budget
    assert source.metrics()["video/reduced"] == num_reduced
