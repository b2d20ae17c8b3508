"""`longtake world serve`: models that know a world's truth, behind the protocol of OpenAI's chat completions."""

from __future__ import annotations

import time
from collections import Counter

from longtake.config.world_serve import WorldServeConfig
from longtake.observe.progress import say
from longtake.observe.signals import StopFlag
from longtake.world.server import OracleServer

LOOK_AGAIN_S = 0.1


def run(config: WorldServeConfig) -> None:
    """Its address on stdout, then answers until it is stopped. Raises StopRequested after Ctrl-C or SIGTERM, and as OracleServer does."""
    with StopFlag() as stop:
        worlds = (config.world, *config.more_worlds)
        with OracleServer(
            worlds,
            config.lies,
            config.seed,
            config.ledger,
            failures=config.failures,
            model=config.model,
            host=config.host,
            port=config.port,
        ) as server:
            print(server.url, flush=True)
            say(f"world: {len(server.oracle.frames.videos)} videos known as model {config.model}; Ctrl-C ends it")
            while not stop.requested:
                time.sleep(LOOK_AGAIN_S)
        stop.leave(f"the server has ended; {told_counts(server.counts, server.oracle.counts)}")


def told_counts(replies: Counter[str], asked: Counter[str]) -> str:
    """`200 120, 500 3; caption 80, lie/caption 7, ...`: replies by status, then what was asked and what was not the truth."""
    told = [", ".join(f"{name} {number}" for name, number in sorted(counts.items())) for counts in (replies, asked) if counts]
    return "; ".join(told) or "nothing was asked"
