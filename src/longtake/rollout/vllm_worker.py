"""What runs inside vLLM's workers: banned tokens, new weights, and what arrived of the videos. Imports vLLM; nothing else here does.

vLLM finds `BanTokens` by the engine's argument `logits_processors`, and `BucketWeights` through its own factory of weight transfer
engines (vllm_plugin.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from longtake.rollout.vllm_arguments import BANNED_KEY
from longtake.rollout.vllm_prompts import content_key
from longtake.types import MediaKind


class BanTokens(LogitsProcessor):
    """Media placeholders and the padding of the vocabulary have probability 0, for every request, before anything is drawn or scored."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        banned = vllm_config.additional_config.get(BANNED_KEY, [])
        self.banned_ids = torch.tensor(banned, dtype=torch.int64, device=device)

    def apply(self, logits: Tensor) -> Tensor:
        """[M, W], in place."""
        return logits.index_fill_(-1, self.banned_ids, float("-inf")) if len(self.banned_ids) else logits

    def is_argmax_invariant(self) -> bool:
        """False: greedy decoding must not choose a banned token either."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """It is the same for all requests."""


@dataclass
class NoRendezvous(WeightTransferInitInfo):
    """Nothing has to meet: buckets come with the call, or as files."""


@dataclass
class Bucket(WeightTransferUpdateInfo):
    """Some of the weights, whole, under the names of a transformers checkpoint."""

    names: list[str]
    tensors: list[Tensor] | None = None
    """From a trainer in this very process."""
    path: str | None = None
    """Or a safetensors file with them."""

    def __post_init__(self) -> None:
        if (self.tensors is None) == (self.path is None):
            raise ValueError("a bucket has tensors or a path")

    def pairs(self) -> list[tuple[str, Tensor]]:
        if self.path is not None:
            stored = load_file(Path(self.path))
            return [(name, stored[name]) for name in self.names]
        return list(zip(self.names, self.tensors or (), strict=True))


class BucketWeights(WeightTransferEngine[NoRendezvous, Bucket]):
    """New weights, bucket by bucket; each layer is repacked for its kernel when all of its weights are there."""

    init_info_cls = NoRendezvous
    update_info_cls = Bucket

    def init_transfer_engine(self, init_info: NoRendezvous) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """An update that broke off half way is ended first: its layers would not take the next one."""
        if any(get_layerwise_info(layer).can_load() for layer in self.model.modules()):
            finalize_layerwise_reload(self.model, self.model_config)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Bucket) -> None:
        self.model.load_weights(update_info.pairs())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing to let go of."""


def repack_tied_head(model: nn.Module) -> None:
    """A head that shares its weight with the embedding receives none of its own, and would go on with what it packed of the old one."""
    language = model.get_submodule("language_model")
    head = getattr(language, "lm_head", None)
    embedding = getattr(getattr(language, "model", None), "embed_tokens", None)
    if not isinstance(head, ParallelLMHead) or embedding is None:
        return
    if language.config.tie_word_embeddings:  # type: ignore[union-attr]
        head.weight = embedding.weight
        head.quant_method.process_weights_after_loading(head)


class Received:
    """What an engine was given for each video or image that it had not seen, by the hash of what arrived."""

    def __init__(self) -> None:
        self.contents: set[str] = set()

    def watch(self, model: nn.Module) -> None:
        """Note every video and image from now on."""
        self._watch(model, "video")
        self._watch(model, "image")

    def _watch(self, model: nn.Module, kind: MediaKind) -> None:
        name = f"_process_{kind}_input"
        process: Callable[[Any], Any] = getattr(model, name)

        def noting(given: Any) -> Any:
            self.note(given, kind)
            return process(given)

        setattr(model, name, noting)

    def note(self, given: Any, kind: MediaKind) -> None:
        grids = given[f"{kind}_grid_thw"].tolist()
        spacings: Sequence[float] = given["second_per_grid_ts"].flatten().tolist() if kind == "video" else [0.0] * len(grids)
        merged = [groups * rows * columns for groups, rows, columns in grids]
        embeddings = given[f"{kind}_embeds"]
        sizes = [size * len(embeddings) // sum(merged) for size in merged]
        for part, grid, spacing in zip(embeddings.split(sizes), grids, spacings, strict=True):
            self.contents.add(content_key(part, grid, spacing))


class WatchedWorker:
    """Methods that a server's workers get (`worker_extension_cls`), for calls by their names. Each worker is given all videos."""

    def watch_videos(self) -> None:
        """Note every video from now on. May be called again, by each process of a trainer."""
        if not hasattr(self, "longtake_received"):
            self.longtake_received, self.longtake_arrived = Received(), set[str]()
            self.longtake_received.watch(self.get_model())  # type: ignore[attr-defined]  # of the worker that this is mixed into

    def videos_not_seen(self, contents: list[str]) -> list[str]:
        """Of these (vllm_prompts.content_key) what has never arrived."""
        self.longtake_arrived.update(self.longtake_received.contents)
        self.longtake_received.contents.clear()
        return sorted(set(contents) - self.longtake_arrived)
