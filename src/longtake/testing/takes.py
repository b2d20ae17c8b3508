"""Random prompts and takes for tests, and the slow, obvious way to score a response that everything fast is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtake.models.family import Model
from longtake.models.positions import Grid
from longtake.types import MediaKind, Prompt, Take, VideoSpan, VideoTokens

ImageGrid = tuple[int, int]
"""Patch rows and columns of an image."""
_NUM_TOKENS = 300
"""Random ids are below this, so that every small test vocabulary has them."""


def plain_ids(model: Model, count: int, generator: torch.Generator) -> list[int]:
    """Random token ids that are neither media placeholders nor end tokens."""
    avoided = {*model.banned_ids.tolist(), *model.end_ids}
    allowed = torch.tensor([token for token in range(_NUM_TOKENS) if token not in avoided])
    return [int(token) for token in allowed[torch.randint(len(allowed), (count,), generator=generator)]]


def random_prompt(model: Model, num_text: int, grids: Sequence[Grid | ImageGrid] = (), seed: int = 0) -> Prompt:
    """`num_text` random text tokens with a random video or image of each grid between them, positions by the model's rule."""
    generator = torch.Generator().manual_seed(seed)
    text = plain_ids(model, num_text, generator)
    width = model.embed(torch.zeros(1, 1, dtype=torch.int64, device=model.device), ()).shape[-1]
    token_ids: list[int] = []
    spans: list[VideoSpan] = []
    for index, (grid, kind) in enumerate(map(_of_kind, grids)):
        token_ids += text[2 * index : 2 * index + 2]
        count = model.num_video_tokens(grid)
        embeddings = torch.randn(count, width, generator=generator, dtype=torch.float64).to(model.dtype)
        tokens = VideoTokens(embeddings, grid, 1.0 if kind == "video" else 0.0, f"{seed}-{index}", kind=kind)
        spans.append(VideoSpan(len(token_ids), len(token_ids) + count, tokens))
        token_ids += [model.placeholder_ids[kind]] * count
    token_ids += text[2 * len(grids) :]
    position_ids, next_position = model.position_ids(token_ids, [span.tokens for span in spans])
    return Prompt(torch.tensor(token_ids), position_ids, tuple(spans), next_position, f"prompt-{seed}")


def _of_kind(grid: Grid | ImageGrid) -> tuple[Grid, MediaKind]:
    return (grid, "video") if len(grid) == 3 else ((1, *grid), "image")


def random_take(model: Model, count: int, seed: int = 0) -> Take:
    """A take of random tokens; its log-probs are made up."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.tensor(plain_ids(model, count, generator), dtype=torch.int64)
    return Take(token_ids, -torch.rand(count, generator=generator), "length", "", 0)


def score_slowly(model: Model, prompt: Prompt, response: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs [R] and entropies [R] of one response, from `distributions_slowly`."""
    logprobs = distributions_slowly(model, prompt, response, temperature)
    entropy = -torch.where(logprobs.isfinite(), logprobs.exp() * logprobs, 0.0).sum(-1)
    return logprobs[torch.arange(len(response)), response.to(logprobs.device)], entropy


def distributions_slowly(model: Model, prompt: Prompt, response: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs [R, W] of every token at each place of a response: one unpadded row, no cache, all logits.

    Shares no code with engine, batch or policy beyond the model itself.
    """
    token_ids = torch.cat([prompt.token_ids, response])[None].to(model.device)
    later = prompt.next_position + torch.arange(len(response))
    positions = torch.cat([prompt.position_ids, later.expand(prompt.position_ids.shape[0], -1)], dim=1)[:, None].to(model.device)
    videos = [(0, span.start, span.tokens) for span in prompt.spans]
    logits = model.head(model.decoder(model.embed(token_ids, videos), positions, None, None))[0]
    rows = logits[len(prompt.token_ids) - 1 : -1]
    rows = (rows if rows.dtype == torch.float64 else rows.float()) / temperature
    rows = rows.index_fill(-1, model.banned_ids, float("-inf"))
    return rows - rows.logsumexp(-1, keepdim=True)


def media_shape(grid: Grid, seconds_per_grid: float = 1.0, kind: MediaKind = "video") -> VideoTokens:
    """A video or image without embeddings: all that positions need."""
    return VideoTokens(torch.empty(0), grid, seconds_per_grid, "", kind=kind)
