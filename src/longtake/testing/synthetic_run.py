"""A run folder with INVENTED figures, laid out as the quickstart's, to test the report with. Nothing in it was measured."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtake.evaluation.records import AnswerRecord, write_records
from longtake.evaluation.summary import paired_test, summarise
from longtake.video.encode import VideoWriter

LETTERS = ("A", "B", "C", "D")
CATEGORIES = ("temporal", "goal", "plot", "spatial")
SKILL = {"base": 0.0, "sft": 0.35, "sft_control": 0.38, "rl": 0.78, "blind": 0.01}
MARK = "SYNTHETIC"
NUM_VIDEOS = 3


def write_synthetic_run(folder: Path, *, num_rows: int = 500, num_steps: int = 120, seed: int = 0) -> Path:
    """Write all of it; returns the folder. Every question says that it is synthetic."""
    draw = random.Random(seed)
    for part in ("eval", "train"):
        write_data(folder / "data" / part, num_rows, f"{MARK} {part}")
    records = {name: answers(name, num_rows, draw) for name in SKILL}
    for name, own in records.items():
        (folder / "eval" / name).mkdir(parents=True)
        write_records(folder / "eval" / name / "answers.jsonl", own)
    for name in ("sft", "sft_control", "rl", "sft_blind"):
        write_training(folder / name, name, num_steps, draw)
    write_takes(folder / "rl" / "takes.jsonl", draw)
    summary = {
        "about": f"{MARK}: invented figures for testing the report",
        "stages": {name: summarise(own) for name, own in records.items() if name != "blind"},
        "blind": summarise(records["blind"]),
        "seconds": {"world": 21.0, "sft": 150.2, "sft_control": 160.0, "rl": 158.9, "sft_blind": 90.0, "evaluate": 64.3, "report": 4.0},
        "paired": {f"rl_vs_{other}": paired_test(records["rl"], records[other]) for other in ("sft", "sft_control")},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_data(folder: Path, num_rows: int, mark: str) -> None:
    """rows.jsonl and three small videos of a disc that walks over a changing ground."""
    (folder / "videos").mkdir(parents=True)
    for video in range(NUM_VIDEOS):
        with VideoWriter(folder / "videos" / f"{video}.mp4", 112, 112, gop=12) as writer:
            for index in range(48):
                writer.write(picture(video, index), index / 2)
    rows = [
        {
            "problem_id": number,
            "problem": f"[{mark}] Where did the red square take the key in part {number}?\n" + "\n".join(options()),
            "data_type": "video",
            "problem_type": CATEGORIES[number % 4],
            "reasoning": "red square takes key in cave.",
            "videos": f"videos/{number % NUM_VIDEOS}.mp4",
            "answer": f"<answer>{key_of(number)}</answer>",
        }
        for number in range(num_rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def options() -> list[str]:
    return [f"{letter}. {place}" for letter, place in zip(LETTERS, ("cave", "beach", "forest", "snow"), strict=True)]


def picture(video: int, index: int) -> np.ndarray:
    """uint8 [112, 112, 3]."""
    grounds = ((120, 200, 250), (35, 32, 40), (20, 70, 35), (170, 225, 250))
    frame = np.full((112, 112, 3), grounds[(video + index // 12) % 4], np.uint8)
    rows, columns = np.mgrid[:112, :112]
    frame[(rows - 60) ** 2 + (columns - 12 - 2 * index) ** 2 < 200] = (220, 40, 40)
    return frame


def key_of(number: int) -> str:
    return LETTERS[(number * 7 + number // 4) % 4]


def answers(stage: str, num_rows: int, draw: random.Random) -> list[AnswerRecord]:
    """Invented answers at 8 and 32 frames (0 when blind); two rows fail."""
    counts = (0,) if stage == "blind" else (8, 32)
    return [answer(stage, number, frames, draw) for frames in counts for number in range(num_rows)]


def answer(stage: str, number: int, frames: int, draw: random.Random) -> AnswerRecord:
    knows = draw.random() < SKILL[stage] * (0.55 if frames == 8 else 1.0) * (0.8 + 0.1 * (number % 4))
    predicted = key_of(number) if knows else draw.choice(LETTERS)
    failed = number in (5, 11) and stage != "blind"
    thought = f"{MARK} reasoning: red square takes key in cave. blue circle meets red square in snow. A cave no B beach yes"
    return AnswerRecord(
        problem_id=number,
        category=CATEGORIES[number % 4],
        frames=frames,
        answer=key_of(number),
        letters=LETTERS,
        predicted=None if failed else predicted,
        correct=not failed and predicted == key_of(number),
        well_formed=None if stage == "base" and not failed else not failed,
        text="" if failed or stage == "base" else f"<think>{thought}</think><answer>{predicted}</answer>",
        response_tokens=0 if failed or stage == "base" else 40 + number % 7,
        finish_reason=None if failed or stage == "base" else "stop",
        failure="VideoDamagedError" if failed else None,
        failure_stage="video" if failed else None,
        failure_message=f"{MARK}: videos/{number}.mp4 is cut off. Rule: a whole file. Remedy: fetch it again." if failed else None,
        video=None if stage == "blind" else f"video{number // 4}",
    )


def write_training(folder: Path, name: str, num_steps: int, draw: random.Random) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"note": MARK, "out": str(folder), "model": {"path": "tiny"}, "optimizer": {"lr": 1e-4}})
    )
    lines = [(rl_step if name == "rl" else sft_step)(step, num_steps, draw) for step in range(1, num_steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sft_step(step: int, num_steps: int, draw: random.Random) -> dict[str, float]:
    line = {"step": step, "loss/sft": 0.15 + 2 * math.exp(-step / 25) + draw.gauss(0, 0.02), "optimizer/lr": 1e-3 * (1 - step / num_steps)}
    line |= {"optimizer/grad_norm": 0.8 + abs(draw.gauss(0, 0.2)), "seconds/decode": 0.05, "seconds/encode": 0.1, "seconds/update": 0.9}
    line["memory/peak_host_bytes"] = 1.1e9 + step
    return line | ({"validation/accuracy": 0.5 - 0.25 * math.exp(-step / 30), "seconds/validation": 2.0} if step % 10 == 0 else {})


def rl_step(step: int, num_steps: int, draw: random.Random) -> dict[str, float]:
    gained = 1 - math.exp(-2.5 * step / num_steps)
    accuracy = 0.5 + 0.35 * gained + draw.gauss(0, 0.03)
    line = {"step": step, "reward/accuracy": accuracy, "reward/format": 0.98, "reward/total": 0.9 * accuracy + 0.098}
    line |= {"loss/policy": draw.gauss(0, 0.004), "policy/entropy": 0.3 - 0.15 * gained, "rollout/response_tokens": 42 + 4 * gained}
    line |= {"mismatch/max": 2e-6 + abs(draw.gauss(0, 1e-6)), "group/uniform": 0.2 + 0.4 * gained, "optimizer/lr": 1e-4}
    line |= {"seconds/decode": 0.04, "seconds/encode": 0.08, "seconds/rollout": 0.7, "seconds/reward": 0.01, "seconds/update": 0.5}
    line |= {"optimizer/grad_norm": 0.4 + abs(draw.gauss(0, 0.1)), "memory/peak_host_bytes": 1.4e9}
    return line | ({"validation/accuracy": 0.5 + 0.33 * gained, "seconds/validation": 2.0} if step % 10 == 0 else {})


def write_takes(path: Path, draw: random.Random) -> None:
    path.write_text("".join(json.dumps(take) + "\n" for step in (1, 2, 3) for take in takes(step, draw)))


def takes(step: int, draw: random.Random) -> Sequence[dict[str, Any]]:
    """Eight takes of one prompt; in step 2 all are right, so the group teaches nothing."""
    rewards = [1.0 if step == 2 or index % (5 - step) else 0.1 for index in range(8)]
    mean = sum(rewards) / 8
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 7) + 1e-6
    return [
        {
            "step": step,
            "problem_id": 10 * step,
            "take": index,
            "text": f"<think>{MARK} take {index}: red square takes key in cave.</think><answer>{'A' if reward == 1.0 else 'C'}</answer>",
            "token_ids": list(range(30 + index)),
            "rewards": {"accuracy": float(reward == 1.0), "format": 1.0},
            "total_reward": reward,
            "advantage": (reward - mean) / spread,
            "sampler_logprobs": [-0.5] * (30 + index),
            "policy_logprobs": [-0.5 - 1e-6 * draw.random()] * (30 + index),
            "finish_reason": "stop",
        }
        for index, reward in enumerate(rewards)
    ]
