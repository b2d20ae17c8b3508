"""Which directories load, and what each unusable one is told."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.algorithms.logprobs import processed_logits
from longtake.config.sections import ModelConfig
from longtake.errors import ModelError
from longtake.models import load_model
from longtake.models.qwen2_5_vl import MEDIA_TOKENS, Qwen2_5VL
from longtake.testing.models import random_tiny
from longtake.testing.takes import media_shape


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    random_tiny(folder)
    return folder / "random_tiny_0"


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "model")


def load(path, **settings):
    return load_model(ModelConfig(path=str(path), device="cpu", **settings))


def logits(model):
    ids = torch.arange(5, 25)[None]
    positions, _ = model.position_ids(ids[0].tolist(), ())
    with torch.no_grad():
        return model.head(model.decoder(model.embed(ids, []), positions[:, None], None, None))


def test_facts_are_read_from_the_checkpoint(source):
    model = load(source)
    assert (model.patch_multiple, model.temporal_patch, model.tokens_per_second) == (28, 2, 2)
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert not model.hf.training
    vocabulary = model.tokenizer.get_vocab()
    assert model.end_id == vocabulary["<|im_end|>"]
    assert set(model.end_ids) == {vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]}
    assert model.pad_id == vocabulary["<|endoftext|>"]
    assert model.weights_version == 0


def test_tokens_per_second_is_the_checkpoints(copy):
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["tokens_per_second"] = 4
    (copy / "config.json").write_text(json.dumps(config))
    model = load(copy)
    ids = [model.placeholder_ids["video"]] * 2
    assert model.position_ids(ids, [media_shape((2, 2, 2))])[0][0].tolist() == [0, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype(source, dtype):
    model = load(source, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in model.hf.parameters()} == {model.dtype}


def published_layout(path):
    """The files of a published Qwen2.5-VL: a flat config, an old-style rope section, one preprocessor file, template in the tokenizer."""
    config = json.loads((path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    vision = {name: config["vision_config"][name] for name in config["vision_config"] if name not in ("rope_parameters", "dtype")}
    vision |= {"in_chans": 3, "spatial_patch_size": 14}
    flat = {name: value for name, value in text.items() if name not in ("model_type", "dtype", "layer_types")}
    flat |= {name: config[name] for name in config if name.endswith("token_id")}
    flat |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    flat |= {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 70, "torch_dtype": "bfloat16"}
    flat |= {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(flat | {"vision_config": vision}))
    template = (path / "chat_template.jinja").read_text()
    tokenizer = json.loads((path / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("chat_template.jinja", "processor_config.json", "video_preprocessor_config.json"):
        (path / name).unlink()
    preprocessor = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    preprocessor |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    preprocessor |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def split_in_shards(path):
    weights = load_file(path / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"model", "visual"}  # the published names
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.safetensors").unlink()


def test_published_layout_loads_and_is_the_same_model(source, copy, noise):
    published_layout(copy)
    split_in_shards(copy)
    ours, theirs = load(source), load(copy)
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.encode(noise(), 4).digest == theirs.encode(noise(), 4).digest
    assert theirs.hf.config.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    assert theirs.hf.lm_head.weight is theirs.hf.model.language_model.embed_tokens.weight


def test_media_tokens_can_never_be_sampled(source):
    """Fault: the model samples a placeholder and the next forward miscounts features."""
    model = load(source)
    vocabulary = model.tokenizer.get_vocab()
    banned = model.banned_ids.tolist()
    assert banned == sorted(vocabulary[token] for token in MEDIA_TOKENS)
    assert not set(banned) & set(model.end_ids)
    wanted_most = torch.zeros(1, model.hf.lm_head.out_features)
    wanted_most[:, model.banned_ids] = 1e4
    probabilities = processed_logits(wanted_most, 1.0, model.banned_ids).softmax(-1)
    assert probabilities[:, model.banned_ids].sum() == 0


def test_padded_vocabulary_can_never_be_sampled(source):
    """Published embeddings have more rows than the tokenizer has tokens."""
    model = load(source)
    size = len(model.tokenizer)
    model.hf.resize_token_embeddings(size + 7)
    padded = Qwen2_5VL(model.hf, model.tokenizer, model._video_processor)
    assert set(range(size, size + 7)) < set(padded.banned_ids.tolist())
    assert len(padded.banned_ids) == len(model.banned_ids) + 7


def refused(path, match, **settings):
    with pytest.raises(ModelError, match=match) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and "Rule:" in message and "Remedy:" in message
    return message


def test_hub_name_is_refused_with_the_remedy():
    assert "hf download Qwen/Qwen2.5-VL-3B-Instruct" in refused("Qwen/Qwen2.5-VL-3B-Instruct", "no directory")


def test_a_file_is_refused(source):
    refused(source / "config.json", "no directory")


def test_pickled_weights_are_refused(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    refused(copy, "only pytorch_model.bin")


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, "no weights")


def test_missing_tensor_is_not_filled_with_random_numbers(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "1 missing keys.*layers.1.mlp.up_proj")


def test_tensor_of_another_shape(copy):
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "model")


def test_truncated_weights(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(copy, "no complete")


def test_missing_shard(copy):
    split_in_shards(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    refused(copy, "no complete")


@pytest.mark.parametrize("content", ["", "not json", "[]", "{}", '{"model_type": 3}', '{"model_type": "llama"}', '{"model_type": ["a"]}'])
def test_config_that_is_none_of_ours(copy, content):
    (copy / "config.json").write_text(content)
    refused(copy, "config.json|model_type")


def test_config_that_is_no_text(copy):
    (copy / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(copy, "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_file(copy, name):
    (copy / name).unlink()
    refused(copy, "config.json|no complete")


def test_missing_preprocessor(copy):
    for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        (copy / name).unlink()
    refused(copy, "no complete")


def test_damaged_tokenizer(copy):
    (copy / "tokenizer.json").write_text("{")
    refused(copy, "no complete")


def test_sizes_that_do_not_fit_together(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["hidden_size"] = 65
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "no complete|model")


def test_code_in_a_checkpoint_never_runs(copy):
    """Fault: remote code. A checkpoint that names its own classes loads as the plain family."""
    witness = copy / "witness"
    (copy / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass Evil: pass\n")
    for name, mapped in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        config = json.loads((copy / name).read_text())
        config["auto_map"] = {mapped: "evil.Evil" if mapped == "AutoConfig" else ["evil.Evil", "evil.Evil"]}
        (copy / name).write_text(json.dumps(config))
    load(copy)
    assert not witness.exists()


def test_cuda_asked_for_where_there_is_none(source):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match="CUDA"):
        load_model(ModelConfig(path=str(source), device="cuda"))


def test_tiny_names_the_model_in_the_package():
    from longtake.models.tiny import TINY_PATH

    if not TINY_PATH.is_dir():
        pytest.skip("the package ships no model yet")
    assert load_model(ModelConfig(device="cpu")).hf.name_or_path == str(TINY_PATH)
