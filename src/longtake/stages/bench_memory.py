"""`longtake bench memory`: activation bytes of a rank against the number of processes that share a sequence."""

from __future__ import annotations

import json
from dataclasses import asdict

from longtake.bench.activations import CPU, measure_memory
from longtake.bench.machine import hardware
from longtake.config.benches import BenchMemoryConfig
from longtake.observe.progress import say


def run(config: BenchMemoryConfig) -> None:
    """Print the measurement: JSON on stdout with --json, else a few lines."""
    found = measure_memory(config)
    if config.as_json:
        print(json.dumps(asdict(found) | {"hardware": hardware(CPU)}))
        return
    for one in found.layouts:
        say(
            f"SP {one.degree} (Ulysses {one.ulysses} x ring {one.ring}): {one.bytes / 1e6:,.1f} MB on the fullest rank, "
            f"{one.share:.3f} of one process ({one.deviation:+.1%} of 1/SP)"
        )
