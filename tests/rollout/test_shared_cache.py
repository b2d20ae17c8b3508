"""One cache per prompt: the attention of a decoding step against attention written out row by row, in float64."""

from __future__ import annotations

import pytest
import torch

from longtake.errors import ModelError
from longtake.rollout.shared_cache import PromptKv, SharedPromptCache, shared_prompt_attention

KV_HEADS, HEADS_PER_KV, SIZE = 2, 3, 8


def prompts_of(lengths: list[int], generator: torch.Generator) -> PromptKv:
    shape = (len(lengths), KV_HEADS, max(lengths), SIZE)
    keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    for row, length in enumerate(lengths):  # padding that would be noticed
        keys[row, :, length:] = 50.0
        values[row, :, length:] = 1e6
    return PromptKv([keys], [values], torch.tensor(lengths))


def attention_by_hand(query, keys, values):
    """query [N, H], keys and values [K, T, H] -> [N, H]; query head n reads KV head n // (N / K), as repeat_kv does."""
    out = []
    for head, vector in enumerate(query):
        scores = keys[head // HEADS_PER_KV] @ vector * SIZE**-0.5
        out.append(scores.softmax(0) @ values[head // HEADS_PER_KV])
    return torch.stack(out)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [3, 7, 16]], ids=["equal", "padded"])
def test_decoding_with_rows_and_prompts_leaving_equals_attention_by_hand(lengths):
    generator = torch.Generator().manual_seed(0)
    prompts = prompts_of(lengths, generator)
    prompt_of_row = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    cache = SharedPromptCache.start(prompts, prompt_of_row)
    own_keys = torch.zeros(9, KV_HEADS, 0, SIZE, dtype=torch.float64)
    own_values = own_keys.clone()
    # 70 steps: past the first capacity of 64. Rows leave at steps 2, 4 and 68; with rows 3-5 gone, the middle prompt goes too.
    leaving = {2: [0, 4], 4: [2, 2, 2], 68: [0]}
    for step in range(70):
        for row in leaving.get(step, []):
            keep = torch.tensor([index for index in range(len(prompt_of_row)) if index != row])
            cache.compact(keep)
            prompt_of_row, own_keys, own_values = prompt_of_row[keep], own_keys[keep], own_values[keep]
        rows = len(prompt_of_row)
        query = torch.randn(rows, KV_HEADS * HEADS_PER_KV, 1, SIZE, generator=generator, dtype=torch.float64)
        keys, values = (torch.randn(rows, KV_HEADS, 1, SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
        own_keys, own_values = torch.cat([own_keys, keys], 2), torch.cat([own_values, values], 2)
        store, _ = cache.update(keys, values, 0)
        out, _ = shared_prompt_attention(torch.nn.Identity(), query, store, store, None, SIZE**-0.5)
        for row, prompt in enumerate(prompt_of_row.tolist()):
            seen = [
                torch.cat([held[0][prompt, :, : lengths[prompt]], own[row]], 1)
                for held, own in ((prompts.keys, own_keys), (prompts.values, own_values))
            ]
            expected = attention_by_hand(query[row, :, 0], *seen)
            assert (out[row, 0] - expected).abs().max() < 1e-13  # measured 3e-15; outputs are of order 1
    assert cache.num_prompts == 2
    assert cache.get_seq_length() == max(lengths) + 70


def test_a_row_that_reads_the_wrong_prompt_would_be_noticed():
    generator = torch.Generator().manual_seed(0)
    prompts = prompts_of([5, 6], generator)
    outs = []
    for prompt_of_row in ([0, 1], [0, 0]):
        cache = SharedPromptCache.start(prompts, torch.tensor(prompt_of_row))
        generator.manual_seed(1)
        query = torch.randn(2, KV_HEADS * HEADS_PER_KV, 1, SIZE, generator=generator, dtype=torch.float64)
        keys = torch.randn(2, KV_HEADS, 1, SIZE, generator=generator, dtype=torch.float64)
        store, _ = cache.update(keys, keys, 0)
        outs.append(shared_prompt_attention(torch.nn.Identity(), query, store, store, None)[0])
    assert (outs[0][0] - outs[1][0]).abs().max() < 1e-13
    assert (outs[0][1] - outs[1][1]).abs().max() > 0.1


@pytest.mark.parametrize("lengths", [[5, 5], [3, 16]], ids=["equal", "padded"])
def test_half_precision_keeps_its_scores_in_float32(lengths):
    generator = torch.Generator().manual_seed(0)
    exact = prompts_of(lengths, generator)
    exact = PromptKv([exact.keys[0].clamp(max=9)], [exact.values[0].clamp(max=9)], exact.lengths)
    query = torch.randn(4, KV_HEADS * HEADS_PER_KV, 1, SIZE, generator=generator).bfloat16() * 8
    keys = torch.randn(4, KV_HEADS, 1, SIZE, generator=generator).bfloat16()
    outs = []
    for dtype in (torch.bfloat16, torch.float64):
        rounded = PromptKv([exact.keys[0].bfloat16().to(dtype)], [exact.values[0].bfloat16().to(dtype)], exact.lengths)
        cache = SharedPromptCache.start(rounded, torch.tensor([0, 0, 1, 1]))
        store, _ = cache.update(keys.to(dtype), keys.to(dtype), 0)
        outs.append(shared_prompt_attention(torch.nn.Identity(), query.to(dtype), store, store, None)[0].double())
    # Measured 8e-3 and 1.2e-2: the rounding of outputs of size 2.4 to bfloat16.
    assert (outs[0] - outs[1]).abs().max() < 2e-2


def test_a_sliding_window_is_refused_and_not_ignored():
    generator = torch.Generator().manual_seed(0)
    cache = SharedPromptCache.start(prompts_of([5], generator), torch.tensor([0]))
    key = torch.randn(1, KV_HEADS, 1, SIZE, generator=generator, dtype=torch.float64)
    store, _ = cache.update(key, key, 0)
    query = torch.randn(1, KV_HEADS * HEADS_PER_KV, 1, SIZE, generator=generator, dtype=torch.float64)
    with pytest.raises(ModelError, match="sliding window of 4"):
        shared_prompt_attention(torch.nn.Identity(), query, store, store, None, sliding_window=4)
