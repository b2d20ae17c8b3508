"""Rollouts by a vLLM server (`longtake serve MODEL --rollouts`): token ids and embeddings go there, takes come back, weights follow.

Prompts go to vLLM's address for token ids (`/inference/v1/generate`), which knows where each video stands and expands nothing; weights by
its addresses for reinforcement learning, which hand our `vllm_worker.BucketWeights` the path of a file on a folder that both machines see.
Several training processes share a server: each sends its own prompts, the first sends the weights.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file

from longtake.errors import MismatchError, OtherRankFailedError, RolloutError
from longtake.models.family import Model
from longtake.parallel.collectives import gather_texts
from longtake.parallel.mesh import Axis
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.vllm_http import VllmHttp
from longtake.rollout.vllm_prompts import by_kind, check_length, check_prompt_ids, content_key, sampling_fields, take_of, video_key
from longtake.rollout.weights import Bucket, buckets, language_weights, num_bytes
from longtake.types import MediaKind, Prompt, Take, VideoTokens

MAX_OPEN = 32
"""Requests of a process that the server has at the same time; each holds the embeddings of its videos on its way."""
_LOOK_AGAIN_S = 0.1


@dataclass
class ServerCounters:
    """Since the engine was made, of this process."""

    prompts: int = 0
    sampled_tokens: int = 0
    weight_updates: int = 0
    weight_bytes: int = 0
    weight_seconds: float = 0.0


class Sender(Protocol):
    """vllm_nccl.NcclSender."""

    def send(self) -> None: ...


class VllmServerEngine:
    """See `Engine`. Make it on every rank of `axis`; `close` removes what it has written."""

    ranks_per_engine = 1
    takes_prefilled = False

    def __init__(
        self,
        model: Model,
        server: VllmHttp,
        encode: Callable[[VideoTokens], str],
        *,
        axis: Axis,
        folder: Path | None,
        check_videos: bool,
        nccl: Callable[[int], Sender] | None = None,
    ) -> None:
        """`encode`: vllm_wire.encoded_video. `folder`: for weights on their way, its alone; the server sees it under the same path. None:
        the server keeps the weights it has. `nccl`: makes what sends them to so many GPUs by NCCL, in place of files. `check_videos`:
        compare a hash of each video as it arrived with that of what was sent.

        Raises RolloutError when no server answers.
        """
        self._model, self._server, self._encode, self._axis = model, server, encode, axis
        self._folder = None if folder is None else folder.resolve()
        self.counters = ServerCounters()
        self._max_tokens = served_length(server)
        self._run = uuid.uuid4().hex[:12]
        """Part of the version's name: another run's step 7 is not this one's, nor that of this run before it was resumed."""
        self._version: int | None = None
        self._name: str | None = None
        """What the server calls the weights that it was given last; None: its own."""
        self._nccl = nccl
        self._sender: Sender | None = None
        self._check_videos = check_videos
        self._content_keys: dict[str, str] = {}
        """Of each video sent, by its name in vLLM's caches."""
        self._remove_files()
        if check_videos:
            server.post("/collective_rpc", {"method": "watch_videos"})

    @contextmanager
    def at_weights(self) -> Iterator[None]:
        """The server has the trainer's weights inside. Every rank must enter; raises OtherRankFailedError where the first has failed."""
        if self._folder is not None and self._version != self._model.weights_version:
            self._update(self._folder)
        yield

    def generate(self, requests: Sequence[RolloutRequest], params: SamplingParams) -> list[tuple[Take, ...]]:
        """G takes per request, in order. Raises RolloutError when the server fails, MismatchError when it has other weights, answers
        another prompt or was given other videos."""
        for request in requests:
            check_length(request.prompt, params, self._max_tokens, "start the server with a larger --max-tokens")
        self._check_version()
        takes = self._together([partial(self._ask, request, params) for request in requests])
        if self._check_videos:
            self._check_arrived({video_key(span.tokens): span.tokens for request in requests for span in request.prompt.spans})
        self.counters.prompts += len(requests)
        different = 1 if params.temperature == 0 else params.num_takes
        self.counters.sampled_tokens += sum(len(take.token_ids) for group in takes for take in group[:different])
        return takes

    def metrics(self) -> dict[str, float]:
        """Counters for the log."""
        return {f"engine/{name}": float(value) for name, value in vars(self.counters).items()}

    def close(self) -> None:
        """Nothing is left in the folder; the server goes on."""
        self._remove_files()

    def _together(self, calls: Sequence[Callable[[], tuple[Take, ...]]]) -> list[tuple[Take, ...]]:
        """All calls at once, as far as MAX_OPEN allows. The first that fails ends the others."""
        with ThreadPoolExecutor(min(MAX_OPEN, max(1, len(calls)))) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    if error := future.exception():
                        raise error
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                while not all(future.done() for future in futures):
                    self._server.hang_up()
                    time.sleep(_LOOK_AGAIN_S)

    def _ask(self, request: RolloutRequest, params: SamplingParams) -> tuple[Take, ...]:
        prompt = request.prompt
        body: dict[str, Any] = {
            "token_ids": prompt.token_ids.tolist(),
            "sampling_params": sampling_fields(request, params, self._model.end_ids),
            "return_token_ids": True,
        }
        if prompt.spans:
            body["features"] = self._features(prompt)
        answered = self._server.post("/inference/v1/generate", body)
        check_prompt_ids(prompt, answered["prompt_token_ids"])
        takes = [self._take(choice) for choice in sorted(answered["choices"], key=lambda choice: choice["index"])]
        return tuple(takes * params.num_takes if params.temperature == 0 else takes)

    def _features(self, prompt: Prompt) -> dict[str, Any]:
        places: dict[MediaKind, list[dict[str, int]]] = {}
        for span in prompt.spans:
            places.setdefault(span.tokens.kind, []).append({"offset": span.start, "length": span.stop - span.start})
        media = by_kind(prompt)
        return {
            "mm_hashes": {kind: [video_key(one) for one in own] for kind, own in media.items()},
            "mm_placeholders": places,
            "kwargs_data": {kind: [self._encode(one) for one in own] for kind, own in media.items()},
        }

    def _take(self, choice: dict[str, Any]) -> Take:
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if self._name is not None and versions != {self._name}:
            raise self._other_weights(" and ".join(sorted(versions)))
        version = self._model.weights_version if self._version is None else self._version
        scored = choice["logprobs"]["content"]
        return take_of(self._model, choice["token_ids"], [one["logprob"] for one in scored], choice["finish_reason"], version)

    def _check_version(self) -> None:
        if self._name is not None and (served := self._server.get("/weight_info")["weight_version"]) != self._name:
            raise self._other_weights(served)

    def _check_arrived(self, videos: dict[str, VideoTokens]) -> None:
        """Byte for byte; what vLLM took from its caches arrived earlier under the same name."""
        for key, video in videos.items():
            if key not in self._content_keys:
                self._content_keys[key] = content_key(video.embeddings, video.grid, video.seconds_per_grid)
        ours = [self._content_keys[key] for key in videos]
        told = self._server.post("/collective_rpc", {"method": "videos_not_seen", "args": [ours]}) if ours else {"results": []}
        if strange := {content for missing in told["results"] for content in missing}:
            raise MismatchError(
                f"{len(strange)} of the {len(ours)} videos of this step never arrived at {self._server.url} as they were sent",
                rule="the engine's video tokens are the trainer's",
                remedy="report it, with the versions of vLLM and torch on both sides",
            )

    def _other_weights(self, served: str) -> MismatchError:
        return MismatchError(
            f"the vLLM server at {self._server.url} samples with weights {served!r}; the trainer's are {self._name!r}",
            rule="a server serves one run, and takes are sampled with that run's weights",
            remedy="give each run a server of its own; when one was started anew, start the run again, it resumes at its last checkpoint",
        )

    def _update(self, folder: Path) -> None:
        """The first rank sends, all gather where weights are sharded, and each learns how it went."""
        started_at = time.perf_counter()
        fault: RolloutError | None = None
        if self._nccl is not None:
            fault = self._sent_by_nccl(self._nccl)
        elif self._axis.rank == 0:
            fault = self._sent_all(folder)
        elif self._model.root is not None:
            for _ in language_weights(self._model):
                pass
        name = f"{self._run}:{self._model.weights_version}"
        told = json.loads(gather_texts(json.dumps([name, None if fault is None else fault.given]), self._axis)[0])
        if fault is not None:
            raise fault
        if told[1] is not None:
            rule = "every rank samples with the weights that rank 0 sends"
            raise OtherRankFailedError(f"rank 0: {told[1]}", rule=rule, remedy="see its message")
        self._version, self._name = self._model.weights_version, told[0]
        self.counters.weight_updates += 1
        self.counters.weight_seconds += time.perf_counter() - started_at

    def _sent_all(self, folder: Path) -> RolloutError | None:
        """The error, if one came; even then all weights have been gathered, for the sake of the other ranks."""
        weights = language_weights(self._model)
        try:
            self._start_update()
            for bucket in buckets(weights):
                self._send(bucket, folder)
            self._server.post("/finish_weight_update", {"weight_version": f"{self._run}:{self._model.weights_version}"})
            self._forget()
        except RolloutError as error:
            if self._model.root is not None:
                for _ in weights:
                    pass
            return error
        return None

    def _sent_by_nccl(self, make: Callable[[int], Sender]) -> RolloutError | None:
        """Every rank; the first one's error is told to the others."""
        fault: RolloutError | None = None
        if self._sender is None:
            fault = self._meet(make)
            met = gather_texts("" if fault is None else fault.given, self._axis)  # none sends before all have met
            if fault is None and any(met):
                fault = RolloutError(next(filter(None, met)), rule="every rank meets the server", remedy="see its message")
        if fault is not None or self._sender is None:
            self._sender = None
            return fault
        try:
            self._sender.send()
            if self._axis.rank == 0:
                self._server.post("/update_weight_version", {"new_version": f"{self._run}:{self._model.weights_version}"})
                self._forget()
        except (OSError, RuntimeError, ValueError) as error:  # of HTTP, of NCCL, of vLLM's checks
            return RolloutError(
                f"weights did not reach {self._server.url} by NCCL: {type(error).__name__}: {error}",
                rule="trainer and server have GPUs that reach each other, and the server was started with --weights nccl",
                remedy="see the server's messages, or use rollout.vllm.weights = files on both sides",
            )
        except RolloutError as error:
            return error
        return None

    def _meet(self, make: Callable[[int], Sender]) -> RolloutError | None:
        try:
            self._sender = make(int(self._server.get("/get_world_size")["world_size"]))
        except (OSError, RuntimeError, ValueError) as error:
            return RolloutError(
                f"no meeting with {self._server.url} by NCCL: {type(error).__name__}: {error}",
                rule="trainer and server have GPUs that reach each other, and the server was started with --weights nccl",
                remedy="see the server's messages, or use rollout.vllm.weights = files on both sides",
            )
        except RolloutError as error:
            return error
        return None

    def _forget(self) -> None:
        """Keys, values and features of the old weights."""
        for cache in ("prefix", "mm", "encoder"):
            self._server.post(f"/reset_{cache}_cache")

    def _start_update(self) -> None:
        """An update that a trainer left half done, when it was killed, is ended first: all weights come anew."""
        self._server.post("/init_weight_transfer_engine", {"init_info": {}})
        try:
            self._server.post("/start_weight_update")
        except RolloutError:
            self._server.post("/finish_weight_update", {"weight_version": "half done"})
            self._server.post("/start_weight_update")

    def _send(self, bucket: Bucket, folder: Path) -> None:
        path = folder / f"{self._run}.safetensors"
        part = path.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.detach().contiguous().cpu() for name, tensor in bucket}, part)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise RolloutError(
                f"{path}: {error}",
                rule="weights reach a vLLM server as files on a folder that both machines see",
                remedy="make room there, or name another in rollout.vllm.weights_folder",
            ) from error
        try:
            self._server.post("/update_weights", {"update_info": {"names": [name for name, _ in bucket], "path": str(path)}})
        finally:
            path.unlink(missing_ok=True)
        self.counters.weight_bytes += num_bytes(bucket)

    def _remove_files(self) -> None:
        """Those of a run that was killed too."""
        if self._folder is not None and self._axis.rank == 0 and self._folder.is_dir():
            shutil.rmtree(self._folder)


def served_length(server: VllmHttp) -> int:
    """Tokens of the longest row that the server takes. Raises RolloutError when no server answers, or another than vLLM's."""
    answered = server.get("/v1/models")
    try:
        return int(answered["data"][0]["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RolloutError(
            f"{server.url} answers, but not as vLLM does: {str(answered)[:80]}",
            rule="the address is that of a vLLM server",
            remedy="start one (longtake serve MODEL, for training with --rollouts), or correct the address",
        ) from error
