"""What the parts of a step cost in floating-point operations and bytes: counts only, no seconds and no machine. Pure.

Symbols: P prompt tokens, R tokens of a take, G takes, L layers, d = heads x head size, D width, W vocabulary, N decoder parameters.

    forward, one row per take:   2N G (P + R)  +  2Ld G (P + R)^2
    forward, prompt shared:      2N (P + GR)   +  2Ld (P^2 + G (2PR + R^2))

Both hold for causal attention, of which half the scores are computed; takes see the whole prompt. A product of weights costs 2 operations
per parameter and token, its backward twice that (input and weight gradient), a fused attention's backward 2.5 times its forward (5
products against 2, since the scores are computed again). The head runs on take tokens only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from longtake.types import ModelCosts, PackedGroup

LOGIT_BYTES = 16
"""Bytes per logit while a chunk is scored: float32 logits, banned logits, log-softmax and one more (measured, tests/planning)."""
BACKWARD_OF_ATTENTION = 2.5
FRAME_CHANNELS = 3


def rows_of(group: PackedGroup) -> list[PackedGroup]:
    """One group per take, the prompt repeated: the lengths of one row per take."""
    return [PackedGroup(group.prompt_length, (take,)) for take in group.take_lengths]


def part_of(group: PackedGroup, takes: Iterable[int]) -> PackedGroup:
    """The group with only these of its takes."""
    return PackedGroup(group.prompt_length, tuple(group.take_lengths[index] for index in takes))


@dataclass(frozen=True)
class Work:
    """Floating-point operations, by what limits their speed."""

    linear: float = 0.0
    """Products with weights."""
    attention: float = 0.0

    @property
    def flops(self) -> float:
        return self.linear + self.attention

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, factor: float) -> Work:
        return Work(self.linear * factor, self.attention * factor)


def attended_pairs(shape: PackedGroup) -> float:
    """Pairs of a query and a key that a causal forward computes, a prompt shared by its takes: P^2/2 + sum of (PR + R^2/2)."""
    return shape.prompt_length**2 / 2 + sum(shape.prompt_length * take + take**2 / 2 for take in shape.take_lengths)


def forward_work(costs: ModelCosts, shape: PackedGroup) -> Work:
    """One forward over a group with its prompt shared, head on the takes. A row of its own is a group of one take."""
    decoder = 2.0 * costs.decoder_parameters * shape.num_tokens
    head = 2.0 * costs.embedding_parameters * sum(shape.take_lengths)
    return Work(decoder + head, 4.0 * costs.layers * costs.attention_width * attended_pairs(shape))


def backward_work(costs: ModelCosts, shape: PackedGroup, *, weights_train: bool) -> Work:
    """Backward of `forward_work`; frozen weights (adapters train) need the gradient of the input alone."""
    forward = forward_work(costs, shape)
    return Work(forward.linear * (2.0 if weights_train else 1.0), forward.attention * BACKWARD_OF_ATTENTION)


def group_work(costs: ModelCosts, shape: PackedGroup, *, shared: bool) -> Work:
    """One forward over all takes of a group."""
    if shared:
        return forward_work(costs, shape)
    return sum((forward_work(costs, row) for row in rows_of(shape)), Work())


def token_ratio(shape: PackedGroup) -> float:
    """rho: tokens of one row per take over tokens with the prompt shared, G (P + R) / (P + GR)."""
    return sum(row.num_tokens for row in rows_of(shape)) / shape.num_tokens


def flop_ratio(costs: ModelCosts, shape: PackedGroup) -> float:
    """Operations of one row per take over those with the prompt shared: what sharing can gain at most."""
    return group_work(costs, shape, shared=False).flops / group_work(costs, shape, shared=True).flops


def decode_work(costs: ModelCosts, shape: PackedGroup) -> Work:
    """Sampling the takes token by token behind a prefilled prompt: the same products as their forward, the prompt's own left out."""
    return forward_work(costs, shape) + forward_work(costs, PackedGroup(shape.prompt_length, ())) * -1.0


def num_video_tokens(costs: ModelCosts, num_frames: int, height: int, width: int) -> int:
    """V: tokens of a video of so many frames of height x width pixels (whole multiples of patch_multiple)."""
    side = costs.patch_multiple
    return -(-num_frames // costs.tower.temporal_patch) * (height // side) * (width // side)


def encode_work(costs: ModelCosts, num_frames: int, height: int, width: int) -> Work:
    """The tower over one video, forward. Full attention spans a temporal group; the other layers stay inside windows."""
    tower = costs.tower
    groups = -(-num_frames // tower.temporal_patch)
    per_group = (height // tower.patch_size) * (width // tower.patch_size)
    patches = groups * per_group
    tokens = patches // tower.merge**2
    windowed = (tower.layers - tower.full_attention_layers) * min(tower.window_patches, per_group)
    seen = tower.full_attention_layers * per_group + windowed
    return Work(2.0 * (tower.patch_parameters * patches + tower.token_parameters * tokens), 4.0 * tower.width * patches * seen)


def frame_bytes(num_frames: int, height: int, width: int, bytes_per_value: int = 1) -> int:
    """Pixels of decoded frames: uint8 as we keep them (1), float32 as peers do (4)."""
    return num_frames * height * width * FRAME_CHANNELS * bytes_per_value


def embedding_bytes(costs: ModelCosts, num_tokens: int) -> int:
    """Embeddings of video or text tokens, [V, D]."""
    return num_tokens * costs.width * costs.dtype_bytes


def logits_bytes(costs: ModelCosts, num_rows: int, bytes_per_logit: int = 4) -> int:
    """[rows, W]: one float32 copy by default; LOGIT_BYTES for the peak while they are scored."""
    return num_rows * costs.vocabulary * bytes_per_logit


def layer_activation_bytes(costs: ModelCosts) -> int:
    """Bytes per token that one decoder layer of transformers keeps for its backward (measured tensor by tensor, tests/planning).

    In the activations' dtype: both norms' normalised values and outputs (4D), queries and attention output (2d), keys and values, four of
    the MLP's width; in float32: the inputs of both norms (2D), log-sum-exp (one per head), and one per norm.
    """
    kept = 4 * costs.width + 2 * costs.attention_width + 2 * costs.kv_heads * costs.head_dim + 4 * costs.mlp_width
    return kept * costs.dtype_bytes + 4 * (2 * costs.width + costs.heads + 2)


def layer_working_bytes(costs: ModelCosts) -> int:
    """Bytes per token of gradients in flight inside one layer's backward."""
    return 2 * (costs.mlp_width + costs.width) * costs.dtype_bytes


def end_bytes(costs: ModelCosts) -> int:
    """Bytes per token at the turn from forward to backward: input of the decoder, final norm in float32 and its gradients."""
    return costs.width * (12 + 7 * costs.dtype_bytes)


def activation_bytes_per_token(costs: ModelCosts, *, checkpointing: bool) -> int:
    """Peak per token of a forward and backward: every layer's activations, or with checkpointing every layer's input and ONE layer's."""
    one = layer_activation_bytes(costs)
    in_flight = layer_working_bytes(costs)
    if checkpointing:
        return costs.layers * costs.width * costs.dtype_bytes + max(one + in_flight, end_bytes(costs))
    return costs.layers * one + max(in_flight, end_bytes(costs))


def forward_bytes_per_token(costs: ModelCosts) -> int:
    """Peak per token of a forward without gradients: three of the MLP's width, and residual, norm and rotary tables beside them."""
    return (3 * costs.mlp_width + 4 * costs.width + 2 * costs.head_dim) * costs.dtype_bytes
