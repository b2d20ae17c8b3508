"""The tokens of one video as one safetensors file, memory-mapped when it is read: processes of a node share one copy of the pages.

The header holds what else `VideoTokens` needs and a checksum over that and every byte of every tensor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longtake.observe.digest import digest_of
from longtake.types import VideoTokens

FORMAT = "longtake video tokens 1"
HEADER_BYTES = 512
"""More than the header needs for a tensor, or for everything else."""


class DamagedFileError(ValueError):
    """A file of the cache is not what was written: cut, changed, or of another format. It counts as absent."""


def write_tokens(path: Path, tokens: VideoTokens) -> None:
    """Write the file; tensors must lie on the CPU, each in memory of its own. Raises OSError when the disk says no."""
    facts = json.dumps(_facts(tokens))
    metadata = {"format": FORMAT, "digest": tokens.digest, "facts": facts, "checksum": checksum(tokens)}
    try:
        save_file(_tensors(tokens), path, metadata)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path}: {error}") from error


def read_tokens(path: Path, digest: str, *, verify: bool) -> VideoTokens:
    """The tokens named `digest`, mapped, not copied. `verify` reads every byte and compares the checksum.

    Raises OSError for a file that cannot be opened, DamagedFileError for a file that does not hold exactly these tokens.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            facts = _checked_facts(metadata, digest, names)
            deepstack = tuple(file.get_tensor(f"deepstack.{layer}") for layer in range(len(names) - 1))
            tokens = VideoTokens(
                file.get_tensor("embeddings"),
                tuple(facts["grid"]),
                float.fromhex(facts["seconds_per_grid"]),
                digest,
                deepstack,
                facts.get("kind", "video"),
            )
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path}: {type(error).__name__}: {error}") from error
    if verify and checksum(tokens) != metadata["checksum"]:
        raise DamagedFileError(f"{path}: its bytes do not have its checksum")
    return tokens


def checksum(tokens: VideoTokens) -> str:
    """sha256 over everything the record holds, dtypes and shapes included."""
    kind = () if tokens.kind == "video" else (tokens.kind,)
    return digest_of(FORMAT, tokens.digest, tokens.grid, tokens.seconds_per_grid, tokens.embeddings, list(tokens.deepstack), *kind)


def num_bytes(tokens: VideoTokens) -> int:
    """Bytes of its tensors."""
    return sum(tensor.nbytes for tensor in (tokens.embeddings, *tokens.deepstack))


def file_bytes(tokens: VideoTokens) -> int:
    """Bytes of its file at most."""
    return num_bytes(tokens) + HEADER_BYTES * (2 + len(tokens.deepstack))


def _tensors(tokens: VideoTokens) -> dict[str, torch.Tensor]:
    return {"embeddings": tokens.embeddings, **{f"deepstack.{layer}": tensor for layer, tensor in enumerate(tokens.deepstack)}}


def _facts(tokens: VideoTokens) -> dict[str, Any]:
    kind = {} if tokens.kind == "video" else {"kind": tokens.kind}  # files of videos are older than images
    return {"grid": list(tokens.grid), "seconds_per_grid": float(tokens.seconds_per_grid).hex(), **kind}


def _checked_facts(metadata: dict[str, str], digest: str, names: set[str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT or metadata.get("digest") != digest:
        raise DamagedFileError(f"format {metadata.get('format')!r}, digest {metadata.get('digest')!r}")
    if names != {"embeddings", *(f"deepstack.{layer}" for layer in range(len(names) - 1))} or not metadata.get("checksum"):
        raise DamagedFileError(f"tensors {sorted(names)}")
    facts: dict[str, Any] = json.loads(metadata["facts"])
    if [type(number) for number in facts["grid"]] != [int, int, int]:
        raise DamagedFileError(f"grid {facts['grid']}")
    if facts.get("kind", "video") not in ("video", "image"):
        raise DamagedFileError(f"kind {facts['kind']!r}")
    return facts
