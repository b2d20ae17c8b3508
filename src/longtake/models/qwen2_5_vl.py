"""The Qwen2.5-VL family on the unmodified transformers model (arXiv 2502.13923)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    Cache,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLVideoProcessor,
)

from longtake.config.sections import ModelConfig
from longtake.errors import ModelError
from longtake.models.chat import ChatTokenizer
from longtake.models.family import Message
from longtake.models.on_meta import Renamings, files_digest
from longtake.models.positions import Grid, Shape, mrope_positions, num_video_tokens, time_step
from longtake.models.quiet import no_library_progress
from longtake.models.tower_identity import TowerIdentity
from longtake.observe.digest import digest_of
from longtake.types import FrameFacts, Frames, MediaKind, VideoTokens
from longtake.video.sample import DEFAULT_MAX_PIXELS

MEDIA_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Sampled, one of these would make the next forward miscount its features; they are banned."""

NO_PLACEHOLDER = -1

RENAMINGS = ((r"^visual\.", "model.visual."), (r"^model\.(?!language_model\.|visual\.)", "model.language_model."))
"""Published checkpoints and exports name their weights as the family's first release did."""
UNFIT = ("missing_keys", "mismatched_keys", "error_msgs")
"""What transformers reports of a load and goes on."""


class Qwen2_5VL:
    """Implements `family.Model`. Build it with `load`, or from parts in tests."""

    renamings: Renamings = RENAMINGS

    def __init__(
        self,
        hf: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        video_processor: Qwen2VLVideoProcessor,
        *,
        train_vision: bool = False,
        device: torch.device | None = None,
        tower_loaded: str | None = None,
    ) -> None:
        """`device`, `tower_loaded` (TowerIdentity): of a model whose weights are on `meta`."""
        self.hf: Any = hf
        self.tokenizer = tokenizer
        self.device: torch.device = hf.device if device is None else device
        self.dtype: torch.dtype = hf.dtype
        self.train_vision = train_vision
        self.weights_version = 0
        vision: Any = hf.config.vision_config
        self.temporal_patch: int = vision.temporal_patch_size
        self.patch_multiple: int = vision.patch_size * vision.spatial_merge_size
        self.max_pixels_per_frame = min(int(video_processor.size["longest_edge"]), DEFAULT_MAX_PIXELS)
        self.tokens_per_second: float = vision.tokens_per_second
        self.placeholder_ids: Mapping[MediaKind, int] = {"video": hf.config.video_token_id, "image": hf.config.image_token_id}
        self.end_id: int = tokenizer.eos_token_id
        self.end_ids = _end_ids(hf, tokenizer)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self.banned_ids = _banned_ids(hf, tokenizer).to(self.device)
        self._merge: int = vision.spatial_merge_size
        self._chat = ChatTokenizer(tokenizer)
        self._video_processor = video_processor
        self._pixel_settings = _pixel_settings(video_processor, vision)
        self._tower = TowerIdentity(hf.model.visual, trains=train_vision, loaded=tower_loaded)
        self.groups_encoded = 0
        self.root: Any = None
        hf.model.visual.requires_grad_(train_vision)

    def encode(self, frames: Frames, groups_per_chunk: int, *, gradients: bool = False) -> VideoTokens:
        """Run the tower over chunks of `groups_per_chunk` temporal groups.

        Exact, because the tower's attention stays inside one temporal group; and the bits depend on this video alone. An odd last
        frame is repeated, as the family does. Raises ModelError for frames whose sides are no multiples of `patch_multiple`.
        """
        step = groups_per_chunk * self.temporal_patch
        chunks = [self.encode_chunk(frames.pixels[start : start + step], gradients) for start in range(0, len(frames.pixels), step)]
        if not chunks:
            raise _wrong_frames(frames.pixels, self.patch_multiple)
        return self.assemble(chunks, frames.facts, groups_per_chunk)

    def encode_chunk(self, pixels: np.ndarray, gradients: bool = False) -> tuple[torch.Tensor, ...]:
        num_frames, height, width, _ = pixels.shape
        if num_frames == 0 or height == 0 or width == 0 or height % self.patch_multiple or width % self.patch_multiple:
            raise _wrong_frames(pixels, self.patch_multiple)
        # Float pixels never exist for more than one chunk.
        batch = self._video_processor(videos=[pixels], device=self.device, return_tensors="pt", **self._pixel_settings)
        with torch.set_grad_enabled(gradients):
            grid = batch["video_grid_thw"].to(self.device)
            output = self.hf.model.visual(batch["pixel_values_videos"].to(self.device, self.dtype), grid_thw=grid)
        embeddings: torch.Tensor = output.pooler_output
        self.groups_encoded += -(-num_frames // self.temporal_patch)
        return (embeddings if embeddings.requires_grad else embeddings.cpu(),)

    def assemble(self, chunks: Sequence[tuple[torch.Tensor, ...]], facts: FrameFacts, groups_per_chunk: int) -> VideoTokens:
        patch = self.hf.config.vision_config.patch_size
        grid = (-(-len(facts.times_s) // self.temporal_patch), facts.height // patch, facts.width // patch)
        seconds_per_grid, _ = time_step(facts.times_s, self.temporal_patch)
        (embeddings,) = (torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*chunks, strict=True))
        return VideoTokens(embeddings, grid, seconds_per_grid, self.tokens_digest(facts, groups_per_chunk), kind=facts.sampling.kind)

    def tokens_digest(self, facts: FrameFacts, groups_per_chunk: int) -> str:
        sampling = facts.sampling
        return digest_of(
            "qwen2_5_vl tokens 2",
            facts.source_digest,
            facts.times_s,
            (facts.height, facts.width),
            (sampling.num_frames, sampling.height, sampling.width, sampling.strategy, sampling.resize, sampling.decoder),
            self.encoder_digest(groups_per_chunk),
        )

    def encoder_digest(self, groups_per_chunk: int) -> str:
        return digest_of(
            "qwen2_5_vl encoder 1",
            json.dumps(self._pixel_settings, sort_keys=True),
            self.tower_digest(),
            (str(self.dtype), self.device.type, str(self.hf.config.vision_config._attn_implementation)),
            (transformers.__version__, torch.__version__.partition("+")[0]),
            groups_per_chunk,
        )

    def tower_digest(self) -> str:
        return self._tower.name(self.weights_version if self.train_vision else 0)

    def tower_has_changed(self) -> bool:
        return self._tower.has_changed(self.weights_version if self.train_vision else 0)

    def token_ids(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        return self._chat.token_ids(messages, add_generation_prompt)

    def text_ids(self, text: str) -> list[int]:
        return self._chat.text_ids(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def num_video_tokens(self, grid: Grid) -> int:
        return num_video_tokens(grid, self._merge)

    def position_ids(self, token_ids: Sequence[int], media: Sequence[Shape]) -> tuple[torch.Tensor, int]:
        return mrope_positions(
            token_ids,
            media,
            placeholder_ids=self.placeholder_ids,
            merge=self._merge,
            tokens_per_second=self.tokens_per_second,
        )

    def embed(self, token_ids: torch.Tensor, videos: Sequence[tuple[int, int, VideoTokens]]) -> torch.Tensor:
        """See `family.Model`. Raises ModelError unless videos and images cover exactly their placeholders."""
        embeds: torch.Tensor = self.hf.model.language_model.embed_tokens(token_ids)
        on_device: dict[int, torch.Tensor] = {}
        covered = torch.full_like(token_ids, NO_PLACEHOLDER)
        for row, start, tokens in videos:
            if id(tokens) not in on_device:  # rows that share a video share one copy
                on_device[id(tokens)] = tokens.embeddings.to(embeds.device, embeds.dtype)
            stop = start + len(tokens.embeddings)
            embeds[row, start:stop] = on_device[id(tokens)]
            covered[row, start:stop] = self.placeholder_ids[tokens.kind]
        # One decoded token per row cannot be a placeholder (they are banned), and the check would wait for the device.
        if (videos or token_ids.shape[1] > 1) and not torch.equal(covered, self._placeholders(token_ids)):
            raise ModelError(
                "videos or images that do not lie exactly on their placeholders in their rows",
                rule="each placeholder is one video token, each video token has a placeholder",
                remedy="pass every video and image of every row with the start of its span",
            )
        return embeds

    def _placeholders(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The token ids where they are placeholders, NO_PLACEHOLDER elsewhere."""
        video, image = self.placeholder_ids["video"], self.placeholder_ids["image"]
        return token_ids.where((token_ids == video) | (token_ids == image), NO_PLACEHOLDER)

    def decoder(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        *,
        packed: object | None = None,
    ) -> torch.Tensor:
        """See `family.Model`. Raises ValueError for other than three position axes, or a cache while layers are checkpointed."""
        language_model = self.hf.model.language_model
        if position_ids.shape != (3, *inputs_embeds.shape[:2]):
            raise ValueError(f"position_ids must be [3, M, T] = {(3, *inputs_embeds.shape[:2])}; got {tuple(position_ids.shape)}")
        if cache is not None and language_model.training and language_model.is_gradient_checkpointing:
            raise ValueError("a layer that checkpoints drops the cache without an error; call hf.eval() before decoding")
        output = language_model(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **({} if packed is None else {"packed": packed}),
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.hf.lm_head(hidden)
        return logits


def _wrong_frames(pixels: np.ndarray, multiple: int) -> ModelError:
    return ModelError(
        f"{pixels.shape[0]} frames of {pixels.shape[1]} x {pixels.shape[2]} pixels",
        rule=f"at least one frame, sides that are whole multiples of {multiple}",
        remedy="choose the size with video.sample.plan_frames and this model's patch_multiple",
    )


def load(path: Path, config: ModelConfig, on_meta: bool = False) -> Qwen2_5VL:
    """Load a checkpoint directory, or all of it but the weights. Only safetensors, no code of the checkpoint's own. Raises ModelError."""
    device = _device(config.device)
    with no_library_progress():
        try:
            hf, info = _without_weights(path, config) if on_meta else _with_weights(path, config)
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            video_processor = Qwen2VLVideoProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
            raise _unusable(path, f"{type(error).__name__}: {error}") from error
    wrong = [f"{len(info[kind])} {kind.replace('_', ' ')}" for kind in UNFIT if info[kind]]
    if wrong:  # transformers would go on with random weights in their place
        raise _unusable(path, f"{', '.join(wrong)} in its weights, e.g. {_first(info)}")
    fault = _tokenizer_fault(hf, tokenizer)
    if fault:  # without its files transformers makes an empty tokenizer
        raise _unusable(path, fault)
    if not on_meta:
        return Qwen2_5VL(hf.to(device).eval(), tokenizer, video_processor, train_vision=config.train_vision)
    loaded = files_digest(path, "model.visual.", RENAMINGS, hf.dtype) if config.train_vision else None
    return Qwen2_5VL(hf.eval(), tokenizer, video_processor, train_vision=config.train_vision, device=device, tower_loaded=loaded)


def _with_weights(path: Path, config: ModelConfig) -> tuple[Any, dict[str, Any]]:
    """The model, and what did not fit."""
    loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path,
        dtype=getattr(torch, config.dtype),
        attn_implementation=config.attention,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    hf, info = loaded
    return hf, info


def _without_weights(path: Path, config: ModelConfig) -> tuple[Any, dict[str, Any]]:
    """The same on `meta`; what does not fit is found when it is filled."""
    settings: Any = Qwen2_5_VLConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        hf: Any = Qwen2_5_VLForConditionalGeneration._from_config(
            settings, dtype=getattr(torch, config.dtype), attn_implementation=config.attention
        )
    hf.name_or_path = str(path)
    if (path / "generation_config.json").is_file():
        hf.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return hf, dict.fromkeys(UNFIT, ())


def _tokenizer_fault(hf: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> str:
    config: Any = hf.config
    vocabulary = tokenizer.get_vocab()
    pads = {"<|video_pad|>": config.video_token_id, "<|image_pad|>": config.image_token_id}
    if any(vocabulary.get(token) != index for token, index in pads.items()) or tokenizer.eos_token_id is None:
        told = " or ".join(f"{token} with id {index}" for token, index in pads.items())
        return f"its tokenizer of {len(vocabulary)} tokens has no {told}, or no end token"
    if max(vocabulary.values()) >= hf.lm_head.out_features:
        return f"its tokenizer has more tokens than the {hf.lm_head.out_features} the model knows"
    return ""


def _unusable(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is no complete Qwen2.5-VL checkpoint: {reason[:500]}",
        rule="a directory with config.json, *.safetensors, tokenizer and preprocessor files",
        remedy="download or export it again, whole",
    )


def _first(info: dict[str, object]) -> str:
    for kind in UNFIT:
        entries = info[kind]
        assert isinstance(entries, set | list | tuple)
        if entries:
            return str(sorted(map(str, entries))[0])
    return ""


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda", rule="this torch sees a CUDA device", remedy="set model.device to auto or cpu")
    return torch.device(name)


def _end_ids(hf: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    configured = hf.generation_config.eos_token_id if hf.generation_config is not None else None
    ids = {tokenizer.eos_token_id} | set(configured if isinstance(configured, list) else [configured])
    return tuple(sorted(index for index in ids if index is not None))


def _banned_ids(hf: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Media tokens, and rows of the embedding that no token of the tokenizer stands for. int64 [B]."""
    vocabulary = tokenizer.get_vocab()
    config = hf.config
    ids = {vocabulary[token] for token in MEDIA_TOKENS if token in vocabulary}
    ids |= {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
    ids |= set(range(hf.lm_head.out_features)) - set(vocabulary.values())
    return torch.tensor(sorted(ids), dtype=torch.int64)


def _pixel_settings(processor: Qwen2VLVideoProcessor, vision: Any) -> dict[str, object]:
    """Every setting of the video processor, explicit: defaults change between versions, and these are part of the digest."""
    settings = {
        "do_sample_frames": False,
        "do_resize": False,  # frames come at their final size from video.decode
        "do_convert_rgb": False,
        "do_rescale": True,
        "rescale_factor": float(processor.rescale_factor),
        "do_normalize": True,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "cap_pixels_per_frame": False,
        "input_data_format": "channels_last",
        "return_metadata": False,
    }
    accepted = Qwen2VLVideoProcessor.valid_kwargs.__annotations__
    return {name: value for name, value in settings.items() if name in accepted or name != "cap_pixels_per_frame"}
