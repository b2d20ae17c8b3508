"""What the counts of forwards allow at most: how much faster a step can get by leaving out what a baseline does more than once. Pure.

The seconds of each phase of the baseline, as measured, are divided by how often it does there what once would do:

    encode              encodings per video (published 3G with a KL term: rollout, reference, policy; modern 1 + 2G) over one
    prefill             prefills per prompt (published G, modern 1) over one
    reference, update   operations of one row per take over those with the prompt once (parallel.costs.flop_ratio)
    decode, optimizer   nothing is left out

The bound is the baseline's seconds over what is left. It leaves out how well a baseline uses the machine; a column that does the same work
in larger pieces may pass it.
"""

from __future__ import annotations

from collections.abc import Mapping


def encodings(baseline: str, num_takes: int, *, reference: bool) -> int:
    """Of one video in a step.

    >>> encodings("published", 8, reference=True), encodings("modern", 8, reference=True)
    (24, 17)
    """
    training = num_takes * (1 + int(reference))
    return training + (num_takes if baseline == "published" else 1)


def left_over(baseline: str, seconds: Mapping[str, float], num_takes: int, flop_ratio: float, *, reference: bool) -> float:
    """Seconds of a baseline's phases without what it does more than once."""
    times = {
        "encode": float(encodings(baseline, num_takes, reference=reference)),
        "prefill": float(num_takes if baseline == "published" else 1),
        "reference": flop_ratio,
        "update": flop_ratio,
    }
    return sum(value / times.get(name, 1.0) for name, value in seconds.items())


def bound(baseline: str, seconds: Mapping[str, float], num_takes: int, flop_ratio: float, *, reference: bool) -> float:
    """Seconds of the baseline over `left_over`.

    >>> bound("modern", {"encode": 17.0, "update": 8.0, "decode": 1.0}, 8, 4.0, reference=True)
    6.5
    """
    return sum(seconds.values()) / left_over(baseline, seconds, num_takes, flop_ratio, reference=reference)
