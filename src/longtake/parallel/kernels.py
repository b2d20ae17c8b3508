"""Attention kernels that give the log-sum-exp beside the output, and whose backward takes both as given.

That pair is what makes attention over keys that lie in several places exact: the outputs of the places are merged by their log-sum-exps
(`merge_`), and each place's backward runs with the MERGED output and log-sum-exp, so that the weights exp(score - lse) are those of the
whole softmax and the gradients of the places just add up. The only caller of torch's flash operators in training.

Shapes: B rows, N query heads, K KV heads (N is a multiple), Q queries, S keys, H head size. All tensors may be strided; the last
dimension is contiguous. Outputs lie token-major in memory ([B, Q, N, H] seen as [B, N, Q, H]).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from longtake.errors import ModelError

_aten = torch.ops.aten
_LSE_ALIGNMENT = 32
"""CUDA's memory-efficient kernel wants the log-sum-exp padded to a multiple of this many queries."""
_HALF = (torch.float16, torch.bfloat16)


class _Kernel(Protocol):
    """One of torch's kernels behind the two functions of this module, for sides that are not empty."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]: ...

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def attention_forward(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """query [B, N, Q, H], key and value [B, K, S, H] -> out [B, N, Q, H] in their dtype, log-sum-exp [B, N, Q] in `lse_dtype`.

    Without keys the output is 0 and the log-sum-exp -inf: merging it changes nothing. Raises ValueError for causal attention with unequal
    lengths (kernels differ in how they align it), ModelError where no kernel fits.
    """
    _check(query, key, causal)
    if query.numel() == 0 or key.numel() == 0:  # an empty side kills the CPU kernel
        rows, heads, length, size = query.shape
        out = query.new_zeros(rows, length, heads, size).transpose(1, 2)
        return out, out.new_full((rows, length, heads), -math.inf, dtype=lse_dtype(query.dtype)).transpose(1, 2)
    return _kernel(query).forward(query, key, value, causal, scale)


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [B, N, Q, H], key and value [B, K, S, H], of the part of the softmax that these keys make up.

    `out` and `lse` are those of the whole softmax, merged over all places; `grad` is the gradient of the merged output. A query with
    lse = +inf adds nothing. Raises as `attention_forward`.
    """
    _check(query, key, causal)
    if query.numel() == 0 or key.numel() == 0:
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    return _kernel(query).backward(grad, query, key, value, out, lse, causal, scale)


def merge_(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Merge the attention to more keys into `out` [..., H] and `lse` [...], in place; computed in `lse`'s dtype.

    lse' = log(exp(lse) + exp(more)), out' = out + w (more_out - out) with w = exp(more - lse') = sigmoid(more - lse). Nothing is merged
    where `more_lse` is -inf, be `lse` -inf too.
    """
    weight = torch.where(more_lse == -math.inf, 0.0, torch.sigmoid(more_lse - lse)).unsqueeze(-1)
    out.copy_(torch.lerp(out.to(weight.dtype), more_out.to(weight.dtype), weight))
    lse.copy_(torch.logaddexp(lse, more_lse))


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(query: Tensor, key: Tensor, causal: bool) -> None:
    if causal and query.shape[2] != key.shape[2]:
        raise ValueError(f"causal attention of {query.shape[2]} queries to {key.shape[2]} keys: it needs as many queries as keys")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads to {key.shape[1]} KV heads: the first must be a multiple of the second")


def _kernel(query: Tensor) -> _Kernel:
    device, dtype, size = query.device.type, query.dtype, query.shape[3]
    if device == "cpu" and dtype in (torch.float64, torch.float32, *_HALF):
        return _Cpu()
    if device == "cuda" and dtype in _HALF and size % 8 == 0 and size <= 256:
        return _CudaFlash()
    if device == "cuda" and dtype == torch.float32 and size % 8 == 0:
        return _CudaEfficient()
    raise ModelError(
        f"attention in {dtype} with heads of {size} on {device}",
        rule="on the CPU any float type; on CUDA float32, bfloat16 or float16, heads a multiple of 8 and at most 256",
        remedy="choose another model.dtype or model.device",
    )


class _Cpu:
    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_query, d_key, d_value = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
        return d_query, d_key, d_value


class _CudaFlash:
    """FlashAttention-2; takes grouped heads as they are."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        unused = torch.zeros(2, dtype=torch.int64, device=query.device).view(torch.uint64)  # state of a dropout that is 0
        d_query, d_key, d_value = _aten._scaled_dot_product_flash_attention_backward(
            grad,
            query,
            key,
            value,
            out,
            lse.contiguous(),
            None,
            None,
            query.shape[2],
            key.shape[2],
            0.0,
            causal,
            unused,
            unused,
            scale=scale,
        )
        return d_query, d_key, d_value


class _CudaEfficient:
    """The memory-efficient kernel, for float32; wants one KV head per query head."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        key, value = _per_query_head(query, key), _per_query_head(query, value)
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, causal, scale=scale)
        return out, lse[..., : query.shape[2]]

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        length = query.shape[2]
        padded = torch.nn.functional.pad(lse, (0, -length % _LSE_ALIGNMENT), value=math.inf).contiguous()
        unused = torch.zeros((), dtype=torch.int64, device=query.device)
        repeated = _per_query_head(query, key), _per_query_head(query, value)
        d_query, d_key, d_value, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad, query, *repeated, None, out, padded, unused, unused, 0.0, [True, True, True, False], causal, scale=scale
        )
        return d_query, _per_kv_head(d_key, key), _per_kv_head(d_value, value)


def _per_query_head(query: Tensor, key: Tensor) -> Tensor:
    """[B, K, S, H] -> [B, N, S, H]."""
    times = query.shape[1] // key.shape[1]
    return key if times == 1 else key.repeat_interleave(times, dim=1)


def _per_kv_head(gradient: Tensor, key: Tensor) -> Tensor:
    """[B, N, S, H] -> [B, K, S, H], summed over the query heads of each KV head."""
    times = gradient.shape[1] // key.shape[1]
    return gradient if times == 1 else gradient.unflatten(1, (-1, times)).sum(2)
