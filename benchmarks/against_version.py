"""Seconds per RL step of today's code against an earlier version of it, on the rows and the SFT model of one quickstart.

    longtake quickstart --out runs/quickstart
    python benchmarks/against_version.py runs/quickstart b1fad26 runs/against      # the last version before MR-SP

The earlier version's sources are taken from git and run in the same environment, in one process as it knows no other; today's code runs in
one process and, through torchrun, in two. All of one thread a process, interleaved, each from its own recipe with the same rows, model,
seed, learning rate, temperature and lengths. The first steps of each run are not counted. Prints medians over all rounds and steps, and
each side's seconds as a share of the earlier version's; the same goes to OUT/against_version.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import torch

from longtake.bench.machine import hardware
from longtake.observe.lines import read_lines

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2
"""Steps at the start of a run that are not counted."""
PHASES = ("seconds/decode", "seconds/encode", "seconds/rollout", "seconds/reward", "seconds/update")
RECIPE = """
import sys
from pathlib import Path
from longtake.config.load import dump_config
from longtake.recipes.quickstart import quickstart
print(dump_config(quickstart(Path(sys.argv[1]), 0).rl))
"""


def main() -> None:
    arguments = read_arguments()
    run, out = arguments.run.resolve(), arguments.out.resolve()
    earlier = unpack(arguments.revision, out / "earlier")
    sides = {"earlier": (earlier, 1), "today, 1 process": (ROOT / "src", 1), "today, 2 processes": (ROOT / "src", 2)}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(arguments.rounds):
        for name, (sources, processes) in sides.items():
            folder = out / f"round{round_number}" / name.replace(", ", "_").replace(" ", "_")
            steps[name] += step_seconds(run, folder, sources, processes, arguments.steps)
    medians = {name: statistics.median(values) for name, values in steps.items()}
    result: dict[str, Any] = {
        "revision": arguments.revision,
        "machine": hardware(torch.device("cpu")),
        "rounds": arguments.rounds,
        "steps_counted": {name: len(values) for name, values in steps.items()},
        "seconds_per_step": medians,
        "share_of_earlier": {name: value / medians["earlier"] for name, value in medians.items()},
    }
    text = json.dumps(result, indent=2)
    (out / "against_version.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a quickstart: its rows, videos and models/sft are used")
    parser.add_argument("revision", help="git revision of the earlier version")
    parser.add_argument("out", type=Path, help="folder to write; must not hold runs yet")
    parser.add_argument("--steps", type=int, default=10, help="RL steps of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, interleaved")
    return parser.parse_args()


def unpack(revision: str, target: Path) -> Path:
    """The sources of a revision under `target`; returns the folder to import them from."""
    archive = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(target, filter="data")
    return target / "src"


def step_seconds(run: Path, folder: Path, sources: Path, processes: int, steps: int) -> list[float]:
    """Run RL with the code in `sources`; the seconds of decode, encode, rollout, reward and update of each step that counts."""
    environment = os.environ | {"PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    recipe = subprocess.run([sys.executable, "-c", RECIPE, str(run)], env=environment, check=True, capture_output=True, text=True).stdout
    config = json.loads(recipe) | {"out": str(folder), "steps": steps, "validation": None}
    config["rollout"] |= {"max_new_tokens": 112, "temperature": 1.0}
    config["optimizer"] |= {"lr": 4e-5, "warmup_steps": 5}
    folder.mkdir(parents=True)
    path = folder / "rl.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    subprocess.run([sys.executable, *launcher, "-m", "longtake", "rl", str(path)], env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["step"] > WARM_UP]
    return [sum(line.get(phase, 0.0) for phase in PHASES) for line in lines]


if __name__ == "__main__":
    main()
