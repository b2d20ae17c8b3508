"""Heads for sequence: which rank gets which heads, by hand; then attention over exchanged heads against attention without exchange."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.errors import ConfigError
from longtake.parallel import ulysses
from longtake.parallel.mesh import start_world
from longtake.parallel.ulysses import split_heads, to_heads, to_sequence
from longtake.testing.processes import run_processes


def test_heads_of_each_rank_by_hand():
    assert split_heads(8, 4, 2) == ulysses.HeadSplit(2, 4, (0, 1, 2, 3))  # two KV heads each, none twice
    assert split_heads(8, 4, 4).kv_heads == (0, 1, 2, 3)
    assert split_heads(8, 2, 4).kv_heads == (0, 0, 1, 1)  # fewer KV heads than ranks: replicated
    assert split_heads(8, 1, 8).kv_heads == (0,) * 8
    # Qwen2.5-VL-7B on seven ranks: rank 1 has query heads 4-7, which read KV heads 0 0 0 1.
    assert split_heads(28, 4, 7).kv_heads[4:8] == (0, 0, 0, 1)
    assert split_heads(28, 4, 7).kv_per_rank == 4


@pytest.mark.parametrize("heads", [(28, 4), (16, 2), (6, 3), (12, 4), (8, 8)])
def test_every_query_head_meets_its_own_kv_head(heads):
    for degree in range(1, heads[0] + 1):
        if heads[0] % degree:
            continue
        split = split_heads(*heads, degree)
        for rank in range(degree):
            kv = split.kv_heads[rank * split.kv_per_rank : (rank + 1) * split.kv_per_rank]
            serves = split.query_heads // split.kv_per_rank
            for head in range(split.query_heads):
                assert kv[head // serves] == (rank * split.query_heads + head) // (heads[0] // heads[1])


def test_a_degree_that_cuts_a_head_is_refused_with_those_that_do_not():
    with pytest.raises(ConfigError, match=r"Ulysses 8 for a model of 28 query heads.*one of 1, 2, 4, 7, 14, 28"):
        split_heads(28, 4, 8)


def heads_by_hand():
    """Value = 100 * token + head, of 2 ranks with 3 tokens each, 4 query heads and 2 KV heads."""
    with start_world(torch.device("cpu"), timeout_s=20) as world:
        token = torch.arange(3) + 3 * world.rank
        query, key, value = (
            (100.0 * token[:, None, None] + torch.arange(float(heads))[None, :, None]).requires_grad_() for heads in (4, 2, 2)
        )
        ours = to_heads(query, key, -value, world.axis)
        back = to_sequence(ours[0], world.axis)
        (sum(part.sum() for part in ours) * (world.rank + 1)).backward()
        gradients = [part.grad for part in (query, key, value)]
        return {"ours": [part.detach() for part in ours], "back": torch.equal(back, query), "gradients": gradients}


def test_heads_for_sequence_by_hand():
    found = run_processes(heads_by_hand, 2)
    for rank, one in enumerate(found):
        assert one["ours"][0].squeeze(-1).tolist() == [[100 * token + head for head in (2 * rank, 2 * rank + 1)] for token in range(6)]
        assert one["ours"][1].squeeze(-1).tolist() == [[100 * token + rank] for token in range(6)]
        assert one["ours"][2].squeeze(-1).tolist() == [[-100 * token - rank] for token in range(6)]
        assert one["back"]
        # Rank 0 weighed its heads with 1, rank 1 with 2.
        wanted = [[[1, 1, 2, 2]] * 3, [[1, 2]] * 3, [[-1, -2]] * 3]
        assert [gradient.squeeze(-1).tolist() for gradient in one["gradients"]] == wanted


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, slow: [T, N, H], [T, K, H] twice -> [T, N, H]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qnh,knh->nqk", query, key)
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return torch.einsum("nqk,knh->qnh", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)


def tensors(length: int, heads: int, kv_heads: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(length)
    made = [torch.randn(length, count, 4, generator=generator, dtype=torch.float64) for count in (heads, kv_heads, kv_heads)]
    return made, torch.randn(length, heads, 4, generator=generator, dtype=torch.float64)


def attend_exchanged(length: int, heads: int, kv_heads: int, fault: str):
    """This rank's tokens of the output and of the gradients of query, key and value."""
    with start_world(torch.device("cpu"), timeout_s=20) as world:
        whole, weights = tensors(length * world.size, heads, kv_heads)
        own = slice(world.rank * length, (world.rank + 1) * length)
        parts = [tensor[own].clone().requires_grad_() for tensor in whole]
        if fault == "heads":
            ulysses.split_heads = lambda *given: ulysses.HeadSplit(
                given[2], heads // given[2], (0,) * split_heads(*given).kv_per_rank * given[2]
            )
        exchanged = [part.detach() if fault == "gradient" and i == 1 else part for i, part in enumerate(to_heads(*parts, world.axis))]
        out = attend(*exchanged)
        if fault == "order":
            out = out.roll(1, 0)
        out = to_sequence(out, world.axis)
        (out * weights[own]).sum().backward()
        return [out.detach(), *(torch.zeros_like(part) if part.grad is None else part.grad for part in parts)]


def errors(num_processes: int, length: int, heads: int, kv_heads: int, fault: str = "") -> list[float]:
    """max|difference| / max|reference| of output and gradients."""
    found = [
        torch.cat(parts) for parts in zip(*run_processes(attend_exchanged, num_processes, length, heads, kv_heads, fault), strict=True)
    ]
    whole, weights = tensors(length * num_processes, heads, kv_heads)
    leaves = [tensor.requires_grad_() for tensor in whole]
    out = attend(*leaves)
    (out * weights).sum().backward()
    references = [out.detach(), *(leaf.grad for leaf in leaves)]
    return [float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, references, strict=True)]


@pytest.mark.parametrize("case", [(2, 5, 4, 2), (4, 3, 8, 2), (4, 1, 4, 1), (3, 4, 6, 2), (3, 2, 12, 4)])
def test_exchanged_attention_is_attention(case):
    assert max(errors(*case)) < 1e-13  # measured 1e-15


@pytest.mark.parametrize(("fault", "least"), [("heads", 0.1), ("order", 0.1), ("gradient", 0.1)])
def test_a_wrong_exchange_shows(fault, least):
    """Negative control: a wrong KV head, tokens out of order, keys without a gradient."""
    assert max(errors(4, 3, 8, 2, fault)) > least
