"""`longtake bench encode`: a video's frames encoded by one process and by several."""

from __future__ import annotations

import json
from dataclasses import asdict

from longtake.bench.encode import CPU, measure_encode
from longtake.bench.machine import hardware
from longtake.config.benches import BenchEncodeConfig
from longtake.observe.progress import say


def run(config: BenchEncodeConfig) -> None:
    """Print the measurement: JSON on stdout with --json, else a line."""
    found = measure_encode(config)
    if config.as_json:
        print(json.dumps(asdict(found) | {"hardware": hardware(CPU)}))
        return
    say(
        f"{found.frames} frames, {found.tokens:,} tokens: {found.one_s:.2f} s by one process, {found.several_s:.2f} s by "
        f"{found.processes}: {found.ratio:.2f} times faster, embeddings identical"
    )
