"""The tower: exact in chunks, equal to the family's own path, and a digest that tells everything that made the embeddings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from longtake.errors import ModelError
from longtake.testing.models import random_tiny


@pytest.mark.parametrize("size", [(56, 84), (140, 196), (28, 28), (112, 28)])  # 140 x 196: several attention windows, cut ones too
def test_chunks_equal_the_whole(tiny, noise, size):
    frames = noise(12, *size)
    whole = tiny.encode(frames, 64)
    for groups in (1, 2, 4, 5):
        chunked = tiny.encode(frames, groups)
        # measured 0 to 1.4e-6 (other shapes of the matrix products); their spread is 0.85
        torch.testing.assert_close(chunked.embeddings, whole.embeddings, rtol=0, atol=1e-5)
    assert whole.grid == (6, size[0] // 14, size[1] // 14)
    assert len(whole.embeddings) == tiny.num_video_tokens(whole.grid) == 6 * size[0] * size[1] // 28**2
    assert whole.embeddings.std() > 0.1


def test_chunks_cut_inside_a_temporal_group_would_not(tiny, noise):
    """Negative control: cut one frame off the border and the embeddings change by as much as they are large."""
    frames = noise(8)
    shifted = dataclasses.replace(frames, pixels=np.roll(frames.pixels, 1, axis=0))
    difference = (tiny.encode(frames, 1).embeddings - tiny.encode(shifted, 1).embeddings).abs().max()
    assert difference > 0.1


def test_a_video_does_not_depend_on_what_follows_it(tiny, noise):
    """Groups are independent: the first two of a long video are those of its first four frames, in the same chunks bit for bit."""
    frames = noise(12)
    start = dataclasses.replace(frames, pixels=frames.pixels[:4], times_s=frames.times_s[:4])
    assert torch.equal(tiny.encode(frames, 2).embeddings[:12], tiny.encode(start, 2).embeddings)


def test_odd_last_frame_is_repeated(tiny, noise):
    odd = noise(5)
    even = dataclasses.replace(odd, pixels=np.concatenate([odd.pixels, odd.pixels[-1:]]), times_s=np.append(odd.times_s, 2.0))
    assert tiny.encode(odd, 2).grid == (3, 4, 6)
    assert torch.equal(tiny.encode(odd, 2).embeddings, tiny.encode(even, 2).embeddings)


def test_one_frame(tiny, noise):
    tokens = tiny.encode(noise(1), 64)
    assert tokens.grid == (1, 4, 6)
    assert tokens.embeddings.isfinite().all()


def test_equal_to_the_familys_own_path(tiny, noise):
    """transformers' processor with its own settings except the resize, then get_video_features."""
    frames = noise(6, 140, 196)
    batch = tiny._video_processor(
        videos=[frames.pixels], do_resize=False, do_sample_frames=False, return_tensors="pt", input_data_format="channels_last"
    )
    assert batch["video_grid_thw"].tolist() == [[3, 10, 14]]
    with torch.no_grad():
        theirs = tiny.hf.model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"]).pooler_output[0]
    torch.testing.assert_close(tiny.encode(frames, 64).embeddings, theirs, rtol=0, atol=1e-5)  # measured 0


def test_seconds_per_grid_are_mean_spacing_times_patch(tiny, noise):
    assert tiny.encode(noise(8, spacing_s=0.35), 64).seconds_per_grid == float(np.float32(0.7))


def test_gradients_only_on_request(tmp_path, noise):
    model = random_tiny(tmp_path, train_vision=True)
    assert not model.encode(noise(), 2).embeddings.requires_grad
    model.encode(noise(), 2, gradients=True).embeddings.square().sum().backward()
    gradients = [parameter.grad for parameter in model.hf.model.visual.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_frozen_tower_has_no_gradients(tiny):
    assert not any(parameter.requires_grad for parameter in tiny.hf.model.visual.parameters())
    assert all(parameter.requires_grad for parameter in tiny.hf.model.language_model.parameters())


@pytest.mark.parametrize("size", [(56, 85), (50, 84), (0, 28)])
def test_sides_that_are_no_multiples_are_refused(tiny, noise, size):
    with pytest.raises(ModelError, match="multiples of 28"):
        tiny.encode(noise(4, *size), 2)


def test_digest_tells_source_times_size_sampling_and_chunks(tiny, noise):
    frames = noise(8)
    base = tiny.encode(frames, 2).digest
    assert tiny.encode(noise(8), 2).digest == base
    changed = [
        noise(8, digest="another source"),
        noise(8, spacing_s=0.25),
        noise(6),
        noise(8, 84, 56),
        dataclasses.replace(frames, sampling=dataclasses.replace(frames.sampling, resize="bicubic")),
        dataclasses.replace(frames, sampling=dataclasses.replace(frames.sampling, strategy="fps")),
    ]
    digests = [tiny.encode(other, 2).digest for other in changed] + [tiny.encode(frames, 4).digest, base]
    assert len(set(digests)) == len(digests)


def test_digest_tells_weights_dtype_and_processor(tmp_path, noise):
    model, other = random_tiny(tmp_path), random_tiny(tmp_path, seed=1)
    half, eager = random_tiny(tmp_path, dtype="bfloat16"), random_tiny(tmp_path, attention="eager")
    paler = random_tiny(tmp_path)
    paler._pixel_settings["image_mean"] = [0.5, 0.5, 0.5]
    digests = {each.encode(noise(), 2).digest for each in (model, other, half, eager, paler)}
    assert len(digests) == 5
    assert model.encode(noise(), 2).digest == random_tiny(tmp_path).encode(noise(), 2).digest


def test_tower_digest_follows_every_kind_of_change(tmp_path):
    model = random_tiny(tmp_path, train_vision=True)
    weight = model.hf.model.visual.blocks[0].mlp.up_proj.weight
    seen = [model.tower_digest()]
    with torch.no_grad():
        weight.add_(1e-3)
    seen.append(model.tower_digest())
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1e-3).step()
    seen.append(model.tower_digest())
    model.hf.model.visual.load_state_dict({name: tensor + 1 for name, tensor in model.hf.model.visual.state_dict().items()})
    seen.append(model.tower_digest())
    assert len(set(seen)) == 4
    with torch.no_grad():
        model.hf.model.language_model.norm.weight.add_(1)
    assert model.tower_digest() == seen[-1]  # the tower only


def test_bfloat16_tower(tmp_path, noise):
    half, full = random_tiny(tmp_path, dtype="bfloat16").encode(noise(), 2), random_tiny(tmp_path).encode(noise(), 2)
    assert half.embeddings.dtype == torch.bfloat16
    # bfloat16 has 8 bits: 0.4 % per operation over ~20 of them; measured 0.007 of the spread
    assert (half.embeddings.float() - full.embeddings).std() < 0.03 * full.embeddings.std()
