"""Samplers that do not say what the policy says: for tests of the comparison and of importance correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from longtake.rollout.engine import RolloutRequest, SamplingParams
from longtake.rollout.transformers_engine import TransformersEngine
from longtake.types import Take

Bend = Callable[[int, int, Take], Take]
"""(step, key of the request, an honest take) -> the take as it is reported."""


@contextmanager
def bent_sampler(bend: Bend) -> Iterator[None]:
    """The transformers engine inside reports what `bend` makes of its takes."""
    honest = TransformersEngine.generate

    def generate(self: TransformersEngine, requests: Sequence[RolloutRequest], params: SamplingParams) -> list[tuple[Take, ...]]:
        groups = zip(requests, honest(self, requests, params), strict=True)
        return [tuple(bend(params.step, request.key, take) for take in takes) for request, takes in groups]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", generate)
        yield


def shifted(take: Take, shift: float) -> Take:
    """With the log-prob of its first token off."""
    logprobs = take.sampler_logprobs
    return replace(take, sampler_logprobs=torch.cat([logprobs[:1] + shift, logprobs[1:]]))


def uneven(take: Take) -> Take:
    """With log-probs that are off by -0.4 to 0.4, as the tokens decide: the same whoever samples it."""
    return replace(take, sampler_logprobs=take.sampler_logprobs + 0.4 * torch.sin(take.token_ids.float() + 1.0))
