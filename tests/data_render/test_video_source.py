"""Decoded once, encoded once, nothing stale, and a failure is a failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.config.sections import CacheConfig, VideoConfig
from longtake.data import videos
from longtake.data.embedding_cache import EmbeddingCache
from longtake.data.videos import VideoSource
from longtake.errors import VideoDamagedError, VideoError
from longtake.observe.digest import file_digest
from longtake.observe.timing import Phases
from longtake.parallel.chunks import VideoSize
from longtake.testing.models import random_tiny
from longtake.types import Frames, Sampling, VideoRef
from longtake.video.encode import VideoWriter
from longtake.video.index import DigestIndex

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

    def load_frames(ref, config, patch_multiple, temporal_patch, groups=None):
        groups = groups or (0, 2)
        calls.append(ref.digest)
        if "damaged" in ref.digest:
            raise VideoDamagedError(f"{ref.path.name} is damaged", rule="a video decodes", remedy="mend it")
        pixels = np.random.default_rng(list(ref.digest.encode())).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
        part = slice(2 * groups[0], 2 * groups[1])
        times_s = np.array([0.0, 1.0, 2.0, 6.0])[part]
        return Frames(pixels[part], times_s, ref.digest, Sampling(4, 56, 56, "uniform", "area"), 9)

    monkeypatch.setattr(videos, "load_frames", load_frames)
    monkeypatch.setattr(VideoSource, "_size", lambda self, ref: VideoSize(2, 4))
    return calls


def test_decoded_and_encoded_once(model, decodes):
    source = VideoSource(model, CONFIG, Phases())
    first, second = source.tokens(ref("a")), source.tokens(ref("b"))
    assert source.tokens(ref("a")) is first and source.tokens(ref("b")) is second
    assert decodes == ["digest of a", "digest of b"]
    metrics = source.metrics()
    wanted = {"cache/hits": 2, "cache/misses": 2, "video/decoded": 2, "video/encoded": 2, "video/failed": 0, "video/frames_decoded": 18}
    assert {name: metrics[name] for name in wanted} == wanted
    assert metrics["cache/memory_bytes"] == 2 * first.embeddings.nbytes == 2 * 8 * 64 * 4
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
    source = VideoSource(model, CONFIG, Phases(), EmbeddingCache(CacheConfig(memory_bytes=one + one // 2)))
    first = source.tokens(ref("a"))
    for _ in range(3):
        assert source.tokens(ref("a")) is first
        source.tokens(ref("b"))
    assert decodes == ["digest of a"] + ["digest of b"] * 3
    metrics = source.metrics()
    wanted = {"cache/hits": 3, "cache/misses": 4, "cache/refused": 3, "cache/memory_bytes": one}
    assert {name: metrics[name] for name in wanted} == wanted


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
    assert source.cache.memory_bytes == 4 * 56 * 56 * 3 + after.embeddings.nbytes


def test_update_without_a_new_version_is_noticed_too(tmp_path, decodes):
    model = random_tiny(tmp_path, train_vision=True)
    source = VideoSource(model, CONFIG, Phases())
    before = source.tokens(ref("a"))
    with torch.no_grad():
        model.hf.model.visual.merger.mlp[0].weight.mul_(1.5)
    assert not torch.equal(source.tokens(ref("a")).embeddings, before.embeddings)


def test_prepared_tokens_collect_gradients_that_reach_the_tower(tmp_path, decodes):
    """Encoded once for rollout and update; the gradient is that of plain autograd through the tower."""
    model = random_tiny(tmp_path, train_vision=True)
    source = VideoSource(model, CONFIG, Phases())
    source.prepare([ref("a"), ref("b")])
    tokens = source.tokens(ref("a"))
    assert source.tokens(ref("a")) is tokens and tokens.embeddings.requires_grad and tokens.embeddings.is_leaf
    (tokens.embeddings**2).sum().backward()
    source.backward()
    found = {name: weight.grad.clone() for name, weight in model.hf.model.visual.named_parameters()}
    model.hf.zero_grad()
    (model.encode(videos.load_frames(ref("a"), CONFIG, 28, 2), CONFIG.encode_groups, gradients=True).embeddings ** 2).sum().backward()
    for name, weight in model.hf.model.visual.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-5, atol=1e-6)
    assert source.metrics()["encode/groups"] == 2 * 2 + 2  # two videos of two groups, and the reference
    source.release()
    assert not source.tokens(ref("a")).embeddings.requires_grad


def test_prepared_again_after_an_update(tmp_path, decodes):
    model = random_tiny(tmp_path, train_vision=True)
    source = VideoSource(model, CONFIG, Phases())
    source.prepare([ref("a")])
    before = source.tokens(ref("a"))
    source.prepare([ref("a")])
    assert source.tokens(ref("a")) is before
    with torch.no_grad():
        model.hf.model.visual.merger.mlp[0].weight.mul_(1.5)
    source.prepare([ref("a")], again=True)
    assert not torch.equal(source.tokens(ref("a")).embeddings, before.embeddings)


def test_a_prepared_video_that_fails_is_an_error_of_its_tokens(tmp_path, decodes):
    source = VideoSource(random_tiny(tmp_path, train_vision=True), CONFIG, Phases())
    source.prepare([ref("damaged"), ref("a")])
    with pytest.raises(VideoDamagedError, match="damaged is damaged"):
        source.tokens(ref("damaged"))
    assert source.tokens(ref("a")).grid == (2, 4, 4)
    metrics = source.metrics()
    assert metrics["video/failed"] == 1 and metrics["video/encoded"] == 1


def test_frames_are_decoded_ahead_once(model, decodes):
    """By a thread, for whoever asks next; an error is told when its turn comes, and counted then."""
    source = VideoSource(model, CONFIG, Phases(), prefetch_bytes=1 << 20)
    source.tokens(ref("a"))
    source.prefetch([ref("a"), ref("b"), ref("damaged"), ref("c")])
    source._ahead._run.thread.join()
    assert decodes == [f"digest of {name}" for name in ("a", "b", "damaged", "c")]
    assert source.metrics()["video/failed"] == 0
    plain = VideoSource(model, CONFIG, Phases()).tokens(ref("b"))
    decodes.clear()
    assert torch.equal(source.tokens(ref("b")).embeddings, plain.embeddings) and source.tokens(ref("b")).digest == plain.digest
    with pytest.raises(VideoDamagedError):
        source.tokens(ref("damaged"))
    source.tokens(ref("c"))
    assert decodes == []
    metrics = source.metrics()
    assert metrics["video/prefetched"] == 2 and metrics["video/failed"] == 1 and metrics["video/decoded"] == 3
    source.close()


def test_no_more_is_decoded_ahead_than_the_budget(model, decodes):
    """Four frames of 56 x 56 are 37,632 bytes: one video, not two. The other is decoded when it is asked for."""
    source = VideoSource(model, CONFIG, Phases(), prefetch_bytes=2 * 37_632 - 1)
    source.prefetch([ref("a"), ref("b")])
    source._ahead._run.thread.join()
    assert decodes == ["digest of a"]
    for name in ("a", "b"):
        source.tokens(ref(name))
    assert decodes == ["digest of a", "digest of b"] and source.metrics()["video/prefetched"] == 1
    source.close()


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


def source_on(folder, model, config=CONFIG, **changes):
    """A source as a later process would make it."""
    return VideoSource(model, config, Phases(), EmbeddingCache(CacheConfig(folder=folder, **changes)))


def test_a_later_process_neither_decodes_nor_encodes(model, decodes, tmp_path):
    first = source_on(tmp_path, model)
    tokens = first.tokens(ref("a"))
    decodes.clear()
    before = model.groups_encoded
    second = source_on(tmp_path, model)
    again = second.tokens(ref("a"))
    assert decodes == [] and model.groups_encoded == before
    assert torch.equal(again.embeddings, tokens.embeddings)
    assert (again.grid, again.seconds_per_grid, again.digest) == (tokens.grid, tokens.seconds_per_grid, tokens.digest)
    metrics = second.metrics()
    wanted = {"cache/hits": 1, "cache/disk_hits": 1, "cache/misses": 0, "video/decoded": 0, "video/encoded": 0, "cache/memory_bytes": 0}
    assert {name: metrics[name] for name in wanted} == wanted
    assert metrics["video/max_time_deviation_s"] == 2.0  # known without decoding


OTHER_WAYS = {
    "frames": {"max_frames": 6},
    "rate": {"fps": 2.0},
    "pixels": {"max_pixels_per_frame": 84 * 84},
    "smallest": {"min_pixels_per_frame": 56 * 56},
    "tokens": {"max_video_tokens": 100},
    "overflow": {"overflow": "error"},
    "limits": {"limits": {"max_seconds": 3600.0}},
    "chunks": {"encode_groups": 1},
}


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_any_other_sampling_is_another_request(model, decodes, tmp_path, name):
    """What decides which frames are chosen, and whether a file is accepted at all, is asked anew."""
    source_on(tmp_path, model).tokens(ref("a"))
    decodes.clear()
    other = VideoConfig.model_validate({**CONFIG.model_dump(), **OTHER_WAYS[name]})
    source_on(tmp_path, model, other).tokens(ref("a"))
    assert decodes == ["digest of a"]
    source_on(tmp_path, model).tokens(ref("a"))
    assert decodes == ["digest of a"]  # and the first is still there


def test_any_other_model_or_decoder_is_another_request(decodes, tmp_path, monkeypatch):
    models = [random_tiny(tmp_path), random_tiny(tmp_path, seed=1), random_tiny(tmp_path, dtype="bfloat16")]
    models += [random_tiny(tmp_path, attention="eager")]
    found = [source_on(tmp_path / "cache", model).tokens(ref("a")) for model in models]
    assert len(decodes) == 4 and len({tokens.digest for tokens in found}) == 4
    monkeypatch.setattr(videos, "DECODER", "another version")
    source_on(tmp_path / "cache", models[0]).tokens(ref("a"))
    assert len(decodes) == 5


def test_another_sampling_that_chose_the_same_frames_is_not_encoded_again(model, decodes, tmp_path):
    """40 frames asked of a file that has 4: the request differs, the tokens are the same."""
    tokens = source_on(tmp_path, model).tokens(ref("a"))
    other = source_on(tmp_path, model, CONFIG.model_copy(update={"max_frames": 40}))
    assert torch.equal(other.tokens(ref("a")).embeddings, tokens.embeddings)
    assert {name: other.metrics()[f"video/{name}"] for name in ("decoded", "encoded")} == {"decoded": 1, "encoded": 0}
    later = source_on(tmp_path, model, CONFIG.model_copy(update={"max_frames": 40}))
    later.tokens(ref("a"))
    assert later.metrics()["video/decoded"] == 0


def test_a_damaged_file_is_encoded_again_and_right(model, decodes, tmp_path):
    embeddings = source_on(tmp_path, model).tokens(ref("a")).embeddings.clone()  # those served are the file itself
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"abc")
    source = source_on(tmp_path, model)
    assert torch.equal(source.tokens(ref("a")).embeddings, embeddings)
    assert {name: source.metrics()[f"cache/{name}"] for name in ("damaged", "misses", "hits")} == {"damaged": 1, "misses": 1, "hits": 0}
    assert path.read_bytes()[-2048:] == whole[-2048:]


def test_a_trained_tower_leaves_nothing_on_disk_but_what_the_checkpoint_gives(decodes, tmp_path):
    """Two runs from one checkpoint come to different weights after as many updates: neither may see the other's embeddings."""
    folder = tmp_path / "cache"

    def trained(factor):
        model = random_tiny(tmp_path, train_vision=True, spread=1.0)
        source = source_on(folder, model)
        found = [source.tokens(ref("a"))]
        for update in (1, 2):
            with torch.no_grad():
                model.hf.model.visual.merger.mlp[0].weight.mul_(factor)
            model.weights_version = update
            found += [source.tokens(ref("a"))]
            assert source.tokens(ref("a")) is found[-1]
        return model, found

    first, one = trained(1.5)
    second, other = trained(3.0)
    assert (first.groups_encoded, second.groups_encoded) == (3 * 2, 2 * 2)  # the start is shared, through the folder
    assert torch.equal(one[0].embeddings, other[0].embeddings)
    assert not torch.equal(one[1].embeddings, other[1].embeddings) and not torch.equal(one[1].embeddings, one[2].embeddings)
    assert len(list(folder.rglob("*.safetensors"))) == 1
    exact = first.encode(videos.load_frames(ref("a"), CONFIG, 28, 2), CONFIG.encode_groups)
    assert torch.equal(one[2].embeddings, exact.embeddings) and one[2].digest == exact.digest


def test_two_sources_of_one_run_share_the_cache(tmp_path, decodes):
    model = random_tiny(tmp_path, train_vision=True)
    cache = EmbeddingCache()
    train, validation = (VideoSource(model, CONFIG, Phases(), cache) for _ in range(2))
    for update in range(3):
        with torch.no_grad():
            model.hf.model.visual.merger.mlp[0].weight.mul_(1.5)
        model.weights_version = update
        assert train.tokens(ref("a")) is validation.tokens(ref("a")) is train.tokens(ref("a"))
        assert model.groups_encoded == 2 * (update + 1)
    assert decodes == ["digest of a"]


def test_a_file_that_changed_after_its_digest_was_taken_is_refused(model, tmp_path):
    """Its embeddings would be kept under the digest of other bytes, for ever."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 64, 64, gop=4) as writer:
        for index in range(8):
            writer.write(np.full((64, 64, 3), 20 * index, np.uint8), index / 2)
    known = DigestIndex(None).ref(path)
    source = source_on(tmp_path / "cache", model)
    source.tokens(known)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(VideoDamagedError, match="changed after its digest was taken"):
        source_on(tmp_path / "another", model).tokens(known)
    assert list((tmp_path / "another").rglob("*.safetensors")) == []
