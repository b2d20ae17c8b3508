"""Open-ended rows, a small model that answers them in the asked form, and stand-ins for a judge whose verdicts can be worked out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longtake.config.stages import ExportConfig, WorldConfig
from longtake.models.family import Model
from longtake.observe.digest import digest_of
from longtake.rollout.judges import text_prompt
from longtake.stages import export, sft
from longtake.testing import training
from longtake.testing.llm_server import Reply, refused, said
from longtake.testing.rows import sft_batch, take_logprobs
from longtake.world.write import write_world

BLOCKS = re.compile(r"^<(question|reference|response)>\n(.*?)\n</\1>$", re.DOTALL | re.MULTILINE)
FAILURES = (refused(500), refused(429, retry_after="0"), Reply(body=b"\x00 no JSON"), said("yes, I think"), Reply(closes=True))
KINDS = ("http_500", "http_429", "garbled", "not_json", "connection")
"""What a client makes of them."""


def blocks_of(text: str) -> dict[str, str]:
    """What a judge is asked: tag -> text."""
    return dict(BLOCKS.findall(text))


def asked_of(body: Mapping[str, Any]) -> dict[str, str]:
    """The same of a request's JSON."""
    return blocks_of(str(body["messages"][-1]["content"]))


def means_the_same(reference: str, response: str) -> bool:
    """For the stand-in: milder than the rules, so that both can differ."""
    return response[:1] == reference[:1]


def failure_of(question: str, response: str, share: float) -> int | None:
    """Index into FAILURES of a call that fails, None for one that does not: decided by what is asked, whoever asks it and when."""
    draw = int(digest_of("failure", question, response)[:8], 16)
    return draw % len(FAILURES) if draw / 16**8 < share else None


def stand_in(body: Mapping[str, Any], failing: float = 0.0) -> Reply:
    """The answering function of an LlmServer; the probe with which a judge begins always succeeds."""
    asked = asked_of(body)
    failure = failure_of(asked["question"], asked["response"], failing) if asked["reference"] != "red" else None
    if failure is not None:
        return FAILURES[failure]
    return said({"verdict": "yes" if means_the_same(asked["reference"], asked["response"]) else "no"})


def open_rows(folder: Path) -> Path:
    """Rows file: six short videos of ten to twelve seconds, twelve open-ended questions, reasoning of one word."""
    write_world(
        WorldConfig(
            out=folder, num_videos=6, seconds=(10, 12), size=56, num_scenes=(5, 5), questions_per_video=2, open_ended=1.0, workers=1
        )
    )
    rows = [json.loads(line) | {"reasoning": "see"} for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    path = folder / "short.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answering_model(folder: Path, rows: Path, steps: int = 35) -> Path:
    """A checkpoint directory: a small model after so many SFT steps on `open_rows`. Its takes have the form as a rule, and differ."""
    base = training.small_model(folder / "base")
    changes = {"max_steps": steps, "batch_size": 12, "micro_batch_size": 12, "optimizer": {"lr": 3e-3}}
    sft.run(training.sft_config(rows, base, folder / "sft", **changes))
    export.run(ExportConfig(run=folder / "sft", out=folder / "model"))
    return folder / "model"


def teach(model: Model, replies: Mapping[str, str], steps: int = 60, lr: float = 3e-3) -> None:
    """Make a model give these replies to these messages."""
    prompts = [text_prompt(model, text) for text in replies]
    targets = [torch.tensor([*model.text_ids(reply), model.end_id]) for reply in replies.values()]
    batch = sft_batch(prompts, targets, model.device)
    model.hf.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.hf.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        logprobs, _ = take_logprobs(model, batch, 1.0)
        (-logprobs[batch.response_mask].mean()).backward()
        optimizer.step()
    model.hf.requires_grad_(False)
