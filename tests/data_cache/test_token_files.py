"""One file per video: exact in every bit, mapped, and never wrong whatever happened to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longtake.data.token_files import DamagedFileError, read_tokens, write_tokens
from longtake.testing.processes import run_processes
from longtake.types import VideoTokens

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tokens(seed: int = 0, dtype: torch.dtype = torch.float32, num: int = 6, layers: int = 0) -> VideoTokens:
    draw = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(num, 4, generator=draw).to(dtype) for _ in range(layers + 1)]
    return VideoTokens(tensors[0], (3, 4, 2), 0.1 + seed, f"{seed:064x}", tuple(tensors[1:]))


def same(one: VideoTokens, other: VideoTokens) -> bool:
    tensors = [(one.embeddings, other.embeddings), *zip(one.deepstack, other.deepstack, strict=True)]
    facts = [(each.grid, each.seconds_per_grid, each.digest) for each in (one, other)]
    return facts[0] == facts[1] and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [0, 3])
def test_what_is_read_is_what_was_written(tmp_path: Path, dtype: torch.dtype, layers: int):
    written = tokens(7, dtype, layers=layers)
    write_tokens(tmp_path / "a", written)
    read = read_tokens(tmp_path / "a", written.digest, verify=True)
    assert same(read, written) and len(read.deepstack) == layers
    assert read.seconds_per_grid == 7.1  # not a digit less


def test_special_values_survive(tmp_path: Path):
    embeddings = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-45]])
    write_tokens(tmp_path / "a", VideoTokens(embeddings, (1, 2, 2), 0.0, "d"))
    read = read_tokens(tmp_path / "a", "d", verify=True).embeddings
    assert torch.equal(read.view(torch.int32), embeddings.view(torch.int32))


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_file_is_mapped_and_not_copied(tmp_path: Path):
    """32 MB read twice: the kernel's pages, which all processes of a node share, and no memory of our own.

    Measured in a process of its own: one that has freed memory before hands it out again, and a copy would not show.
    """
    written = VideoTokens(torch.randn(1000, 8000), (1, 2, 2), 0.0, "d")
    path = tmp_path / "mapped.safetensors"
    write_tokens(path, written)
    (found,) = run_processes(_read_twice, 1, str(path))
    assert found["sum"] == pytest.approx(2 * float(written.embeddings.sum()), rel=1e-3)
    assert found["read"] < 8_000_000 and found["mapped"]
    assert found["copied"] > 60_000_000  # negative control: copies would show


def _read_twice(path: str) -> dict[str, float]:
    before = anonymous_bytes()
    read = [read_tokens(Path(path), "d", verify=True) for _ in range(2)]
    total = sum(float(each.embeddings.sum()) for each in read)
    after = anonymous_bytes()
    mapped = Path(path).name in Path("/proc/self/maps").read_text()
    copies = [each.embeddings.clone() for each in read]
    return {"sum": total, "read": after - before, "mapped": mapped, "copied": anonymous_bytes() - after if copies else 0}


def test_no_changed_byte_is_ever_served(tmp_path: Path):
    """Every byte of a small file, header included, flipped in turn: an error, or exactly what was written (padding of the header)."""
    written = tokens(3, layers=1)
    path = tmp_path / "a"
    write_tokens(path, written)
    whole, served = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = read_tokens(path, written.digest, verify=True)
        except DamagedFileError:
            continue
        assert same(read, written), f"byte {place} of {len(whole)}"
        served.append(place)
    assert len(served) < 8


def test_without_the_checksum_a_changed_byte_would_be_served(tmp_path: Path):
    """Negative control of the test above."""
    written = tokens()
    path = tmp_path / "a"
    write_tokens(path, written)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x55]))
    assert not same(read_tokens(path, written.digest, verify=False), written)
    with pytest.raises(DamagedFileError, match="checksum"):
        read_tokens(path, written.digest, verify=True)


def test_a_cut_or_foreign_file_is_an_error_even_unverified(tmp_path: Path):
    written = tokens(3, layers=1)
    path = tmp_path / "a"
    write_tokens(path, written)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            read_tokens(path, written.digest, verify=False)
    path.write_bytes(whole)
    with pytest.raises(DamagedFileError, match="digest"):  # a file under another's name
        read_tokens(path, tokens(4).digest, verify=False)
    with pytest.raises(FileNotFoundError):
        read_tokens(tmp_path / "none", written.digest, verify=True)
