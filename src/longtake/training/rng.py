"""The states of the random generators as tensors and plain numbers, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, numbers): torch (CPU and every CUDA device), numpy's and Python's global generators."""
    version, python_words, python_gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    tensors = {
        "torch.cpu": torch.get_rng_state(),
        "numpy": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "python": torch.tensor(python_words, dtype=torch.int64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"torch.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    numbers = {
        "python": {"version": version, "gauss": python_gauss},
        "numpy": {"pos": int(legacy["state"]["pos"]), "has_gauss": int(legacy["has_gauss"]), "gauss": float(legacy["gauss"])},
    }
    return tensors, numbers


def set_rng_state(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
    """Put every generator back. CUDA states are taken over only where such a device exists."""
    torch.set_rng_state(tensors["torch.cpu"])
    for name, state in tensors.items():
        if name.startswith("torch.cuda.") and int(name.rsplit(".", 1)[1]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name.rsplit(".", 1)[1]))
    python = numbers["python"]
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["gauss"]))
    key = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state({"bit_generator": "MT19937", "state": {"key": key, "pos": numbers["numpy"]["pos"]}, **_gauss(numbers["numpy"])})


def _gauss(numbers: dict[str, Any]) -> dict[str, Any]:
    """The second half of numpy's pair of normal numbers, if one is pending."""
    return {"has_gauss": numbers["has_gauss"], "gauss": numbers["gauss"]}
