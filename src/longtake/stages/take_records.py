"""Takes and their rewards as JSON, for the other ranks. Numbers keep every bit."""

from __future__ import annotations

from typing import Any

import torch

from longtake.rewards import RewardScores
from longtake.types import Take

Scored = tuple[tuple[Take, ...], RewardScores]
"""The takes of one group and what they earned."""


def scored_to_json(scored: Scored) -> dict[str, Any]:
    takes, scores = scored
    return {
        "takes": [
            vars(take) | {"token_ids": take.token_ids.tolist(), "sampler_logprobs": take.sampler_logprobs.tolist()} for take in takes
        ],
        "named": {name: values.tolist() for name, values in scores.named.items()},
        "total": scores.total.tolist(),
        "valid": scores.valid.tolist(),
        "unjudged": list(scores.unjudged),
    }


def scored_from_json(record: dict[str, Any]) -> Scored:
    named = {name: torch.tensor(values, dtype=torch.float32) for name, values in record["named"].items()}
    total, valid = torch.tensor(record["total"], dtype=torch.float32), torch.tensor(record["valid"], dtype=torch.bool)
    return tuple(map(take_from_json, record["takes"])), RewardScores(named, total, valid, tuple(record["unjudged"]))


def take_to_json(take: Take) -> dict[str, Any]:
    return vars(take) | {"token_ids": take.token_ids.tolist(), "sampler_logprobs": take.sampler_logprobs.tolist()}


def take_from_json(record: dict[str, Any]) -> Take:
    ids = torch.tensor(record["token_ids"], dtype=torch.int64)
    return Take(**record | {"token_ids": ids, "sampler_logprobs": torch.tensor(record["sampler_logprobs"], dtype=torch.float32)})
