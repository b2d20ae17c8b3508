"""The configuration of `longtake serve`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.config.base import Section


class ServeConfig(Section):
    """`longtake serve MODEL`: a vLLM server for an exported model, for questions or for the rollouts of a training run."""

    model: str = "tiny"
    """A checkpoint directory of a supported family, as `longtake export` writes it, or `tiny` for the model that ships in the package."""
    rollouts: bool = False
    """Serve a training run (rollout.vllm.server): weights follow the trainer's, the vision tower is not loaded, and videos come as
    embeddings only. Whoever reaches the port can then replace the weights. False: weights stay, and any OpenAI client may ask, with videos
    too."""
    weights: Literal["files", "nccl"] = "files"
    """With `rollouts`: how weights come, as the trainer's rollout.vllm.weights; nccl is for GPUs."""
    host: str = "127.0.0.1"
    """Network address to listen at; 0.0.0.0 for other machines, behind a firewall."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen at."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and activations; for rollouts the trainer's model.dtype."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA when there is one."""
    num_gpus: int = Field(default=1, ge=1)
    """CUDA: GPUs that share the model (vLLM's tensor parallelism)."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longest row, prompt and response together; None: what the checkpoint was made for, as far as memory allows."""
    max_rows: int = Field(default=256, ge=1)
    """Takes decoded together; at least rollout.num_takes."""
    kv_cache_gb: float | None = Field(default=None, gt=0)
    """Memory for keys and values, in 10^9 bytes; None: on a CPU room for 16 of the longest rows, at most half of the free memory, on CUDA
    what gpu_memory_utilization leaves."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """CUDA: share of a GPU's memory for the server, its weights included."""
    cuda_graphs: bool = True
    """CUDA: capture graphs for decoding; faster, but memory and seconds at the start."""
    only_print: bool = False
    """Print the command and do not run it."""
