"""The embedded rollout engine: decodes on the very transformers model that trains. Nothing is copied, nothing goes stale.

Each prompt is prefilled once and its keys and values serve all its takes (shared_cache.py). Takes that are finished leave the batch.
Legend: types.py, shared_cache.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from longtake.algorithms.logprobs import processed_logits, scoring_temperature
from longtake.models.family import Model
from longtake.parallel.fsdp import gathered
from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.sampling import greedy_tokens, sample_tokens, take_uniforms
from longtake.rollout.shared_cache import ATTENTION_NAME, PromptKv, SharedPromptCache
from longtake.training.batch import pad_prompts, split_by_tokens
from longtake.types import Prompt, Take

_PROMPT_ALIGNMENT = 16
"""Prompt padding is rounded up to this, because CUDA's attention with a bias wants aligned rows."""
_COMPACT_BELOW = 0.85
"""Finished takes are removed when fewer than this share of the rows is still live: a removal copies the cache once."""


@dataclass
class RolloutCounters:
    """What the engine did since it was made; for metrics and tests."""

    prompts_prefilled: int = 0
    prompt_tokens: int = 0
    decode_steps: int = 0
    sampled_tokens: int = 0


@dataclass(eq=False)
class _Sampled:
    """Tokens of the takes decoded together."""

    tokens: Tensor
    """int64 [M, max_new_tokens]."""
    logprobs: Tensor
    """float32 [M, max_new_tokens]."""
    lengths: Tensor
    """int64 [M]; 0 while the take runs."""
    stopped: Tensor
    """bool [M], an end token was drawn."""


@dataclass(eq=False)
class TransformersEngine:
    """See `Engine`. Up to `max_rows` takes are decoded together, of prompts with up to `max_prompt_tokens` padded tokens together."""

    model: Model
    max_rows: int = 256
    max_prompt_tokens: int = 131_072
    counters: RolloutCounters = field(default_factory=RolloutCounters)
    ranks_per_engine = 1
    takes_prefilled = True

    def at_weights(self) -> AbstractContextManager[None]:
        """Sharded weights are whole inside; there are no others."""
        return gathered(self.model)

    def metrics(self) -> dict[str, float]:
        """Nothing beside what the run measures."""
        return {}

    def close(self) -> None:
        """It holds nothing of its own."""

    @torch.no_grad()
    def generate(self, requests: Sequence[RolloutRequest], params: SamplingParams) -> list[tuple[Take, ...]]:
        """G takes per request, in order. The model's train/eval flags and attention are what they were when this returns or raises.

        Under no_grad and not inference mode, whose tensors could never enter a training graph.
        """
        takes: dict[int, list[Take]] = {index: [] for index in range(len(requests))}
        rows_per_prompt = min(params.num_takes, self.max_rows)
        with evaluating(self.model.hf):
            for wave in self._waves(requests, rows_per_prompt):
                chosen = [requests[index] for index in wave]
                prompts, logits = self._prefilled(chosen)
                for first in range(0, params.num_takes, rows_per_prompt):
                    span = range(first, min(first + rows_per_prompt, params.num_takes))
                    decoded = self._decode(chosen, span, prompts, logits, params)
                    for position, index in enumerate(wave):
                        takes[index].extend(decoded[position * len(span) : (position + 1) * len(span)])
        return [tuple(takes[index]) for index in range(len(requests))]

    def _waves(self, requests: Sequence[RolloutRequest], rows_per_prompt: int) -> list[list[int]]:
        """Indices of the requests decoded together: like lengths together, within both bounds."""
        lengths = [len(request.prompt.token_ids) for request in requests]
        at_once = max(1, self.max_rows // rows_per_prompt)
        held = [index for index, request in enumerate(requests) if request.prefilled is not None]
        rest = [index for index in range(len(requests)) if index not in held]
        waves = [
            [rest[place] for place in batch[start : start + at_once]]
            for batch in split_by_tokens([lengths[index] for index in rest], self.max_prompt_tokens)
            for start in range(0, len(batch), at_once)
        ]
        return [[index] for index in held] + waves

    def _prefilled(self, requests: Sequence[RolloutRequest]) -> tuple[PromptKv, Tensor]:
        """What `_prefill` returns, computed here or brought along by the one request of the wave."""
        if requests[0].prefilled is None:
            prompts, logits = self._prefill([request.prompt for request in requests])
        else:
            prompts, logits = requests[0].prefilled
        self.counters.prompts_prefilled += len(requests)
        self.counters.prompt_tokens += int(prompts.lengths.sum())
        return prompts, logits

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[PromptKv, Tensor]:
        """Keys and values of the prompts, each computed once, and the logits [U, W] of their last tokens.

        Right-padded without a mask: causal attention never looks right, so padding cannot reach a token, and the fast kernel is used.
        """
        batch = pad_prompts(prompts, self.model.device, multiple=_PROMPT_ALIGNMENT)
        cache = DynamicCache()
        embeds = self.model.embed(batch.token_ids, batch.videos)
        hidden = self.model.decoder(embeds, batch.position_ids, None, cache)
        last = hidden[torch.arange(len(prompts), device=hidden.device), batch.lengths - 1]
        layers = cast(list[DynamicLayer], cache.layers)
        keys, values = [cast(Tensor, layer.keys) for layer in layers], [cast(Tensor, layer.values) for layer in layers]
        return PromptKv(keys, values, batch.lengths), self.model.head(last)

    def _decode(
        self, requests: Sequence[RolloutRequest], span: range, prompts: PromptKv, prompt_logits: Tensor, params: SamplingParams
    ) -> list[Take]:
        """The takes of `span` of each request, request-major."""
        device = self.model.device
        prompt_of_row = torch.arange(len(requests), device=device).repeat_interleave(len(span))
        next_positions = torch.tensor([request.prompt.next_position for request in requests], device=device)[prompt_of_row]
        axes = requests[0].prompt.position_ids.shape[0]
        cache = SharedPromptCache.start(prompts, prompt_of_row)
        uniforms = _uniforms(requests, span, params, device)
        with _attention(self.model.hf, ATTENTION_NAME):
            sampled = self._loop(cache, prompt_logits[prompt_of_row], next_positions, axes, uniforms, params)
        return self._takes(sampled)

    def _loop(
        self, cache: SharedPromptCache, logits: Tensor, positions: Tensor, axes: int, uniforms: Tensor | None, params: SamplingParams
    ) -> _Sampled:
        """Sample, append, forward, until every take has ended. logits [M, W] and positions [M] are those of the first token."""
        num_rows, device = len(positions), logits.device
        sampled = _empty(num_rows, params.max_new_tokens, device)
        end_ids, banned_ids = torch.tensor(self.model.end_ids, device=device), self.model.banned_ids
        temperature = scoring_temperature(params.temperature)
        rows = torch.arange(num_rows, device=device)
        as_past = cast(Cache, cache)  # has what a decoding model asks of a cache, and not the rest
        for step in range(params.max_new_tokens):
            processed = processed_logits(logits, temperature, banned_ids)
            drawn, logprobs = greedy_tokens(processed) if uniforms is None else sample_tokens(processed, uniforms[rows, step])
            live = _record(sampled, rows, step, drawn, logprobs, end_ids)
            num_live = int(live.sum())
            if num_live == 0 or step + 1 == params.max_new_tokens:
                break
            if num_live < _COMPACT_BELOW * len(rows):
                keep = live.nonzero()[:, 0]
                cache.compact(keep)
                rows, drawn = rows[keep], drawn[keep]
            embeds = self.model.embed(drawn[:, None], ())
            hidden = self.model.decoder(embeds, (positions[rows] + step).expand(axes, -1).unsqueeze(-1), None, as_past)
            logits = self.model.head(hidden[:, 0])
            self.counters.decode_steps += 1
        sampled.lengths[sampled.lengths == 0] = params.max_new_tokens
        return sampled

    def _takes(self, sampled: _Sampled) -> list[Take]:
        tokens, logprobs = sampled.tokens.cpu(), sampled.logprobs.cpu()
        lengths, stopped = sampled.lengths.tolist(), sampled.stopped.tolist()
        texts = self.model.tokenizer.batch_decode(
            [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        self.counters.sampled_tokens += sum(lengths)
        return [
            Take(
                token_ids=tokens[row, :length].clone(),
                sampler_logprobs=logprobs[row, :length].clone(),
                finish_reason="stop" if stopped[row] else "length",
                text=texts[row],
                weights_version=self.model.weights_version,
            )
            for row, length in enumerate(lengths)
        ]


def _empty(num_rows: int, max_new_tokens: int, device: torch.device) -> _Sampled:
    shape = (num_rows, max_new_tokens)
    return _Sampled(
        tokens=torch.zeros(shape, dtype=torch.int64, device=device),
        logprobs=torch.zeros(shape, dtype=torch.float32, device=device),
        lengths=torch.zeros(num_rows, dtype=torch.int64, device=device),
        stopped=torch.zeros(num_rows, dtype=torch.bool, device=device),
    )


def _record(sampled: _Sampled, rows: Tensor, step: int, drawn: Tensor, logprobs: Tensor, end_ids: Tensor) -> Tensor:
    """Write the tokens drawn for `rows`; which of them still run, bool [m]. A row that ended before keeps its length."""
    sampled.tokens[rows, step] = drawn
    sampled.logprobs[rows, step] = logprobs
    ended_before = sampled.stopped[rows]
    ended = torch.isin(drawn, end_ids)
    sampled.lengths[rows] = torch.where(ended & ~ended_before, step + 1, sampled.lengths[rows])
    sampled.stopped[rows] = ended | ended_before
    return ~(ended | ended_before)


def _uniforms(requests: Sequence[RolloutRequest], span: range, params: SamplingParams, device: torch.device) -> Tensor | None:
    """float64 [M, max_new_tokens], request-major; None for greedy decoding."""
    if params.temperature == 0:
        return None
    drawn = [take_uniforms(params.seed, params.step, request.key, take, params.max_new_tokens) for request in requests for take in span]
    return torch.from_numpy(np.stack(drawn)).to(device)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside, and afterwards each submodule's own flag again (a frozen tower may be in eval mode while the rest trains)."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


@contextmanager
def _attention(hf: Any, name: str) -> Iterator[None]:
    """The language model uses this attention function inside. transformers reads the name from the shared text config at each call."""
    config = hf.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
