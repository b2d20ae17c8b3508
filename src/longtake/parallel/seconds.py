"""Seconds of the parts of a step, from counts and rates. Pure.

A micro-batch costs a fixed part (kernels started, weights read, exchanges opened: `pass_seconds`) and a part for each of its units
(`unit_seconds`), so that packing is a question of sums. Where a model of this kind must choose, it is on the slow side: exchanges are not
hidden behind compute, and the ring rank with the most tokens sets the pace.

Letters: costs.py; u Ulysses ranks, r ring ranks, n query heads and k KV heads of one rank, b bytes of an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from longtake.parallel.balance import fullest_load
from longtake.parallel.costs import (
    BACKWARD_OF_ATTENTION,
    Work,
    decode_work,
    encode_work,
    forward_work,
    layer_activation_bytes,
)
from longtake.parallel.setting import Setting
from longtake.types import ModelCosts, PackedGroup

FORWARD_CALLS, BACKWARD_CALLS = 40, 82
"""Kernels that one decoder layer of transformers starts, views not counted (counted op by op)."""
FORWARD_TRAFFIC, BACKWARD_TRAFFIC = 3, 6
"""Bytes a layer moves through memory, in units of what it keeps for its backward: each is written once and read about twice."""
PIECE_CALLS, TAKE_CALLS = 12, 1
"""Further kernels of the attention per layer: for each piece (prompt, takes to prompt, merge), and for each take, several of which share
a call."""
DECODE_CALLS = 45
"""Kernels that one layer starts for one token of each live take: a layer's forward and the two attentions of the shared cache."""
TOWER_CALLS = 40
OPTIMIZER_STREAMS = 18
"""How often clipping and AdamW (foreach) read or write an array of the size of the trained weights."""


@dataclass(frozen=True)
class Split:
    """One sequence over u Ulysses x r ring ranks."""

    ulysses: int = 1
    ring: int = 1

    @property
    def degree(self) -> int:
        return self.ulysses * self.ring

    def kv_heads(self, costs: ModelCosts) -> int:
        """k: KV heads that each Ulysses rank gets; with fewer than ranks they are sent to several."""
        each = costs.heads // self.ulysses
        return each // gcd(each, costs.heads // costs.kv_heads)


@dataclass(frozen=True)
class Share:
    """What the fullest rank of a sequence group does of one piece."""

    tokens: float
    pairs: float
    """Of query and key, over all heads."""
    scored: float
    """Take tokens: rows of logits."""


def rank_share(shape: PackedGroup, split: Split, *, shared: bool) -> Share:
    """Prompts are cut evenly over the ring, takes lie whole on one ring rank, Ulysses ranks halve what a ring rank has."""
    if not shared:
        row = shape.num_tokens
        return Share(row / split.degree, row**2 / 2 / split.degree, sum(shape.take_lengths) / split.ulysses)
    pairs = fullest_load([shape.prompt_length * take + take**2 / 2 for take in shape.take_lengths], split.ring)
    takes = fullest_load(shape.take_lengths, split.ring)
    prompt = shape.prompt_length / split.ring
    return Share((prompt + takes) / split.ulysses, (prompt * shape.prompt_length / 2 + pairs) / split.ulysses, takes / split.ulysses)


@dataclass(frozen=True)
class Passes:
    """How often a micro-batch goes through the decoder in one step."""

    forward: int
    backward: int


def training_passes(setting: Setting, *, checkpointing: bool) -> Passes:
    """Policy forward and backward, the forward again where layers are checkpointed, and the reference's forward."""
    return Passes(1 + int(checkpointing) + int(setting.training.reference_passes), 1)


def unit_seconds(setting: Setting, shape: PackedGroup, split: Split, passes: Passes, *, shared: bool) -> float:
    """What a piece adds to the seconds of its micro-batch: compute, memory traffic, attention kernels, bytes exchanged."""
    costs, rates = setting.costs, setting.rates
    share = rank_share(shape, split, shared=shared)
    forward = Work(
        2.0 * costs.decoder_parameters * share.tokens + 2.0 * costs.embedding_parameters * share.scored,
        4.0 * costs.layers * costs.attention_width * share.pairs,
    )
    weights = 1.0 if setting.training.adapters else 2.0
    linear = forward.linear * (passes.forward + weights * passes.backward)
    attention = forward.attention * (passes.forward + BACKWARD_OF_ATTENTION * passes.backward)
    kept = costs.layers * layer_activation_bytes(costs) * share.tokens
    traffic = kept * (FORWARD_TRAFFIC * passes.forward + BACKWARD_TRAFFIC * passes.backward)
    num_takes = len(shape.take_lengths) if shared else 0
    calls = costs.layers * (PIECE_CALLS + TAKE_CALLS * num_takes) * (passes.forward + 2 * passes.backward) * split.ring
    return (
        linear / rates.matmul_flops
        + attention / rates.attention_flops
        + traffic / rates.memory_bytes
        + calls * rates.call_s
        + exchange_seconds(setting, shape, share, split, passes, shared=shared)
    )


def exchange_bytes(costs: ModelCosts, prompt: float, tokens: float, split: Split) -> tuple[float, float]:
    """Bytes that one rank sends in one layer's forward: (Ulysses, ring).

    Ulysses: queries, keys, values and outputs of its `tokens`, (u - 1)(2n + 2k) H b each. Ring: keys and values of the ring rank's part
    of the prompt, r - 1 times.
    """
    kv, each = split.kv_heads(costs), costs.heads // split.ulysses
    per_head = costs.head_dim * costs.dtype_bytes
    ulysses = (split.ulysses - 1) * (2 * each + 2 * kv) * per_head * tokens
    ring = (split.ring - 1) * 2 * kv * per_head * prompt / split.ring
    return ulysses, ring


def exchange_seconds(setting: Setting, shape: PackedGroup, share: Share, split: Split, passes: Passes, *, shared: bool) -> float:
    """Exchanges of all layers. Backward sends what forward sends; on the ring also the gradients of keys and values, in float32 and once
    around."""
    prompt = shape.prompt_length if shared else shape.num_tokens
    ulysses, ring = exchange_bytes(setting.costs, prompt, share.tokens, split)
    sent = ulysses * (passes.forward + passes.backward) / link(setting, split.ulysses)
    home = ring * split.ring / max(1, split.ring - 1) * 4 / setting.costs.dtype_bytes
    passed = ring * passes.forward + (ring + home) * passes.backward
    return setting.costs.layers * (sent + passed / link(setting, split.degree))


def link(setting: Setting, num_ranks: int) -> float:
    """Bytes per second between so many neighbouring ranks."""
    return setting.rates.node_link_bytes if setting.cluster.crosses_nodes(num_ranks) else setting.rates.link_bytes


def pass_seconds(setting: Setting, split: Split, passes: Passes) -> float:
    """What a micro-batch costs whatever is in it: kernels, weights read from memory, exchanges opened."""
    costs, rates = setting.costs, setting.rates
    kernels = costs.layers * (FORWARD_CALLS * passes.forward + BACKWARD_CALLS * passes.backward) * rates.call_s
    read = costs.decoder_parameters * costs.dtype_bytes * (passes.forward + 2 * passes.backward) / rates.memory_bytes
    opened = 2 * int(split.ulysses > 1) + 2 * (split.ring - 1)
    return kernels + read + costs.layers * opened * (passes.forward + passes.backward) * rates.collective_s


def gather_seconds(setting: Setting, passes: Passes) -> float:
    """Sharded weights gathered for each forward and backward of a micro-batch, gradients reduced and scattered; 0 when not sharded."""
    world, training = setting.cluster.world_size, setting.training
    if not training.sharded or world == 1:
        return 0.0
    weights = setting.costs.language_parameters * setting.costs.dtype_bytes * (passes.forward + passes.backward)
    gradients = training.trained_parameters * training.trained_bytes * passes.backward
    return (weights + gradients) * (world - 1) / world / link(setting, world)


def sum_gradients_seconds(setting: Setting) -> float:
    """One sum of all gradients over the ranks per update (ring all-reduce in float32), where every rank holds the weights whole."""
    world, training = setting.cluster.world_size, setting.training
    if training.sharded or world == 1:
        return 0.0
    return 2 * training.trained_parameters * 4 * (world - 1) / world / link(setting, world) + setting.rates.collective_s


def optimizer_seconds(setting: Setting) -> float:
    """Clipping and AdamW on this rank's part."""
    training = setting.training
    own = training.trained_parameters * training.trained_bytes / (setting.cluster.world_size if training.sharded else 1)
    return OPTIMIZER_STREAMS * own / setting.rates.memory_bytes


def encode_seconds(setting: Setting, num_frames: int, height: int, width: int, num_ranks: int = 1) -> float:
    """One video's frames over so many ranks, forward only. Windows are attended one kernel each, as transformers does."""
    tower, rates = setting.costs.tower, setting.rates
    groups = -(-num_frames // tower.temporal_patch)
    share = -(-groups // num_ranks) * tower.temporal_patch
    work = encode_work(setting.costs, share, height, width)
    per_group = (height // tower.patch_size) * (width // tower.patch_size)
    windows = -(-per_group // tower.window_patches) * (tower.layers - tower.full_attention_layers) + tower.full_attention_layers
    calls = tower.layers * TOWER_CALLS + share // tower.temporal_patch * windows
    patches = share // tower.temporal_patch * per_group
    traffic = patches * tower.layers * (12 * tower.width + 8 * tower.mlp_width) * setting.costs.dtype_bytes
    return work.linear / rates.matmul_flops + work.attention / rates.attention_flops + calls * rates.call_s + traffic / rates.memory_bytes


def prefill_seconds(setting: Setting, shape: PackedGroup) -> float:
    """A prompt's forward on one rank, before its takes are sampled."""
    prompt, passes = PackedGroup(shape.prompt_length, ()), Passes(1, 0)
    return unit_seconds(setting, prompt, Split(), passes, shared=True) + pass_seconds(setting, Split(), passes)


def sample_seconds(setting: Setting, shapes: list[PackedGroup]) -> float:
    """Takes of these groups decoded together on one rank: every step reads the weights, each prompt's keys once, and each take's own."""
    costs, rates = setting.costs, setting.rates
    takes = [take for shape in shapes for take in shape.take_lengths]
    steps = max(takes, default=0)
    weights = (costs.decoder_parameters + costs.embedding_parameters) * costs.dtype_bytes
    prompts = sum(shape.prompt_length * max(shape.take_lengths, default=0) for shape in shapes)
    read = steps * weights + (prompts + sum(take**2 / 2 for take in takes)) * costs.kv_bytes_per_token + sum(takes) * costs.vocabulary * 16
    work = sum((decode_work(costs, shape) for shape in shapes), Work())
    return work.linear / rates.matmul_flops + read / rates.memory_bytes + steps * costs.layers * DECODE_CALLS * rates.call_s


def forward_seconds(setting: Setting, shape: PackedGroup) -> float:
    """One forward over a group on one rank at full speed: for checks by hand."""
    work = forward_work(setting.costs, shape)
    return work.linear / setting.rates.matmul_flops + work.attention / setting.rates.attention_flops
