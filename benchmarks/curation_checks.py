"""How well the checks of `longtake curate` do: a world's event log as captioner and reasoner that lies at known rates, and plants faults.

    python benchmarks/curation_checks.py runs/curation_checks [--num-videos 60] [--json benchmarks/results/curation_checks.json]

Captions and answers lie in 10 %, and 40 % of the drafted questions get one of 16 faults (world.oracle_faults). The ledger of the oracle
tells what is wrong with each draft; from it come the labels, and from the labels the card's audit: precision and recall of each check, the
share of wrong rows before and after, the share of right rows lost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from longtake.config.curate import CurateConfig
from longtake.config.stages import WorldConfig
from longtake.config.world_serve import LieRates
from longtake.stages import curate
from longtake.testing.oracle_labels import write_labels
from longtake.world.server import OracleServer
from longtake.world.write import write_world

LIES = LieRates(captions=0.1, answers=0.1, planted=0.4)
PER_VIDEO = {"temporal": 3, "goal": 1, "plot": 1, "spatial": 3}
OPEN_PER_VIDEO = {"temporal": 1, "plot": 1, "spatial": 1}
"""As many as the oracle can ask different ones."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-videos", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    audit = measure(args.out, args.num_videos, args.seed)
    if args.json:
        args.json.write_text(
            json.dumps({"num_videos": args.num_videos, "seed": args.seed, "lies": LIES.model_dump(), "audit": audit}, indent=1) + "\n"
        )
    print(json.dumps(audit, indent=1))


def measure(out: Path, num_videos: int, seed: int) -> dict[str, Any]:
    """The audit of the card (curation.audit.Audit, as plain values); everything is written below `out`."""
    write_world(WorldConfig(out=out / "world", num_videos=num_videos, seed=100 + seed))
    ledger = out / "ledger.jsonl"
    with OracleServer([out / "world"], LIES, seed, ledger) as server:
        endpoint = {"url": server.url, "concurrency": 32}
        values: dict[str, Any] = {
            "videos": out / "world" / "videos",
            "out": out / "run",
            "seed": seed,
            "vlm": endpoint,
            "reasoner": endpoint,
            "question": {"per_video": PER_VIDEO, "open_per_video": OPEN_PER_VIDEO},
        }
        curate.run(CurateConfig.model_validate(values | {"until": "check"}))
        labels = out / "labels.jsonl"
        write_labels(labels, out / "run", ledger, [out / "world"])
        curate.run(CurateConfig.model_validate(values | {"publish": {"labels": labels}}))
    figures: dict[str, Any] = json.loads((out / "run" / "dataset" / "card.json").read_text())
    return dict(figures["audit"])


if __name__ == "__main__":
    main()
