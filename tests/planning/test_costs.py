"""Counts against arithmetic done by hand, and against what the real model keeps and moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from longtake.algorithms.logprobs import chunked_token_logprobs
from longtake.config.sections import ModelConfig
from longtake.models.costs import model_costs
from longtake.models.tiny import TinySizes
from longtake.parallel.costs import (
    LOGIT_BYTES,
    activation_bytes_per_token,
    attended_pairs,
    backward_work,
    decode_work,
    embedding_bytes,
    encode_work,
    flop_ratio,
    forward_bytes_per_token,
    forward_work,
    frame_bytes,
    group_work,
    layer_activation_bytes,
    logits_bytes,
    num_video_tokens,
    token_ratio,
)
from longtake.testing.models import random_tiny
from longtake.testing.rows import take_batch, take_logprobs
from longtake.testing.takes import random_prompt, random_take
from longtake.training.trainable import choose_trainable, training_mode
from longtake.types import PackedGroup

HERE = Path(__file__).parent
THREE, SEVEN = (model_costs(str(HERE / f"qwen2_5_vl_{size}"), "bfloat16") for size in ("3b", "7b"))
LONG = PackedGroup(131_000, (1000,) * 8)
"""The worked example of the project: 8 takes of 1,000 tokens behind a prompt of 131,000."""


def test_what_sharing_saves_in_the_worked_example():
    # tokens: 8 x 132,000 / 139,000 = 7.597
    assert token_ratio(LONG) == pytest.approx(7.597, abs=1e-3)
    # 7B: N = 6.53e9, 2Ld = 200,704. Naive 8 (2N 132,000 + 200,704 x 132,000^2) = 4.177e16;
    # shared 2N 139,000 + 200,704 (131,000^2 + 8 (2 x 131,000 x 1,000 + 1,000^2)) = 5.681e15; heads 2 x 545e6 x 8,000 on both sides
    assert flop_ratio(SEVEN, LONG) == pytest.approx(7.3, abs=0.05)
    assert group_work(SEVEN, LONG, shared=False).flops == pytest.approx(4.177e16, rel=2e-3)
    assert group_work(SEVEN, LONG, shared=True).flops == pytest.approx(5.69e15, rel=2e-3)


def test_one_take_gains_nothing_and_no_take_costs_the_prompt():
    one = PackedGroup(100, (7,))
    assert flop_ratio(SEVEN, one) == token_ratio(one) == 1.0
    assert forward_work(SEVEN, PackedGroup(100, (0, 0))).flops == forward_work(SEVEN, PackedGroup(100, ())).flops


def test_pairs_are_those_counted_one_by_one():
    shape = PackedGroup(5, (3, 0, 2))
    counted = sum(row + 0.5 for row in range(5)) + sum(5 + row + 0.5 for take in shape.take_lengths for row in range(take))
    assert attended_pairs(shape) == counted  # a query sees its own key half: the causal triangle by its area
    # operations of attention: QK^T and PV, 2 each per pair, layer and channel
    assert forward_work(SEVEN, shape).attention == 4 * 28 * 3584 * counted


def test_backward_factors():
    forward = forward_work(THREE, LONG)
    full, adapters = (backward_work(THREE, LONG, weights_train=train) for train in (True, False))
    assert (full.linear, adapters.linear) == (2 * forward.linear, forward.linear)
    assert full.attention == adapters.attention == 2.5 * forward.attention


def test_decoding_and_prefill_together_are_one_shared_forward():
    prefill = forward_work(SEVEN, PackedGroup(LONG.prompt_length, ()))
    assert (prefill + decode_work(SEVEN, LONG)).flops == pytest.approx(forward_work(SEVEN, LONG).flops)


def test_bytes_of_the_published_setting():
    assert frame_bytes(3600, 448, 448) == 2_167_603_200  # 2.2 GB
    assert frame_bytes(3600, 448, 448, 4) == pytest.approx(8.7e9, rel=0.01)
    assert logits_bytes(SEVEN, 262_144) == pytest.approx(159e9, rel=0.01)
    assert logits_bytes(SEVEN, 8 * 1024) == pytest.approx(5e9, rel=0.01)
    assert logits_bytes(SEVEN, 1024) == pytest.approx(0.6e9, rel=0.05)
    assert embedding_bytes(THREE, 3600 * 60) == pytest.approx(0.88e9, rel=0.01)
    assert embedding_bytes(SEVEN, 512 * 257) == pytest.approx(0.94e9, rel=0.01)  # LongVILA-7B has the same width


def test_tokens_and_operations_of_a_video():
    # 64 frames of 252 x 448: 32 groups x 9 x 16 tokens
    assert num_video_tokens(SEVEN, 64, 252, 448) == 4608
    assert num_video_tokens(SEVEN, 63, 252, 448) == 4608  # an odd last frame is repeated
    tower = SEVEN.tower
    assert tower.patch_parameters == 1280 * 1176 + 32 * (1281 * 3840 + 1281 * 1280 + 2 * 1281 * 3420 + 3421 * 1280 + 2560)
    work = encode_work(SEVEN, 64, 252, 448)
    patches = 4608 * 4
    assert work.linear == 2 * (tower.patch_parameters * patches + tower.token_parameters * 4608)
    # 576 patches a group: 4 layers see all of them, 28 see windows of 64
    assert work.attention == 4 * 1280 * patches * (4 * 576 + 28 * 64)


SIZES = {"hidden": 256, "heads": 8, "kv_heads": 2, "mlp": 704, "vision_hidden": 32, "vision_heads": 2, "vision_mlp": 48}


def sized(tmp_path: Path, layers: int, dtype, **others):
    folder = tmp_path / f"layers{layers}"
    model = random_tiny(folder, dtype=dtype, sizes=TinySizes(vocab_size=512, layers=layers, **(SIZES | others)))
    return model, model_costs(str(folder / "random_tiny_0"), dtype)


def kept_bytes(model, num_tokens: int) -> int:
    """Bytes of the distinct tensors that a forward of the decoder keeps for its backward, parameters left out."""
    embeds = torch.randn(1, num_tokens, model.hf.config.text_config.hidden_size).to(model.dtype).requires_grad_()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.hf.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.decoder(embeds, torch.arange(num_tokens).expand(3, 1, -1), None, None)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_keeps_exactly_what_the_formula_says(tmp_path: Path, dtype):
    deep, costs = sized(tmp_path, 3, dtype)
    flat, _ = sized(tmp_path, 2, dtype)
    assert (kept_bytes(deep, 64) - kept_bytes(flat, 64)) / 64 == layer_activation_bytes(costs)


def peak_bytes(model, num_prompt: int, num_take: int) -> int:
    """Peak of a forward and backward over two takes, parameters and the gradients that an earlier micro-batch left apart."""
    batch = take_batch([random_prompt(model, num_prompt)] * 2, [random_take(model, num_take, seed=seed) for seed in (0, 1)], model.device)
    with training_mode(model):
        take_logprobs(model, batch, 1.0)[0].sum().backward()
    with tracked(model) as tracker, training_mode(model):
        take_logprobs(model, batch, 1.0)[0].sum().backward()
    return total(tracker) - sum(p.nbytes + (0 if p.grad is None else p.grad.nbytes) for p in model.hf.parameters())


def tracked(model) -> MemTracker:
    tracker = MemTracker()
    tracker.track_external(model.hf)
    return tracker


def total(tracker: MemTracker) -> int:
    """Most bytes alive at one time."""
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_an_update_is_bounded_closely(tmp_path: Path, dtype, checkpointing: bool):
    model, costs = sized(tmp_path, 4, dtype)
    choose_trainable(model, ModelConfig(gradient_checkpointing=checkpointing))
    measured = peak_bytes(model, 250, 6)
    predicted = 512 * activation_bytes_per_token(costs, checkpointing=checkpointing) + logits_bytes(costs, 12, LOGIT_BYTES)
    # Measured over predicted: 0.972 and 0.999 whole (float32, bfloat16), 0.968 and 0.996 checkpointed; two of four layers are exceeded.
    assert 0.95 < measured / predicted <= 1.0
    less = 512 * activation_bytes_per_token(replace(costs, layers=2), checkpointing=checkpointing)
    assert measured > less + logits_bytes(costs, 12, LOGIT_BYTES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_a_forward_is_bounded_closely(tmp_path: Path, dtype):
    model, costs = sized(tmp_path, 2, dtype)
    embeds = torch.randn(1, 512, 256).to(model.dtype)
    with tracked(model) as tracker, torch.no_grad():
        model.decoder(embeds, torch.arange(512).expand(3, 1, -1), None, None)
    measured = total(tracker) - sum(parameter.nbytes for parameter in model.hf.parameters())
    assert 0.9 < measured / (512 * forward_bytes_per_token(costs)) <= 1.0  # measured 0.92


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_logit_while_a_chunk_is_scored(dtype: torch.dtype):
    rows, width, vocabulary = 64, 8, 5000
    weight = torch.randn(vocabulary, width, dtype=dtype)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    tracker = MemTracker()
    with tracker:
        scored, _ = chunked_token_logprobs(hidden, lambda some: some @ weight.T, torch.arange(rows), 0.7, torch.tensor([1]), rows)
        scored.sum().backward()
    measured = total(tracker) / (rows * vocabulary)
    assert measured == pytest.approx(LOGIT_BYTES, rel=0.05)  # 16.0 float32, 16.1 bfloat16 (bfloat16 has one copy more, of 2 bytes)


def test_the_optimizer_needs_one_more_array_of_the_size_of_the_weights():
    """What memory.optimizer_step_bytes says of clipping and AdamW together."""
    weights = [torch.nn.Parameter(torch.randn(100, 100)) for _ in range(4)]
    adamw = torch.optim.AdamW(weights, foreach=True)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    adamw.step()
    tracker = MemTracker()
    tracker.track_external(torch.nn.ParameterList(weights), adamw)
    with tracker:
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        adamw.step()
    size = 4 * 100 * 100 * 4
    assert size * 5 <= total(tracker) < size * 5 + 1000  # weights, gradients, two moments, one array
