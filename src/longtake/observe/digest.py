"""sha256 of values, arrays and files. A digest is a cache key and what trainer and sampler compare, so no two inputs may share one.

Every part is written as tag, length, content: ("a", "bc") and ("ab", "c") differ, and so do "1", 1, 1.0 and True.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, Union

import numpy as np

if TYPE_CHECKING:
    import torch

Part = Union[bytes, str, bool, int, float, None, np.ndarray, "torch.Tensor", Sequence["Part"]]


def digest_of(*parts: Part) -> str:
    """Hex sha256 of the parts, in order.

    Arrays and tensors count by dtype name, shape and little-endian bytes, wherever they live and however they are strided; a tensor and
    an array of the same dtype, shape and values are equal. Tuples and lists nest; numpy scalars count as Python's.
    Raises TypeError for anything else.
    """
    return digest_of_each(parts)


def digest_of_each(parts: Iterable[Part]) -> str:
    """`digest_of` of parts that are made one after the other, so that they need not all be there at once."""
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of the bytes of a file, read in pieces. Raises OSError as `open` does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _feed(state: hashlib._Hash, part: Part) -> None:
    if isinstance(part, np.ndarray):
        _feed_array(state, str(part.dtype.newbyteorder("=")), part.shape, _array_bytes(part))
    elif _is_tensor(part):
        _feed_array(state, str(part.dtype).removeprefix("torch."), tuple(part.shape), _tensor_bytes(part))
    elif isinstance(part, tuple | list):
        _header(state, b"l", len(part))
        for item in part:
            _feed(state, item)
    else:
        tag, content = _scalar_bytes(part.item() if isinstance(part, np.generic) else part)
        _header(state, tag, len(content))
        state.update(content)


def _scalar_bytes(part: object) -> tuple[bytes, bytes]:
    """Tag and content. bool stands before int, of which it is a subclass."""
    match part:
        case None:
            return b"n", b""
        case bytes():
            return b"b", part
        case str():
            return b"s", part.encode("utf-8", "surrogateescape")
        case bool():
            return b"?", b"\1" if part else b"\0"
        case int():
            return b"i", str(part).encode()
        case float():
            return b"f", struct.pack("<d", part)
    raise TypeError(f"cannot digest a {type(part).__name__}; pass bytes, str, numbers, None, arrays, tensors, or tuples and lists of these")


def _header(state: hashlib._Hash, tag: bytes, length: int) -> None:
    state.update(tag + struct.pack("<Q", length))


def _feed_array(state: hashlib._Hash, dtype: str, shape: tuple[int, ...], content: memoryview) -> None:
    name = dtype.encode()
    _header(state, b"a", len(name))
    state.update(name)
    state.update(struct.pack(f"<Q{len(shape)}Q", len(shape), *shape))
    state.update(content)


def _array_bytes(array: np.ndarray) -> memoryview:
    """The bytes without a copy where the array is contiguous and little-endian."""
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise TypeError(f"cannot digest an array of dtype {array.dtype}; use a plain numeric dtype")
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return little.reshape(-1).view(np.uint8).data


def _is_tensor(part: object) -> TypeGuard[torch.Tensor]:
    """Without importing torch: a tensor cannot exist before torch is loaded."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(part, torch.Tensor)


def _tensor_bytes(tensor: Any) -> memoryview:
    """Bytes of any strided dtype, bfloat16 included (which numpy does not have)."""
    torch = sys.modules["torch"]
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
