"""What computing a prompt once for all its takes saves in an update: forward and backward of one group, both ways with the same kernels.

Naive is one row per take, prompt repeated, as many rows at a time as is fastest. The shape of the model is fixed, so that figures of
different machines and versions can be compared.

Symbols: P prompt tokens, R response tokens, G takes, N parameters of the decoder, L layers, d = heads x head size.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from longtake.bench.memory import peak_bytes
from longtake.config.benches import BenchUpdateConfig
from longtake.config.sections import ModelConfig
from longtake.models import load_model
from longtake.models.family import Model
from longtake.models.tiny import TinySizes, build_tiny
from longtake.parallel.packed import pack_groups, pack_rows
from longtake.training.packed_policy import packed_logprobs
from longtake.types import PackedGroups, Prompt

SIZES = TinySizes(
    vocab_size=512, hidden=256, layers=8, heads=4, kv_heads=2, mlp=768, mrope_section=(8, 12, 12), vision_hidden=64, vision_mlp=64
)
Device = Literal["auto", "cpu", "cuda"]
WORDS = ("a tokenizer is needed and never asked " * 8,)


@dataclass(frozen=True)
class UpdateBench:
    """One measurement; the first seven are what issue 3 asks of `bench update --json`."""

    naive_s: float
    """Median seconds of one row per take, at the fastest micro-batch."""
    shared_s: float
    """Median seconds with the prompt computed once."""
    speedup: float
    """naive_s / shared_s."""
    flop_ratio: float
    """The same by counting operations: what sharing can gain at most."""
    fraction: float
    """speedup / flop_ratio."""
    naive_bytes: int
    """Peak bytes of forward and backward of ONE row."""
    shared_bytes: int
    """Peak bytes of the whole group."""
    bytes_limit: int
    """1.1 (P + GR) / (P + R) naive_bytes: what the tokens alone would explain, and a tenth."""
    micro_batch: int
    """Rows at a time of the naive side."""
    loss_difference: float
    """|difference| / |loss|: both sides compute the same."""
    rounds: tuple[tuple[float, float], ...]
    """Seconds of each round, (naive, shared); one directly after the other, taking turns in going first."""
    prompt: int
    response: int
    group: int
    threads: int
    device: str


@dataclass(frozen=True, eq=False)
class RandomGroup:
    """One random group and the model that scores it."""

    model: Model
    prompt: Prompt
    responses: list[Tensor]

    def shared(self) -> float:
        return self._learn(pack_groups([self.prompt], [self.responses], self.model.device))

    def naive(self, micro_batch: int) -> float:
        return sum(self.rows(start, micro_batch) for start in range(0, len(self.responses), micro_batch))

    def rows(self, start: int, count: int) -> float:
        """Of `count` takes, each a row of its own."""
        own = self.responses[start : start + count]
        return self._learn(pack_rows([self.prompt] * len(own), own, self.model.device))

    def _learn(self, packed: PackedGroups) -> float:
        logprobs, _ = packed_logprobs(self.model, packed, 1.0)
        loss = logprobs.sum()
        loss.backward()
        return float(loss.detach())


def measure_update(config: BenchUpdateConfig) -> UpdateBench:
    """Build the model, find the fastest naive micro-batch, then measure both sides in turn."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        path = build_tiny(Path(folder) / "model", WORDS, 0, SIZES)
        group = random_group(path, config.prompt, config.response, config.group, config.device)
    device = group.model.device
    naive_loss, shared_loss = group.rows(0, 1), group.shared()  # gradients exist from here on, and are added to
    naive_bytes, shared_bytes = peak_bytes(partial(group.rows, 0, 1), device), peak_bytes(group.shared, device)
    candidates = [count for count in range(1, config.group + 1) if config.group % count == 0]
    per_row = {count: _seconds(partial(group.rows, 0, count), device) / count for count in candidates}
    micro_batch = min(per_row, key=lambda count: per_row[count])
    naive_loss = group.naive(micro_batch)
    rounds = [_round(partial(group.naive, micro_batch), group.shared, device, number % 2 == 0) for number in range(config.repeats)]
    naive_s, shared_s = (median(side) for side in zip(*rounds, strict=True))
    ratio = flop_ratio(_decoder_parameters(group.model), SIZES.layers, SIZES.hidden, config.prompt, config.response, config.group)
    tokens = (config.prompt + config.group * config.response) / (config.prompt + config.response)
    return UpdateBench(
        naive_s=naive_s,
        shared_s=shared_s,
        speedup=naive_s / shared_s,
        flop_ratio=ratio,
        fraction=naive_s / shared_s / ratio,
        naive_bytes=naive_bytes,
        shared_bytes=shared_bytes,
        bytes_limit=round(1.1 * tokens * naive_bytes),
        micro_batch=micro_batch,
        loss_difference=abs(naive_loss - shared_loss) / abs(naive_loss),
        rounds=tuple(rounds),
        prompt=config.prompt,
        response=config.response,
        group=config.group,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )


def flop_ratio(parameters: int, layers: int, width: int, prompt: int, response: int, group: int) -> float:
    """Operations of one row per take over those with the prompt computed once (causal attention at half its scores):

    G [2N (P + R) + 2Ld (P + R)^2]  over  2N (P + GR) + 2Ld [P^2 + G (2PR + R^2)].

    >>> round(flop_ratio(7_000_000_000, 28, 3584, 131_000, 1_000, 8), 1)
    7.4
    """
    row = prompt + response
    naive = group * (2 * parameters * row + 2 * layers * width * row**2)
    pairs = prompt**2 + group * (2 * prompt * response + response**2)
    return naive / (2 * parameters * (prompt + group * response) + 2 * layers * width * pairs)


def random_group(path: Path, prompt_length: int, response_length: int, num_takes: int, device: Device = "cpu") -> RandomGroup:
    """Random tokens for the model in `path`; the same in every process that is given the same path."""
    model = load_model(ModelConfig(path=str(path), device=device))
    generator = torch.Generator().manual_seed(0)
    banned = set(model.banned_ids.tolist())
    allowed = torch.tensor([token for token in range(model.hf.lm_head.out_features) if token not in banned])

    def tokens(count: int) -> Tensor:
        return allowed[torch.randint(len(allowed), (count,), generator=generator)]

    positions = torch.arange(prompt_length).expand(3, -1)
    prompt = Prompt(tokens(prompt_length), positions, (), prompt_length, "bench")
    return RandomGroup(model, prompt, [tokens(response_length) for _ in range(num_takes)])


def _decoder_parameters(model: Model) -> int:
    """N: what every token is multiplied with; not the embedding, a table."""
    language_model = model.hf.model.language_model
    return sum(parameter.numel() for parameter in language_model.layers.parameters())


def _round(naive: Callable[[], object], shared: Callable[[], object], device: torch.device, naive_first: bool) -> tuple[float, float]:
    if naive_first:
        return _seconds(naive, device), _seconds(shared, device)
    shared_s = _seconds(shared, device)
    return _seconds(naive, device), shared_s


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
