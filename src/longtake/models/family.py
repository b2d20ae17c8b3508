"""What every model family offers: encoder, language model and tokenizer, callable apart, on an unmodified transformers model.

Shape legend: types.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from transformers import Cache, PreTrainedTokenizerBase

from longtake.models.positions import Grid
from longtake.types import Frames, VideoTokens


@dataclass(frozen=True)
class Message:
    """One message of a chat: `num_videos` placeholders, then the text."""

    role: Literal["system", "user", "assistant"]
    text: str
    num_videos: int = 0


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
    video_token_id: int
    train_vision: bool
    """Whether the tower trains (its embeddings then change with the weights)."""
    weights_version: int
    """Raised by the trainer after each update."""

    def encode(self, frames: Frames, groups_per_chunk: int, *, gradients: bool = False) -> VideoTokens:
        """Run the tower. Without gradients the embeddings lie on the CPU; with them they stay on the device with their graph."""
        ...

    def tower_digest(self) -> str:
        """sha256 of the tower's weights as they are now; recomputed only after they changed."""
        ...

    def token_ids(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """The chat template's tokens, one placeholder per video. Special-token strings inside message texts stay plain text."""
        ...

    def text_ids(self, text: str) -> list[int]:
        """Tokens of plain text, none of them special."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        ...

    def num_video_tokens(self, grid: Grid) -> int:
        """V of a video with this grid."""
        ...

    def position_ids(self, token_ids: Sequence[int], grids: Sequence[Grid], seconds_per_grid: Sequence[float]) -> tuple[torch.Tensor, int]:
        """int64 [A, P] on the CPU, and the position of the first response token. Raises ModelError when they do not fit."""
        ...

    def embed(self, token_ids: torch.Tensor, videos: Sequence[tuple[int, int, VideoTokens]]) -> torch.Tensor:
        """Embeddings [M, T, D] of token ids [M, T], with each video (row, start, tokens) in place of its placeholders."""
        ...

    def decoder(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor:
        """Final hidden states [M, T, D]; position_ids [A, M, T] always explicit; attention_mask [M, cached + T], 0 on padding."""
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raw logits [..., W] of hidden states [..., D]."""
        ...
