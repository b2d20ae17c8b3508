"""How fast this machine is, measured in about a second: products of the model's widths, the training attention, memory, kernels, links."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from math import inf, isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.errors import CheckpointError
from longtake.parallel.collectives import all_to_all, gather_texts, sum_over_ranks
from longtake.parallel.costs import BACKWARD_OF_ATTENTION, attended_pairs
from longtake.parallel.kernels import attention_backward, attention_forward
from longtake.parallel.mesh import Axis
from longtake.parallel.setting import DeviceRates
from longtake.types import ModelCosts, PackedGroup

Clock = Callable[[], float]
REPEATS = 5
"""Of which the fastest counts: what disturbs a measurement only ever makes it slower."""
CPU_TOKENS, CUDA_TOKENS = 512, 8192
MAX_VALUES = 1 << 26
"""Of one measured array."""
ATTENTION_WORK = 5e9
"""Operations of the measured attention on a CPU: long enough for its rate on long prompts."""
SMALL_LAYERS = 20
CALLS_OF_SMALL_LAYER = 18
"""Kernels of a norm, forward and backward, counted as in seconds.FORWARD_CALLS."""
MESSAGE_BYTES = 4 << 20


def calibrate(
    costs: ModelCosts, device: torch.device, dtype: torch.dtype, axis: Axis | None = None, clock: Clock = time.perf_counter
) -> DeviceRates:
    """Rates of one rank at the sizes of this model. With the axis of all ranks every rank must call it, links are measured too, and all
    ranks get the same rates, their mean: ranks that plan by themselves must come to the same plan."""
    tokens = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS
    tokens = max(16, min(tokens, MAX_VALUES // costs.mlp_width))
    timer = _Timer(device, clock)
    several = axis is not None and axis.size > 1
    link_bytes, collective_s = measure_link(axis, device, clock) if axis is not None and several else (inf, 0.0)
    found = DeviceRates(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        matmul_flops=_matmul(timer, costs, tokens, dtype),
        attention_flops=_attention(timer, costs, dtype),
        memory_bytes=_memory(timer, costs, tokens, dtype),
        call_s=_call(timer, dtype),
        link_bytes=link_bytes,
        node_link_bytes=link_bytes,
        collective_s=collective_s,
    )
    return _mean(found, axis) if axis is not None and several else found


def _mean(rates: DeviceRates, axis: Axis) -> DeviceRates:
    names = [part.name for part in fields(rates) if part.name != "name"]
    sums = sum_over_ranks([getattr(rates, name) for name in names], axis)
    means: dict[str, Any] = dict(zip(names, (total / axis.size for total in sums), strict=True))
    return replace(rates, **means)


class _Timer:
    """Seconds of the fastest of some runs, the device waited for."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device, self._clock = device, clock

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        return min(self._once(run) for _ in range(REPEATS))

    def _once(self, run: Callable[[], object]) -> float:
        self._wait()
        start = self._clock()
        run()
        self._wait()
        return max(self._clock() - start, 1e-9)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _random(shape: tuple[int, ...], timer: _Timer, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, device=timer.device).to(dtype)


def _matmul(timer: _Timer, costs: ModelCosts, tokens: int, dtype: torch.dtype) -> float:
    rows, weight = _random((tokens, costs.width), timer, dtype), _random((costs.mlp_width, costs.width), timer, dtype)
    return 2.0 * tokens * costs.width * costs.mlp_width / timer(lambda: rows @ weight.T)


def _attention(timer: _Timer, costs: ModelCosts, dtype: torch.dtype) -> float:
    """A prompt's causal attention, forward and backward."""
    on_cpu = isqrt(int(ATTENTION_WORK / (2 * costs.attention_width * (1 + BACKWARD_OF_ATTENTION))))
    tokens = CUDA_TOKENS if timer.device.type == "cuda" else max(64, on_cpu)
    query = _random((1, costs.heads, tokens, costs.head_dim), timer, dtype)
    key, value = (_random((1, costs.kv_heads, tokens, costs.head_dim), timer, dtype) for _ in range(2))
    scale = costs.head_dim**-0.5

    def both() -> None:
        out, lse = attention_forward(query, key, value, causal=True, scale=scale)
        attention_backward(out, query, key, value, out, lse, causal=True, scale=scale)

    work = 4.0 * costs.attention_width * attended_pairs(PackedGroup(tokens, ()))
    return work * (1 + BACKWARD_OF_ATTENTION) / timer(both)


def _memory(timer: _Timer, costs: ModelCosts, tokens: int, dtype: torch.dtype) -> float:
    """A sum of two arrays of the MLP's width: two read, one written."""
    first, second = (_random((tokens, costs.mlp_width), timer, dtype) for _ in range(2))
    return 3 * first.nbytes / timer(lambda: first + second)


def _call(timer: _Timer, dtype: torch.dtype) -> float:
    """A kernel of a chain of small norms, forward and backward: what Python, autograd and the launch cost where there is little to do."""
    small, weight = _random((1, 8), timer, dtype).requires_grad_(), _random((8,), timer, dtype)

    def chain() -> None:
        rows = small
        for _ in range(SMALL_LAYERS):
            rows = weight * (rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6))
        rows.sum().backward()

    return timer(chain) / (SMALL_LAYERS * CALLS_OF_SMALL_LAYER)


def measure_link(axis: Axis, device: torch.device, clock: Clock = time.perf_counter) -> tuple[float, float]:
    """(bytes per second that a rank sends, seconds of an exchange of next to nothing), with all ranks of the axis exchanging at once."""
    timer = _Timer(device, clock)
    per_rank = MESSAGE_BYTES // 4 // axis.size
    large, small = (torch.zeros(count * axis.size, device=device) for count in (per_rank, 1))
    opened = timer(lambda: all_to_all(small, [1] * axis.size, [1] * axis.size, axis))
    whole = timer(lambda: all_to_all(large, [per_rank] * axis.size, [per_rank] * axis.size, axis))
    sent = per_rank * 4 * (axis.size - 1)
    return sent / max(whole - opened, 1e-9), opened


def kept_rates(path: Path, measure: Callable[[], DeviceRates], axis: Axis | None = None) -> DeviceRates:
    """The rates in `path`, or measured now and written there; the first rank of the axis reads and writes, all get the same.

    A run that is resumed must plan as it planned before: another layout adds up in another order, and the run's bits would change.
    Raises CheckpointError for a file that holds no rates.
    """
    first = axis is None or axis.rank == 0
    text = path.read_text(encoding="utf-8") if first and path.exists() else ""
    text = text if axis is None else gather_texts(text, axis)[0]
    if text:
        return _read_rates(path, text)
    rates = measure()
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {name: None if value == inf else value for name, value in asdict(rates).items()}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    return rates


def _read_rates(path: Path, text: str) -> DeviceRates:
    try:
        values: dict[str, Any] = {name: inf if value is None else value for name, value in json.loads(text).items()}
        return DeviceRates(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}", rule="it holds the rates that a run was planned with", remedy="remove it") from error
