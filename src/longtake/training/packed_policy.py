"""Log-probs of takes on packed sequences: every prompt is computed once for all its takes. Legend: types.py.

`score_groups` is what an update calls: it packs, scores and takes the gradient, whole groups at once or one group in chunks.
`group_logprobs` is the same without gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longtake.algorithms.logprobs import chunked_token_logprobs, scoring_temperature
from longtake.models.family import Model
from longtake.parallel.attention import LocalAttention, packed_hidden
from longtake.parallel.fsdp import one_forward
from longtake.parallel.mesh import SequenceMesh
from longtake.parallel.packed import pack_groups
from longtake.parallel.sequence import idle_groups, sequence_logprobs
from longtake.parallel.sequence_split import hold_spread_prompt, spread_chunk_logprobs
from longtake.parallel.split import HeldPrompt, chunk_hidden, hold_prompt, split_takes
from longtake.training.policy import CHUNK_ROWS
from longtake.types import PackedGroups, Prompt


@dataclass(frozen=True, eq=False)
class ScoredTakes:
    """What the policy says of some takes."""

    takes: tuple[int, ...]
    """Which: indices into the takes of all groups handed in, group by group. M of them."""
    logprobs: Tensor
    """[M, R] with gradient, 0 on padding."""
    entropy: Tensor
    """[M, R] without, 0 on padding."""
    mask: Tensor
    """bool [M, R], True on tokens."""


Learn = Callable[[ScoredTakes], Tensor | None]
"""Is shown all takes, once each, in one or several parts; returns a part's share of the loss, or None where nothing is to be learned."""


@dataclass(frozen=True)
class Passes:
    """How a rank enters the model in a round. Where weights are sharded all ranks must do so alike: what one has not, it does idly."""

    held: bool = False
    """A prompt goes forward by itself first, and backward last."""
    num_takes: int = 0
    """Passes of takes between the two, each forward and backward."""

    def __or__(self, other: Passes) -> Passes:
        """What both have to do for neither to miss anything."""
        return Passes(self.held or other.held, max(self.num_takes, other.num_takes))


@one_forward
def packed_logprobs(
    model: Model, packed: PackedGroups, temperature: float, *, mesh: SequenceMesh | None = None, chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Log-probs [M, R] of the takes' tokens with gradient, and entropies [M, R] without; the values of `testing.rows.take_logprobs`.

    With a `mesh` the sequence is spread over its sequence axis, all of whose ranks must call this: see parallel.sequence. The head sees the
    hidden states that predict take tokens only, a chunk at a time. Raises as `attention.packed_hidden` and `sequence_logprobs`.
    """
    if mesh is not None and mesh.sequence.size > 1:
        return sequence_logprobs(model, packed, mesh, temperature, chunk_rows=chunk_rows)
    local = LocalAttention(packed.groups, packed.token_ids.device)
    hidden = packed_hidden(model, model.embed(packed.token_ids[None], packed.videos), packed.position_ids, local)
    return score_hidden(model, hidden[0], packed, temperature, chunk_rows)


def score_hidden(
    model: Model, hidden: Tensor, packed: PackedGroups, temperature: float, chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [M, R] from hidden states [T, D] of the tokens that `packed.predictor_index` counts."""
    mask = packed.response_mask
    scored, entropy = chunked_token_logprobs(
        hidden.index_select(0, packed.predictor_index[mask]),
        model.head,
        packed.target_ids[mask],
        scoring_temperature(temperature),
        model.banned_ids,
        chunk_rows,
    )
    empty = scored.new_zeros(mask.shape)
    return empty.masked_scatter(mask, scored), empty.masked_scatter(mask, entropy)


def score_groups(
    model: Model,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Tensor]],
    temperature: float,
    learn: Learn,
    *,
    max_tokens: int | None = None,
    mesh: SequenceMesh | None = None,
    passes: Passes | None = None,
) -> None:
    """Score `responses[i]`, int64 [R] each, behind `prompts[i]` and add the gradient of the losses that `learn` returns.

    A single group of more than `max_tokens` tokens is split: its prompt goes forward once and backward once, its takes in chunks, each
    shown to `learn` and differentiated by itself. Several groups always go together. With a `mesh`, all ranks of its sequence axis call
    this with the same groups; `learn` sees the same on each and must answer the same, and the gradients of all ranks add up
    (parallel.gradients). Raises ValueError as `pack_groups`.

    With `passes`, at least `passes_of` these groups, which may be none: what is missing of them is made up by idle ones. `learn` must
    then return a loss for every part, or there is no gradient at all (torch.no_grad).
    """
    own = passes_of(prompts, responses, max_tokens)
    every = own if passes is None else passes
    idle_prompt = _hold_idle(model, mesh) if every.held and not own.held else None
    if own.held:
        split_group(model, prompts[0], responses[0], temperature, learn, max_tokens=max_tokens or 0, mesh=mesh, num_passes=every.num_takes)
    else:
        if own.num_takes or passes is None:
            packed = pack_groups(prompts, responses, model.device)
            logprobs, entropy = packed_logprobs(model, packed, temperature, mesh=mesh)
            _backward(learn(ScoredTakes(tuple(range(len(logprobs))), logprobs, entropy, packed.response_mask)))
        _idle_passes(model, mesh, every.num_takes - own.num_takes)
    if idle_prompt is not None:
        idle_prompt.backward(idle=True)


def passes_of(prompts: Sequence[Prompt], responses: Sequence[Sequence[Tensor]], max_tokens: int | None) -> Passes:
    """How `score_groups` enters the model for these; only lengths matter."""
    if not prompts:
        return Passes()
    if max_tokens is None or len(prompts) > 1 or not _too_large(prompts[0], responses[0], max_tokens):
        return Passes(num_takes=1)
    return Passes(held=True, num_takes=len(_chunks(prompts[0], responses[0], max_tokens)))


@torch.no_grad()
def group_logprobs(
    model: Model,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Tensor]],
    temperature: float,
    *,
    max_tokens: int | None = None,
    mesh: SequenceMesh | None = None,
    passes: Passes | None = None,
) -> list[Tensor]:
    """Log-probs alone: [R] on the CPU for each response, group by group, without gradient; packed and split as `score_groups` does."""
    found = [torch.empty(0)] * sum(map(len, responses))

    def note(scored: ScoredTakes) -> None:
        logprobs, mask = scored.logprobs.cpu(), scored.mask.cpu()
        for row, index in enumerate(scored.takes):
            found[index] = logprobs[row, mask[row]]

    score_groups(model, prompts, responses, temperature, note, max_tokens=max_tokens, mesh=mesh, passes=passes)
    return found


def idle_pass(model: Model, mesh: SequenceMesh | None = None) -> None:
    """Forward and backward of one token with weight 0: for a data rank without groups in a round in which others have some."""
    loss = packed_logprobs(model, idle_groups(model), 1.0, mesh=mesh)[0].sum()
    _backward(loss if loss.requires_grad else None)


def _idle_passes(model: Model, mesh: SequenceMesh | None, count: int) -> None:
    for _ in range(count):
        idle_pass(model, mesh)


def split_group(
    model: Model,
    prompt: Prompt,
    responses: Sequence[Tensor],
    temperature: float,
    learn: Learn,
    *,
    max_tokens: int,
    mesh: SequenceMesh | None = None,
    num_passes: int = 0,
) -> None:
    """As `score_groups` for one group, in chunks of takes: `max_tokens` with the prompt counted in, one take at least. Fewer chunks than
    `num_passes` are made up by idle ones."""
    source = _SpreadSource(model, prompt, mesh) if mesh is not None and mesh.sequence.size > 1 else _LocalSource(model, prompt)
    chunks = _chunks(prompt, responses, max_tokens)
    for chunk in chunks:
        packed = _behind_last(prompt, [responses[index] for index in chunk], model.device)
        logprobs, entropy = source.logprobs(packed, temperature)
        _backward(learn(ScoredTakes(tuple(chunk), logprobs, entropy, packed.response_mask)))
        source.held.collect()
    _idle_passes(model, mesh, num_passes - len(chunks))
    source.held.backward()


class _LocalSource:
    """A prompt held in this process."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model, self.held = model, _hold(model, prompt)

    def logprobs(self, packed: PackedGroups, temperature: float) -> tuple[Tensor, Tensor]:
        return _chunk_logprobs(self._model, self.held, packed, temperature)


@one_forward
def _hold(model: Model, prompt: Prompt) -> HeldPrompt:
    videos = [(0, span.start, span.tokens) for span in prompt.spans]
    embeds = model.embed(prompt.token_ids[None].to(model.device), videos)
    return hold_prompt(model, embeds, prompt.position_ids.to(model.device))


@one_forward
def _chunk_logprobs(model: Model, held: HeldPrompt, packed: PackedGroups, temperature: float) -> tuple[Tensor, Tensor]:
    embeds = model.embed(packed.token_ids[None, 1:], ())
    hidden = chunk_hidden(model, held, embeds, packed.position_ids[:, 1:], packed.groups[0].take_lengths)
    return score_hidden(model, hidden, packed, temperature)


@one_forward
def _hold_one_token(model: Model) -> HeldPrompt:
    idle = idle_groups(model)
    return hold_prompt(model, model.embed(idle.token_ids[None], ()), idle.position_ids)


def _hold_idle(model: Model, mesh: SequenceMesh | None) -> HeldPrompt:
    """A prompt of one token, of which no take will ask anything."""
    if mesh is None or mesh.sequence.size == 1:
        return _hold_one_token(model)
    return hold_spread_prompt(model, idle_groups(model), mesh).held


class _SpreadSource:
    """A prompt spread over the ranks of a sequence axis."""

    def __init__(self, model: Model, prompt: Prompt, mesh: SequenceMesh) -> None:
        self._model, self._mesh = model, mesh
        self._prompt = hold_spread_prompt(model, pack_groups([prompt], [[]], model.device), mesh)
        self.held: HeldPrompt = self._prompt.held

    def logprobs(self, packed: PackedGroups, temperature: float) -> tuple[Tensor, Tensor]:
        return spread_chunk_logprobs(self._model, self._prompt, packed, self._mesh, temperature, chunk_rows=CHUNK_ROWS)


def _behind_last(prompt: Prompt, responses: Sequence[Tensor], device: torch.device) -> PackedGroups:
    """Takes packed behind the prompt's last token alone, whose hidden state is held; that token does not go through the model again."""
    last = replace(prompt, token_ids=prompt.token_ids[-1:], position_ids=prompt.position_ids[:, -1:], spans=())
    return pack_groups([last], [responses], device)


def _chunks(prompt: Prompt, responses: Sequence[Tensor], max_tokens: int) -> list[list[int]]:
    return split_takes([len(take) for take in responses], max_tokens - len(prompt.token_ids))


def _too_large(prompt: Prompt, responses: Sequence[Tensor], max_tokens: int) -> bool:
    take_tokens = sum(len(take) for take in responses)
    return take_tokens > 0 and len(prompt.token_ids) + take_tokens > max_tokens


def _backward(loss: Tensor | None) -> None:
    if loss is not None:
        loss.backward()
