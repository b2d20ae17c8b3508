"""Runs of `longtake curate` for tests: a small world, its oracle behind a server that counts and may misbehave, and what came out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.config.curate import CurateConfig
from longtake.config.world_serve import LieRates
from longtake.curation.outputs import KINDS, stage_files
from longtake.llm.counts import paid_in
from longtake.observe.keyed_lines import KeyedLines
from longtake.testing.llm_server import LlmServer, Reply, Request, refused, said
from longtake.world.oracle import Oracle
from longtake.world.server import read_request

MODEL = "world"
PER_VIDEO = {"temporal": 1, "goal": 1, "plot": 1, "spatial": 1}
Fault = Callable[[dict[str, Any]], Reply | None]
"""What comes in place of the answer; None: the answer."""


@contextmanager
def asked_oracle(
    world: Path, rates: LieRates | None = None, *, fault: Fault = lambda body: None, latency_s: float = 0.0
) -> Iterator[LlmServer]:
    """A server that knows the world, and remembers every request."""
    oracle = Oracle([world], rates)

    def answer(body: dict[str, Any]) -> Reply:
        return fault(body) or said(oracle.answer(read_request(body, MODEL)))

    with LlmServer(answer, models=(MODEL,), latency_s=latency_s) as server:
        yield server


def misbehaving(share: float, seed: int = 0) -> Fault:
    """A `share` of the requests is refused, answered with garbage, late, cut off or not at all; not drawn by what is asked, so the next
    try may pass."""
    chance = random.Random(seed)
    ways: Sequence[Callable[[], Reply]] = (
        lambda: refused(429, "slow down", retry_after="0.01"),
        lambda: refused(500, "oh no"),
        lambda: Reply(body=b"<html>bad gateway</html>"),
        lambda: Reply("this is no JSON"),
        lambda: Reply('{"caption": 3}'),
        lambda: Reply('{"capt', finish="length"),
        lambda: Reply(closes=True),
        lambda: Reply(cut_at=20),
        lambda: Reply(hangs=True),
    )
    return lambda body: chance.choice(ways)() if chance.random() < share else None


def curate_values(world: Path, out: Path, url: str, **fields: Any) -> dict[str, Any]:
    """A configuration as JSON, one row of each category and kind per video."""
    endpoint = {"url": url, "concurrency": 8, "backoff_s": 0.01, "timeout_s": 5.0}
    values: dict[str, Any] = {
        "videos": str(world / "videos"),
        "out": str(out),
        "vlm": endpoint,
        "reasoner": endpoint,
        "caption": {"frames_per_clip": 4, "max_pixels_per_frame": 12544},
        "question": {"per_video": PER_VIDEO, "open_per_video": {"plot": 1}},
        "check": {"support_votes": 3, "watch_votes": 3, "blind_votes": 3, "blind_right": 1.0},
        "split": {"eval_rows": {"plot": 1}},
    }
    return values | fields


def checked(values: dict[str, Any]) -> CurateConfig:
    """The same, as a stage takes it."""
    return CurateConfig.model_validate(values)


def outputs_of(out: Path) -> dict[str, bytes]:
    """Every output of every stage, and the rows of the data set, byte for byte."""
    files = [path for stage in KINDS for path in stage_files(out, stage)]
    files += sorted(path for path in (out / "dataset").glob("*.jsonl"))
    return {path.name: path.read_bytes() for path in files}


def answers_in(out: Path) -> dict[str, int]:
    """Paid answers by purpose."""
    with KeyedLines(out / "state" / "answers", "reader") as answers:
        return {paid.purpose: paid.answers for paid in paid_in(answers)}


def asked_again(requests: Sequence[Request]) -> list[Request]:
    """Requests that had been answered whole before, when they came once more: what was paid twice."""
    seen: Counter[str] = Counter()
    again = []
    for request in requests:
        name = hashlib.sha256(json.dumps(request.body, sort_keys=True).encode()).hexdigest()
        if seen[name]:
            again.append(request)
        seen[name] += request.answered
    return again
