"""Attention over packed sequences against the softmax written out, who sees whom asked token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.parallel import shared_prompt
from longtake.parallel.shared_prompt import AttentionPlan, plan_groups, plan_takes, shared_prompt_attention
from longtake.testing.plain_attention import plain_attention, who_sees_whom
from longtake.types import PackedGroup

CPU = torch.device("cpu")
GROUPS = {
    "one": (PackedGroup(30, (5, 5, 5)),),
    "uneven": (PackedGroup(30, (5, 1, 0, 17)),),
    "several": (PackedGroup(7, (3, 40)), PackedGroup(25, (1, 2, 9)), PackedGroup(1, (4,))),
    "rows": (PackedGroup(12, ()), PackedGroup(12, ()), PackedGroup(3, ())),
    "mixed": (PackedGroup(9, ()), PackedGroup(9, (0, 0)), PackedGroup(9, (2,))),
}
HEADS = [(4, 2), (3, 1), (2, 2)]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def inputs(num_tokens: int, heads: tuple[int, int], dtype=torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """Query, key, value and gradient [1, heads, T, 8], token-major in memory. Keys of size 3: a wrong one has weight."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads[0], 1.0), (heads[1], 3.0), (heads[1], 1.0), (heads[0], 1.0))
    made = [torch.randn(1, num_tokens, n, 8, generator=generator, dtype=torch.float64) * size for n, size in sizes]
    return [part.to(dtype).transpose(1, 2).requires_grad_() for part in made]


def ours(parts, plan: AttentionPlan, prompt=None):
    query, key, value, gradient = parts
    out = shared_prompt_attention(query, key, value, plan, 0.4, prompt)
    held = () if prompt is None else prompt
    return [out, *torch.autograd.grad(out, (query, key, value, *held), gradient.detach())]


def plain(parts, sees):
    query, key, value, gradient = parts
    out, _ = plain_attention(query, key, value, sees, 0.4)
    return [out, *torch.autograd.grad(out, (query, key, value), gradient.detach())]


def worst(found, wanted) -> float:
    """Of a tensor that is exactly 0 (the gradient of a lone token's query), the difference against the largest of all: kernels of some CPUs
    leave 1e-16 there."""
    scale = max(float(theirs.detach().abs().max()) for theirs in wanted)
    pairs = list(zip(found, wanted, strict=True))
    return max(relative(mine, theirs) if theirs.any() else float(mine.abs().max()) / scale for mine, theirs in pairs)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("name", GROUPS)
def test_output_and_gradients(name, heads):
    groups = GROUPS[name]
    parts = inputs(sum(group.num_tokens for group in groups), heads)
    found = ours(parts, plan_groups(groups, CPU))
    assert worst(found, plain(parts, who_sees_whom(groups))) < 1e-12  # measured 2e-15
    if name != "rows":  # negative control: takes that do not see their prompt, or each other's tokens
        blind = who_sees_whom([part for group in groups for part in (PackedGroup(group.prompt_length, ()), *alone(group))])
        assert worst(found, plain(parts, blind)) > 1e-2
    causal = torch.ones_like(who_sees_whom(groups)).tril()
    if len(groups) > 1 or len(groups[0].take_lengths) > 1:
        assert worst(found, plain(parts, causal)) > 1e-2


def alone(group: PackedGroup) -> list[PackedGroup]:
    """Its takes as rows of their own."""
    return [PackedGroup(length, ()) for length in group.take_lengths if length]


def test_in_float32():
    groups = GROUPS["several"]
    parts = inputs(sum(group.num_tokens for group in groups), (4, 2), torch.float32)
    assert worst(ours(parts, plan_groups(groups, CPU)), plain(parts, who_sees_whom(groups))) < 1e-5  # measured 7e-7


def test_in_bfloat16_the_merge_is_exact():
    """Against float64 on the same rounded inputs; the takes' output is as good as the prompt's, which needs no merge."""
    groups = GROUPS["several"]
    parts = inputs(sum(group.num_tokens for group in groups), (4, 2), torch.bfloat16)
    exact = plain([part.double() for part in parts], who_sees_whom(groups))
    out = ours(parts, plan_groups(groups, CPU))[0]
    assert out.dtype == torch.bfloat16
    error = (out.double() - exact[0]).abs().amax((0, 1, 3))
    prompt = torch.cat([torch.arange(group.num_tokens) < group.prompt_length for group in groups])
    assert error[~prompt].max() < 2 * error[prompt].max() < 0.1


lengths = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 30), max_size=5)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(lengths, st.sampled_from(HEADS), st.integers(0, 1000))
def test_any_lengths(shapes, heads, seed):
    groups = [PackedGroup(prompt, tuple(takes)) for prompt, takes in shapes]
    parts = inputs(sum(group.num_tokens for group in groups), heads, seed=seed)
    assert worst(ours(parts, plan_groups(groups, CPU)), plain(parts, who_sees_whom(groups))) < 1e-11


@pytest.mark.parametrize("take_lengths", [(5, 5), (4, 0, 9), (1,), (0,)], ids=str)
def test_takes_whose_prompt_is_handed_in_apart(take_lengths):
    group = PackedGroup(20, take_lengths)
    parts = inputs(group.num_tokens, (4, 2))
    wanted = plain([*parts[:3], blanked(parts[3])], who_sees_whom([group]))
    takes = [part[:, :, 20:].detach().requires_grad_() for part in parts]
    prompt = tuple(part[:, :, :20].detach().requires_grad_() for part in parts[1:3])
    out, d_query, d_key, d_value, d_prompt_key, d_prompt_value = ours(takes, plan_takes(20, take_lengths, CPU), prompt)
    assert torch.allclose(out, wanted[0][:, :, 20:], rtol=0, atol=1e-12)
    joined = [torch.cat([mine, theirs], 2) for mine, theirs in ((d_prompt_key, d_key), (d_prompt_value, d_value))]
    for mine, theirs in zip([d_query, *joined], [wanted[1][:, :, 20:], *wanted[2:]], strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)
    if sum(take_lengths):
        assert d_prompt_key.abs().max() > 1e-2


def blanked(gradient: torch.Tensor) -> torch.Tensor:
    """No gradient on the prompt's own output."""
    return torch.cat([torch.zeros_like(gradient[:, :, :20]), gradient[:, :, 20:]], 2)


@pytest.mark.parametrize("fault", ["merge", "merged_lse", "reading"])
def test_each_step_is_needed(monkeypatch, fault):
    """Negative control: without the merge, with a part's own log-sum-exp in backward, with another group's prompt."""
    groups = GROUPS["several"]
    parts, plan = inputs(sum(group.num_tokens for group in groups), (4, 2)), plan_groups(groups, CPU)
    if fault == "merge":
        monkeypatch.setattr(shared_prompt, "merge_", lambda out, lse, more, more_lse: None)
    elif fault == "merged_lse":
        keep_lse = lambda out, lse, more, more_lse, merge=shared_prompt.merge_: merge(out, lse.clone(), more, more_lse)  # noqa: E731
        monkeypatch.setattr(shared_prompt, "merge_", keep_lse)
    else:
        plan = replace(plan, readings=(replace(plan.readings[0], prompt=plan.readings[1].prompt), *plan.readings[1:]))
    found, wanted = ours(parts, plan), plain(parts, who_sees_whom(groups))
    if fault == "merged_lse":
        assert relative(found[0], wanted[0]) < 1e-12
    assert worst(found, wanted) > 1e-2


def test_a_subset_of_heads_is_the_same_subset_of_the_output():
    """What a rank computes after a Ulysses exchange."""
    groups = GROUPS["several"]
    query, key, value, _ = inputs(sum(group.num_tokens for group in groups), (8, 4))
    plan = plan_groups(groups, CPU)
    whole = shared_prompt_attention(query, key, value, plan, 0.4)
    part = shared_prompt_attention(query[:, 4:], key[:, 2:], value[:, 2:], plan, 0.4)
    # The same bits on an AMD EPYC, 1.6e-17 apart on an Intel Xeon, whose kernel cuts its work by heads; other heads differ by O(1).
    assert relative(part, whole[:, 4:]) < 1e-14
    assert relative(part, whole[:, :4]) > 0.1


def test_few_kernel_calls(monkeypatch):
    """16 prompts of about 100 tokens with 8 takes of about 60: a call per group for its prompt's keys, and a handful for all else."""
    generator = torch.Generator().manual_seed(0)
    lengths = lambda low, high, count: tuple(torch.randint(low, high, (count,), generator=generator).tolist())  # noqa: E731
    groups = [PackedGroup(prompt, lengths(50, 65, 8)) for prompt in lengths(95, 106, 16)]
    calls = []
    kernel = shared_prompt.attention_forward
    monkeypatch.setattr(
        shared_prompt, "attention_forward", lambda *given, **named: calls.append(named["causal"]) or kernel(*given, **named)
    )
    parts = inputs(sum(group.num_tokens for group in groups), (2, 1), torch.float32)
    shared_prompt_attention(*parts[:3], plan_groups(groups, CPU), 0.4)
    assert calls.count(False) == 16
    assert calls.count(True) <= 3
