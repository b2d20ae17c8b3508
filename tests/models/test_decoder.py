"""The language model alone: explicit positions, padding and caches change nothing; a wrong position changes everything."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from longtake.errors import ModelError
from longtake.testing.models import norm_in_own_dtype, random_tiny

TOLERANCE = 1e-5
"""fp32, relative to the largest logit (3.0); measured 2e-7 to 5e-7."""


def prompt(model, noise, num_frames=8, tail=6, seed=0):
    """Token ids [T], positions [3, T] and the video of a prompt: 3 text tokens, the video, `tail` text tokens."""
    video = model.encode(noise(num_frames, seed=seed), 4)
    ids = [10, 11, 12] + [model.placeholder_ids["video"]] * len(video.embeddings) + list(range(20, 20 + tail))
    positions, _ = model.position_ids(ids, [video])
    return torch.tensor(ids), positions, video


def logits_alone(model, ids, positions, video):
    with torch.no_grad():
        embeds = model.embed(ids[None], [(0, 3, video)])
        return model.head(model.decoder(embeds, positions[:, None], None, None))[0]


def relative(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def test_equal_to_transformers_own_forward(tiny, noise):
    """Pixels and ids through the whole model with our positions = encode, embed, decoder, head."""
    ids, positions, video = prompt(tiny, noise)
    frames = noise(8)
    batch = tiny._video_processor(videos=[frames.pixels], return_tensors="pt", **tiny._pixel_settings)
    with torch.no_grad():
        theirs = tiny.hf(
            input_ids=ids[None],
            pixel_values_videos=batch["pixel_values_videos"],
            video_grid_thw=batch["video_grid_thw"],
            position_ids=positions[:, None],
        ).logits[0]
    assert relative(logits_alone(tiny, ids, positions, video), theirs) < TOLERANCE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_rows_equal_rows_alone(tmp_path, noise, side, attention):
    model = random_tiny(tmp_path, attention=attention)
    rows = [prompt(model, noise, frames, tail, seed) for seed, (frames, tail) in enumerate([(8, 6), (4, 9), (2, 1)])]
    longest = max(len(ids) for ids, _, _ in rows)
    token_ids = torch.full((3, longest), model.pad_id)
    position_ids = torch.zeros(3, 3, longest, dtype=torch.int64)
    mask = torch.zeros(3, longest, dtype=torch.int64)
    videos = []
    for row, (ids, positions, video) in enumerate(rows):
        start = 0 if side == "right" else longest - len(ids)
        token_ids[row, start : start + len(ids)] = ids
        position_ids[:, row, start : start + len(ids)] = positions
        mask[row, start : start + len(ids)] = 1
        videos.append((row, start + 3, video))
    with torch.no_grad():
        logits = model.head(model.decoder(model.embed(token_ids, videos), position_ids, mask, None))
    assert logits.isfinite().all()  # a padded query of a left-padded row attends to nothing
    for row, (ids, positions, video) in enumerate(rows):
        found = logits[row][mask[row].bool()]
        assert relative(found, logits_alone(model, ids, positions, video)) < TOLERANCE


def test_left_padding_without_its_mask_is_seen(tiny, noise):
    """Negative control of the test above."""
    ids, positions, video = prompt(tiny, noise)
    padded = torch.cat([torch.full((4,), tiny.pad_id), ids])
    shifted = torch.cat([torch.zeros(3, 4, dtype=torch.int64), positions], dim=1)
    with torch.no_grad():
        logits = tiny.head(tiny.decoder(tiny.embed(padded[None], [(0, 7, video)]), shifted[:, None], None, None))[0, 4:]
    assert relative(logits, logits_alone(tiny, ids, positions, video)) > 1e-2


def incremental(model, ids, positions, video, cuts):
    """Logits when the row is fed piece by piece over a cache."""
    cache, pieces = DynamicCache(config=model.hf.config.text_config), []
    with torch.no_grad():
        embeds = model.embed(ids[None], [(0, 3, video)])
        for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            hidden = model.decoder(embeds[:, start:stop], positions[:, None, start:stop], None, cache)
            pieces.append(model.head(hidden)[0])
    return torch.cat(pieces)


@pytest.mark.parametrize("cuts", [[20], [1, 2, 3, 10], list(range(1, 33))])
def test_cache_equals_full_forward(tiny, noise, cuts):
    row = prompt(tiny, noise)
    assert len(row[0]) == 33
    assert relative(incremental(tiny, *row, cuts), logits_alone(tiny, *row)) < TOLERANCE


def test_cache_equals_full_forward_in_float64(tmp_path, noise):
    model = random_tiny(tmp_path, dtype="float64")
    row = prompt(model, noise)
    with norm_in_own_dtype(model):
        found, wanted = incremental(model, *row, [20, 25]), logits_alone(model, *row)
    assert wanted.dtype == torch.float64
    assert relative(found, wanted) < 1e-13  # measured 7e-16
    # the library's norm goes through float32: the fixture is needed, and it is undone
    assert 1e-9 < relative(logits_alone(model, *row), wanted) < 1e-4  # measured 1.4e-7


def test_padded_batch_with_a_cache(tiny, noise):
    """Left-padded prompts, then one token per row over the cache, with a mask that grows."""
    rows = [prompt(tiny, noise, 8, 6, 0), prompt(tiny, noise, 4, 3, 1)]
    longest = max(len(ids) for ids, _, _ in rows)
    wanted = [logits_alone(tiny, *row)[-1] for row in rows]
    token_ids, position_ids = torch.full((2, longest), tiny.pad_id), torch.zeros(3, 2, longest, dtype=torch.int64)
    mask, videos = torch.zeros(2, longest, dtype=torch.int64), []
    for row, (ids, positions, video) in enumerate(rows):
        start = longest - len(ids)
        token_ids[row, start:], position_ids[:, row, start:], mask[row, start:] = ids, positions, 1
        videos.append((row, start + 3, video))
    cache = DynamicCache(config=tiny.hf.config.text_config)
    with torch.no_grad():
        embeds = tiny.embed(token_ids, videos)
        tiny.decoder(embeds[:, :-1], position_ids[:, :, :-1], mask[:, :-1], cache)
        logits = tiny.head(tiny.decoder(embeds[:, -1:], position_ids[:, :, -1:], mask, cache))[:, 0]
    for found, alone in zip(logits, wanted, strict=True):
        assert relative(found, alone) < TOLERANCE


@pytest.mark.parametrize(("axis", "shift"), [(0, 3), (1, 300), (2, 20_000)])
def test_positions_are_used_on_each_axis(tiny, noise, axis, shift):
    """The family gives time the fast rotations and columns the slowest (1.8e-4 a position): a small shift of columns hardly shows."""
    ids, positions, video = prompt(tiny, noise)
    base = logits_alone(tiny, ids, positions, video)
    # rotary positions are relative: a shift of everything changes nothing (measured 4e-7), a shift of the video's axis does
    assert relative(logits_alone(tiny, ids, positions + 50, video), base) < TOLERANCE
    moved = positions.clone()
    moved[axis, 3 : 3 + len(video.embeddings)] += shift
    assert relative(logits_alone(tiny, ids, moved, video), base) > 1e-2


def test_gradients_reach_embeddings_and_layers(tmp_path, noise):
    model = random_tiny(tmp_path)
    ids, positions, video = prompt(model, noise)
    embeds = model.embed(ids[None], [(0, 3, video)])
    model.head(model.decoder(embeds, positions[:, None], None, None))[0, -1].log_softmax(-1)[7].backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.hf.named_parameters() if "visual" not in name)
    assert all(parameter.grad is None for parameter in model.hf.model.visual.parameters())


def test_gradients_reach_a_trained_tower_through_embed(tmp_path, noise):
    model = random_tiny(tmp_path, train_vision=True)
    model.hf.model.language_model.requires_grad_(False)
    video = model.encode(noise(4), 1, gradients=True)
    ids = torch.tensor([[10] + [model.placeholder_ids["video"]] * len(video.embeddings) + [11]] * 2)
    positions, _ = model.position_ids(ids[0].tolist(), [video])
    embeds = model.embed(ids, [(0, 1, video), (1, 1, video)])
    model.head(model.decoder(embeds, positions[:, None].expand(3, 2, -1), None, None))[:, -1].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.hf.model.visual.parameters())


def test_embed_puts_each_video_in_its_row(tiny, noise):
    first, second = tiny.encode(noise(2, seed=1), 1), tiny.encode(noise(2, seed=2), 1)
    pad = tiny.placeholder_ids["video"]
    ids = torch.tensor([[5] + [pad] * 6 + [6], [7, 8] + [pad] * 6])
    embeds = tiny.embed(ids, [(1, 2, first), (0, 1, second)])
    assert torch.equal(embeds[0, 1:7], second.embeddings)
    assert torch.equal(embeds[1, 2:], first.embeddings)
    assert torch.equal(embeds[1, 0], tiny.hf.model.language_model.embed_tokens.weight[7])


def test_embed_refuses_videos_off_their_placeholders(tiny, noise):
    video = tiny.encode(noise(2), 1)
    pad = tiny.placeholder_ids["video"]
    ids = torch.tensor([[5] + [pad] * 6 + [6]])
    for wrong in ([(0, 0, video)], [(0, 2, video)], []):
        with pytest.raises(ModelError, match="placeholder"):
            tiny.embed(ids, wrong)
    with pytest.raises(ModelError, match="placeholder"):
        tiny.embed(torch.full((1, 8), 5), [(0, 1, video)])


def test_position_axes_are_checked(tiny):
    embeds = tiny.embed(torch.tensor([[1, 2, 3]]), [])
    for wrong in (torch.zeros(4, 1, 3), torch.zeros(1, 1, 3), torch.zeros(3, 2, 3)):
        with pytest.raises(ValueError, match="position_ids"):
            tiny.decoder(embeds, wrong.long(), None, None)


def test_a_cache_that_would_be_dropped_is_refused(tmp_path):
    model = random_tiny(tmp_path)
    model.hf.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    embeds, positions = model.embed(torch.tensor([[1, 2, 3]]), []), torch.arange(3).expand(3, 1, 3)
    model.hf.train()
    with pytest.raises(ValueError, match="cache"):
        model.decoder(embeds, positions, None, DynamicCache())
    model.hf.eval()
    cache = DynamicCache()
    model.decoder(embeds, positions, None, cache)
    assert cache.get_seq_length() == 3
