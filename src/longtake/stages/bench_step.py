"""`longtake bench step`: a whole RL step five ways."""

from __future__ import annotations

import json
from dataclasses import asdict

from longtake.bench.machine import hardware
from longtake.bench.step import CPU, StepBench, measure_step
from longtake.config.benches import BenchStepConfig
from longtake.observe.progress import say


def run(config: BenchStepConfig) -> None:
    """Print the measurement: JSON on stdout with --json, else the table."""
    found = measure_step(config)
    if config.as_json:
        print(json.dumps(asdict(found) | {"hardware": hardware(CPU)}))
        return
    for line in table(found):
        say(line)


def table(found: StepBench) -> list[str]:
    """One line per number of frames, for each clock, then the regrets."""
    lines = []
    for clock, meaning in (("wall", "seconds on the wall"), ("busy", "seconds on a core, busiest rank")):
        lines.append(
            f"{meaning}: frames (prompt tokens) published | modern | stage 1 | stages 1 and 2 | planned; faster than the baselines"
        )
        for line in found.lines:
            one = line[clock]
            columns = " | ".join(f"{seconds:.2f}" for seconds in one["seconds"].values())
            gains = ", ".join(
                f"{one['speedups'][name]:.2f} ({one['fractions'][name]:.0%} of {one['bounds'][name]:.2f})" for name in one["bounds"]
            )
            lines.append(f"  {line['frames']} ({line['prompt']}) {columns}; {gains}")
        lines.append(f"  regret of the planner: {found.regret_mean[clock]:.3f} (geometric mean), {found.regret_max[clock]:.3f} at most")
    return [*lines, f"{found.seconds:.0f} s in all"]
