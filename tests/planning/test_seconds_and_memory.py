"""Seconds and bytes of the parts of a step against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from longtake.models.costs import model_costs
from longtake.parallel import memory, seconds
from longtake.parallel.costs import LOGIT_BYTES
from longtake.parallel.seconds import Passes, Split, rank_share, training_passes
from longtake.parallel.setting import GIB, Cluster, DeviceRates, Setting, assumed_rates, linear_sizes, training_costs
from longtake.parallel.ulysses import split_heads
from longtake.rollout.shared_cache import _FIRST_CAPACITY
from longtake.training.policy import CHUNK_ROWS
from longtake.types import PackedGroup

SEVEN = model_costs(str(Path(__file__).parent / "qwen2_5_vl_7b"), "bfloat16")
NOTHING_ELSE = DeviceRates("only what is named", inf, inf, inf, 0.0)
LONG = PackedGroup(80_000, (1000,) * 8)


def setting(world: int = 8, per_node: int = 8, rates: DeviceRates = NOTHING_ELSE, **training) -> Setting:
    return Setting(SEVEN, training_costs(SEVEN, **training), Cluster(world // per_node, per_node, 80 * GIB, 1 << 40), rates)


# ---- who holds what


@pytest.mark.parametrize("ranks", [1, 2, 4, 7, 14, 28])
def test_kv_heads_of_a_rank_are_those_that_ulysses_sends(ranks: int):
    assert Split(ranks).kv_heads(SEVEN) == split_heads(SEVEN.heads, SEVEN.kv_heads, ranks).kv_per_rank


def test_share_of_the_fullest_rank():
    # ring 2 x Ulysses 2: half the prompt on a ring rank, takes 5 + 2 on one and 4 + 3 on the other, half of that on a Ulysses rank
    share = rank_share(PackedGroup(100, (5, 4, 3, 2)), Split(2, 2), shared=True)
    assert (share.tokens, share.scored) == ((50 + 7) / 2, 7 / 2)
    # pairs: half of the prompt's 100^2 / 2; takes by their own pairs 512.5 + 202 and 408 + 304.5
    assert share.pairs == (2500 + 714.5) / 2
    row = rank_share(PackedGroup(100, (20,)), Split(2, 2), shared=False)
    assert (row.tokens, row.pairs, row.scored) == (30, 120**2 / 2 / 4, 10)


def test_passes():
    plain, with_reference = setting(), setting(reference_passes=True)
    assert training_passes(plain, checkpointing=False) == Passes(1, 1)
    assert training_passes(with_reference, checkpointing=True) == Passes(3, 1)


# ---- seconds


def test_compute_of_an_update():
    rates = replace(NOTHING_ELSE, matmul_flops=1e15)
    linear = 2 * SEVEN.decoder_parameters * 88_000 + 2 * SEVEN.embedding_parameters * 8000
    assert seconds.unit_seconds(setting(rates=rates), LONG, Split(), Passes(1, 1), shared=True) == pytest.approx(3 * linear / 1e15)
    adapters = setting(rates=rates, lora_rank=16, lora_targets=("q_proj",))
    assert seconds.unit_seconds(adapters, LONG, Split(), Passes(1, 1), shared=True) == pytest.approx(2 * linear / 1e15)
    on_eight = seconds.unit_seconds(setting(rates=rates), LONG, Split(2, 4), Passes(1, 1), shared=True)
    assert on_eight == pytest.approx(3 * linear / 1e15 / 8)


def test_attention_of_an_update():
    rates = replace(NOTHING_ELSE, attention_flops=1e15)
    pairs = 80_000**2 / 2 + 8 * (80_000 * 1000 + 1000**2 / 2)
    expected = 4 * 28 * 3584 * pairs * 3.5 / 1e15
    assert seconds.unit_seconds(setting(rates=rates), LONG, Split(), Passes(1, 1), shared=True) == pytest.approx(expected)


def test_bytes_exchanged():
    # Ulysses 4: 7 query heads and 1 KV head a rank; 3 x (14 + 2) x 128 x 2 bytes per token
    assert seconds.exchange_bytes(SEVEN, 80_000, 22_000, Split(4)) == (3 * 16 * 128 * 2 * 22_000, 0)
    # ring 4: keys and values of 20,000 prompt tokens, 4 KV heads, three times
    assert seconds.exchange_bytes(SEVEN, 80_000, 22_000, Split(1, 4)) == (0, 3 * 2 * 4 * 128 * 2 * 20_000)


def test_seconds_of_exchanges_on_a_node_and_between_nodes():
    rates = replace(NOTHING_ELSE, link_bytes=1e11, node_link_bytes=1e10)
    one_node, two_nodes = setting(rates=rates), setting(world=16, rates=rates)
    found = seconds.unit_seconds(one_node, LONG, Split(4), Passes(1, 1), shared=True)
    assert found == pytest.approx(28 * 2 * 3 * 16 * 128 * 2 * 22_000 / 1e11)
    assert seconds.unit_seconds(two_nodes, LONG, Split(4), Passes(1, 1), shared=True) == pytest.approx(found)
    ring = seconds.unit_seconds(one_node, LONG, Split(1, 4), Passes(1, 1), shared=True)
    # forward 3 hops of keys and values in bfloat16, backward as many, and 4 hops of their gradients in float32
    hop = 28 * 2 * 4 * 128 * 20_000
    assert ring == pytest.approx((6 * hop * 2 + 4 * hop * 4) / 1e11)
    across = seconds.unit_seconds(two_nodes, LONG, Split(1, 16), Passes(1, 1), shared=True)
    hop = 28 * 2 * 4 * 128 * 5000
    assert across == pytest.approx((30 * hop * 2 + 16 * hop * 4) / 1e10)


def test_what_a_pass_costs_without_tokens():
    rates = replace(NOTHING_ELSE, call_s=1e-5, collective_s=1e-4)
    kernels = 28 * (40 * 2 + 82) * 1e-5
    assert seconds.pass_seconds(setting(rates=rates), Split(), Passes(2, 1)) == pytest.approx(kernels)
    assert seconds.pass_seconds(setting(rates=rates), Split(2, 2), Passes(2, 1)) == pytest.approx(kernels + 28 * 4 * 3 * 1e-4)


def test_weights_travel_only_when_sharded_and_gradients_are_summed_only_when_not():
    rates = replace(NOTHING_ELSE, link_bytes=1e11)
    whole, sharded = setting(rates=rates), setting(rates=rates, sharded=True)
    assert seconds.gather_seconds(whole, Passes(1, 1)) == seconds.sum_gradients_seconds(sharded) == 0
    weights = SEVEN.language_parameters * 2
    assert seconds.gather_seconds(sharded, Passes(1, 1)) == pytest.approx(3 * weights * 7 / 8 / 1e11)
    assert seconds.sum_gradients_seconds(whole) == pytest.approx(2 * SEVEN.language_parameters * 4 * 7 / 8 / 1e11)
    assert seconds.gather_seconds(setting(world=1, per_node=1, rates=rates, sharded=True), Passes(1, 1)) == 0


def test_sampling_reads_the_prompt_once_for_all_takes():
    rates = replace(NOTHING_ELSE, memory_bytes=1e12)
    one, eight = (seconds.sample_seconds(setting(rates=rates), [PackedGroup(80_000, (1000,) * count)]) for count in (1, 8))
    weights = (SEVEN.decoder_parameters + SEVEN.embedding_parameters) * 2
    own = 1000**2 / 2 * 57_344 + 1000 * SEVEN.vocabulary * 16
    assert one == pytest.approx((1000 * weights + 80_000 * 1000 * 57_344 + own) / 1e12)
    assert eight - one == pytest.approx(7 * own / 1e12)


def test_encoding_is_divided_at_temporal_groups():
    rates = replace(NOTHING_ELSE, matmul_flops=1e15)
    whole, quarter = (seconds.encode_seconds(setting(rates=rates), 64, 252, 448, ranks) for ranks in (1, 4))
    assert whole == pytest.approx(4 * quarter)
    # 33 groups on 4 ranks: nine on the fullest
    assert seconds.encode_seconds(setting(rates=rates), 66, 252, 448, 4) == pytest.approx(whole * 9 / 32)


def test_windows_cost_a_kernel_each():
    rates = replace(NOTHING_ELSE, call_s=1e-5)
    # 576 patches a group: 9 windows in 28 layers, whole groups in 4; 32 groups
    assert seconds.encode_seconds(setting(rates=rates), 64, 252, 448) == pytest.approx((32 * 40 + 32 * (9 * 28 + 4)) * 1e-5)


# ---- bytes


def test_standing_bytes_of_full_training_and_adapters():
    full = memory.standing_bytes(setting(world=1, per_node=1, reference_passes=True))
    assert full.weights == SEVEN.parameters * 2
    assert full.optimizer == 2 * SEVEN.language_parameters * 2
    assert full.reference == SEVEN.language_parameters * 2
    adapters = setting(lora_rank=16, lora_targets=("q_proj", "down_proj"), reference_passes=True)
    count = 28 * 16 * (3584 + 3584 + 18_944 + 3584)
    found = memory.standing_bytes(adapters)
    assert (found.reference, found.optimizer) == (0, 8 * count)
    assert found.weights == SEVEN.parameters * 2 + 4 * count


def test_sharding_divides_what_stands_and_gathers_two_layers():
    whole, sharded = setting(reference_passes=True), setting(reference_passes=True, sharded=True)
    assert memory.standing_bytes(sharded).total == pytest.approx(memory.standing_bytes(whole).total / 8)
    ends = SEVEN.language_parameters - SEVEN.decoder_parameters
    assert memory.gathered_bytes(sharded) == pytest.approx(2 * 2 * (ends + SEVEN.decoder_parameters / 14))


def test_linear_layers_are_all_of_a_layer_but_norms_and_biases():
    sizes = linear_sizes(SEVEN)
    products = 28 * sum(inputs * outputs for inputs, outputs in sizes.values())
    biases_and_norms = 28 * (3584 + 2 * 512 + 2 * 3584) + 3584
    assert products + biases_and_norms == SEVEN.decoder_parameters


def test_activations_fall_with_the_degree():
    def held(split: Split) -> float:
        return memory.piece_bytes(setting(), LONG, split, shared=True, checkpointing=True)

    assert held(Split(4)) < 1.1 * held(Split()) / 4
    assert held(Split(4, 2)) < 1.1 * held(Split()) / 8


def test_a_rollout_holds_a_prompt_once():
    one, eight = (memory.rollout_bytes(setting(), [100_000], memory.RolloutLimits(takes, 1000, 256)) for takes in (1, 8))
    own = 1024 * (1 + 1 / 28) * 57_344
    assert one.keys_values == pytest.approx(100_000 * 57_344 + own)
    assert eight.keys_values == pytest.approx(100_000 * 57_344 + 8 * own)


def test_prompts_decoded_together():
    limits = memory.RolloutLimits(8, 64, 256)
    # 256 rows are 32 prompts of 8 takes; of 8,192 tokens no more than 16, which are 131,072
    assert (limits.wave(100), limits.wave(8192), limits.wave(200_000)) == (32, 16, 1)
    assert memory.RolloutLimits(8, 64, 4).wave(100) == 1
    one, padded = (memory.rollout_bytes(setting(), prompts, limits) for prompts in ([100], [100, 50]))
    assert padded.activations == 2 * one.activations


def test_constants_are_those_of_the_code_they_describe():
    assert memory.SCORED_ROWS == CHUNK_ROWS
    assert memory.FIRST_CAPACITY == _FIRST_CAPACITY
    assert [memory.own_capacity(count) for count in (1, 64, 65, 2048)] == [64, 64, 128, 2048]


def test_logits_never_exist_for_more_than_a_chunk():
    assert memory.scored_bytes(setting(), 1e9) == CHUNK_ROWS * SEVEN.vocabulary * LOGIT_BYTES
    assert memory.scored_bytes(setting(), 10) == 10 * SEVEN.vocabulary * LOGIT_BYTES


def test_host_memory_of_an_hour():
    host = memory.host_bytes(setting(), 3600, 448, 448, num_videos=1000, cache_bytes=4 << 30, rank_peak=1)
    assert host.frames == 8 * 3600 * 448 * 448 * 3
    assert host.embeddings == 8 * (4 << 30)  # 0.46 million tokens of 7 KB are 3.3 GB a video: the budget is full after one
    assert host.device == 0
    on_cpu = replace(setting(), cluster=Cluster(1, 2, GIB, 8 * GIB, device="cpu"))
    assert memory.host_bytes(on_cpu, 2, 28, 28, num_videos=1, cache_bytes=0, rank_peak=5.0).device == 10


def test_assumed_rates_follow_the_dtype():
    half, single = assumed_rates("h100", 2), assumed_rates("h100", 4)
    assert half.matmul_flops == 0.65 * 989e12 and single.matmul_flops == 0.65 * 67e12
    assert half.memory_bytes == single.memory_bytes
