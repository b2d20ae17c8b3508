"""Digests: equal for equal content, different for everything that differs, whatever the memory layout."""

from __future__ import annotations

import hashlib
import itertools
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longtake.observe.digest import digest_of, file_digest

DIFFERENT = [
    ("a", "bc"),
    ("ab", "c"),
    ("abc",),
    (b"abc",),
    ("a", "b", "c"),
    (("a", "bc"),),
    (("a",), "bc"),
    ("abc", ""),
    (1,),
    ("1",),
    (1.0,),
    (True,),
    (-1,),
    (0.0,),
    (-0.0,),
    (False,),
    (None,),
    ((),),
    (),
    ("",),
    (b"",),
    (np.zeros(2, np.float32),),
    (np.zeros(2, np.int32),),
    (np.zeros((1, 2), np.float32),),
    (np.zeros((2, 1), np.float32),),
    (np.zeros(1, np.float64),),
    (np.zeros(0, np.float32),),
    (np.zeros((0, 3), np.float32),),
    (np.zeros((), np.float32),),
    (torch.zeros(2, dtype=torch.bfloat16),),
    (torch.zeros(2, dtype=torch.float16),),
    (np.float32([0.0, -0.0]),),
]


def test_no_two_of_many_near_inputs_share_a_digest() -> None:
    digests = [digest_of(*parts) for parts in DIFFERENT]
    same = [(DIFFERENT[i], DIFFERENT[j]) for i, j in itertools.combinations(range(len(digests)), 2) if digests[i] == digests[j]]
    assert same == []


def test_hand_computed() -> None:
    """Tag, length as 8 little-endian bytes, content; an array: its dtype's name, then number of axes, axes, bytes."""
    expected = b"s" + struct.pack("<Q", 2) + b"ab" + b"i" + struct.pack("<Q", 2) + b"-7"
    assert digest_of("ab", -7) == hashlib.sha256(expected).hexdigest()
    array = np.array([[1, 2, 3]], dtype=np.int16)
    expected = b"a" + struct.pack("<Q", 5) + b"int16" + struct.pack("<QQQ", 2, 1, 3) + struct.pack("<hhh", 1, 2, 3)
    assert digest_of(array) == hashlib.sha256(expected).hexdigest()


def test_layout_byte_order_and_library_do_not_matter() -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).transpose(0, 2)
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 1, 0)
    expected = digest_of(np.ascontiguousarray(array))
    assert {digest_of(tensor), digest_of(array), digest_of(array.astype(">f4")), digest_of(tensor.clone().requires_grad_())} == {expected}
    assert digest_of(torch.tensor([True, False])) == digest_of(np.array([True, False]))


def test_bfloat16_by_its_bits() -> None:
    values = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    assert digest_of(values[1:]) == digest_of(torch.tensor([-2.5, 3e38], dtype=torch.bfloat16))
    assert digest_of(values) != digest_of(values.float()) and digest_of(values) != digest_of(values.view(torch.int16))
    nudged = (values.view(torch.int16) + 1).view(torch.bfloat16)
    assert digest_of(values) != digest_of(nudged)


def test_numpy_scalars_count_as_pythons() -> None:
    assert digest_of(np.int64(5), np.float64(0.5), np.bool_(True), np.str_("x")) == digest_of(5, 0.5, True, "x")
    assert digest_of(np.float32(0.1)) == digest_of(float(np.float32(0.1))) != digest_of(0.1)


@pytest.mark.parametrize("part", [{"a": 1}, {1}, object(), 1j, np.array([object()]), np.zeros(2, [("x", "i4")]), Path("x")])
def test_what_has_no_canonical_bytes_is_refused(part: object) -> None:
    with pytest.raises(TypeError, match="cannot digest"):
        digest_of(part)  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_equal_digests_mean_equal_parts(first: list[bytes], second: list[bytes]) -> None:
    assert (digest_of(*first) == digest_of(*second)) == (first == second)


def test_file_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert file_digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "none")


def test_digests_do_not_load_torch() -> None:
    code = (
        "import sys, longtake.observe.digest as d, longtake.observe.timing, longtake.observe.lines, longtake.observe.metrics\n"
        "d.digest_of('x', 1); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
