"""Small random models for tests, and a norm that computes in the model's own dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from longtake.config.sections import ModelConfig
from longtake.models.family import Model
from longtake.models.loading import load_model
from longtake.models.qwen2_5_vl import Qwen2_5VL
from longtake.models.tiny import TinySizes, build_tiny

TEXTS = (
    "The red circle walks from the kitchen to the garden and picks up the key. The blue square meets the green star in the hall.",
    "Who has the key at the end?\nA. the red circle\nB. the blue square\nC. the green star\nD. the yellow triangle",
    "<think>First the red circle picks up the key, then it hands the key over. A no B yes C no D no</think><answer>B</answer>",
    "Think about the video step by step inside <think> </think>, then give the final answer inside <answer> </answer>: "
    "the letter only for a multiple-choice question, otherwise a short text.",
) * 4
SIZES = TinySizes(vocab_size=512, hidden=64, layers=2, heads=2, kv_heads=1, mlp=96, vision_hidden=32, vision_heads=2, vision_mlp=48)
"""Head size 32 and grouped KV heads, as in the tiny model; small, so that a test's model loads in a moment."""


def random_tiny(
    tmp_path: Path,
    seed: int = 0,
    dtype: Literal["float32", "float64", "bfloat16"] = "float32",
    *,
    sizes: TinySizes = SIZES,
    attention: Literal["sdpa", "eager"] = "sdpa",
    train_vision: bool = False,
    spread: float = 5.0,
) -> Qwen2_5VL:
    """A random model of the family on the CPU, through the same loader as every other checkpoint.

    Its matrices are `spread` times the usual 0.02, so that attention and logits are far from uniform: with the usual ones a wrong
    mask or position would hardly show.
    """
    path = tmp_path / f"random_tiny_{seed}"
    if not path.exists():
        build_tiny(path, TEXTS, seed, sizes)
    stored: Literal["float32", "bfloat16"] = "float32" if dtype == "float64" else dtype
    model = load_model(ModelConfig(path=str(path), dtype=stored, device="cpu", attention=attention, train_vision=train_vision))
    assert isinstance(model, Qwen2_5VL)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
    if dtype == "float64":
        model.hf.double()
        model.dtype = torch.float64
    return model


@contextmanager
def norm_in_own_dtype(model: Model) -> Iterator[None]:
    """transformers' RMSNorm casts to float32; inside this context it computes in the dtype it is given (for float64 parity)."""
    norm_class = type(model.hf.model.language_model.norm)
    original = norm_class.forward

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        normed: torch.Tensor = self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))
        return normed

    norm_class.forward = forward
    try:
        yield
    finally:
        norm_class.forward = original
