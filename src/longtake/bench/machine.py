"""On what a figure was measured: the name of the processor or GPU, and the versions that matter. Nothing that names a host."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers


def hardware(device: torch.device) -> dict[str, str | int]:
    """Name, memory or cores, and versions."""
    versions: dict[str, str | int] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return {"name": torch.cuda.get_device_name(device), "memory_bytes": memory, **versions}
    return {"name": cpu_name(), "cores": os.cpu_count() or 1, **versions}


def cpu_name() -> str:
    """As Linux says it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
