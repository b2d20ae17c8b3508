"""A reward of one's own. Name it in the configuration as `docs/examples/rewards.py:brevity`; see the README."""

from __future__ import annotations

from longtake.types import Example


def brevity(example: Example, response_text: str) -> float:
    """1 for an empty response, falling to 0 at 1,000 characters."""
    return max(0.0, 1.0 - len(response_text) / 1000)
