"""Memory and disk within their budgets, counted, and shared by processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from longtake.config.sections import CacheConfig
from longtake.data import token_folder
from longtake.data.embedding_cache import EmbeddingCache
from longtake.data.token_files import HEADER_BYTES
from longtake.data.token_folder import Answer
from longtake.testing.processes import run_processes
from longtake.types import VideoTokens

SIZE = 64 * 16 * 4
"""Bytes of the embeddings of one video here."""
FILE = SIZE + 2 * HEADER_BYTES
"""Bytes that its file is counted with."""


def tokens(number: int) -> VideoTokens:
    embeddings = torch.randn(64, 16, generator=torch.Generator().manual_seed(number))
    return VideoTokens(embeddings, (4, 8, 8), 0.5 * number, f"{number:064x}")


def answer(number: int) -> Answer:
    return Answer(tokens(number).digest, number % 2 == 1, 0.1 * number)


def put(cache: EmbeddingCache, number: int, tower: str | None = None) -> VideoTokens:
    return cache.put(f"request {number}", tokens(number), answer(number), tower)


def counts(cache: EmbeddingCache) -> dict[str, int]:
    return {name.removeprefix("cache/"): int(value) for name, value in cache.metrics().items() if value}


def on_disk(folder: Path, **changes: int) -> EmbeddingCache:
    return EmbeddingCache(CacheConfig(folder=folder, **changes))


def token_file(folder: Path, number: int) -> Path:
    digest = tokens(number).digest
    return folder / "tokens" / digest[:2] / f"{digest}.safetensors"


def test_memory_keeps_what_it_has_and_counts_what_it_refuses():
    cache = EmbeddingCache(CacheConfig(memory_bytes=2 * SIZE + 1))
    for number in (1, 2, 3):
        assert torch.equal(put(cache, number).embeddings, tokens(number).embeddings)
    found = cache.find("request 1")
    assert found is not None and found[1] == answer(1) and torch.equal(found[0].embeddings, tokens(1).embeddings)
    assert cache.find("request 3") is None and cache.get(tokens(3).digest) is None
    assert counts(cache) == {"hits": 1, "misses": 1, "refused": 1, "memory_bytes": 2 * SIZE}


def test_a_part_of_a_larger_tensor_does_not_hold_all_of_it():
    """Embeddings that came as a slice of a receive buffer: the budget counts what is really held."""
    cache, large = EmbeddingCache(), torch.randn(1000, 16)
    kept = cache.put("r", VideoTokens(large[:64], (4, 8, 8), 0.0, "d"), Answer("d", False, 0.0))
    assert kept.embeddings.untyped_storage().nbytes() == SIZE and torch.equal(kept.embeddings, large[:64])
    assert not cache.put("s", VideoTokens(large.requires_grad_(), (4, 8, 8), 0.0, "e"), Answer("e", False, 0.0)).embeddings.requires_grad


def test_the_next_process_finds_everything(tmp_path: Path):
    first = on_disk(tmp_path)
    used = put(first, 3)
    assert counts(first) == {} and torch.equal(used.embeddings, tokens(3).embeddings)
    second = on_disk(tmp_path)
    for _ in range(2):
        found = second.find("request 3")
        assert found is not None and found[1] == answer(3)
        assert torch.equal(found[0].embeddings, tokens(3).embeddings)
        assert (found[0].grid, found[0].seconds_per_grid, found[0].digest) == ((4, 8, 8), 1.5, tokens(3).digest)
    assert counts(second) == {"hits": 2, "disk_hits": 1}  # no memory of its own
    assert second.find("request 4") is None and counts(second) == {"hits": 2, "disk_hits": 1}


def test_a_full_folder_keeps_what_it_has_and_memory_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = on_disk(tmp_path, disk_bytes=2 * FILE + 1, memory_bytes=SIZE)
    for number in (1, 2, 3, 4):
        put(cache, number)
    assert counts(cache) == {"disk_refused": 2, "refused": 1, "memory_bytes": SIZE}
    assert [token_file(tmp_path, number).exists() for number in (1, 2, 3, 4)] == [True, True, False, False]
    assert [cache.find(f"request {number}") is not None for number in (1, 2, 3, 4)] == [True, True, True, False]
    monkeypatch.setattr(token_folder, "COUNT_AGAIN_S", 0.0)
    token_file(tmp_path, 1).unlink()  # a user makes room
    put(on_disk(tmp_path, disk_bytes=2 * FILE), 4)
    assert token_file(tmp_path, 4).exists()


def test_bytes_used_are_counted_when_nothing_says_them(tmp_path: Path):
    put(on_disk(tmp_path), 1)
    for content in (None, "", "many", "-5", b"\xff"):
        used = tmp_path / "used"
        used.unlink() if content is None else used.write_bytes(content if isinstance(content, bytes) else content.encode())
        small = on_disk(tmp_path, disk_bytes=2 * FILE - SIZE // 2, memory_bytes=0)
        put(small, 2)
        assert counts(small) == {"disk_refused": 1, "refused": 1}


DAMAGES = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "one bit": lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
    "header": lambda whole: whole[:20] + b"#" + whole[21:],
    "another file": lambda whole: b"these are no tensors" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_counted_miss_and_is_written_anew(tmp_path: Path, damage: str):
    put(on_disk(tmp_path), 1)
    path = token_file(tmp_path, 1)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    cache = on_disk(tmp_path)
    assert cache.find("request 1") is None and cache.get(tokens(1).digest) is None
    assert counts(cache) == {"damaged": 1, "misses": 1}
    assert torch.equal(put(cache, 1).embeddings, tokens(1).embeddings)
    found = on_disk(tmp_path).find("request 1")
    assert found is not None and torch.equal(found[0].embeddings, tokens(1).embeddings)


def test_a_damaged_file_that_is_met_while_writing_is_replaced(tmp_path: Path):
    put(on_disk(tmp_path), 1)
    token_file(tmp_path, 1).write_bytes(b"")
    cache = on_disk(tmp_path)
    assert torch.equal(put(cache, 1).embeddings, tokens(1).embeddings)
    assert counts(cache) == {"damaged": 1}
    assert on_disk(tmp_path).find("request 1") is not None


def test_a_damaged_index_entry_is_a_counted_miss(tmp_path: Path):
    """Another request's tokens under this one's name would be right tokens of the wrong video."""
    cache = on_disk(tmp_path)
    put(cache, 1), put(cache, 2)
    first, second = (tmp_path / "requests" / "re" / f"request {number}.json" for number in (1, 2))
    whole = json.loads(first.read_text())
    swapped = json.dumps({**whole, "answer": {**whole["answer"], "tokens": tokens(2).digest}})
    unreduced = json.dumps({**whole, "answer": {**whole["answer"], "reduced": False}})
    for text in ("", "{}", "[1]", "\x00", second.read_text(), swapped, unreduced):
        first.write_text(text)
        reader = on_disk(tmp_path)
        assert reader.find("request 1") is None and counts(reader) == {"damaged": 1}, text
    put(on_disk(tmp_path), 1)
    assert on_disk(tmp_path).find("request 1") is not None


def test_a_file_is_checked_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(on_disk(tmp_path), 1)
    verified = []
    read = token_folder.read_tokens
    monkeypatch.setattr(
        token_folder, "read_tokens", lambda path, digest, verify: verified.append(verify) or read(path, digest, verify=verify)
    )
    monkeypatch.setattr("longtake.data.embedding_cache.MAX_MAPPED", 0)
    cache = on_disk(tmp_path)
    for _ in range(3):
        assert cache.find("request 1") is not None
    assert verified == [True, False, False]
    path = token_file(tmp_path, 1)
    os.utime(path, ns=(1, 1))  # somebody wrote to it
    assert cache.find("request 1") is not None and verified[-1] is True


def test_a_folder_that_cannot_be_written_costs_the_cache_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "file"
    file.write_text("I am no folder")
    cache = on_disk(file)
    for number in (1, 2):
        assert torch.equal(put(cache, number).embeddings, tokens(number).embeddings)
        assert cache.find(f"request {number}") is not None
    assert counts(cache) == {"disk_refused": 2, "hits": 2, "memory_bytes": 2 * SIZE}
    assert [record.levelname for record in caplog.records].count("WARNING") == 1  # said once


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_space(path: Path, _: VideoTokens) -> None:
        path.write_bytes(b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_folder, "write_tokens", no_space)
    cache = on_disk(tmp_path)
    put(cache, 1)
    assert counts(cache) == {"disk_refused": 1, "memory_bytes": SIZE}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("used", ".lock")] == []


def test_leftovers_of_killed_writers_are_removed_when_old(tmp_path: Path):
    cache = on_disk(tmp_path)
    put(cache, 1)
    old, young = (token_file(tmp_path, 1).with_name(f".{name}{token_folder.RESERVED}") for name in ("old", "young"))
    partial = token_file(tmp_path, 1).with_name(".young.partial")
    for path in (old, young, partial):
        path.write_bytes(b"x")
    hours_ago = time.time() - 2 * token_folder.STALE_S
    os.utime(old, (hours_ago, hours_ago))
    assert cache._folder is not None and cache._folder.bytes_used() == token_file(tmp_path, 1).stat().st_size + 1
    assert (old.exists(), young.exists(), partial.exists()) == (False, True, True)


def test_tokens_of_trained_weights_stay_in_the_process_and_go_with_the_weights(tmp_path: Path):
    cache = on_disk(tmp_path)
    put(cache, 1, tower="update 1")
    put(cache, 2)
    cache.drop_stale("update 1")
    assert cache.find("request 1") is not None
    assert not token_file(tmp_path, 1).exists() and on_disk(tmp_path).find("request 1") is None
    cache.drop_stale("update 2")
    assert cache.find("request 1") is None and cache.get(tokens(1).digest) is None
    assert cache.find("request 2") is not None and cache.memory_bytes == 0


def write_and_read(folder: str, rounds: int, disk_bytes: int) -> tuple[int, dict[str, int]]:
    """In one of several processes: the same keys in the same order as all others."""
    cache = on_disk(Path(folder), disk_bytes=disk_bytes, memory_bytes=0)
    wrong = 0
    for number in range(rounds):
        wrong += not torch.equal(put(cache, number).embeddings, tokens(number).embeddings)
        found = cache.find(f"request {number}")
        wrong += found is not None and not torch.equal(found[0].embeddings, tokens(number).embeddings)
    return wrong, counts(cache)


def test_four_processes_write_the_same_keys_at_the_same_time(tmp_path: Path):
    results = run_processes(write_and_read, 4, str(tmp_path), 60, 1 << 30)
    assert [wrong for wrong, _ in results] == [0] * 4
    assert all("damaged" not in found and "refused" not in found for _, found in results)
    reader = on_disk(tmp_path)
    for number in range(60):
        found = reader.find(f"request {number}")
        assert found is not None and torch.equal(found[0].embeddings, tokens(number).embeddings)
    assert list(tmp_path.rglob("*.partial")) == []


def test_four_processes_keep_one_budget(tmp_path: Path):
    """Room for 20 of 60 files: never more, and nothing but whole files."""
    room = 20 * FILE
    results = run_processes(write_and_read, 4, str(tmp_path), 60, room)
    assert [wrong for wrong, _ in results] == [0] * 4
    assert all(found["refused"] > 0 for _, found in results)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert len(sizes) >= 15 and sum(sizes) <= room and max(sizes) <= FILE
