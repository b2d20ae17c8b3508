"""Packed groups against one padded row per take with the model's own attention: log-probs, loss, every parameter's gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.errors import ModelError
from longtake.parallel import attention
from longtake.parallel.attention import PREFIX, LocalAttention, packed_hidden
from longtake.parallel.packed import pack_groups, pack_rows
from longtake.testing.models import random_tiny
from longtake.testing.packed import RandomGroups, gradients, joined, random_groups, row_by_row, weighted_loss, worst_relative
from longtake.testing.takes import distributions_slowly, random_prompt
from longtake.training.packed_policy import packed_logprobs, score_groups
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import PackedGroup

TWO_VIDEOS = ((4, 2, 4), (5, 4, 4))
SHAPES = {
    "text": [(12, (), (6, 1, 9))],
    "two_videos": [(14, TWO_VIDEOS, (6, 0, 9, 3))],
    "several": [(9, (), (4, 4)), (12, ((4, 4, 4),), (7, 1)), (15, TWO_VIDEOS, (2,))],
    "empty_takes": [(9, (), (0, 0)), (8, ((3, 2, 6),), (3,))],
    "one_take": [(10, ((4, 4, 4),), (8,))],
    "images": [(10, ((4, 6),), (5, 2)), (16, ((4, 4, 4), (2, 6), (2, 2)), (3, 0, 8)), (9, (), (4,))],
}
# Measured: fp64 5e-16 (log-probs, -6 on average) and 6e-15 (gradients, relative to the largest of each tensor); fp32 2.4e-7 and 3.2e-6.
EXACT, SINGLE = 1e-10, 1e-5


def scored(model, groups: RandomGroups, temperature: float = 1.0, max_tokens: int | None = None):
    """Log-probs, entropies, gradients by the packed path."""
    found = []
    score_groups(model, groups.prompts, groups.responses, temperature, weighted_loss(groups, found), max_tokens=max_tokens)
    return *joined(found, groups.weights), gradients(model)


def wanted_of(model, groups: RandomGroups, temperature: float = 1.0):
    logprobs, entropy = row_by_row(model, groups, temperature)
    (logprobs * groups.weights).sum().backward()
    return logprobs.detach(), entropy, gradients(model)


def relative(found, wanted) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def assert_same(found, wanted, tolerance: float) -> None:
    assert relative(found[0], wanted[0]) < tolerance and relative(found[1], wanted[1]) < tolerance
    assert len(wanted[2]) > 20 and worst_relative(found[2], wanted[2]) < tolerance


@pytest.mark.parametrize("name", SHAPES)
def test_groups_equal_rows_in_float64(exact_model, name):
    groups = random_groups(exact_model, SHAPES[name])
    assert_same(scored(exact_model, groups, 0.8), wanted_of(exact_model, groups, 0.8), EXACT)


@pytest.mark.parametrize("name", SHAPES)
def test_groups_equal_rows_in_float32(model, name):
    groups = random_groups(model, SHAPES[name])
    assert_same(scored(model, groups), wanted_of(model, groups), SINGLE)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_rows_equal_padded_rows(exact_model, name):
    """Nothing shared, the same path."""
    groups = random_groups(exact_model, SHAPES[name])
    prompts = [prompt for prompt, takes in zip(groups.prompts, groups.responses, strict=True) for _ in takes]
    packed = pack_rows(prompts, [take for takes in groups.responses for take in takes], exact_model.device)
    logprobs, entropy = packed_logprobs(exact_model, packed, 1.0)
    (logprobs * groups.weights).sum().backward()
    assert_same((logprobs.detach(), entropy, gradients(exact_model)), wanted_of(exact_model, groups), EXACT)


def test_all_logits_equal_those_of_single_rows(exact_model):
    """The whole distribution at each place, not only the token that was said."""
    groups = random_groups(exact_model, SHAPES["several"])
    packed = pack_groups(groups.prompts, groups.responses, exact_model.device)
    embeds = exact_model.embed(packed.token_ids[None], packed.videos)
    with torch.no_grad():
        hidden = packed_hidden(exact_model, embeds, packed.position_ids, LocalAttention(packed.groups, exact_model.device))[0]
        logits = exact_model.head(hidden[packed.predictor_index]).index_fill(-1, exact_model.banned_ids, float("-inf"))
        number = 0
        for prompt, takes in zip(groups.prompts, groups.responses, strict=True):
            for take in takes:
                slow = distributions_slowly(exact_model, prompt, take)
                mine = logits[number, : len(take)].log_softmax(-1)
                allowed = slow.isfinite()
                assert (mine - slow)[allowed].abs().max() < 1e-11  # measured 1e-14; log-probs reach -40
                number += 1


one_group = st.tuples(st.integers(5, 25), st.sampled_from([(), ((2, 4, 4),)]), st.lists(st.integers(0, 20), min_size=1, max_size=4))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.lists(one_group, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_any_lengths(exact_model, shapes, seed):
    groups = random_groups(exact_model, [(text, grids, tuple(takes)) for text, grids, takes in shapes], seed)
    if sum(len(take) for takes in groups.responses for take in takes):
        assert_same(scored(exact_model, groups), wanted_of(exact_model, groups), EXACT)


@pytest.mark.parametrize("fault", ["predictor", "positions", "positions_of_a_take", "video", "other_prompt", "all_one_row", "blind_takes"])
def test_a_wrong_layout_shows(exact_model, fault):
    """Negative control: each moves log-probs and gradients by more than 1e-3, seven orders over the tolerance."""
    groups = random_groups(exact_model, SHAPES["several"])
    logprobs, _, right = wanted_of(exact_model, groups)
    packed = pack_groups(groups.prompts, groups.responses, exact_model.device)
    first, *others = packed.groups
    if fault == "predictor":
        packed = replace(packed, predictor_index=packed.predictor_index + packed.response_mask)
    elif fault == "positions":  # takes go on where the take before ended
        packed = replace(packed, position_ids=torch.arange(packed.num_tokens).expand(3, -1))
    elif fault == "positions_of_a_take":  # FACTS 6.1: restart at 1
        moved = packed.position_ids.clone()
        moved[:, 9:13] = torch.arange(1, 5)
        packed = replace(packed, position_ids=moved)
    elif fault == "video":
        row, start, tokens = packed.videos[0]
        packed = replace(packed, videos=((row, start, replace(tokens, embeddings=tokens.embeddings.flip(0))), *packed.videos[1:]))
    elif fault == "other_prompt":  # a take's token counted as one of its prompt
        packed = replace(packed, groups=(PackedGroup(10, (3, 4)), *others))
    elif fault == "all_one_row":
        packed = replace(packed, groups=(PackedGroup(packed.num_tokens, ()),))
    else:
        packed = replace(packed, groups=(PackedGroup(9, ()), PackedGroup(4, ()), PackedGroup(4, ()), *others))
    assert first == PackedGroup(9, (4, 4))
    wrong, _ = packed_logprobs(exact_model, packed, 1.0)
    (wrong * groups.weights).sum().backward()
    assert (wrong - logprobs).abs().max() > 1e-3
    assert worst_relative(gradients(exact_model), right) > 1e-3


def test_a_trained_towers_gradient_reaches_its_embeddings(exact_model):
    """Each video token's gradient: the sum over all takes, once."""
    groups = random_groups(exact_model, SHAPES["two_videos"])
    embeddings = [span.tokens.embeddings.requires_grad_() for span in groups.prompts[0].spans]
    found = []
    for compute in (scored, wanted_of):
        compute(exact_model, groups)
        found.append([part.grad.clone() for part in embeddings])
        for part in embeddings:
            part.grad = None
    assert max(relative(mine, theirs) for mine, theirs in zip(*found, strict=True)) < EXACT


def test_gradient_checkpointing_finds_the_strategy_again(exact_model, monkeypatch):
    choose_trainable(exact_model, ModelConfig(gradient_checkpointing=True))
    groups = random_groups(exact_model, SHAPES["several"])
    calls = []
    honest = LocalAttention.attend
    monkeypatch.setattr(
        LocalAttention, "attend", lambda self, *given, **named: calls.append(named["layer"]) or honest(self, *given, **named)
    )
    plain = scored(exact_model, groups)
    assert calls == [0, 1, 2]
    with training_mode(exact_model):
        again = scored(exact_model, groups)
    assert calls == [0, 1, 2, 0, 1, 2, 2, 1, 0]  # once more each, in backward
    assert_same(again, plain, EXACT)


def test_putting_the_attention_back_before_backward_shows(exact_model):
    """Negative control of the above, and why the name stays: layers run anew would use the plain attention."""
    choose_trainable(exact_model, ModelConfig(gradient_checkpointing=True))
    groups = random_groups(exact_model, SHAPES["several"])
    right = wanted_of(exact_model, groups)[2]
    packed = pack_groups(groups.prompts, groups.responses, exact_model.device)
    with training_mode(exact_model):
        logprobs, _ = packed_logprobs(exact_model, packed, 1.0)
        exact_model.hf.config.get_text_config()._attn_implementation = "sdpa"
        try:
            (logprobs * groups.weights).sum().backward()
        except torch.utils.checkpoint.CheckpointError:
            return
    assert worst_relative(gradients(exact_model), right) > 1e-3


def test_adapters_alone_train(exact_model):
    """Frozen keys and values in the first layer."""
    parameters = choose_trainable(exact_model, ModelConfig(lora=LoraConfig(rank=2, target_modules=("q_proj", "down_proj"))))
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    groups = random_groups(exact_model, SHAPES["two_videos"])
    wanted = wanted_of(exact_model, groups)
    assert len(wanted[2]) == len(parameters) == 12
    for max_tokens in (None, 1):
        found = scored(exact_model, groups, max_tokens=max_tokens)
        assert relative(found[0], wanted[0]) < EXACT and worst_relative(found[2], wanted[2]) < 1e-6  # adapters are float32


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_other_forwards_are_not_touched(tmp_path, kind):
    """Padded rows with a mask, before and after the first packed forward: the same bits."""
    model = random_tiny(tmp_path, attention=kind)
    prompt = random_prompt(model, 12, ((2, 4, 4),))
    embeds = model.embed(prompt.token_ids[None].repeat(2, 1), [(row, span.start, span.tokens) for row in (0, 1) for span in prompt.spans])
    positions = prompt.position_ids[:, None].repeat(1, 2, 1)
    mask = torch.ones(2, embeds.shape[1], dtype=torch.int64)
    mask[1, :4] = 0
    with torch.no_grad():
        before = [model.decoder(embeds, positions, given, None) for given in (mask, None)]
        packed_logprobs(model, pack_groups([prompt], [[torch.tensor([5, 6])]], model.device), 1.0)
        after = [model.decoder(embeds, positions, given, None) for given in (mask, None)]
    assert model.hf.config.get_text_config()._attn_implementation == PREFIX + kind
    assert model.hf.config.vision_config._attn_implementation == kind
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not torch.equal(*before)


def test_what_would_be_ignored_is_refused(model):
    groups = random_groups(model, SHAPES["text"])
    packed = pack_groups(groups.prompts, groups.responses, model.device)
    embeds, local = model.embed(packed.token_ids[None], ()), LocalAttention(packed.groups, model.device)
    layer = model.hf.model.language_model.layers[1].self_attn
    packed_logprobs(model, packed, 1.0)
    with pytest.raises(ModelError, match="attention with a mask"):  # made where nobody said that none is wanted
        model.decoder(embeds, packed.position_ids[:, None], torch.arange(packed.num_tokens)[None] > 0, None, packed=local)
    with pytest.raises(ModelError, match="2 rows"):
        model.decoder(embeds.repeat(2, 1, 1), packed.position_ids[:, None].repeat(1, 2, 1), None, None, packed=local)
    layer.sliding_window = 8
    with pytest.raises(ModelError, match="sliding_window"):
        packed_logprobs(model, packed, 1.0)
    layer.sliding_window, layer.attention_dropout = None, 0.1
    packed_logprobs(model, packed, 1.0)
    model.hf.train()
    with pytest.raises(ModelError, match="dropout"):
        packed_logprobs(model, packed, 1.0)


def test_an_attention_that_cannot_be_replaced_is_refused(model):
    model.hf.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="flash_attention_2 attention"):
        attention.install(model)
