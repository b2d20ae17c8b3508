"""`longtake world make`: write procedural videos with ground truth."""

from __future__ import annotations

import time

from longtake.config.stages import WorldConfig
from longtake.observe.progress import say
from longtake.world.write import write_world


def run(config: WorldConfig) -> None:
    """Write the world into config.out, or say that it is already there."""
    started = time.perf_counter()
    summary = write_world(config)
    if summary.reused:
        say(f"world: {config.out} already holds this world ({summary.num_videos} videos, {summary.num_rows} rows)")
        return
    say(
        f"world: {summary.num_videos} videos ({summary.seconds_of_video / 60:.1f} minutes), {summary.num_rows} rows in {config.out}, "
        f"{time.perf_counter() - started:.1f} s"
    )
