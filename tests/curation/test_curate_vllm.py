"""Curation against a real `vllm serve`: the protocol, images, answers held to a schema by the server, and a kill in between.

The tiny model says nothing sensible, but in the form that was asked for: checks of content are off where rows are to come out. Its numbers
are often none that can be kept (9e745), so that bad answers are asked for again in earnest.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longtake.config.curate import CHECKS, CurateConfig
from longtake.config.stages import WorldConfig
from longtake.curation.outputs import read_stage
from longtake.data.rows import read_rows
from longtake.llm.counts import paid_in
from longtake.observe.keyed_lines import KeyedLines
from longtake.stages import curate
from longtake.testing.vllm_servers import served
from longtake.types import Row
from longtake.world.write import write_world

pytest.importorskip("vllm")
pytestmark = [pytest.mark.long]

VOTES = ("supported", "watched", "blind")
CONTENT = tuple(name for name in CHECKS if name not in (*VOTES, "quota"))


def _config(folder: Path, out: str, url: str, *off: str) -> dict:
    endpoint = {"url": f"{url}/v1", "concurrency": 8, "backoff_s": 0.05, "bad_answer_retries": 5}
    return {
        "videos": str(folder / "world" / "videos"),
        "out": str(folder / out),
        "vlm": endpoint,
        "reasoner": endpoint,
        "caption": {"frames_per_clip": 2, "max_pixels_per_frame": 784, "max_chars": 20, "temperature": 1.0},
        "ground": {"frames_per_clip": 1, "max_objects": 2},
        "question": {
            "per_video": {"spatial": 1},
            "open_per_video": {"plot": 1},
            "temperature": 0.5,
            "max_question_chars": 40,
            "max_option_chars": 12,
            "max_reasoning_chars": 40,
        },
        "check": {"off": list(off), "support_votes": 3, "watch_votes": 1, "watch_frames": 2, "blind_votes": 2, "blind_right": 1.0},
        "split": {"sft_share": 0.5},
    }


def _run(values: dict) -> Path:
    config = CurateConfig.model_validate(values)
    curate.run(config)
    return config.out


def test_the_whole_pipeline_with_a_real_server(tmp_path: Path):
    write_world(WorldConfig(out=tmp_path / "world", num_videos=1, seed=7, workers=1))
    with served("tiny", tmp_path / "server.txt", "--max-tokens", "4096") as (url, _):
        out = _run(_config(tmp_path, "content_off", url, *CONTENT, *VOTES))
        rows = _published(out)
        drafts = read_stage(out, "question")
        assert drafts is not None and rows
        refused = [drop for stage in ("question", "rewrite", "check") for drop in (read_stage(out, stage) or drafts).dropped]
        assert len(rows) == len(drafts.kept) - sum(drop.key is not None for drop in refused)
        paid = _paid(out)
        assert {"caption", "ground", "question_spatial", "open_plot", "rewrite"} <= paid.keys()

        before = sum(paid.values())
        assert _published(_run(_config(tmp_path, "content_off", url, *CONTENT, *VOTES))) == rows
        assert sum(_paid(out).values()) == before  # the second run asked nothing

        voted = _run(_config(tmp_path, "voted", url, *CONTENT) | {"until": "check"})
        made = {finding.check for row in (read_stage(voted, "check") or drafts).kept for finding in row.findings}
        made |= {drop.reason for drop in (read_stage(voted, "check") or drafts).dropped}
        assert made & {*VOTES, "votes_failed"}
        assert _paid(voted).get("support", 0) > 0

        killed = _config(tmp_path, "killed", url, *CONTENT, *VOTES)
        _kill_in_between(killed, tmp_path)
        answered = sum(_paid(Path(killed["out"])).values())
        assert answered > 0
        assert not (Path(killed["out"]) / "dataset").exists()
        again = _published(_run(killed))
        assert again == rows  # the same questions to the same model with the same seeds
        assert sum(_paid(Path(killed["out"])).values()) == before


def _kill_in_between(values: dict, folder: Path) -> None:
    """SIGKILL once some calls are paid."""
    path = folder / "killed.json"
    path.write_text(json.dumps(values))
    process = subprocess.Popen([sys.executable, "-m", "longtake", "curate", "run", str(path)])
    answers = Path(values["out"]) / "state" / "answers" / "0-of-1.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if answers.exists() and answers.read_bytes().count(b"\n") >= 5:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL, "it had ended before it could be killed"


def _published(out: Path) -> list[Row]:
    files = sorted((out / "dataset").glob("*.jsonl"))
    return [row for path in files if path.stem in ("sft", "rl", "eval") for row in read_rows(path) if isinstance(row, Row)]


def _paid(out: Path) -> dict[str, int]:
    """Answers by purpose."""
    with KeyedLines(out / "state" / "answers", "reader") as answers:
        return {paid.purpose: paid.answers for paid in paid_in(answers)}
