"""One CUDA GPU, random weights at the true shapes of Qwen2.5-VL: seconds and peak memory of a step against the number of frames.

3B: encode, prefill, decode, reference, update (prompt once for G takes, layers checkpointed), AdamW. 7B: forward and backward. 60 tokens
per frame. The baseline is one row per take: ONE row is timed and multiplied by G (`naive_update_s_times_g`); decoding is timed for a few
tokens of ONE take and multiplied by R (`decode_s_times_r`). What does not fit is marked `out_of_memory`; when the time is up, the rest is
left out. Imports torch, transformers and those rooms of longtake that need no more. `--toy`: a small shape on any device, for tests.

Letters: P prompt tokens, R tokens of a take, G takes, T tokens of the packed sequence, D width.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# By its path: the package around it would bring what is not needed here.
SHIM = Path(__file__).parents[1] / "src" / "longtake" / "models" / "torchvision_shim.py"
runpy.run_path(str(SHIM))["make_torchvision_importable"]()

import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from longtake.algorithms.logprobs import chunked_token_logprobs  # noqa: E402
from longtake.bench.published import PUBLISHED  # noqa: E402
from longtake.parallel.costs import BACKWARD_OF_ATTENTION, attended_pairs  # noqa: E402
from longtake.parallel.kernels import attention_backward, attention_forward  # noqa: E402
from longtake.parallel.shared_prompt import plan_groups, shared_prompt_attention  # noqa: E402
from longtake.types import PackedGroup  # noqa: E402

G, TOKENS_PER_GROUP, GROUP_GRID = 8, 120, (20, 24)
"""120 tokens for a pair of frames of 280 x 336 pixels: 60 per frame."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Published, dense bfloat16."""
CHUNK, DECODED = 16, 8
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError,)


@dataclass(frozen=True)
class Settings:
    device: torch.device
    dtype: torch.dtype
    response: int
    frames: tuple[int, ...]
    deadline: float

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> tuple[Tensor, None]:
    """The packed attention of longtake where a plan is given, else torch's causal one. -> [M, T, N, H]."""
    scale = given.get("scaling") or query.shape[3] ** -0.5
    if given.get("packed") is not None:
        return shared_prompt_attention(query, key, value, given["packed"], scale).transpose(1, 2), None
    causal = query.shape[2] == key.shape[2]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=True)
    return out.transpose(1, 2), None


AttentionInterface.register("gpu_bench", attention)
AttentionMaskInterface.register("gpu_bench", lambda *_, **__: None)


def build(name: str, toy: bool, settings: Settings) -> Any:
    """Random weights on the device, language model checkpointed and trained, tower frozen."""
    sizes = {key: value for key, value in PUBLISHED[name].items() if key != "vision_config"}
    vision = {key: value for key, value in PUBLISHED[name]["vision_config"].items() if key != "in_channels"}
    section = [16, 24, 24]
    if toy:
        sizes |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        sizes |= {"vocab_size": 512}
        section = [4, 6, 6]
        vision |= {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        }
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    text = {**sizes, "rope_parameters": rope, "max_position_embeddings": 128_000, "use_sliding_window": False}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=sizes["tie_word_embeddings"])
    config._attn_implementation = {"text_config": "gpu_bench", "vision_config": "sdpa"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(settings.dtype)
    try:
        with settings.device:
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.config.get_text_config()._attn_implementation = "gpu_bench"
    model.model.visual.requires_grad_(False)
    model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.eval()


class Step:
    """The parts of a step over one video; every one leaves nothing behind but gradients."""

    def __init__(self, model: Any, settings: Settings, frames: int) -> None:
        self.model, self.settings = model, settings
        self.groups = max(1, frames // 2)
        self.prompt = self.groups * TOKENS_PER_GROUP + 64
        self.shared = PackedGroup(self.prompt, (settings.response,) * G)
        self.row = PackedGroup(self.prompt, (settings.response,))

    @torch.no_grad()
    def encode(self) -> None:
        height, width = GROUP_GRID
        for start in range(0, self.groups, CHUNK):
            count = min(CHUNK, self.groups - start)
            pixels = torch.rand(count * height * width, 3 * 2 * 14 * 14, device=self.settings.device).to(self.settings.dtype)
            self.model.model.visual(pixels, grid_thw=torch.tensor([[count, height, width]], device=self.settings.device))

    @torch.no_grad()
    def prefill(self) -> DynamicCache:
        self.model.eval()
        cache = DynamicCache()
        self._decoder(self.prompt, 0, past_key_values=cache, use_cache=True)
        return cache

    @torch.no_grad()
    def decode(self, cache: DynamicCache) -> None:
        for step in range(DECODED):
            self.model.lm_head(self._decoder(1, self.prompt + step, past_key_values=cache, use_cache=True)[:, -1])

    def update(self, shape: PackedGroup) -> None:
        self._score(shape).sum().backward()

    @torch.no_grad()
    def reference(self) -> None:
        self._score(self.shared)

    def _score(self, shape: PackedGroup) -> Tensor:
        self.model.model.language_model.train(torch.is_grad_enabled())
        plan = plan_groups([shape], self.settings.device)
        hidden = self._decoder(shape.num_tokens, 0, packed=plan, use_cache=False)[0]
        rows = hidden[shape.prompt_length - 1 : -1]
        targets = torch.zeros(len(rows), dtype=torch.int64, device=self.settings.device)
        banned = torch.empty(0, dtype=torch.int64, device=self.settings.device)
        logprobs, _ = chunked_token_logprobs(rows, self.model.lm_head, targets, 1.0, banned, 2048)
        return logprobs

    def _decoder(self, tokens: int, start: int, **given: Any) -> Tensor:
        language_model, device = self.model.model.language_model, self.settings.device
        embeds = language_model.embed_tokens(torch.ones(1, tokens, dtype=torch.int64, device=device))
        positions = torch.arange(start, start + tokens, device=device).expand(3, 1, -1)
        found: Tensor = language_model(inputs_embeds=embeds, position_ids=positions, attention_mask=None, **given).last_hidden_state
        return found


def seconds(work: Callable[[], Any], settings: Settings) -> float:
    wait(settings.device)
    begin = time.perf_counter()
    work()
    wait(settings.device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> int | None:
    """Since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    found = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return found


def flops(model: Any, shape: PackedGroup) -> float:
    """Forward and backward, without what checkpointing runs again: 6N T and 3.5 times the attention's forward."""
    config = model.config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.model.language_model.layers.parameters())
    pairs = 4.0 * config.num_hidden_layers * config.hidden_size * attended_pairs(shape)
    return 6.0 * parameters * shape.num_tokens + (1 + BACKWARD_OF_ATTENTION) * pairs


def line(model: Any, settings: Settings, frames: int, optimizer: torch.optim.Optimizer | None, top: float | None) -> dict[str, Any]:
    """One number of frames. With an optimizer the whole step, else forward and backward."""
    step, found = Step(model, settings, frames), {"frames": frames}
    found |= {"prompt": step.prompt, "takes": G, "response": settings.response}
    step.update(PackedGroup(64, (8,) * G))  # kernels loaded, gradients there
    peak(settings.device)
    if optimizer is not None:
        found["encode_s"] = seconds(step.encode, settings)
        cache: list[DynamicCache] = []
        found["prefill_s"] = seconds(lambda: cache.append(step.prefill()), settings)
        found["decode_s_times_r"] = seconds(lambda: step.decode(cache[0]), settings) / DECODED * settings.response
        cache.clear()
        found["reference_s"] = seconds(step.reference, settings)
    found["other_peak_bytes"] = peak(settings.device)
    found["update_s"] = seconds(lambda: step.update(step.shared), settings)
    found["update_peak_bytes"] = peak(settings.device)
    found["update_flops_per_s"] = flops(model, step.shared) / found["update_s"]
    found["update_of_peak"] = None if top is None else found["update_flops_per_s"] / top
    if optimizer is not None:
        found["optimizer_s"] = seconds(optimizer.step, settings)
        found["step_s"] = sum(value for name, value in found.items() if name.endswith(("_s", "_s_times_r")))
    if not settings.over:
        found["naive_update_s_times_g"] = G * seconds(lambda: step.update(step.row), settings)
        found["speedup"] = found["naive_update_s_times_g"] / found["update_s"]
    return found


def guarded(work: Callable[[], dict[str, Any]], frames: int) -> dict[str, Any]:
    try:
        return work()
    except OUT_OF_MEMORY:
        return {"frames": frames, "out_of_memory": True}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def model_lines(name: str, toy: bool, settings: Settings, top: float | None, *, whole: bool) -> dict[str, Any]:
    """All numbers of frames the time allows; past the asked ones, half as many again each time until memory ends (G = 8)."""
    model = build(name, toy, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-9, foreach=not toy) if whole else None
    lines: list[dict[str, Any]] = []
    tried = list(settings.frames)
    while tried and not settings.over:
        frames = tried.pop(0)
        lines.append(guarded(lambda: line(model, settings, frames, optimizer, top), frames))  # noqa: B023
        if "out_of_memory" in lines[-1]:
            break
        if not tried and whole and not toy:
            tried.append(frames * 3 // 2)
    fitting = [one["frames"] for one in lines if "out_of_memory" not in one]
    ended = "memory" if len(fitting) < len(lines) else "time or list"
    return {"model": name, "lines": lines, "largest_frames": max(fitting, default=0), "ended_by": ended, "not_measured": tried}


def attention_lines(settings: Settings, top: float | None, toy: bool) -> list[dict[str, Any]]:
    """The training attention of a 7B layer alone, forward and backward, against the peak."""
    lines = []
    for tokens in (256,) if toy else (8192, 32768):
        query = torch.randn(1, 28, tokens, 128, device=settings.device, dtype=settings.dtype)
        key, value = (torch.randn(1, 4, tokens, 128, device=settings.device, dtype=settings.dtype) for _ in range(2))

        def both() -> None:
            out, lse = attention_forward(query, key, value, causal=True, scale=128**-0.5)  # noqa: B023
            attention_backward(out, query, key, value, out, lse, causal=True, scale=128**-0.5)  # noqa: B023

        both()
        rate = 2.0 * 28 * 128 * tokens**2 * (1 + BACKWARD_OF_ATTENTION) / min(seconds(both, settings) for _ in range(3))
        lines.append({"tokens": tokens, "flops_per_s": rate, "of_peak": None if top is None else rate / top})
    return lines


def kernels_used(settings: Settings) -> list[str]:
    """Names of the kernels of one attention, forward and backward, as torch's profiler sees them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if settings.device.type == "cuda" else []
    with torch.profiler.profile(activities=activities) as record:
        attention_lines(settings, None, True)
    return sorted({event.key[:120] for event in record.key_averages() if "attention" in event.key or "flash" in event.key.lower()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--budget-s", type=float, default=520.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    begin = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.toy:
        raise SystemExit("no CUDA device: benchmarks/gpu.sh measures one; --toy runs a small shape on a CPU")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    top = next((flops for name, flops in PEAK_FLOPS.items() if name in hardware), None)
    frames = (4, 8) if given.toy else (64, 128, 256, 512, 1024)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def until(share: float, counts: tuple[int, ...]) -> Settings:
        return Settings(device, dtype, 8 if given.toy else 512, counts, begin + share * given.budget_s)

    found: dict[str, Any] = {"hardware": hardware, "torch": torch.__version__, "transformers": transformers.__version__, "toy": given.toy}
    found |= {
        "peak_flops": top,
        "attention": attention_lines(until(0.1, frames), top, given.toy),
        "kernels": kernels_used(until(0.1, frames)),
    }
    seven = tuple(count for count in frames if count <= 512)
    found["7b_forward_backward"] = guarded(lambda: model_lines("7b", given.toy, until(0.4, seven), top, whole=False), 0)
    found["3b_step"] = guarded(lambda: model_lines("3b", given.toy, until(0.9, frames), top, whole=True), 0)
    found["seconds"] = time.monotonic() - begin
    given.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "_", hardware.lower()).strip("_")
    path = given.out / f"gpu_{name}{'_toy' if given.toy else ''}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: found[key] for key in ("hardware", "seconds")}), path.name)


if __name__ == "__main__":
    main()
