"""Torch's attention kernels with log-sum-exp, forward and backward, against the softmax written out."""

from __future__ import annotations

import math

import pytest
import torch

from longtake.errors import ModelError
from longtake.parallel.kernels import attention_backward, attention_forward, lse_dtype, merge_
from longtake.testing.plain_attention import plain_attention

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Measured on the CPU: 3e-15, 2.4e-6, 8e-3, 1e-3, with float64 on the same (rounded) inputs; another scale moves the output by 0.3.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
SHAPES = {"causal": (37, 37), "cross": (37, 51), "one_query": (1, 51), "one_key": (37, 1)}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))  # with one key, gradients of queries and keys are 0


def tensors(queries: int, keys: int, dtype: torch.dtype, device: str = "cpu", heads=(4, 2), rows: int = 2) -> list[torch.Tensor]:
    """Query, key, value, gradient; token-major in memory, as a model's projections are."""
    generator = torch.Generator().manual_seed(queries + 100 * keys)
    shapes = [(queries, heads[0]), (keys, heads[1]), (keys, heads[1]), (queries, heads[0])]
    return [torch.randn(rows, length, n, 16, generator=generator).to(device, dtype).transpose(1, 2) for length, n in shapes]


def plain_gradients(query, key, value, gradient, sees):
    parts = [part.detach().double().requires_grad_() for part in (query, key, value)]
    out, lse = plain_attention(*parts, sees, 0.3)
    return out, lse, torch.autograd.grad(out, parts, gradient.double())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)], ids=str)
def test_kernels_equal_the_softmax_written_out(device, dtype, shape, heads):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("no kernel")
    queries, keys = SHAPES[shape]
    causal = shape == "causal"
    query, key, value, gradient = tensors(queries, keys, dtype, device, heads)
    sees = torch.ones(queries, keys, dtype=torch.bool, device=device)
    wanted = plain_gradients(query, key, value, gradient, sees.tril() if causal else sees)
    out, lse = attention_forward(query, key, value, causal=causal, scale=0.3)
    found = attention_backward(gradient, query, key, value, out, lse, causal=causal, scale=0.3)
    assert (out.dtype, lse.dtype) == (dtype, lse_dtype(dtype))
    assert relative(out, wanted[0]) < TOLERANCE[dtype] and relative(lse, wanted[1]) < TOLERANCE[dtype]
    for mine, theirs, given in zip(found, wanted[2], (query, key, value), strict=True):
        assert mine.dtype == dtype and mine.shape == given.shape
        assert relative(mine, theirs) < TOLERANCE[dtype]
    wrong, _ = attention_forward(query, key, value, causal=causal, scale=0.6)
    if keys > 1:  # negative control: another scale shows
        assert relative(wrong, wanted[0]) > 3 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_keys_in_two_places_merge_to_the_whole(dtype):
    """Forward by log-sum-exp; backward of each place with the merged output, gradients of the queries added up."""
    query, key, value, gradient = tensors(20, 50, dtype)
    whole, whole_lse, wanted = plain_gradients(query, key, value, gradient, torch.ones(20, 50, dtype=torch.bool))
    cuts = (slice(0, 13), slice(13, 50))
    (out, lse), (more, more_lse) = (attention_forward(query, key[:, :, cut], value[:, :, cut], causal=False, scale=0.3) for cut in cuts)
    first = out.clone(), lse.clone()
    merge_(out, lse, more, more_lse)
    assert relative(out, whole) < TOLERANCE[dtype] and relative(lse, whole_lse) < TOLERANCE[dtype]
    assert relative(first[0], whole) > 0.1

    def gradients(out, lse):
        parts = [attention_backward(gradient, query, key[:, :, cut], value[:, :, cut], out, lse, causal=False, scale=0.3) for cut in cuts]
        return sum(part[0] for part in parts), torch.cat([part[1] for part in parts], 2), torch.cat([part[2] for part in parts], 2)

    assert max(relative(mine, theirs) for mine, theirs in zip(gradients(out, lse), wanted, strict=True)) < TOLERANCE[dtype]
    # negative control: with one place's own output and log-sum-exp the gradients are wrong
    assert max(relative(mine, theirs) for mine, theirs in zip(gradients(*first), wanted, strict=True)) > 0.1


def test_merging_nothing_changes_nothing():
    out, lse = torch.tensor([[1.0], [0.0], [3.0]]), torch.tensor([0.5, -math.inf, -math.inf])
    more, more_lse = torch.tensor([[9.0], [0.0], [5.0]]), torch.tensor([-math.inf, -math.inf, 2.0])
    merge_(out, lse, more, more_lse)
    assert out.tolist() == [[1.0], [0.0], [5.0]]
    assert lse.tolist() == [0.5, -math.inf, 2.0]


def test_merging_by_hand():
    """exp(lse) 1 and 3: the weights are a quarter and three quarters."""
    out, lse = torch.tensor([[8.0]]), torch.tensor([0.0])
    merge_(out, lse, torch.tensor([[4.0]]), torch.tensor([math.log(3)]))
    assert out.item() == pytest.approx(5.0) and lse.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(("queries", "keys"), [(0, 7), (7, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_empty_side_is_no_fault(queries, keys, dtype):
    """torch's CPU kernel divides by zero and takes the process with it."""
    query, key, value, gradient = tensors(queries, keys, dtype)
    out, lse = attention_forward(query, key, value, causal=False, scale=0.3)
    assert out.shape == query.shape and lse.shape == query.shape[:3] and lse.dtype == lse_dtype(dtype)
    assert out.eq(0).all() and lse.eq(-math.inf).all()
    found = attention_backward(gradient, query, key, value, out, lse, causal=False, scale=0.3)
    assert [part.shape for part in found] == [query.shape, key.shape, value.shape]
    assert all(part.eq(0).all() for part in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_query_with_an_infinite_lse_adds_nothing(dtype):
    """What padding relies on."""
    query, key, value, gradient = tensors(9, 9, dtype)
    out, lse = attention_forward(query, key, value, causal=True, scale=0.3)
    wanted = attention_backward(gradient * (torch.arange(9) < 6)[:, None], query, key, value, out, lse, causal=True, scale=0.3)
    lse[:, :, 6:] = math.inf
    found = attention_backward(gradient, query, key, value, out, lse, causal=True, scale=0.3)
    assert found[0][:, :, 6:].eq(0).all()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


def test_what_no_kernel_takes_is_refused():
    query, key, value, _ = tensors(5, 7, torch.float32)
    with pytest.raises(ValueError, match="5 queries to 7 keys"):
        attention_forward(query, key, value, causal=True, scale=1.0)
    with pytest.raises(ValueError, match="2 query heads to 4"):
        attention_forward(key, query, query, causal=False, scale=1.0)
    with pytest.raises(ModelError, match=r"torch\.int64"):
        attention_forward(*(part.long() for part in (query, key, value)), causal=False, scale=1.0)
