"""What every model family offers: encoder, language model and tokenizer, callable apart, on an unmodified transformers model.

Shape legend: types.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import Cache, PreTrainedTokenizerBase

from longtake.models.on_meta import Renamings
from longtake.models.positions import Grid, Shape
from longtake.types import FrameFacts, Frames, MediaKind, VideoTokens


@dataclass(frozen=True)
class Message:
    """One message of a chat: a placeholder for each of `media`, then the text."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: tuple[MediaKind, ...] = ()


class Model(Protocol):
    """A vision-language model. The only state of its own is `weights_version`; the rest is fixed when it is loaded."""

    hf: Any
    """The unmodified transformers model: `hf.model.visual`, `hf.model.language_model`, `hf.lm_head`."""
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    patch_multiple: int
    """Frame sides are whole multiples of this many pixels."""
    temporal_patch: int
    """Frames per temporal group."""
    max_pixels_per_frame: int
    """Resolution the checkpoint asks for, for a configuration that names none; at most video.sample.DEFAULT_MAX_PIXELS."""
    tokens_per_second: float
    """Temporal positions per second of video, from the checkpoint."""
    end_id: int
    """The token that ends a response in training data."""
    end_ids: tuple[int, ...]
    """Any of these ends a sampled response."""
    pad_id: int
    """Fills padded token ids; never scored."""
    banned_ids: torch.Tensor
    """int64 [B] on `device`: media placeholders and the padding of the vocabulary, which may never be sampled."""
    placeholder_ids: Mapping[MediaKind, int]
    """The token that stands for each video token of a video, and for those of an image."""
    train_vision: bool
    """Whether the tower trains (its embeddings then change with the weights)."""
    weights_version: int
    """Raised by the trainer after each update."""

    renamings: Renamings
    """From the names in checkpoint files, published ones too, to those of the modules."""
    root: Any
    """The module inside whose forward sharded weights are whole (parallel.fsdp); None where the weights are whole anyway."""
    groups_encoded: int
    """Temporal groups that the tower has run over in this process; once per group and step is all that is needed."""

    def encode(self, frames: Frames, groups_per_chunk: int, *, gradients: bool = False) -> VideoTokens:
        """Run the tower, chunk by chunk. The embeddings lie on the CPU, or with gradients on the device with their graph."""
        ...

    def encode_chunk(self, pixels: np.ndarray, gradients: bool = False) -> tuple[torch.Tensor, ...]:
        """uint8 [F, Y, X, 3] of one chunk, whole temporal groups -> its embeddings [V, D], then its deepstack features [V, D] if any."""
        ...

    def assemble(self, chunks: Sequence[tuple[torch.Tensor, ...]], facts: FrameFacts, groups_per_chunk: int) -> VideoTokens:
        """What `encode_chunk` gave for each chunk of a video, in order, as its tokens."""
        ...

    def tokens_digest(self, facts: FrameFacts, groups_per_chunk: int) -> str:
        """The digest that the tokens of these frames have, without encoding them."""
        ...

    def encoder_digest(self, groups_per_chunk: int) -> str:
        """sha256 of everything on the model's side that decides embeddings: weights, processor, dtype, kernels, versions, chunk size."""
        ...

    def tower_digest(self) -> str:
        """Names the tower's weights as they are now (models/tower_identity.py)."""
        ...

    def tower_has_changed(self) -> bool:
        """Whether a trained tower was updated since it was loaded: what it gives then must not outlive this process."""
        ...

    def token_ids(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """The chat template's tokens, one placeholder per video or image. Special-token strings inside message texts stay plain text."""
        ...

    def text_ids(self, text: str) -> list[int]:
        """Tokens of plain text, none of them special."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        ...

    def num_video_tokens(self, grid: Grid) -> int:
        """V of a video or image with this grid."""
        ...

    def position_ids(self, token_ids: Sequence[int], media: Sequence[Shape]) -> tuple[torch.Tensor, int]:
        """int64 [A, P] on the CPU, and the position of the first response token. `media`: what stands in place of each run of placeholders,
        in order. Raises ModelError when they do not fit."""
        ...

    def embed(self, token_ids: torch.Tensor, videos: Sequence[tuple[int, int, VideoTokens]]) -> torch.Tensor:
        """Embeddings [M, T, D] of token ids [M, T], with each video or image (row, start, tokens) in place of its placeholders."""
        ...

    def decoder(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        *,
        packed: object | None = None,
    ) -> torch.Tensor:
        """Final hidden states [M, T, D]; position_ids [A, M, T] always explicit; attention_mask [M, cached + T], 0 on padding.

        `packed` reaches the attention function of each layer as it is; see parallel.attention.packed_hidden, which alone gives it.
        """
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raw logits [..., W] of hidden states [..., D]."""
        ...
