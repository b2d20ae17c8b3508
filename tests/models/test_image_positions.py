"""Images in the model: positions by hand and as transformers has them (it is right for images), tokens bit for bit the family's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from longtake.config.sections import VideoConfig
from longtake.errors import ModelError
from longtake.models.positions import media_spans, mrope_positions
from longtake.testing.takes import media_shape
from longtake.types import VideoRef
from longtake.video.image import load_image

V, P, T = 9, 8, 1  # the placeholders of videos and of pictures, a text token
PLACEHOLDERS = {"video": V, "image": P}


def positions(ids, *media):
    found, following = mrope_positions(ids, media, placeholder_ids=PLACEHOLDERS, merge=2, tokens_per_second=2.0)
    return found.tolist(), following


def image(rows, columns):
    return media_shape((1, rows, columns), 0.0, "image")


def test_an_image_between_texts():
    # 4 x 6 patches = 2 x 3 tokens from position 1: time 1, rows 1..2, columns 1..3; the text goes on at 4
    found, following = positions([T] + [P] * 6 + [T], image(4, 6))
    assert found == [[0] + [1] * 6 + [4], [0, 1, 1, 1, 2, 2, 2, 4], [0] + [1, 2, 3] * 2 + [4]]
    assert following == 5


def test_two_videos_an_image_and_text_by_hand():
    """Text 0; A of 2 groups x 1 x 1 token, 1 s apart, from 1: times 1, 3; text 4; B of 1 group x 2 x 1 from 5: rows 5, 6; text 7;
    an image of 1 x 3 tokens from 8: columns 8, 9, 10; text 11."""
    ids = [T, V, V, T, V, V, T, P, P, P, T]
    found, following = positions(ids, media_shape((2, 2, 2)), media_shape((1, 4, 2), 5.0), image(2, 6))
    assert found[0] == [0, 1, 3, 4, 5, 5, 7, 8, 8, 8, 11]
    assert found[1] == [0, 1, 1, 4, 5, 6, 7, 8, 8, 8, 11]
    assert found[2] == [0, 1, 1, 4, 5, 5, 7, 8, 9, 10, 11]
    assert following == 12


@pytest.mark.parametrize(
    ("ids", "media"),
    [
        ([T, P, P, T], [media_shape((1, 2, 4))]),  # an image's placeholders for a video
        ([T, V, V, T], [image(2, 4)]),
        ([V, P], [image(2, 2), media_shape((1, 2, 2))]),  # the right ones in the wrong order
        ([T, P, P, P], [image(2, 4)]),
        ([T, P], []),
    ],
)
def test_placeholders_of_another_kind_are_refused(ids, media):
    with pytest.raises(ModelError, match="placeholders for media of"):
        positions(ids, *media)


def test_neighbours_of_two_kinds_are_two_runs():
    assert media_spans([V, V, P, V], [media_shape((2, 2, 2)), image(2, 2), media_shape((1, 2, 2))], PLACEHOLDERS, 2) == [
        (0, 2),
        (2, 3),
        (3, 4),
    ]


@pytest.mark.parametrize("sizes", [[(4, 6)], [(2, 8), (6, 4)], [(10, 2), (2, 2), (4, 4)]])
def test_agrees_with_transformers_on_images(tiny, sizes):
    """Text, images, text: unlike after a video, its text goes on where the published rule says."""
    pad = tiny.placeholder_ids["image"]
    ids = [5]
    for rows, columns in sizes:
        ids += [6, *[pad] * (rows * columns // 4), 7]
    ours, following = tiny.position_ids(ids, [image(rows, columns) for rows, columns in sizes])
    token_ids = torch.tensor([ids])
    kinds = (token_ids == pad).int()
    theirs, _ = tiny.hf.model.get_rope_index(token_ids, kinds, image_grid_thw=torch.tensor([[1, *size] for size in sizes]))
    assert torch.equal(ours, theirs[:, 0]) and following == int(theirs.max()) + 1


def test_embeddings_are_the_familys_own_bit_for_bit(tiny, tmp_path: Path):
    """The family's image processor on the picture at its final size, then its own get_image_features."""
    pixels = np.random.default_rng(0).integers(0, 256, (211, 333, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    config = VideoConfig(max_pixels_per_frame=112 * 112)
    frames = load_image(VideoRef(tmp_path / "a.png", "a", kind="image"), config, tiny.patch_multiple, tiny.temporal_patch)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112})
    resized = Image.fromarray(frames.pixels[0])
    given = processor(images=[resized], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        theirs = tiny.hf.get_image_features(given["pixel_values"], given["image_grid_thw"]).pooler_output[0]
    ours = tiny.encode(frames, 4)
    assert torch.equal(ours.embeddings, theirs)
    assert list(ours.grid) == given["image_grid_thw"][0].tolist() and ours.kind == "image"
    # Resizing: they resize as tensors, we in Pillow. Measured: one of 255 levels at most, that is 0.015 of values with a deviation of 0.38.
    whole = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    assert whole["image_grid_thw"].tolist() == given["image_grid_thw"].tolist()
    assert (whole["pixel_values"] - given["pixel_values"]).abs().max() < 0.016
    assert given["pixel_values"].std() > 0.3


def test_the_same_pixels_as_a_video_have_another_digest(tiny, noise):
    video = noise(num=2, height=28, width=28)
    still = replace(video, sampling=replace(video.sampling, strategy="still"))
    a, b = tiny.encode(video, 4), tiny.encode(still, 4)
    assert (a.kind, b.kind) == ("video", "image") and a.digest != b.digest
    assert torch.equal(a.embeddings, b.embeddings)


def test_embedding_wants_each_kind_on_its_own_placeholders(tiny, noise):
    frames = noise(num=2, height=28, width=56)
    video = tiny.encode(frames, 4)
    picture = replace(video, kind="image")
    v, p = tiny.placeholder_ids["video"], tiny.placeholder_ids["image"]
    ids = torch.tensor([[5, v, v, 6, p, p, 7]])
    embeds = tiny.embed(ids, [(0, 1, video), (0, 4, picture)])
    assert torch.equal(embeds[0, 1:3], video.embeddings) and torch.equal(embeds[0, 4:6], video.embeddings)
    for wrong in ([(0, 1, picture), (0, 4, video)], [(0, 1, video)], [(0, 4, picture)], [(0, 1, video), (0, 4, video)]):
        with pytest.raises(ModelError, match="do not lie exactly on their placeholders"):
            tiny.embed(ids, wrong)


def test_image_placeholders_can_never_be_sampled(tiny):
    assert set(tiny.placeholder_ids.values()) <= set(tiny.banned_ids.tolist())
