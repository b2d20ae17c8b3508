"""A tiny model of the Qwen2.5-VL architecture: its configuration, its tokenizer, and a complete checkpoint directory.

Everything a published checkpoint has is here in small: window and full attention in the tower, grouped KV heads, a tied head,
three-axis rotary positions, the family's special tokens and its pre-tokenisation (a word with its leading space is one piece, a
digit is one piece), so whatever reads the published directories reads this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from longtake.models.quiet import no_library_progress

TINY_PATH = Path(__file__).resolve().parents[1] / "assets" / "tiny"
"""The tiny base model that ships in the package."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's special tokens, in the published order."""

FORMAT_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")
"""One token each, but NOT special: decoding without special tokens must keep them, the rewards read them."""

_TAGS = re.compile("|".join(re.escape(token) for token in (*SPECIAL_TOKENS, *FORMAT_TOKENS)))

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""Qwen2.5-VL's layout without its default system message: each token counts in a model this small."""


@dataclass(frozen=True)
class TinySizes:
    """Sizes of the tiny model; head size = hidden / heads, and `mrope_section` sums to half of it."""

    vocab_size: int = 1024
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    mrope_section: tuple[int, int, int] = (4, 6, 6)
    rope_theta: float = 10_000.0
    vision_hidden: int = 128
    vision_layers: int = 2
    vision_heads: int = 4
    vision_mlp: int = 384
    tokens_per_second: int = 2
    max_positions: int = 32_768
    max_pixels: int = 28 * 28
    """Per frame; one token per pair of frames."""


def build_tokenizer(texts: Iterable[str], vocab_size: int = TinySizes.vocab_size) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer with Qwen2.5-VL's pre-tokenisation and special tokens.

    Deterministic in `texts`. Every text encodes (bytes are in the vocabulary) and decodes to its NFC form. At most `vocab_size`
    tokens, the added ones included; fewer when the texts offer fewer merges.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(FORMAT_TOKENS),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    roles = ["user", "assistant", "system"] * 100  # in every prompt: one token each
    # What follows a tag is the start of a piece when encoding, so it is one when training too.
    pieces = [piece for text in texts for piece in _TAGS.split(text)]
    backend.train_from_iterator([*pieces, *roles], trainer=trainer)
    trained = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(merge) for merge in trained["merges"]]
    return _family_tokenizer(trained["vocab"], merges)


def _family_tokenizer(vocab: dict[str, int], merges: Any) -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", split_special_tokens=False)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in FORMAT_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = TinySizes.max_positions
    return tokenizer


def tiny_config(tokenizer: PreTrainedTokenizerBase, sizes: TinySizes = TinySizes()) -> Qwen2_5_VLConfig:
    """The model's configuration; vocabulary size and token ids come from the tokenizer."""
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": sizes.max_positions,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta, "mrope_section": list(sizes.mrope_section)},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_mlp,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [sizes.vision_layers - 1],
        "tokens_per_second": sizes.tokens_per_second,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_tiny(out_dir: Path, texts: Iterable[str], seed: int, sizes: TinySizes = TinySizes()) -> Path:
    """Write a complete checkpoint directory with random weights; same texts, seed and sizes, same bytes. Returns `out_dir`."""
    tokenizer = build_tokenizer(texts, sizes.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(tiny_config(tokenizer, sizes))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")],
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        do_sample=True,
        temperature=1.0,
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    with no_library_progress():
        model.save_pretrained(out_dir)
    _save_processor(tokenizer, out_dir, sizes.max_pixels)
    return out_dir


def _save_processor(tokenizer: Qwen2Tokenizer, out_dir: Path, max_pixels: int) -> None:
    size = {"shortest_edge": 28 * 28, "longest_edge": max_pixels}
    image = Qwen2VLImageProcessor(size=size)
    # what transformers has no default for is written out, so that a later version's default cannot change the pixels
    video = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, do_sample_frames=False)
    processor = Qwen2_5_VLProcessor(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(out_dir)
    image.save_pretrained(out_dir)
    video.save_pretrained(out_dir)
