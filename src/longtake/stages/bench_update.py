"""`longtake bench update`: what computing a prompt once per group saves."""

from __future__ import annotations

import json
from dataclasses import asdict

from longtake.bench.update import measure_update
from longtake.config.benches import BenchUpdateConfig
from longtake.observe.progress import say


def run(config: BenchUpdateConfig) -> None:
    """Print the measurement: JSON on stdout with --json, else a few lines."""
    found = measure_update(config)
    if config.as_json:
        print(json.dumps(asdict(found)))
        return
    say(
        f"{found.prompt:,} prompt tokens, {found.group} takes of {found.response:,}: {found.naive_s:.2f} s one row per take "
        f"({found.micro_batch} at a time), {found.shared_s:.2f} s with the prompt once: {found.speedup:.2f} times faster, "
        f"{found.fraction:.0%} of the {found.flop_ratio:.2f} that counting operations allows; "
        f"peak {found.naive_bytes / 1e6:,.0f} MB for one row, {found.shared_bytes / 1e6:,.0f} MB for the group "
        f"(limit {found.bytes_limit / 1e6:,.0f})"
    )
