"""What a rank holds for its backward when one sequence is spread over 1, 2 or 4 processes: it should be 1 / SP of the whole.

One group (its prompt once, its takes behind it) goes forward and backward. Counted are the bytes of tensors
held at the peak, parameters and their gradients not among them (`bench.memory`): activations, gradients in flight, logits of a chunk. What
gloo holds outside of torch's allocator is not seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from longtake.bench.memory import peak_bytes
from longtake.bench.ranks import run_on_ranks
from longtake.bench.update import WORDS, random_group
from longtake.config.benches import BenchMemoryConfig
from longtake.models.tiny import TinySizes, build_tiny
from longtake.parallel.mesh import divisors, start_world
from longtake.parallel.packed import pack_groups
from longtake.training.packed_policy import packed_logprobs

SIZES = TinySizes(
    vocab_size=512, hidden=256, layers=6, heads=8, kv_heads=4, mlp=1360, mrope_section=(4, 6, 6), vision_hidden=64, vision_mlp=64
)
"""4 KV heads and an MLP 5.3 times as wide as the model, as in Qwen2.5-VL-7B: the two decide what Ulysses costs beside 1 / SP."""
CPU = torch.device("cpu")
TIMEOUT_S = 900.0
WANTED = 0.10


@dataclass(frozen=True)
class SpreadBytes:
    """One layout."""

    degree: int
    """SP: processes that share the sequence."""
    ulysses: int
    ring: int
    bytes: int
    """Of the fullest rank, at its peak."""
    ranks: tuple[int, ...]
    """Of each rank."""
    share: float
    """bytes / bytes of one process (or, where none is asked for, of the first layout times its degree)."""
    deviation: float
    """share x SP - 1: 0 where it is exactly 1 / SP."""


@dataclass(frozen=True)
class MemoryBench:
    """What `bench memory --json` prints."""

    layouts: tuple[SpreadBytes, ...]
    largest_deviation: float
    wanted: float
    """At most so much."""
    prompt: int
    response: int
    group: int


def measure_memory(config: BenchMemoryConfig) -> MemoryBench:
    """Every split of every number of processes, the processes started here."""
    found: list[SpreadBytes] = []
    with tempfile.TemporaryDirectory() as folder:
        path = build_tiny(Path(folder) / "model", WORDS, 0, SIZES)
        for degree in config.degrees:
            answers = run_on_ranks(_on_rank, degree, config, str(path), timeout_s=TIMEOUT_S)
            for place, (ulysses, ring) in enumerate(splits(degree)):
                ranks = tuple(int(answer[place]) for answer in answers)
                share = max(ranks) / (found[0].bytes if found else max(ranks)) / config.degrees[0]
                found.append(SpreadBytes(degree, ulysses, ring, max(ranks), ranks, share, share * degree - 1))
    largest = max((abs(one.deviation) for one in found), default=0.0)
    return MemoryBench(tuple(found), largest, WANTED, config.prompt, config.response, config.group)


def splits(degree: int) -> Iterator[tuple[int, int]]:
    """(Ulysses, ring) with this product that the model's heads allow.

    >>> list(splits(4))
    [(1, 4), (2, 2), (4, 1)]
    """
    return ((ulysses, degree // ulysses) for ulysses in divisors(degree) if SIZES.heads % ulysses == 0)


def _on_rank(config: BenchMemoryConfig, path: str) -> list[int]:
    """Peak of this rank under each split."""
    with start_world(CPU, TIMEOUT_S) as world:
        group = random_group(Path(path), config.prompt, config.response, config.group)
        packed = pack_groups([group.prompt], [group.responses], CPU)
        found: list[int] = []
        for ulysses, ring in splits(world.size):
            mesh = world.sequence_mesh(ring, ulysses)

            def both() -> None:
                logprobs, _ = packed_logprobs(group.model, packed, 1.0, mesh=mesh)  # noqa: B023 - called in this turn of the loop
                logprobs.sum().backward()

            both()  # gradients exist from here on, and are added to
            found.append(peak_bytes(both, CPU))
        return found
