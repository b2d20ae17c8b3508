"""An exported directory is what `from_pretrained` loads, with the same logits, tokenizer and processors; nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from longtake.config.sections import LoraConfig, ModelConfig
from longtake.errors import ModelError, PathError
from longtake.models import load_model
from longtake.training.export import export_model, merged_weights
from longtake.training.trainable import choose_trainable

IDS = torch.tensor([[5, 17, 80, 33, 120, 7]])


def _logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(input_ids=IDS).logits


def _stored(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_weights_come_back_bit_for_bit_in_their_type(new_model, tiny_dir: Path, tmp_path: Path, dtype: str):
    model = new_model(dtype)
    for parameter in choose_trainable(model, ModelConfig()).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    out = export_model(model, tmp_path / "deep" / "out")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    stored = _stored(out)
    assert stored.keys() == _stored(tiny_dir).keys() and "lm_head.weight" not in stored  # tied: once
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
    again = load_model(ModelConfig(path=str(out), dtype=dtype, device="cpu"))
    assert torch.equal(_logits(again), _logits(model))
    assert again.hf.lm_head.weight is again.hf.model.language_model.embed_tokens.weight


def test_adapters_are_merged_and_the_model_stays_as_it_was(new_model, tiny_dir: Path, tmp_path: Path):
    model = new_model()
    base = _logits(model)
    for parameter in choose_trainable(model, ModelConfig(lora=LoraConfig(rank=4, alpha=8.0))).values():
        parameter.data.normal_(std=0.1)
    before = _logits(model)
    out = export_model(model, tmp_path / "out", tiny_dir)
    assert torch.equal(_logits(model), before)
    assert _stored(out).keys() == _stored(tiny_dir).keys()
    again = _logits(load_model(ModelConfig(path=str(out), device="cpu")))
    # measured 6e-7 (W x + B A x against (W + B A) x), and the adapters move the logits by more than 0.1
    torch.testing.assert_close(again, before, atol=1e-5, rtol=0)
    assert (before - base).abs().max() > 0.1


def test_the_merged_weight_by_hand(new_model):
    model = new_model()
    choose_trainable(model, ModelConfig(lora=LoraConfig(rank=2, alpha=6.0, target_modules=("o_proj",))))
    layer = model.hf.model.language_model.layers[1].self_attn.o_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer.weight + 3.0 * product  # alpha / rank = 3
    merged = merged_weights(model)["model.language_model.layers.1.self_attn.o_proj.weight"]
    torch.testing.assert_close(merged, expected, atol=1e-6, rtol=0)  # measured 0; the product is of size 1


def test_tokenizer_processors_and_template_are_the_bases_own_bytes(new_model, tiny_dir: Path, tmp_path: Path):
    out = export_model(new_model(), tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {path.name for path in tiny_dir.iterdir()}
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "video_preprocessor_config.json",
        "generation_config.json",
    ):
        assert (out / name).read_bytes() == (tiny_dir / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_an_occupied_target_is_refused_and_an_empty_folder_is_not(new_model, tmp_path: Path):
    model = new_model()
    full, file, link, empty = (tmp_path / name for name in ("full", "file", "link", "empty"))
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    file.write_text("keep me")
    link.symlink_to(full)
    empty.mkdir()
    for occupied in (full, file, link):
        with pytest.raises(PathError, match="not an empty folder"):
            export_model(model, occupied)
    assert (full / "mine.txt").read_text() == file.read_text() == "keep me"
    assert (export_model(model, empty) / "model.safetensors").is_file()


def test_a_failed_export_leaves_nothing(new_model, tmp_path: Path, monkeypatch):
    model = new_model()
    with pytest.raises(ModelError, match="tokenizer_config"):
        export_model(model, tmp_path / "out", tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longtake.training.export.shutil.copyfile", fail)
    with pytest.raises(PathError, match="No space left"):
        export_model(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
