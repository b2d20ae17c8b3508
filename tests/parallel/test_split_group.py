"""A group in chunks: the prompt once forward and once backward, the result that of the whole group."""

from __future__ import annotations

import pytest
import torch

from longtake.config.sections import ModelConfig
from longtake.parallel import split
from longtake.parallel.split import HeldPrompt, PromptAttention, TakesAttention, split_takes
from longtake.testing.packed import gradients, joined, random_groups, row_by_row, weighted_loss, worst_relative
from longtake.training.packed_policy import score_groups
from longtake.training.trainable import choose_trainable, training_mode

SHAPES = {"text": (12, (), (6, 1, 9, 4)), "video": (9, ((4, 2, 4),), (5, 0, 7, 7)), "empty_first": (9, (), (0, 0, 6))}
EXACT = 1e-10  # measured 5e-15


def in_parts(model, groups, max_tokens):
    found = []
    score_groups(model, groups.prompts, groups.responses, 0.9, weighted_loss(groups, found), max_tokens=max_tokens)
    return found


def relative(found, wanted) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("room", [1, 11])
def test_chunks_equal_rows(exact_model, name, room, checkpointing):
    choose_trainable(exact_model, ModelConfig(gradient_checkpointing=checkpointing))
    groups = random_groups(exact_model, [SHAPES[name]])
    wanted, wanted_entropy = row_by_row(exact_model, groups, 0.9)
    (wanted * groups.weights).sum().backward()
    right = gradients(exact_model)
    with training_mode(exact_model):
        found = in_parts(exact_model, groups, len(groups.prompts[0].token_ids) + room)
    assert [take for part in found for take in part.takes] == list(range(groups.num_takes))
    assert len(found) > 1 or name == "empty_first"
    logprobs, entropy = joined(found, groups.weights)
    assert relative(logprobs, wanted.detach()) < EXACT and relative(entropy, wanted_entropy) < EXACT
    assert len(right) > 20 and worst_relative(gradients(exact_model), right) < EXACT


def test_the_prompt_goes_forward_once_and_backward_once(model, monkeypatch):
    calls = []

    def count(kind, name):
        honest = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, *given, **named: calls.append((kind, name)) or honest(self, *given, **named))

    for kind, name in ((PromptAttention, "attend"), (TakesAttention, "attend"), (HeldPrompt, "backward")):
        count(kind, name)
    groups = random_groups(model, [SHAPES["text"]])
    assert len(in_parts(model, groups, 1)) == 4
    assert [calls.count(call) for call in ((PromptAttention, "attend"), (TakesAttention, "attend"), (HeldPrompt, "backward"))] == [3, 12, 1]


def test_what_fits_is_not_split(model):
    groups = random_groups(model, [SHAPES["text"]])
    num_tokens = len(groups.prompts[0].token_ids) + 20
    assert len(in_parts(model, groups, num_tokens)) == 1
    assert len(in_parts(model, groups, num_tokens - 1)) == 2


@pytest.mark.parametrize("fault", ["lost_chunk", "no_prompt_backward", "detached_keys"])
def test_each_part_of_the_gradient_is_needed(exact_model, monkeypatch, fault):
    """Negative control."""
    groups = random_groups(exact_model, [SHAPES["video"]])
    in_parts(exact_model, groups, 1)
    right = gradients(exact_model)
    if fault == "lost_chunk":
        collect, turns = HeldPrompt.collect, iter([False, True, True, True])

        def skip_one(self):
            collect(self) if next(turns) else [setattr(leaf, "grad", None) for leaf in self._leaves]

        monkeypatch.setattr(HeldPrompt, "collect", skip_one)
    elif fault == "no_prompt_backward":
        monkeypatch.setattr(HeldPrompt, "backward", lambda self: None)
    else:
        honest = split.shared_prompt_attention
        cut = lambda *given: honest(*given[:5], tuple(part.detach() for part in given[5])) if len(given) > 5 else honest(*given)  # noqa: E731
        monkeypatch.setattr(split, "shared_prompt_attention", cut)
    in_parts(exact_model, groups, 1)
    assert worst_relative(gradients(exact_model), right) > 1e-2


def test_without_gradients(model):
    groups = random_groups(model, [SHAPES["text"]])
    wanted, _ = row_by_row(model, groups, 0.9)
    found = []
    with torch.no_grad():
        score_groups(model, groups.prompts, groups.responses, 0.9, lambda part: found.append(part), max_tokens=1)
    assert relative(joined(found, groups.weights)[0], wanted.detach()) < 1e-5
    assert not any(part.logprobs.requires_grad for part in found) and gradients(model) == {}


def test_half_precision_sums_in_float32(model, monkeypatch):
    """Chunks' gradients of keys and values are added in float32: 64 times 1 + 2^-8 in bfloat16 would stay 64."""
    keys = torch.zeros(1, 1, 2, 1, dtype=torch.bfloat16, requires_grad=True)
    held = HeldPrompt({0: (keys * 1, keys * 1)}, keys[0, 0] * 1)
    for value in [64.0] + [2.0**-2] * 64:
        held.layers[0][0].grad = torch.full_like(keys, value)
        held.collect()
    held.backward()
    assert keys.grad.tolist() == [[[[80.0], [80.0]]]]


def test_chunks_by_hand():
    assert split_takes([3, 4, 9, 0, 1], 8) == [[0, 1], [2, 3], [4]]
    assert split_takes([0, 0, 9], 8) == [[0, 1, 2]]
    assert split_takes([5, 5], -3) == [[0], [1]]
    assert split_takes([], 8) == []
