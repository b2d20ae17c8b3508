"""benchmarks/gpu.sh at toy size: it runs to its end on a CPU, without what only longtake itself needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_to_its_end(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--toy", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_cpu_toy.json").read_text())
    assert found["hardware"] == "cpu" and found["attention"][0]["flops_per_s"] > 0 and found["kernels"]
    for name, whole in (("3b_step", True), ("7b_forward_backward", False)):
        lines = found[name]["lines"]
        assert [one["frames"] for one in lines] == [4, 8] and found[name]["largest_frames"] == 8
        assert [one["prompt"] for one in lines] == [2 * 120 + 64, 4 * 120 + 64]
        assert all(("step_s" in one) == whole and one["update_s"] > 0 for one in lines)
