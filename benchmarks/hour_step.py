"""One RL step on a one-hour video: 3,600 frames, a prompt of 100,000 tokens and more, 8 takes of 64, two processes (Ulysses 2), tiny model.

    python benchmarks/hour_step.py runs/hour_step
    python benchmarks/hour_step.py runs/six_minutes --seconds 360      # a tenth, to try it out

Writes OUT/world (196 x 224 px, 2 frames a second: 56 tokens per two frames of the prompt), OUT/rl.json and OUT/rl, runs
`torchrun --nproc-per-node 2 -m longtake rl OUT/rl.json` with one thread each, and prints what metrics.jsonl says: tokens, the seconds of
each phase on the slower rank, peak memory of each rank and of both at once. The same goes to OUT/hour_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from longtake.config.load import dump_config
from longtake.config.stages import RlConfig, WorldConfig
from longtake.observe.lines import read_lines
from longtake.world.write import write_world

HEIGHT, WIDTH = 196, 224
PROCESSES = 2


def parity(example: object, text: str) -> float:
    """A reward that differs inside a group, whatever the model says: the gradient is not zero."""
    return float(len(text) % 2)


def main() -> None:
    arguments = read_arguments()
    out, seconds = arguments.out.resolve(), arguments.seconds
    started = time.perf_counter()
    write_world(world_config(out / "world", seconds))
    world_s = time.perf_counter() - started
    config = rl_config(out, num_frames=int(seconds))
    (out / "rl.json").write_text(dump_config(config), encoding="utf-8")
    started = time.perf_counter()
    memory = run_watched(command(out / "rl.json"))
    result = summary(read_lines(config.out / "metrics.jsonl")[-1], config, world_s, time.perf_counter() - started) | memory
    text = json.dumps(result, indent=2)
    (out / "hour_step.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the run; must not hold one yet")
    parser.add_argument("--seconds", type=float, default=3600.0, help="length of the video; one frame a second goes into the prompt")
    return parser.parse_args()


def world_config(out: Path, seconds: float) -> WorldConfig:
    return WorldConfig(
        out=out, num_videos=1, seconds=(seconds, seconds), size=HEIGHT, aspect=WIDTH / HEIGHT, questions_per_video=1, workers=1
    )


def rl_config(out: Path, num_frames: int) -> RlConfig:
    """One step on one prompt."""
    return RlConfig.model_validate(
        {
            "out": out / "rl",
            "resume": False,
            "data": {"rows": out / "world" / "rows.jsonl"},
            "video": {"max_frames": num_frames, "max_pixels_per_frame": HEIGHT * WIDTH},
            "prompt": {"instruction": ""},
            "steps": 1,
            "prompts_per_step": 1,
            "micro_batch_tokens": 65_536,
            "rollout": {"num_takes": 8, "max_new_tokens": 64},
            "rewards": {"weights": {"parity": 1.0}, "functions": {"parity": f"{Path(__file__).resolve()}:parity"}},
            "parallel": {"ulysses": PROCESSES},
            "num_threads": 1,
        }
    )


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "-m", "longtake", "rl", str(config)]


def run_watched(launch: list[str]) -> dict[str, Any]:
    """Run it; peak resident bytes of each rank, and the most that both and their launcher had at once (shared pages counted in each)."""
    peaks: dict[int, int] = {}
    peak_sum = 0
    with subprocess.Popen(launch, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            now = {pid: resident_bytes(pid) for pid in (process.pid, *children(process.pid))}
            peaks = {pid: max(now.get(pid, 0), peaks.get(pid, 0)) for pid in now | peaks}
            peak_sum = max(peak_sum, sum(now.values()))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    ranks = [peak for pid, peak in sorted(peaks.items()) if pid != process.pid]
    return {"memory/peak_host_bytes_of_ranks": ranks, "memory/peak_host_bytes_of_all": peak_sum}


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def resident_bytes(pid: int) -> int:
    """0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def summary(line: dict[str, Any], config: RlConfig, world_s: float, launch_s: float) -> dict[str, Any]:
    wanted = ("tokens/", "seconds/", "memory/", "encode/groups", "video/", "optimizer/grad_norm", "mismatch/", "group/uniform")
    return {
        "cpu": cpu_name(),
        "processes": PROCESSES,
        "ulysses": config.parallel.ulysses,
        "frames": config.video.max_frames,
        "takes": config.rollout.num_takes,
        "world_make_s": round(world_s, 1),
        "launch_s": round(launch_s, 1),
        **{name: value for name, value in line.items() if name.startswith(wanted)},
    }


def cpu_name() -> str:
    """As /proc/cpuinfo has it, and the number of cores."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
