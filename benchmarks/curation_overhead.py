"""What `longtake curate` adds to the time of the model calls, and how long 10,000 rows take through the stages that ask no model.

    python benchmarks/curation_overhead.py runs/curation_overhead [--num-videos 100] [--latency-s 1.0] [--json FILE]

The answers of a world's oracle are recorded in a first run. Then a server gives the same answers, each `latency_s` after its request, to
`longtake curate run` in a process of its own. The bound is what its calls take at the given concurrency when the busier of the two
endpoints is never idle: `added` is what the time from the first request to the last answer is above it, `added_by_run` what the whole
process is, with its start and its end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longtake.bench.machine import hardware
from longtake.config.curate import CurateConfig
from longtake.config.stages import WorldConfig
from longtake.curation.card import CardFacts
from longtake.curation.check import finish, structure, wording
from longtake.curation.publish import publish
from longtake.curation.readable import unrated
from longtake.curation.records import CheckedRow, Draft, Outcome, SourceVideo, TimeRange, named
from longtake.curation.split import split_rows
from longtake.observe.digest import digest_of
from longtake.stages import curate
from longtake.testing.curations import MODEL, checked, curate_values
from longtake.testing.llm_server import LlmServer, Reply, said
from longtake.world.oracle import Oracle
from longtake.world.questions import QUESTIONS, Question
from longtake.world.server import read_request
from longtake.world.story import make_story
from longtake.world.write import write_world

CONCURRENCY = 16
SEEING = ("caption", "ground", "watch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-videos", type=int, default=100)
    parser.add_argument("--latency-s", type=float, default=1.0)
    parser.add_argument("--num-rows", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = {
        "hardware": hardware(torch.device("cpu")),
        "calls": time_of_calls(args.out, args.num_videos, args.latency_s),
        "rows": time_of_rows(args.out / "rows", args.num_rows),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def time_of_calls(out: Path, num_videos: int, latency_s: float) -> dict[str, float]:
    """Seconds of a run, and those of its calls alone."""
    write_world(WorldConfig(out=out / "world", num_videos=num_videos, seed=300))
    oracle, replies = Oracle([out / "world"]), dict[str, Reply]()

    def answer(body: dict[str, Any]) -> Reply:
        name = digest_of(json.dumps(body, sort_keys=True))
        if name not in replies:
            replies[name] = said(oracle.answer(read_request(body, MODEL)))
        return replies[name]

    with LlmServer(answer, models=(MODEL,)) as server:
        curate.run(checked(curate_values(out / "world", out / "recorded", server.url, **fields(server.url))))
    known = len(replies)
    with LlmServer(answer, models=(MODEL,), latency_s=latency_s) as server:
        config = out / "config.json"
        config.write_text(json.dumps(curate_values(out / "world", out / f"timed_{time.time():.0f}", server.url, **fields(server.url))))
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "longtake", "curate", "run", str(config)], check=True)
        ended = time.monotonic()
        assert len(replies) == known, "the second run asked something new"
        seeing = sum(request.purpose in SEEING for request in server.requests)
        first, last = server.requests[0].at_s, server.requests[-1].at_s + latency_s
        bound = max(seeing, len(server.requests) - seeing) * latency_s / CONCURRENCY
    return {
        "num_videos": num_videos,
        "latency_s": latency_s,
        "concurrency": CONCURRENCY,
        "calls": len(server.requests),
        "calls_of_frames": seeing,
        "bound_s": bound,
        "calls_s": last - first,
        "run_s": ended - started,
        "before_s": first - started,
        "after_s": ended - last,
        "added": (last - first) / bound - 1,
        "added_by_run": (ended - started) / bound - 1,
    }


def fields(url: str) -> dict[str, Any]:
    endpoint = {"url": url, "concurrency": CONCURRENCY}
    counts = {"temporal": 3, "goal": 3, "plot": 2, "spatial": 3}
    return {"vlm": endpoint, "reasoner": endpoint, "question": {"per_video": counts}}


def time_of_rows(out: Path, num_rows: int) -> dict[str, float]:
    """Seconds of rules, quotas, letters, split, data set and card for so many drafts, four a video."""
    drafts, videos = made_drafts(num_rows)
    for video in videos:
        (out / "videos" / video.video).parent.mkdir(parents=True, exist_ok=True)
        (out / "videos" / video.video).touch()
    config = CurateConfig.model_validate({"videos": out / "videos", "out": out / "run", "check": {"per_video": 4}})
    started = time.monotonic()
    outcomes = []
    for video in videos:
        passed = structure(drafts[video.digest], video, config)
        worded = wording(passed.kept, video, config)
        rows = Outcome(tuple(CheckedRow(draft, ()) for draft in worded.kept), (*passed.dropped, *worded.dropped))
        outcomes.append(finish(rows, config))
    rules_s = time.monotonic() - started
    every = Outcome.joined(outcomes)
    placed = split_rows(unrated([row.draft for row in every.kept]).kept, config.split, 0)
    (out / "run").mkdir(exist_ok=True)
    publish(placed.kept, videos, config.videos, config.out, CardFacts(config, drops=every.dropped, checked=every.kept))
    return {"rows": num_rows, "kept": len(placed.kept), "rules_s": rules_s, "all_s": time.monotonic() - started}


def made_drafts(num_rows: int) -> tuple[dict[str, list[Draft]], list[SourceVideo]]:
    """By digest of the video."""
    drafts: dict[str, list[Draft]] = {}
    videos = []
    for number in range(num_rows // 4):
        story = make_story(number, seconds=(48.0, 80.0), num_scenes=(5, 6))
        rng = np.random.default_rng(number)
        name, digest = f"{number:06d}.mp4", digest_of("made", number)
        asked: list[Question] = [QUESTIONS[category](story, rng) for category in ("temporal", "goal", "plot", "spatial")]
        drafts[digest] = [
            named(
                Draft(
                    name,
                    digest,
                    one.category,
                    one.text,
                    (one.answer, *one.distractors),
                    one.answer,
                    f"Between 3 s and 12 s one sees what decides it: {one.fact}, and nothing later in the video speaks against it.",
                    (TimeRange(3.0, 12.0),),
                )
            )
            for one in asked
        ]
        videos.append(SourceVideo(name, digest, story.duration_s, 112, 112, 100, (), "unknown", "world"))
    return drafts, videos


if __name__ == "__main__":
    main()
