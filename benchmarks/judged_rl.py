"""RL on open-ended questions with a judged reward, while a share of the judge's calls fails. Held-out accuracy before and after, paired.

    python benchmarks/judged_rl.py runs/judged_rl
    python benchmarks/judged_rl.py runs/judged_small --videos 60 --held-out 20 --sft-steps 100 --rl-steps 10     # to try it out

The quickstart's worlds with every question open-ended, its SFT and its RL (recipes/quickstart.py). The judge is the world's oracle behind
an HTTP server: in RL it fails at a share of the requests (half with 500, a quarter with garbage, a quarter with 429) and no call is made
twice in a step, so that a failed call masks its takes. In the two evaluations nothing fails. An interrupted run goes on where it was.

`--reworded`: the keys of all rows but those of SFT say the same in other words (`in the hall`, `in order to keep it`), which the rules
take for something else: what is learned then is learned from the judge alone.

Writes OUT/judged_rl.json and prints it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longtake.bench.machine import hardware
from longtake.config.llm import EndpointConfig
from longtake.config.meta import run_meta
from longtake.config.sections import DataConfig, JudgeConfig, RewardConfig
from longtake.config.stages import EvaluateConfig, RlConfig
from longtake.config.world_serve import LieRates
from longtake.data.row_files import read_rows, write_rows
from longtake.evaluation.records import AnswerRecord, read_records
from longtake.evaluation.summary import paired_test
from longtake.observe.lines import read_lines
from longtake.recipes.quickstart import Quickstart, quickstart
from longtake.stages.quickstart import export_best, make_data, together, training_seconds
from longtake.types import Row
from longtake.world.server import OracleServer

EDGE = 10
"""Steps whose mean reward is told, at either end of RL."""


def main() -> None:
    arguments = read_arguments()
    out: Path = arguments.out.resolve()
    recipe = quickstart(
        out,
        arguments.seed,
        num_videos=arguments.videos,
        num_held_out=arguments.held_out,
        sft_steps=arguments.sft_steps,
        rl_steps=arguments.rl_steps,
    )
    recipe = open_ended(recipe)
    if not (out / "data" / "rl.jsonl").exists():
        make_data(out, recipe)
    if arguments.reworded:
        recipe = reworded(recipe)
    train(out, recipe, arguments.failures, arguments.processes)
    evaluate(out, recipe)
    result = summary(out, arguments)
    text = json.dumps(result, indent=2)
    (out / "judged_rl.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=450, help="to train on; four questions each")
    parser.add_argument("--held-out", type=int, default=130, help="videos of the evaluation")
    parser.add_argument("--sft-steps", type=int, default=500)
    parser.add_argument("--rl-steps", type=int, default=100)
    parser.add_argument("--failures", type=float, default=0.05, help="share of the judge's requests that fail in RL")
    parser.add_argument("--processes", type=int, default=1, help="of RL")
    parser.add_argument("--reworded", action="store_true", help="keys in other words than SFT's")
    return parser.parse_args()


def open_ended(recipe: Quickstart) -> Quickstart:
    """The same worlds with no options to choose from."""
    names = ("train_world", "validation_world", "held_out_world")
    return Quickstart(**vars(recipe) | {name: getattr(recipe, name).model_copy(update={"open_ended": 1.0}) for name in names})


def reworded(recipe: Quickstart) -> Quickstart:
    """RL, its validation and the evaluations on rows with keys in other words, written beside the others."""
    validation = recipe.rl.validation
    assert validation is not None
    validation = validation.model_copy(update={"data": in_other_words(validation.data)})
    changed = {"data": in_other_words(recipe.rl.data), "validation": validation}
    rl = recipe.rl.model_copy(update=changed)
    evaluations = {
        name: config.model_copy(update={"data": in_other_words(config.data)})
        for name, config in recipe.evaluations.items()
        if name in ("sft", "rl")
    }
    return replace(recipe, rl=rl, evaluations=evaluations)


def in_other_words(data: DataConfig) -> DataConfig:
    path = data.rows.with_name(f"{data.rows.stem}_reworded.jsonl")
    rows = [row for row in read_rows(data.rows) if isinstance(row, Row)]
    write_rows(path, [replace(row, answer=f"<answer>{reword(key_of(row))}</answer>") for row in rows])
    return data.model_copy(update={"rows": path, "root": data.root or data.rows.parent})


def key_of(row: Row) -> str:
    return row.answer.removeprefix("<answer>").removesuffix("</answer>")


def reword(key: str) -> str:
    """`hall`: `in the hall`; `to keep it`: `in order to keep it`."""
    return f"in order {key}" if key.startswith("to ") else f"in the {key}"


def train(out: Path, recipe: Quickstart, failures: float, processes: int) -> None:
    """SFT, then RL beside the failing judge; models/sft and models/rl are the best of each by validation."""
    if not (out / "models" / "sft").exists():
        together(out, {"sft": recipe.sft})
        export_best(out, "sft")
    if (out / "models" / "rl").exists():
        return
    worlds = [recipe.train_world.out, recipe.validation_world.out]
    with OracleServer(worlds, LieRates(), recipe.rl.seed, failures=failures) as server:
        together(out, {"rl": judged(recipe.rl, server.url)}, processes)
        (out / "injected.json").write_text(json.dumps(dict(server.counts)), encoding="utf-8")
    export_best(out, "rl")


def judged(config: RlConfig, url: str) -> RlConfig:
    """One try for each call, so that what fails reaches the mask."""
    endpoint = EndpointConfig(url=url, model="world", max_retries=0, bad_answer_retries=0)
    return config.model_copy(update={"rewards": RewardConfig(judge=JudgeConfig(endpoint=endpoint))})


def evaluate(out: Path, recipe: Quickstart) -> None:
    """Both models on the held-out world, at all frames, by a judge that does not fail."""
    with OracleServer([recipe.held_out_world.out], LieRates(), recipe.rl.seed) as server:
        judge = JudgeConfig(endpoint=EndpointConfig(url=server.url, model="world"))
        for name in ("sft", "rl"):
            if not (out / "eval" / name / "results.json").exists():
                config: EvaluateConfig = recipe.evaluations[name].model_copy(update={"judge": judge, "frames": ()})
                together(out, {f"evaluate {name}": config})


def summary(out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    records = {name: read_records(out / "eval" / name / "answers.jsonl") for name in ("sft", "rl")}
    told = {name: json.loads((out / "eval" / name / "results.json").read_text())["summary"] for name in ("sft", "rl")}
    names = ("accuracy", "n", "ci95", "ci95_by_video", "by_category", "format_rate", "num_failures", "judge")
    return {
        "what": "RL on open-ended world rows with a judged reward, judge failures injected"
        + (", keys in other words than SFT's" if arguments.reworded else ""),
        "hardware": hardware(torch.device("cpu")),
        "versions": {name: value for name, value in run_meta().items() if name != "argv"},
        "arguments": {name: value for name, value in vars(arguments).items() if name != "out"},
        "held_out": {name: {key: told[name][key] for key in names} for name in told},
        "rl_vs_sft": paired_test(records["rl"], records["sft"]),
        "rl_vs_sft_by_the_rules": paired_test(*(by_the_rules(records[name]) for name in ("rl", "sft"))),
        "rl": of_training(out),
        "seconds": {name: training_seconds(out, name) for name in ("sft", "rl")},
    }


def by_the_rules(records: list[AnswerRecord]) -> list[AnswerRecord]:
    """The records as they would be without a judge."""
    return [AnswerRecord(**vars(record) | {"correct": record.rule_correct is True}) for record in records]


def of_training(out: Path) -> dict[str, Any]:
    """Injected failures, what they masked, and how the judged reward went."""
    lines = read_lines(out / "rl" / "metrics.jsonl")
    steps = [line for line in lines if "count/takes" in line]
    takes = read_lines(out / "rl" / "takes.jsonl")
    asked, failed = (sum(line[f"count/judge_{name}"] for line in steps) for name in ("asked", "failed"))
    judged = [line for line in steps if "judge/agreement" in line]
    weights = [line["count/judge_asked"] - line["count/judge_failed"] for line in judged]
    agreed = sum(line["judge/agreement"] * weight for line, weight in zip(judged, weights, strict=True))
    injected: Mapping[str, int] = json.loads((out / "injected.json").read_text())
    return {
        "steps": len(steps),
        "takes": len(takes),
        "takes_asked_about": int(asked),
        "takes_masked": int(failed),
        "masked_and_scored": sum(not take["valid"] and take["total_reward"] is not None for take in takes),
        "masked_with_an_advantage": sum(not take["valid"] and take["advantage"] != 0 for take in takes),
        "server": dict(injected),
        "client": {name: value for name, value in steps[-1].items() if name.startswith("llm/")},
        "agreement_with_the_rules": agreed / max(1, sum(weights)),
        "reward_accuracy": {"first": mean_accuracy(steps[:EDGE]), "last": mean_accuracy(steps[-EDGE:])},
        "validation": {str(line["step"]): line["validation/accuracy"] for line in lines if "validation/accuracy" in line},
    }


def mean_accuracy(lines: list[dict[str, Any]]) -> float:
    known = [line["reward/accuracy"] for line in lines if "reward/accuracy" in line]
    return sum(known) / max(1, len(known))


if __name__ == "__main__":
    main()
