"""Weights read shard by shard into a model on `meta` against transformers' own loading; what a process needs in memory for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.errors import ModelError
from longtake.models import load_model
from longtake.parallel.fsdp import shard_model
from longtake.parallel.mesh import start_world
from longtake.parallel.sharded_tensors import whole
from longtake.testing.models import random_tiny
from longtake.testing.processes import run_processes
from longtake.training.reference import Reference
from longtake.training.shard_loading import fill
from longtake.training.trainable import choose_trainable

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loading")
    random_tiny(made)
    return made / "random_tiny_0"


@pytest.fixture
def untied(folder: Path, tmp_path: Path) -> Path:
    """The same with a head of its own, in two files, under the names of the modules."""
    path = shutil.copytree(folder, tmp_path / "untied")
    config = json.loads((path / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (path / "config.json").write_text(json.dumps(config))
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].flip(0).contiguous()}
    tower = {f"model.{name}": tensor for name, tensor in weights.items() if name.startswith("visual.")}
    rest = {name.replace("model.", "model.language_model.", 1): t for name, t in weights.items() if not name.startswith("visual.")}
    save_file(head | tower, path / "model-00001-of-00002.safetensors")
    save_file(rest, path / "model-00002-of-00002.safetensors")
    names = dict.fromkeys(head | tower, "model-00001-of-00002.safetensors") | dict.fromkeys(rest, "model-00002-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return path


def loaded(values: dict[str, Any]) -> dict[str, Any]:
    """What differs on this rank between a model filled shard by shard, or its reference, and one loaded whole; and facts of the first."""
    config = ModelConfig.model_validate(values)
    with start_world(CPU, timeout_s=30) as world:
        plain, model = load_model(config), load_model(config, on_meta=True)
        for one in (plain, model):
            choose_trainable(one, config)
        reference = Reference(model)
        fill(shard_model(model, world), Path(config.path))
        reference.shard(world, Path(config.path))
        wanted = dict(plain.hf.named_parameters()) | dict(plain.hf.named_buffers())
        differing = []
        for one in (model, reference._model):
            found = {name: whole(tensor.detach()) for name, tensor in (*one.hf.named_parameters(), *one.hf.named_buffers())}
            assert found.keys() == wanted.keys() and list(dict(one.hf.named_parameters())) == list(dict(plain.hf.named_parameters()))
            differing += [
                name for name, tensor in found.items() if tensor.dtype != wanted[name].dtype or not torch.equal(tensor, wanted[name])
            ]
        trains = [[name for name, parameter in one.hf.named_parameters() if parameter.requires_grad] for one in (model, plain)]
        return {
            "differing": differing,
            "tied": model.hf.lm_head.weight is model.hf.get_input_embeddings().weight,
            "trains alike": trains[0] == trains[1],
            "tower": model.tower_digest() == plain.tower_digest(),
            "facts": (model.device, model.dtype, model.end_ids) == (plain.device, plain.dtype, plain.end_ids),
            "whole": sum(whole(parameter.detach()) is parameter for parameter in model.hf.parameters()),
        }


CASES: dict[str, dict[str, Any]] = {
    "language model": {},
    "tower": {"train_vision": True, "gradient_checkpointing": True},
    "adapters": {"lora": {"rank": 4}},
    "half precision": {"dtype": "bfloat16", "train_vision": True},
    "adapters on half precision": {"dtype": "bfloat16", "lora": {"rank": 4}},
}


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_the_files(folder: Path, name: str) -> None:
    """Every parameter and buffer bit for bit, adapters' initial values too."""
    for found in run_processes(loaded, 2, {"path": str(folder), "device": "cpu"} | CASES[name]):
        assert found["differing"] == [] and found["tied"] and found["trains alike"] and found["tower"] and found["facts"]


def test_a_head_of_its_own_in_several_files(untied: Path) -> None:
    for found in run_processes(loaded, 3, {"path": str(untied), "device": "cpu"}):
        assert found["differing"] == [] and not found["tied"] and found["tower"]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_one_process_by_itself(folder: Path, lora: LoraConfig | None) -> None:
    config = ModelConfig(path=str(folder), device="cpu", lora=lora)
    plain, model = load_model(config), load_model(config, on_meta=True)
    for one in (plain, model):
        choose_trainable(one, config)
    fill(model, folder)
    wanted = dict(plain.hf.named_parameters())
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.hf.named_parameters()) and len(wanted) > 40
    assert model.hf.lm_head.weight is model.hf.get_input_embeddings().weight


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_what_a_file_lacks_is_named(folder: Path, tmp_path: Path, fault: str) -> None:
    path = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(path / "model.safetensors")
    broken = weights.pop("model.norm.weight")
    save_file(weights if fault == "missing" else weights | {"model.norm.weight": broken[:-1].clone()}, path / "model.safetensors")
    model = load_model(ModelConfig(path=str(path), device="cpu"), on_meta=True)
    with pytest.raises(ModelError, match=r"nothing for model.language_model.norm|\(63,\) for model.language_model.norm"):
        fill(model, path)
