"""The log-probs of a packed sequence that is spread over the ranks of a mesh: each embeds, decodes and scores its own tokens.

Every rank of the sequence axis is given the same `PackedGroups` and gets the same result. It then computes the same loss; what its
backward leaves in its parameters is its share of the gradient, and the shares of all ranks ADD UP: divide the loss by counts of the whole
step and call `gradients.sum_gradients` once at the end of it.

Shapes: T tokens of the packed sequence, L slots of this rank, M takes of R tokens, S tokens scored in all, A position axes, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.algorithms.logprobs import chunked_token_logprobs, scoring_temperature
from longtake.models.family import Model
from longtake.parallel.attention import LocalAttention, PackedAttention, packed_hidden
from longtake.parallel.collectives import all_gather_for_same_use
from longtake.parallel.mesh import Axis, SequenceMesh
from longtake.parallel.ring import RingAttention
from longtake.parallel.sharding import PADDING, Shards, local_videos, shard
from longtake.parallel.ulysses import UlyssesAttention
from longtake.types import PackedGroup, PackedGroups, VideoTokens


def sequence_logprobs(
    model: Model, packed: PackedGroups, mesh: SequenceMesh, temperature: float, *, chunk_rows: int
) -> tuple[Tensor, Tensor]:
    """Log-probs [M, R] of the takes' tokens with gradient, and entropies [M, R] without, on every rank of the sequence axis: the values of
    `testing.rows.take_logprobs`.

    Every rank of the axis must call it, with the same `packed`; each runs the model once, on padding where it has no token, and scores the
    tokens whose predictors it holds. Raises ConfigError for a Ulysses degree that does not divide the model's query heads.
    """
    shards = shard(packed.groups, mesh.ring.size, mesh.ulysses.size)
    here = tokens_here(packed, shards.tokens[mesh.sequence.rank], model.pad_id)
    attention = sequence_attention(shards, mesh, packed.token_ids.device)
    hidden = packed_hidden(model, embed_here(model, here), here.position_ids, attention)
    rows = scored_rows(packed, shards.locations, mesh.sequence)
    return score_rows(model, hidden[0], rows, packed, temperature, chunk_rows, mesh.sequence)


def sequence_attention(shards: Shards, mesh: SequenceMesh, device: torch.device) -> PackedAttention:
    """The strategy of this rank: Ulysses around a ring, or around the whole sequence where the ring is one rank."""
    whole = mesh.ring.size == 1
    inner: PackedAttention = LocalAttention(shards.groups, device) if whole else RingAttention(shards, mesh.ring, device)
    return UlyssesAttention(inner, mesh.ulysses, shards.ring_length(mesh.ring.rank))


@dataclass(frozen=True, eq=False)
class TokensHere:
    """What the model is given on one rank."""

    token_ids: Tensor
    """int64 [1, L]."""
    position_ids: Tensor
    """int64 [A, L], 0 on padding."""
    videos: list[tuple[int, int, VideoTokens]]


def tokens_here(packed: PackedGroups, tokens: Tensor, pad_id: int) -> TokensHere:
    """The part of a packed sequence in the slots int64 [L] of a rank (`Shards.tokens`)."""
    slots = tokens.to(packed.token_ids.device)
    padding = slots == PADDING
    held = slots.clamp_min(0)
    return TokensHere(
        token_ids=packed.token_ids[held].masked_fill(padding, pad_id)[None],
        position_ids=packed.position_ids[:, held].masked_fill(padding, 0),
        videos=local_videos(packed.videos, tokens),
    )


def embed_here(model: Model, here: TokensHere) -> Tensor:
    """[1, L, D]."""
    embeds = model.embed(here.token_ids, here.videos)
    if torch.is_grad_enabled() and model.train_vision and not embeds.requires_grad:
        # A rank without a piece of the video must send gradients back in the same layers as the ranks that have one.
        return embeds.requires_grad_()
    return embeds


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Which rank scores which token: the one that holds its predictor."""

    slots: Tensor
    """int64, the slots of the predictors that lie here."""
    targets: Tensor
    """int64, the token that each of them predicts."""
    sizes: list[int]
    """Of each rank of the sequence axis; their sum is S."""
    order: Tensor
    """int64 [S], rank after rank, the place of each scored token among the tokens of `response_mask`."""


def scored_rows(packed: PackedGroups, locations: tuple[Tensor, Tensor], axis: Axis) -> ScoredRows:
    """`locations`: of each token its rank and slot (`Shards.locations`)."""
    device = packed.token_ids.device
    predictors = packed.predictor_index[packed.response_mask].cpu()
    ranks, slots = (where[predictors] for where in locations)
    order = ranks.argsort(stable=True)
    sizes = torch.bincount(ranks, minlength=axis.size).tolist()
    here = order[sum(sizes[: axis.rank]) :][: sizes[axis.rank]]
    return ScoredRows(slots[here].to(device), packed.target_ids[packed.response_mask][here.to(device)], sizes, order.to(device))


def score_rows(
    model: Model, hidden: Tensor, rows: ScoredRows, packed: PackedGroups, temperature: float, chunk_rows: int, axis: Axis
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [M, R] on every rank, from the hidden states [L, D] of this rank's slots."""
    scored, entropy = chunked_token_logprobs(
        hidden.index_select(0, rows.slots), model.head, rows.targets, scoring_temperature(temperature), model.banned_ids, chunk_rows
    )
    found = all_gather_for_same_use(torch.stack((scored, entropy.to(scored.dtype)), dim=1), rows.sizes, axis)
    in_order = torch.empty_like(found).index_copy(0, rows.order, found)
    empty = scored.new_zeros(packed.response_mask.shape)
    logprobs, entropies = (empty.masked_scatter(packed.response_mask, column) for column in in_order.unbind(1))
    return logprobs, entropies.detach()


def idle_groups(model: Model) -> PackedGroups:
    """A sequence of one token and no takes, for ranks that have no work while others do: every rank must run the model equally often.

    `sequence_logprobs(...)[0].sum()` of it is 0 and has a gradient, which is 0 everywhere.
    """
    none = torch.zeros(0, 1, dtype=torch.int64, device=model.device)
    position_ids, _ = model.position_ids([model.pad_id], ())
    return PackedGroups(
        groups=(PackedGroup(1, ()),),
        token_ids=torch.full((1,), model.pad_id, device=model.device),
        position_ids=position_ids.to(model.device),
        videos=(),
        target_ids=none,
        response_mask=none.bool(),
        predictor_index=none,
    )
