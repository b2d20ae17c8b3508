"""Drawing tokens: one uniform per token from a counter-based generator, turned into a token by the inverse of the distribution.

A take's numbers depend on (seed, step, key, take index) alone: not on the batch it is in, on the order or on the rank. Legend: types.py.
"""

from __future__ import annotations

import numpy as np
import torch

_WORD = 0xFFFF_FFFF_FFFF_FFFF


def take_uniforms(seed: int, step: int, key: int, take: int, count: int) -> np.ndarray:
    """The first `count` uniforms of one take, float64 [count] in [0, 1).

    Philox4x64 (Salmon et al. 2011) is a function of a 128-bit key and a 256-bit counter. The key is (seed, problem id), the two high
    words of the counter are (step, take), and the low words count the draws: different takes can never share a number.
    """
    counter = np.array([0, 0, step & _WORD, take & _WORD], dtype=np.uint64)
    philox = np.random.Philox(counter=counter, key=np.array([seed & _WORD, key & _WORD], dtype=np.uint64))
    return np.random.Generator(philox).random(count)


def sample_tokens(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF sampling in float64.

    Args:
        logits: [M, W] float32, ALREADY processed (temperature and bans in; banned entries -inf).
        uniforms: [M] float64 in [0, 1).

    Returns:
        token ids int64 [M], and their log-probs float32 [M] under softmax(logits). A token of probability 0 is never returned.
    """
    scaled = logits.double() - logits.amax(-1, keepdim=True)
    # In float64 the sum of 150,000 terms is exact to ~1e-13, so the draw follows the fp32 distribution to far below its own rounding.
    cdf = scaled.exp().cumsum(-1)
    total = cdf[:, -1:]
    # u * total can round up to total; below it there is always a first entry whose cdf passes the target, and its step is > 0.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, target, right=True)
    logprobs = scaled.gather(-1, tokens) - total.log()
    return tokens[:, 0], logprobs[:, 0].float()


def greedy_tokens(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable tokens int64 [M] of processed logits [M, W], and their log-probs float32 [M] at the logits' own temperature."""
    tokens = logits.argmax(-1)
    return tokens, logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
