"""What `longtake plan` plans for: the ranks, their memory, their rates. Given, assumed, or this machine's own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from longtake.config.env import world_size
from longtake.config.plan import HardwareConfig, PlanConfig
from longtake.config.sections import ModelConfig
from longtake.errors import ConfigError
from longtake.parallel.calibrate import calibrate
from longtake.parallel.mesh import start_world
from longtake.parallel.setting import ASSUMED_DEVICES, COLLECTIVE_S, GIB, Cluster, DeviceRates, TrainingCosts, assumed_rates, training_costs
from longtake.types import ModelCosts

GLOO_BYTES, GLOO_S = 1e9, 2e-4
"""Between processes of one CPU machine: bytes per second, seconds of an exchange."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def cluster_of(hardware: HardwareConfig) -> Cluster:
    """The ranks, with `reserve` of every memory left out. On a CPU the ranks of a node share its host memory."""
    device = device_of(hardware)
    ranks = hardware.gpus_per_node or ranks_here(hardware)
    usable = 1 - hardware.reserve
    host = round((host_bytes_here() if hardware.host_memory_gib is None else hardware.host_memory_gib * GIB) * usable)
    if hardware.gpu_memory_gib is not None:
        rank_bytes = round(hardware.gpu_memory_gib * GIB * usable)
    elif hardware.device in ASSUMED_DEVICES:
        rank_bytes = round(ASSUMED_DEVICES[hardware.device].memory_gib * GIB * usable)
    elif device == "cuda":
        rank_bytes = round(torch.cuda.mem_get_info()[1] * usable)
    else:
        rank_bytes = host // ranks
    return Cluster(hardware.nodes, ranks, rank_bytes, host, device)


def ranks_here(hardware: HardwareConfig) -> int:
    """Processes per node: of this launch, else one per GPU of this machine if that is what is planned for. Raises ConfigError."""
    launched = world_size()
    if launched == 1:
        return torch.cuda.device_count() if hardware.device == "auto" and device_of(hardware) == "cuda" else 1
    if launched % hardware.nodes:
        raise ConfigError(
            f"hardware.nodes = {hardware.nodes} in a launch of {launched} processes",
            rule="the same number of processes on every node",
            remedy="set hardware.nodes, or hardware.gpus_per_node for another machine than this",
        )
    return launched // hardware.nodes


def device_of(hardware: HardwareConfig) -> str:
    """`cuda` or `cpu`."""
    if hardware.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if hardware.device == "cpu" else "cuda"


def rates_of(config: PlanConfig, costs: ModelCosts) -> DeviceRates:
    """Assumed rates of a GPU that is named, else measured here and now by all processes of the launch. One process by itself cannot measure
    links: these are assumed then."""
    if config.hardware.device in ASSUMED_DEVICES:
        return assumed_rates(config.hardware.device, costs.dtype_bytes)
    device = device_of(config.hardware)
    with start_world(torch.device(device), config.parallel.timeout_s) as world:
        found = calibrate(costs, world.device, getattr(torch, config.model.dtype), world.axis)
    if world.size > 1:
        return found
    if device == "cpu":
        return replace(found, link_bytes=GLOO_BYTES, node_link_bytes=GLOO_BYTES, collective_s=GLOO_S)
    links = assumed_rates("a100", costs.dtype_bytes)
    return replace(found, link_bytes=links.link_bytes, node_link_bytes=links.node_link_bytes, collective_s=COLLECTIVE_S)


def host_bytes_here() -> int:
    """Memory of this machine, or what a container may use of it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    return min(machine, int(limit)) if limit.isdecimal() else machine


def training_costs_of(model: ModelConfig, costs: ModelCosts, *, reference_passes: bool, sharded: bool = False) -> TrainingCosts:
    """What a configured model trains, for `longtake plan` and for the run itself."""
    lora = model.lora
    return training_costs(
        costs,
        lora_rank=None if lora is None else lora.rank,
        lora_targets=() if lora is None else lora.target_modules,
        train_vision=model.train_vision,
        reference_passes=reference_passes,
        sharded=sharded,
    )


def assumed_cpu_rates() -> DeviceRates:
    """Of a common core: what a run on CPUs plans with, so that two runs with one seed plan alike; `longtake plan` measures."""
    return DeviceRates("cpu (assumed)", 4e10, 2e10, 5e9, 1.5e-5, GLOO_BYTES, GLOO_BYTES, GLOO_S)
