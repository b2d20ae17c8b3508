"""What vLLM is given, without vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longtake.errors import MismatchError
from longtake.rollout.vllm_prompts import check_prompt_ids, collapsed_ids, content_key, engine_prompt, request_seed, video_key
from longtake.testing.takes import random_prompt


def test_each_video_is_one_placeholder_and_the_text_stays(model):
    prompt = random_prompt(model, 9, ((4, 2, 4), (5, 4, 4)), seed=1)
    ids = collapsed_ids(prompt, model.placeholder_ids)
    text = [token for token in prompt.token_ids.tolist() if token != model.placeholder_ids["video"]]
    assert [token for token in ids if token != model.placeholder_ids["video"]] == text
    assert [index for index, token in enumerate(ids) if token == model.placeholder_ids["video"]] == [2, 5]
    plain = random_prompt(model, 9, (), seed=1)
    assert engine_prompt(plain, model.placeholder_ids) == {"prompt_token_ids": plain.token_ids.tolist()}


def test_videos_travel_as_embeddings_with_grid_and_spacing(model):
    prompt = random_prompt(model, 9, ((4, 2, 4), (5, 4, 4)), seed=1)
    given = engine_prompt(prompt, model.placeholder_ids)
    video = given["multi_modal_data"]["video"]
    assert torch.equal(video["video_embeds"], torch.cat([span.tokens.embeddings for span in prompt.spans]))
    assert video["video_grid_thw"].tolist() == [[4, 2, 4], [5, 4, 4]]
    assert video["second_per_grid_ts"].tolist() == [1.0, 1.0]
    assert given["multi_modal_uuids"]["video"] == [video_key(span.tokens) for span in prompt.spans]


def test_images_travel_apart_from_videos_each_kind_in_its_order(model):
    prompt = random_prompt(model, 16, ((2, 6), (4, 2, 4), (4, 4), (5, 4, 4)), seed=1)
    image, video, other_image, other_video = (span.tokens for span in prompt.spans)
    given = engine_prompt(prompt, model.placeholder_ids)
    assert given["multi_modal_uuids"] == {
        "image": [video_key(image), video_key(other_image)],
        "video": [video_key(video), video_key(other_video)],
    }
    images = given["multi_modal_data"]["image"]
    assert images.keys() == {"image_embeds", "image_grid_thw"}
    assert torch.equal(images["image_embeds"], torch.cat([image.embeddings, other_image.embeddings]))
    assert images["image_grid_thw"].tolist() == [[1, 2, 6], [1, 4, 4]]
    assert given["multi_modal_data"]["video"]["video_grid_thw"].tolist() == [[4, 2, 4], [5, 4, 4]]
    placeholders = [token for token in given["prompt_token_ids"] if token in model.placeholder_ids.values()]
    assert placeholders == [model.placeholder_ids[kind] for kind in ("image", "video", "image", "video")]


def test_a_key_names_all_that_the_keys_and_values_of_a_video_depend_on(model):
    tokens = random_prompt(model, 9, ((4, 2, 4),), seed=1).spans[0].tokens
    others = [replace(tokens, digest="other"), replace(tokens, grid=(2, 4, 4)), replace(tokens, seconds_per_grid=2.0)]
    assert len({video_key(tokens), *map(video_key, others)}) == 4
    ours = content_key(tokens.embeddings, tokens.grid, tokens.seconds_per_grid)
    assert ours == content_key(tokens.embeddings.clone(), torch.tensor(tokens.grid).tolist(), 1.0)
    assert ours != content_key(tokens.embeddings.flip(0), tokens.grid, 1.0)


def test_another_prompt_than_ours_is_refused(model):
    prompt = random_prompt(model, 9, ((4, 2, 4),), seed=1)
    check_prompt_ids(prompt, prompt.token_ids.tolist())
    expanded_again = [*prompt.token_ids.tolist(), model.placeholder_ids["video"]]
    for answered in (None, [], expanded_again):
        with pytest.raises(MismatchError, match="vLLM answered a prompt"):
            check_prompt_ids(prompt, answered)


def test_seeds_leave_room_for_the_takes_and_differ_by_seed_step_and_key():
    seeds = {request_seed(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(seeds) == 4 and max(seeds) < 1 << 62
