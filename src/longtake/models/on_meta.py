"""Models on torch's `meta` device: all of their shape and none of their memory, to be filled part by part (training.shard_loading)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from longtake.errors import ModelError
from longtake.observe.digest import Part, digest_of_each

Renamings = Sequence[tuple[str, str]]
"""(pattern, replacement), in order: from a name in checkpoint files to the module's own."""


def stored_names(names: Iterable[str], renamings: Renamings) -> dict[str, str]:
    """The name in the files of each tensor, by the name in the model.

    >>> stored_names(["visual.merger.norm.weight"], [("^visual", "model.visual")])
    {'model.visual.merger.norm.weight': 'visual.merger.norm.weight'}
    """
    found = {}
    for stored in names:
        name = stored
        for pattern, replacement in renamings:
            name = re.sub(pattern, replacement, name)
        found[name] = stored
    return found


def files_digest(folder: Path, prefix: str, renamings: Renamings, dtype: torch.dtype) -> str:
    """`tower_identity.weights_digest` of the tensors below `prefix` as they will be in a model of this dtype, read one by one."""
    path_of: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            path_of.update(dict.fromkeys(file.keys(), path))
    stored = stored_names(path_of, renamings)

    def parts() -> Iterator[Part]:
        for name in sorted(name for name in stored if name.startswith(prefix)):
            with safe_open(path_of[stored[name]], framework="pt") as file:
                yield from (name.removeprefix(prefix), file.get_tensor(stored[name]).to(dtype))

    return digest_of_each(parts())


def restore_buffers(hf: Any) -> None:
    """Compute what no file holds: the frequencies of rotary embeddings. Raises ModelError where transformers does not say how."""
    for name, module in hf.named_modules():
        own = [module.get_buffer(buffer) for buffer in module._non_persistent_buffers_set]
        for buffer in own:
            buffer.fill_(torch.nan)
        if own:
            hf._init_weights(module)
        if any(not bool(buffer.isfinite().all()) for buffer in own):
            raise ModelError(
                f"buffers of {name} that transformers does not initialise",
                rule="what a checkpoint leaves out can be computed",
                remedy="set parallel.sharded to false, which loads by transformers' own way",
            )


@contextmanager
def linears_seem_here(module: nn.Module) -> Iterator[None]:
    """Linear layers on `meta` have an empty weight on the CPU inside: adapters that are put beside them then get true initial values."""
    held = [(linear, linear.weight) for linear in module.modules() if isinstance(linear, nn.Linear) and linear.weight.is_meta]
    for linear, weight in held:
        linear.weight = nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=weight.requires_grad)
    try:
        yield
    finally:
        for linear, weight in held:
            linear.weight = weight
