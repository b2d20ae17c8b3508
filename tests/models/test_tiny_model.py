"""The tiny model is a complete checkpoint of the family, reproducible, and its tokenizer is made for short answers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from longtake.models.tiny import FORMAT_TOKENS, SPECIAL_TOKENS, TinySizes, build_tiny, build_tokenizer
from longtake.testing.models import SIZES, TEXTS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny") / "model", TEXTS, seed=3)


def test_transformers_loads_it(checkpoint):
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    processor = AutoProcessor.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert type(processor.tokenizer).__name__ == type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert len(tokenizer) == model.config.text_config.vocab_size == model.lm_head.out_features
    assert processor.video_token_id == model.config.video_token_id == tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert model.config.vision_config.tokens_per_second == 2
    assert set(model.generation_config.eos_token_id) == {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}


def test_default_sizes(checkpoint):
    config = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint).config
    text = config.text_config
    assert text.hidden_size // text.num_attention_heads == 32  # the head size vLLM's CPU attention wants
    assert text.num_key_value_heads < text.num_attention_heads
    assert sum(text.rope_parameters["mrope_section"]) == 16
    full_vocabulary = 4 * (TinySizes().vocab_size - text.vocab_size) * text.hidden_size
    assert (checkpoint / "model.safetensors").stat().st_size + full_vocabulary < 8_000_000


def test_same_seed_same_bytes_other_seed_other_weights(checkpoint, tmp_path):
    again, other = build_tiny(tmp_path / "again", TEXTS, seed=3), build_tiny(tmp_path / "other", TEXTS, seed=4)
    for file in checkpoint.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert (checkpoint / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (checkpoint / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


@pytest.mark.long
def test_tokenizer_is_the_same_in_another_process():
    """Hash seeds and threads of the trainer must not show in the vocabulary."""
    code = (
        "from longtake.models.tiny import build_tokenizer; from longtake.testing.models import TEXTS;"
        "print(build_tokenizer(TEXTS).backend_tokenizer.to_str())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "1"})
    assert other.stdout.strip() == build_tokenizer(TEXTS).backend_tokenizer.to_str()


def test_words_with_their_space_and_format_tags_are_one_token():
    tokenizer = build_tokenizer(TEXTS)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("The red circle picks up the key")) == [
        *("The", "Ġred", "Ġcircle", "Ġpicks", "Ġup", "Ġthe", "Ġkey")
    ]
    text = "<think>First the key</think><answer>B</answer>"
    pieces = ["<think>", "First", "Ġthe", "Ġkey", "</think>", "<answer>", "B", "</answer>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == pieces
    assert [len(tokenizer.encode(role)) for role in ("user", "assistant", "system")] == [1, 1, 1]


def test_format_tags_survive_decoding_and_special_tokens_do_not(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    assert added == dict.fromkeys(SPECIAL_TOKENS, True) | dict.fromkeys(FORMAT_TOKENS, False)
    text = "<think>the key</think><answer>B</answer>"
    noisy = "<|im_start|>" + text + "<|video_pad|><|im_end|><|endoftext|>"
    assert tokenizer.decode(tokenizer.encode(noisy), skip_special_tokens=True) == text


def test_pre_tokenisation_is_the_familys(checkpoint):
    assert PRETOKENIZE_REGEX in AutoTokenizer.from_pretrained(checkpoint).backend_tokenizer.to_str().encode().decode("unicode_escape")
    pieces = build_tokenizer(["cat 12 times"]).backend_tokenizer.pre_tokenizer.pre_tokenize_str("cat 12's\n\nB.")
    assert [piece for piece, _ in pieces] == ["cat", "Ġ", "1", "2", "'s", "ĊĊ", "B", "."]


def test_vocabulary_stays_within_its_size():
    tokenizer = build_tokenizer(TEXTS, 300)
    assert len(tokenizer) == 300
    assert max(tokenizer.get_vocab().values()) == 299
    assert SIZES.vocab_size == 512
