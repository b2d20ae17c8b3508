"""`longtake plan`: what a run of `longtake rl` with this configuration will need, told before it is started."""

from __future__ import annotations

import json

from rich.console import Console

from longtake.config.env import launch
from longtake.config.plan import PlanConfig
from longtake.errors import MemoryLimitError
from longtake.models.costs import model_costs
from longtake.parallel.setting import DeviceRates
from longtake.stages.plan_assessment import Assessment, assess, shortfalls_of
from longtake.stages.plan_hardware import cluster_of, rates_of
from longtake.stages.plan_remedies import Remedy, remedies
from longtake.stages.plan_tables import as_record, print_plan
from longtake.stages.plan_workload import Workload, hypothetical, read_workload


def run(config: PlanConfig) -> None:
    """Print tokens, memory, layout and seconds on stdout; of several processes, which measure together, the first does.

    Raises MemoryLimitError, with the settings that would do, when it cannot fit."""
    first = launch().rank == 0
    workload = (hypothetical(config) if config.frames is not None else read_workload(config)) if first else Workload()
    rates = rates_of(config, model_costs(config.model.path, config.model.dtype))
    if first:
        tell(config, workload, rates)


def tell(config: PlanConfig, workload: Workload, rates: DeviceRates) -> None:
    cluster = cluster_of(config.hardware)
    found = assess(config, workload, cluster, rates)
    unfit = bool(found.shortfalls) or found.largest is None
    ways = (
        remedies(config, found, lambda changed: not shortfalls_of(changed, workload, cluster_of(changed.hardware), rates)) if unfit else []
    )
    if config.as_json:
        print(json.dumps(as_record(config, workload, found, ways), indent=1))
    else:
        print_plan(config, workload, found, Console())
    if unfit:
        raise refusal(found, ways)


def refusal(found: Assessment, ways: list[Remedy]) -> MemoryLimitError:
    """What is short, and each remedy that was tried and does."""
    short = "; ".join(str(shortfall) for shortfall in found.shortfalls) or "an update fits in no layout"
    return MemoryLimitError(
        short,
        rule="every phase of the largest step fits into the memory of a rank, and the host's into the node's",
        remedy="set " + ", or ".join(str(way) for way in ways) if ways else "use a smaller model, or GPUs with more memory",
    )
