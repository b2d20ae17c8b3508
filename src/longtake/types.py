"""The nouns: frozen records that cross the borders of rooms. No dict or namespace does.

Shape legend, used everywhere in the package:
G takes per prompt, P prompt tokens, R take tokens, T tokens of a row, V video tokens, M rows of a batch, D model width,
W vocabulary, A position axes (1 or 3), F frames, Y X height and width in pixels.

Records that hold tensors or arrays have `eq=False`: identity is by digest, never by comparing tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

AnswerKind = Literal["letter", "number", "text"]
FinishReason = Literal["stop", "length"]
RowName = int | str
"""What a row is called in logs and results: its problem_id, in a mixture with its source in front, `kitchen/12`."""
MediaKind = Literal["video", "image"]
"""An image is encoded as a video of one moment, and stands in a prompt under a placeholder of its own."""


@dataclass(frozen=True)
class Row:
    """One dataset row exactly as published (LongVideo-Reason fields), plus the optional extras we read and write."""

    problem_id: int
    problem: str
    """Question with its options inline: `"...\\nA. ...\\nB. ..."`."""
    data_type: str
    """video | image | text; a row of type video may have images beside its videos."""
    problem_type: str
    """Category: temporal | goal | plot | spatial | general."""
    reasoning: str
    videos: tuple[str, ...]
    """Paths of the videos relative to the data root, in the order in which they are shown; in a file a string, or a list of several."""
    answer: str
    """`<answer>B</answer>`, or free text between the tags."""
    subtitles: str | None = None
    """Path of an SRT file relative to the data root."""
    duration_s: float | None = None
    images: tuple[str, ...] = ()
    """Paths of the images, as those of the videos."""

    def as_published(self) -> dict[str, Any]:
        """As it stands in a file: a single path as a string, optional fields only where they are set."""
        record = vars(self) | {"videos": _path_or_paths(self.videos), "images": _path_or_paths(self.images) or None}
        return {name: value for name, value in record.items() if value is not None}


def _path_or_paths(paths: tuple[str, ...]) -> str | list[str]:
    return list(paths) if len(paths) > 1 else "".join(paths)


def row_name(source: str, problem_id: int) -> RowName:
    """
    >>> row_name("", 12), row_name("kitchen", 12)
    (12, 'kitchen/12')
    """
    return f"{source}/{problem_id}" if source else problem_id


def source_of(name: RowName) -> str:
    """
    >>> source_of(12), source_of("kitchen/12")
    ('', 'kitchen')
    """
    return str(name).rpartition("/")[0]


@dataclass(frozen=True)
class VideoRef:
    """A video or image file inside an allowed root and the sha256 of its bytes (hex)."""

    path: Path
    digest: str
    stamp: tuple[int, int] | None = field(default=None, compare=False)
    """(size in bytes, mtime_ns) of the file when the digest was taken: a file that changed since is not that video any more."""
    kind: MediaKind = "video"


@dataclass(frozen=True)
class Option:
    letter: str
    text: str


@dataclass(frozen=True)
class Example:
    """A checked row: videos and images resolved inside the root, options and answer parsed."""

    problem_id: int
    question: str
    """The text asked, options inline, exactly as in the row."""
    options: tuple[Option, ...]
    """Empty for an open-ended question."""
    answer: str
    """Text between the answer tags: a letter, a number or free text."""
    answer_kind: AnswerKind
    category: str
    reasoning: str
    media: tuple[VideoRef, ...]
    """In the order in which they are shown: the videos, then the images; empty for a text-only row, or one that is asked blind."""
    subtitles: str | None
    """The subtitle TEXT (already read), or None."""
    duration_s: float | None
    source: str = ""
    """Name of the source in a mixture."""

    @property
    def name(self) -> RowName:
        return row_name(self.source, self.problem_id)

    @property
    def media_digest(self) -> str | None:
        """Digest of what is shown first: rows that share it are asked together, and are not independent of each other."""
        return self.media[0].digest if self.media else None


@dataclass(frozen=True)
class Sampling:
    """How the frames of a video were chosen and resized; part of the digest of everything made from them."""

    num_frames: int
    height: int
    width: int
    strategy: str
    """`uniform` (midpoints of equal segments), `fps`, or `still` for an image."""
    resize: str
    """The resize filter, e.g. `area` or `bicubic`."""
    reduced: bool = False
    """The token budget of the configuration took frames or pixels away."""
    decoder: str = ""
    """What decoded and resized: versions of the libraries that decide the pixels."""

    @property
    def kind(self) -> MediaKind:
        return "image" if self.strategy == "still" else "video"


@dataclass(frozen=True, eq=False)
class FrameFacts:
    """What is known of the frames of a video beside their pixels: enough to name and to place its tokens."""

    times_s: np.ndarray
    """float64 [F]."""
    height: int
    width: int
    source_digest: str
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class Frames:
    """Decoded frames of one video."""

    pixels: np.ndarray
    """uint8 [F, Y, X, 3], RGB, rotation applied."""
    times_s: np.ndarray
    """float64 [F], the REAL presentation time of each frame in seconds, from the file's own pts."""
    source_digest: str
    sampling: Sampling
    num_decoded: int
    """Frames the decoder had to produce to get these; what decoding cost."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or str(self.pixels.dtype) != "uint8":
            raise ValueError(f"pixels must be uint8 [F, Y, X, 3]; got {self.pixels.dtype} {self.pixels.shape}")
        if self.times_s.shape != (self.pixels.shape[0],):
            raise ValueError(f"times_s must be [F={self.pixels.shape[0]}]; got {self.times_s.shape}")
        if (self.times_s[1:] < self.times_s[:-1]).any():
            raise ValueError("times_s must not decrease")

    @property
    def facts(self) -> FrameFacts:
        _, height, width, _ = self.pixels.shape
        return FrameFacts(self.times_s, height, width, self.source_digest, self.sampling)


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """What the language model sees of one video or image."""

    embeddings: torch.Tensor
    """[V, D] in the dtype of the tower."""
    grid: tuple[int, int, int]
    """(temporal groups, patch rows, patch columns), BEFORE spatial merging, as transformers' `video_grid_thw`."""
    seconds_per_grid: float
    """Seconds between temporal groups (float32-rounded, see models/qwen2_5_vl.py)."""
    digest: str
    """sha256 of everything that produced the embeddings: source, times, sizes, processor settings, tower weights."""
    deepstack: tuple[torch.Tensor, ...] = ()
    """Per-layer features [V, D], for the families that have them."""
    kind: MediaKind = "video"


@dataclass(frozen=True, eq=False)
class VideoSpan:
    """Tokens start..stop of a prompt stand for `tokens`."""

    start: int
    stop: int
    tokens: VideoTokens


@dataclass(frozen=True, eq=False)
class Prompt:
    token_ids: torch.Tensor
    """int64 [P], media placeholders expanded to one per video token."""
    position_ids: torch.Tensor
    """int64 [A, P]."""
    spans: tuple[VideoSpan, ...]
    next_position: int
    """Position (equal on all axes) of the first response token."""
    digest: str
    """sha256 over token ids, positions and the digests of the videos."""


@dataclass(frozen=True, eq=False)
class Take:
    """One sampled response."""

    token_ids: torch.Tensor
    """int64 [R], the end token included when finish_reason is `stop`."""
    sampler_logprobs: torch.Tensor
    """float32 [R], log-prob of each sampled token under the distribution it was sampled from (temperature and bans in)."""
    finish_reason: FinishReason
    text: str
    """Decoded without special tokens."""
    weights_version: int


@dataclass(frozen=True, eq=False)
class Group:
    """G takes of one prompt with their rewards; advantages are computed from it and handed on apart."""

    example: Example
    prompt: Prompt
    takes: tuple[Take, ...]
    rewards: dict[str, torch.Tensor]
    """Named rewards, float32 [G] each, unweighted; NaN where one is not known."""
    total_reward: torch.Tensor
    """float32 [G], the weighted sum; NaN where a part of it is not known."""
    unjudged: tuple[str | None, ...] = ()
    """Why the accuracy of each take is not known, None where it is; () when all are."""


@dataclass(frozen=True)
class PackedGroup:
    """Lengths of one group in a packed sequence: its prompt once, then its takes behind each other."""

    prompt_length: int
    """P, at least 1."""
    take_lengths: tuple[int, ...]
    """R of each take; 0 for an empty one. No takes at all: a row of its own, attended to as one causal sequence."""

    def __post_init__(self) -> None:
        if self.prompt_length < 1 or any(length < 0 for length in self.take_lengths):
            raise ValueError(f"a prompt of at least 1 token and takes of at least 0; got {self.prompt_length} and {self.take_lengths}")

    @property
    def num_take_tokens(self) -> int:
        return sum(self.take_lengths)

    @property
    def num_tokens(self) -> int:
        return self.prompt_length + self.num_take_tokens


@dataclass(frozen=True, eq=False)
class PackedGroups:
    """Groups laid out as ONE sequence for one forward: every prompt once, its takes after it. M takes in all, T tokens.

    Prompt tokens attend causally to their prompt; take tokens to their whole prompt and causally to their own take.
    """

    groups: tuple[PackedGroup, ...]
    token_ids: torch.Tensor
    """int64 [T]."""
    position_ids: torch.Tensor
    """int64 [A, T]; every take goes on from its prompt's `next_position`."""
    videos: tuple[tuple[int, int, VideoTokens], ...]
    """(0, index of the first placeholder token, what stands there): the sequence is row 0 of a batch of one."""
    target_ids: torch.Tensor
    """int64 [M, R], the tokens of the takes, 0 on padding."""
    response_mask: torch.Tensor
    """bool [M, R], True on tokens of a take."""
    predictor_index: torch.Tensor
    """int64 [M, R], the token whose hidden state predicts each token of a take, 0 on padding. The prompt's last token predicts the first
    token of EVERY take of its group."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Failure:
    """A typed error in the place of an example or a take: counted, never replaced, kept in every denominator."""

    problem_id: int | None
    stage: str
    """Where it happened: rows, video, prompt, rollout, reward."""
    kind: str
    """Class name of the error, e.g. `VideoDamagedError`."""
    message: str
    """One line: what was given, the rule, the remedy."""
    category: str = "unknown"
    source: str = ""
    """Name of the source in a mixture."""

    @property
    def name(self) -> RowName | None:
        """None for a row without a readable problem_id."""
        return None if self.problem_id is None else row_name(self.source, self.problem_id)


@dataclass(frozen=True)
class TowerCosts:
    """Sizes of a vision tower. A patch is patch_size x patch_size pixels of `temporal_patch` frames; merge x merge patches make a token."""

    parameters: int
    """All of it, projector included."""
    patch_parameters: int
    """Those that multiply every patch: patch embedding and layers."""
    token_parameters: int
    """Those that multiply every video token: the projector."""
    layers: int
    full_attention_layers: int
    """Layers whose attention spans a temporal group; the others stay inside windows."""
    window_patches: int
    width: int
    mlp_width: int
    patch_size: int
    temporal_patch: int
    merge: int


@dataclass(frozen=True)
class ModelCosts:
    """What a model family costs per token and per frame: sizes from its config.json alone, so that planning needs no model."""

    model_type: str
    layers: int
    width: int
    """D."""
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    """W, rows of the embedding."""
    tied_head: bool
    decoder_parameters: int
    """Layers and final norm: what every token is multiplied with, once."""
    tower: TowerCosts
    dtype_bytes: int
    """Bytes of a weight and of an activation as computed."""
    max_pixels_per_frame: int
    """Resolution that a configuration gets which names none."""

    @property
    def attention_width(self) -> int:
        """heads x head_dim: `d` of the cost formulas."""
        return self.heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.width

    @property
    def language_parameters(self) -> int:
        """Embedding, decoder and head, a tied head counted once."""
        return self.decoder_parameters + self.embedding_parameters * (1 if self.tied_head else 2)

    @property
    def parameters(self) -> int:
        return self.language_parameters + self.tower.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def patch_multiple(self) -> int:
        """Pixels per side of a video token."""
        return self.tower.patch_size * self.tower.merge


@dataclass(frozen=True)
class Piece:
    """Takes of one group that go through a forward behind one copy of its prompt."""

    group: int
    """Index of the group in its batch."""
    takes: tuple[int, ...]
    """Indices of the takes in their group."""


@dataclass(frozen=True)
class MicroBatch:
    """What one sequence-parallel group of ranks runs forward and backward at once.

    Empty: a pass of zero weight, so that all ranks enter every FSDP unit equally often.
    """

    pieces: tuple[Piece, ...] = ()
    split_tokens: int | None = None
    """Set for one piece too large to go at once: its prompt forward once, its takes in chunks that read the keys and values, its prompt
    backward once. A chunk and the prompt have at most so many tokens."""


@dataclass(frozen=True)
class Layout:
    """How the groups of a batch are laid over the ranks. World size = data ranks x ring x ulysses."""

    ulysses: int
    ring: int
    shared_prompt: bool
    """True: a prompt once with its takes behind it. False: every take a row of its own, prompt repeated."""
    gradient_checkpointing: bool
    rounds: tuple[tuple[MicroBatch, ...], ...]
    """The micro-batches in order; each round has one per data rank, run at the same time."""

    @property
    def degree(self) -> int:
        """Ranks that share a sequence."""
        return self.ulysses * self.ring

    @property
    def num_takes(self) -> int:
        return sum(len(piece.takes) for round_ in self.rounds for micro in round_ for piece in micro.pieces)
