"""Weights to a vLLM server from GPU to GPU, by vLLM's own NCCL engine on both sides. Imports vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_ip, get_open_port

from longtake.models.family import Model
from longtake.rollout.weights import described_weights, language_weights


class LanguageWeights(WeightSource):
    """The trainer's weights as vLLM asks for them: what will come, and then each tensor as it is gathered."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(one.name, one.dtype, one.shape) for one in described_weights(self._model)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return language_weights(self._model)


class NcclSender:
    """One rank of the trainer; the first one sends, the others gather with it. Raises OSError, RuntimeError or ValueError: what vLLM, NCCL
    and HTTP raise."""

    def __init__(self, model: Model, url: str, server_gpus: int, rank: int, timeout_s: float) -> None:
        meeting = NCCLTrainerInitInfo(master_address=get_ip(), master_port=get_open_port(), world_size=1 + server_gpus, rank=rank)
        client = HTTPVLLMWeightSyncClient(url, timeout_s)
        self._engine = WeightTransferTrainerFactory.trainer_init(meeting, client=client, source=LanguageWeights(model))

    def send(self) -> None:
        """All weights, once."""
        self._engine.send_weights()
