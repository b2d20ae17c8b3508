"""Bytes of one rank in each phase of a step, and of a node's host. Pure.

Weights, gradients, moments and a reference are there all the time; what a phase needs besides is gone when it ends, so a rank needs the
largest phase. Predictions are upper bounds: peaks of a phase that do not quite coincide are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from longtake.parallel.costs import (
    LOGIT_BYTES,
    activation_bytes_per_token,
    forward_bytes_per_token,
    frame_bytes,
    logits_bytes,
    num_video_tokens,
)
from longtake.parallel.seconds import Split, rank_share
from longtake.parallel.setting import Setting
from longtake.types import PackedGroup

SCORED_ROWS = 2048
"""Take tokens scored at a time (training.policy.CHUNK_ROWS)."""
FIRST_CAPACITY = 64
"""Own tokens for which the rollout cache has room at first; doubled when full (rollout.shared_cache)."""
BUCKET_BYTES = 2 * (64 << 20)
"""A message of gradients on its way, and the copy it came from."""
PROCESS_BYTES = 700 << 20
"""Host memory of a process that has loaded torch and transformers and no weights."""


@dataclass(frozen=True)
class RankBytes:
    """Parts of the memory of one rank in one phase."""

    weights: float = 0
    reference: float = 0
    optimizer: float = 0
    """Moments."""
    gradients: float = 0
    gathered: float = 0
    """Weights of other ranks held for the moment, and messages."""
    activations: float = 0
    logits: float = 0
    keys_values: float = 0
    pixels: float = 0
    """Of the chunk of frames in the tower, with the tower's activations."""

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))

    def largest(self) -> str:
        """Name of the largest part."""
        return max((part.name for part in fields(self)), key=lambda name: getattr(self, name))

    def named(self) -> list[tuple[str, float]]:
        """(name, bytes) of all parts."""
        return [(part.name, getattr(self, part.name)) for part in fields(self)]

    def parts(self) -> list[tuple[str, float]]:
        """(name, bytes) of the parts that are not 0."""
        return [(name, size) for name, size in self.named() if size]


def standing_bytes(setting: Setting) -> RankBytes:
    """What is there in every phase."""
    costs, training = setting.costs, setting.training
    parts = setting.cluster.world_size if training.sharded else 1
    if training.adapters:
        weights = costs.parameters * costs.dtype_bytes + training.trained_parameters * training.trained_bytes
    else:
        frozen = costs.parameters - training.trained_parameters
        weights = frozen * costs.dtype_bytes + training.trained_parameters * training.trained_bytes
    return RankBytes(
        weights=weights / parts,
        reference=costs.language_parameters * costs.dtype_bytes * training.reference_copy / parts,
        optimizer=2 * training.trained_parameters * training.trained_bytes / parts,
    )


def gathered_bytes(setting: Setting) -> float:
    """Sharded: embedding and head whole, two layers (one computing, one on its way), and their gradients. Else messages of gradients."""
    costs, training = setting.costs, setting.training
    if setting.cluster.world_size == 1:
        return 0.0
    if not training.sharded:
        return BUCKET_BYTES
    ends = costs.language_parameters - costs.decoder_parameters
    held = (ends + 2 * costs.decoder_parameters / costs.layers) * costs.dtype_bytes
    return held * (1 if training.adapters else 2)


def update_fixed_bytes(setting: Setting) -> RankBytes:
    """An update before the first token: standing bytes, gradients, gathered weights."""
    training = setting.training
    parts = setting.cluster.world_size if training.sharded else 1
    gradients = training.trained_parameters * training.trained_bytes / parts
    return replace(standing_bytes(setting), gradients=gradients, gathered=gathered_bytes(setting))


def piece_bytes(setting: Setting, shape: PackedGroup, split: Split, *, shared: bool, checkpointing: bool) -> float:
    """Activations that a piece adds to its micro-batch, on the fullest rank; its part of the embeddings included."""
    costs = setting.costs
    share = rank_share(shape, split, shared=shared)
    per_token = activation_bytes_per_token(costs, checkpointing=checkpointing) + costs.width * costs.dtype_bytes
    return share.tokens * (per_token + exchange_bytes_per_token(setting, split, checkpointing=checkpointing))


def exchange_bytes_per_token(setting: Setting, split: Split, *, checkpointing: bool) -> float:
    """Ulysses holds replicated KV heads for the backward and one exchange in flight, a ring two passing copies of keys and values."""
    costs = setting.costs
    kv = split.kv_heads(costs) * split.ulysses
    per_head = costs.head_dim * costs.dtype_bytes
    replicated = 2 * (kv - costs.kv_heads) * per_head * (1 if checkpointing else costs.layers) if split.ulysses > 1 else 0
    in_flight = 2 * (costs.heads + 2 * kv) * per_head if split.ulysses > 1 else 0
    passing = 4 * 2 * kv * per_head if split.ring > 1 else 0
    return replicated + in_flight + passing


def prompt_gradient_bytes(setting: Setting, shape: PackedGroup, split: Split) -> float:
    """A split group keeps its prompt's keys and values of all layers, a chunk's gradients of them, and their sums (float32 for half
    precision) while its takes go through."""
    costs = setting.costs
    kv = split.kv_heads(costs) * split.ulysses / costs.kv_heads
    copies = 2 + max(4, costs.dtype_bytes) / costs.dtype_bytes
    return copies * costs.kv_bytes_per_token * kv * shape.prompt_length / split.degree


def scored_bytes(setting: Setting, scored_rows: float) -> float:
    """Logits while they are scored, a chunk at a time."""
    return logits_bytes(setting.costs, round(min(scored_rows, SCORED_ROWS)), LOGIT_BYTES)


def update_bytes(setting: Setting, activations: float, scored_rows: float) -> RankBytes:
    """Forward and backward of a micro-batch."""
    return replace(update_fixed_bytes(setting), activations=activations, logits=scored_bytes(setting, scored_rows))


def optimizer_step_bytes(setting: Setting) -> RankBytes:
    """AdamW over all weights at once (foreach) makes an array of their size."""
    fixed = update_fixed_bytes(setting)
    return replace(fixed, gathered=fixed.gradients)


def own_capacity(num_tokens: int) -> int:
    """Tokens for which the rollout cache has room in each take when `num_tokens` have been sampled."""
    capacity = FIRST_CAPACITY
    while capacity < num_tokens:
        capacity *= 2
    return capacity


@dataclass(frozen=True)
class RolloutLimits:
    """How many takes are decoded together, and how long they may get."""

    num_takes: int
    max_new_tokens: int
    max_rows: int
    max_prompt_tokens: int = 131_072
    """Of the prompts decoded together, padded (rollout.transformers_engine)."""

    @property
    def rows_per_prompt(self) -> int:
        return min(self.num_takes, self.max_rows)

    def wave(self, longest_prompt: int) -> int:
        """Prompts of this length decoded together."""
        return max(1, min(self.max_rows // self.rows_per_prompt, self.max_prompt_tokens // longest_prompt))


def rollout_bytes(setting: Setting, prompts: Sequence[int], limits: RolloutLimits) -> RankBytes:
    """The largest wave of prompts decoded together: their keys and values once, each take's own, the prefill's activations."""
    costs = setting.costs
    longest = max(prompts)
    wave = min(limits.wave(longest), len(prompts))
    padded = wave * longest
    live = wave * limits.rows_per_prompt
    own = live * own_capacity(limits.max_new_tokens) * (1 + 1 / costs.layers)
    standing = standing_bytes(setting)
    whole = costs.language_parameters * costs.dtype_bytes if setting.training.sharded and setting.cluster.world_size > 1 else 0
    return replace(
        standing,
        gathered=whole,
        keys_values=costs.kv_bytes_per_token * (padded + own),
        activations=padded * (forward_bytes_per_token(costs) + costs.width * costs.dtype_bytes),
        logits=logits_bytes(costs, live, LOGIT_BYTES),
    )


def encode_bytes(setting: Setting, num_frames: int, height: int, width: int, groups_per_chunk: int) -> RankBytes:
    """The tower over one chunk of frames: pixels in float32 and in the dtype of the run, one layer. A trained tower keeps all layers."""
    costs, tower = setting.costs, setting.costs.tower
    groups = -(-num_frames // tower.temporal_patch)
    chunk = min(groups, groups_per_chunk) * tower.temporal_patch
    patches_of = (height // tower.patch_size) * (width // tower.patch_size) / tower.temporal_patch
    layer = (9 * tower.width + 3 * tower.mlp_width) * costs.dtype_bytes + 8 * tower.width
    kept = tower.layers * groups * tower.temporal_patch * patches_of * layer if setting.training.train_vision else 0
    pixels = frame_bytes(chunk, height, width, 4) * 2 + frame_bytes(chunk, height, width, costs.dtype_bytes)
    return replace(standing_bytes(setting), pixels=pixels + chunk * patches_of * layer + kept)


@dataclass(frozen=True)
class HostBytes:
    """Parts of a node's host memory."""

    processes: float
    frames: float
    """Decoded frames in flight, uint8: one video per rank while it is encoded."""
    embeddings: float
    """Kept for later steps, within the budget of each process."""
    device: float
    """On a CPU, everything the ranks hold as device memory; else 0."""

    @property
    def total(self) -> float:
        return sum(size for _, size in self.parts())

    def parts(self) -> list[tuple[str, float]]:
        return [(part.name, getattr(self, part.name)) for part in fields(self)]

    def largest(self) -> str:
        """Name of the largest part."""
        return max(self.parts(), key=lambda part: part[1])[0]


def host_bytes(
    setting: Setting, num_frames: int, height: int, width: int, *, num_videos: int, cache_bytes: float, rank_peak: float
) -> HostBytes:
    """A node's host memory for videos of at most this size, `num_videos` different ones in the rows."""
    ranks, costs = setting.cluster.ranks_per_node, setting.costs
    tokens = num_video_tokens(costs, num_frames, height, width)
    frames = frame_bytes(num_frames, height, width)
    one = frames if setting.training.train_vision else tokens * costs.width * costs.dtype_bytes
    return HostBytes(
        processes=ranks * PROCESS_BYTES,
        frames=ranks * frames,
        embeddings=ranks * min(num_videos * one, cache_bytes),
        device=ranks * rank_peak if setting.cluster.device == "cpu" else 0,
    )
