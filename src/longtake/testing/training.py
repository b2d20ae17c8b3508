"""A small world on disk, a small random model beside it, and configurations of training runs that take a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from longtake.config.load import dump_config
from longtake.config.sections import ModelConfig
from longtake.config.stages import RlConfig, SftConfig, WorldConfig
from longtake.models import load_model
from longtake.observe.lines import read_lines
from longtake.observe.metrics import reproducible_part
from longtake.testing.models import random_tiny
from longtake.training.checkpoint import CheckpointStore, saved_weights
from longtake.training.export import export_model
from longtake.world.write import write_world

NUM_VIDEOS = 6
ROWS_PER_VIDEO = 2
REWARDS = '''"""What a random model can earn."""


def parity(example, text):
    """Half of all texts, whatever they say: groups differ."""
    return float(len(text) % 2)


def short(example, text):
    return -0.01 * len(text)


def same(example, text):
    """No group differs."""
    return 1.0
'''
END_BIAS = 2.5
"""How much longer the end token's row of the tied head is: takes of a random model then end at all lengths."""


def small_world(folder: Path) -> Path:
    """Six videos of ten to twelve seconds and twelve rows; returns the rows file."""
    config = WorldConfig(
        out=folder, num_videos=NUM_VIDEOS, seconds=(10, 12), size=56, num_scenes=(5, 5), questions_per_video=ROWS_PER_VIDEO, workers=1
    )
    write_world(config)
    return folder / "rows.jsonl"


def small_model(folder: Path) -> Path:
    """A random checkpoint directory (testing.models.random_tiny)."""
    model = random_tiny(folder)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[model.end_id].mul_(END_BIAS)
    return export_model(model, folder / "model")


def small_rewards(folder: Path) -> Path:
    """A user's file with three reward functions."""
    path = folder / "my_rewards.py"
    path.write_text(REWARDS, encoding="utf-8")
    return path


def common(rows: Path, model: Path, out: Path) -> dict[str, Any]:
    return {
        "out": out,
        "seed": 3,
        "model": {"path": str(model), "device": "cpu"},
        "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
        "prompt": {"instruction": ""},
        "data": {"rows": rows},
        "observe": {"tensorboard": False, "progress": False},
        "num_threads": 1,
    }


def sft_config(rows: Path, model: Path, out: Path, /, **changes: Any) -> SftConfig:
    """Two steps of four rows; `changes` are laid over section by section."""
    base = common(rows, model, out) | {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "optimizer": {"lr": 1e-3}}
    return SftConfig.model_validate(merged(base, changes))


def rl_config(rows: Path, model: Path, out: Path, rewards: Path, /, **changes: Any) -> RlConfig:
    """Two steps of three prompts with four takes of ten tokens at most."""
    base = common(rows, model, out) | {
        "steps": 2,
        "prompts_per_step": 3,
        "micro_batch_tokens": 512,
        "rollout": {"num_takes": 4, "max_new_tokens": 10},
        "rewards": {"weights": {"parity": 1.0}, "functions": {"parity": f"{rewards}:parity"}},
        "optimizer": {"lr": 1e-3},
    }
    return RlConfig.model_validate(merged(base, changes))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, table by table. `rewards` replaces the whole table."""
    result = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict) and name != "rewards"
        result[name] = merged(result[name], value) if both else value
    return result


def write_config(config: SftConfig | RlConfig, path: Path) -> Path:
    path.write_text(dump_config(config), encoding="utf-8")
    return path


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer of the run's newest whole checkpoint, as `weights/NAME` and `optimizer/NAME`."""
    found = CheckpointStore(run).latest()
    assert found is not None, f"{run} has no checkpoint"
    return {
        f"{part}/{name}": tensor
        for part in ("weights", "optimizer")
        for file in sorted((found.path / part).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in last_tensors(run).items() if name.startswith("weights/")}


def base_weights(model: Path) -> dict[str, torch.Tensor]:
    """Those of a checkpoint directory, under the names of a run's checkpoint."""
    loaded = load_model(ModelConfig(path=str(model), device="cpu"))
    return {f"weights/{name}": tensor.clone() for name, tensor in saved_weights(loaded).items()}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "metrics.jsonl")


def reproducible(run: Path) -> str:
    """metrics.jsonl without clocks and memory, as text that two bit-identical runs agree on."""
    return "\n".join(json.dumps(reproducible_part(line)) for line in metrics_of(run))


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, moments, takes and metrics, bit for bit."""
    first, second = last_tensors(one), last_tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert reproducible(one) == reproducible(other)
    takes = [(run / "takes.jsonl").read_bytes() if (run / "takes.jsonl").exists() else b"" for run in (one, other)]
    assert takes[0] == takes[1]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over tensors of the same names: largest |difference| of an element."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
