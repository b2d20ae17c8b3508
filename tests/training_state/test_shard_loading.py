"""Weights read shard by shard into a model on `meta` against transformers' own loading; what a process needs in memory for it."""

from __future__ import annotations

import ctypes
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.errors import ModelError
from longtake.models import load_model
from longtake.models.tiny import TinySizes, build_tiny
from longtake.parallel.fsdp import shard_model
from longtake.parallel.mesh import start_world
from longtake.parallel.sharded_tensors import whole
from longtake.testing.models import TEXTS, random_tiny
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


MIDDLE = TinySizes(vocab_size=512, hidden=512, layers=20, heads=4, kv_heads=2, mlp=2048, mrope_section=(16, 24, 24))
"""About 80 million weights, nearly all in the language model; a layer is a twentieth of them."""


M_MMAP_THRESHOLD = -3


def peak(path: str, on_meta: bool) -> tuple[int, int]:
    """Bytes that the memory of this process grew by at its peak while a sharded model was loaded, and the model's own bytes."""
    # Freed blocks under 32 MB, which weights of a real size are not, would stay with the process for as long as it pleases glibc.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    with start_world(CPU, timeout_s=60) as world:
        config = ModelConfig(path=path, device="cpu", dtype="bfloat16")  # not as stored: what is loaded cannot stay mapped
        random_tiny(Path(path).parents[1] / "small")  # what a first model brings in besides its weights
        with AnonymousPeak() as grown:
            model = load_model(config, on_meta=on_meta)
            size = sum(parameter.nbytes for parameter in model.hf.parameters())
            choose_trainable(model, config)
            shard_model(model, world)
            if on_meta:
                fill(model, Path(path))
        return grown.bytes, size


class AnonymousPeak:
    """Of this process inside the block, looked at every 2 ms. Pages of files that are mapped are the system's to take back and count for
    none: whether more of a file than was read is mapped depends on how it lies in the page cache (measured: half of it, or all)."""

    bytes = 0

    def __enter__(self) -> AnonymousPeak:
        self.before = memory("RssAnon")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(0.002):
            self.bytes = max(self.bytes, memory("RssAnon") - self.before)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.bytes = max(self.bytes, memory("RssAnon") - self.before)


def memory(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def test_no_process_ever_holds_the_whole_model(tmp_path: Path) -> None:
    """Two processes, fresh ones: measured 0.66 to 0.76 of the weights' bytes read shard by shard (their half, and one layer whole twice
    while it is gathered), 1.04 loaded whole and then cut (the control)."""
    (tmp_path / "small").mkdir()
    random_tiny(tmp_path / "small")
    (tmp_path / "middle").mkdir()
    path = build_tiny(tmp_path / "middle" / "model", TEXTS, 0, MIDDLE)
    shares = {}
    for on_meta in (True, False):
        found = run_processes(peak, 2, str(path), on_meta, timeout_s=120)
        print(f"on meta {on_meta}: {[grown >> 20 for grown, _ in found]} MiB more at the peak, {found[0][1] >> 20} MiB of weights")
        shares[on_meta] = max(grown / size for grown, size in found)
    assert found[0][1] > 100 << 20
    assert shares[True] < 0.85 and shares[False] > 1.0
