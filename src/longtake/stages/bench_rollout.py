"""`longtake bench rollout`: the same takes by each engine."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

from longtake.bench.machine import hardware
from longtake.bench.rollout import measure_rollout
from longtake.config.benches import BenchRolloutConfig
from longtake.observe.progress import say


def run(config: BenchRolloutConfig) -> None:
    """Print the measurement: JSON on stdout with --json, else a line for each engine and G."""
    found = measure_rollout(config)
    if config.as_json:
        device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
        print(json.dumps(asdict(found) | {"hardware": hardware(device), "settings": config.model_dump(mode="json")}))
        return
    say(f"{found.prompts} prompts of {found.prompt_tokens} tokens, {found.response_tokens} each; our tower {found.encode_s:.2f} s for all")
    for line in found.lines:
        say(
            f"G = {line.group:2d} {line.engine:14s} {line.seconds:7.2f} s, {line.tokens_per_s:8.0f} tokens/s, "
            f"{line.prefills_per_group:.2f} prefills per group"
        )
