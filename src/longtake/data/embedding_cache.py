"""The keyed cache of video embeddings: memory, then disk. Shared by every `VideoSource` of a process, and on disk by all that come after.

Keys are digests of everything that decides the embeddings; a name, a path or a time is never one. A full cache keeps what it has: training
scans all videos in turn, and dropping the oldest would never hit. What it cannot keep is counted as refused and encoded again.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtake.config.sections import CacheConfig, VideoLimits
from longtake.data.token_files import num_bytes
from longtake.data.token_folder import Answer, TokenFolder
from longtake.types import VideoTokens
from longtake.video.index import DigestIndex

MAX_MAPPED = 4096
"""Files mapped at a time; the kernel allows 65,530 mappings. One that is let go is mapped again without being checked again."""


@dataclass(frozen=True, eq=False)
class _Kept:
    value: Any
    num_bytes: int
    tower: str | None
    """Set for what is worth nothing once the weights of a trained tower have another name."""


class EmbeddingCache:
    """Tokens by request and by digest. Safe to use from several threads, and its folder from several processes.

    A request names what is wanted (file, sampling, model) and is known before decoding; the tokens' digest names what came out (the real
    times of the frames too). The index from one to the other is kept beside the tokens, so that a hit decodes nothing.
    """

    def __init__(self, config: CacheConfig | None = None) -> None:
        config = CacheConfig() if config is None else config
        self._memory_bytes = config.memory_bytes
        self._counts: Counter[str] = Counter()
        self._folder = TokenFolder(config.folder, config.disk_bytes, self._counts) if config.folder is not None else None
        self._kept: dict[str, _Kept] = {}
        self._mapped: OrderedDict[str, VideoTokens] = OrderedDict()
        self._answers: dict[str, tuple[Answer, str | None]] = {}
        self._lock = threading.RLock()

    def find(self, request: str) -> tuple[VideoTokens, Answer] | None:
        """The tokens of a request that was answered before, and what is known of their frames. Counts a hit; None counts nothing."""
        known = self._answers.get(request)
        answer = known[0] if known is not None else self._folder.answer(request) if self._folder is not None else None
        tokens = self._tokens(answer.tokens) if answer is not None else None
        if answer is None or tokens is None:
            return None
        self._answers.setdefault(request, (answer, None))
        return tokens, answer

    def get(self, digest: str) -> VideoTokens | None:
        """The tokens of this digest. Counts a hit or a miss."""
        tokens = self._tokens(digest)
        self._counts["misses"] += tokens is None
        return tokens

    def holds(self, request: str) -> bool:
        """Whether the folder has the tokens of this request, going by its index and the file's header. Counts nothing."""
        answer = self._folder.answer(request) if self._folder is not None else None
        return answer is not None and self._folder is not None and self._folder.holds(answer.tokens)

    def has(self, request: str) -> bool:
        """Whether `find` would find it, going by the index alone. Counts nothing."""
        return request in self._answers or (self._folder is not None and self._folder.answer(request) is not None)

    def put(self, request: str, tokens: VideoTokens, answer: Answer, tower: str | None = None) -> VideoTokens:
        """Keep the tokens where there is room; returns the copy to use from now on, which is the shared one if there is a folder.

        `tower`: the name of the weights of a tower that was trained since it was loaded. Such tokens stay in this process, until
        `drop_stale`.
        """
        own = _with_own_memory(tokens)
        kept = self._to_folder(request, own, answer) if tower is None else None
        if kept is None and self.keep(f"tokens {own.digest}", own, num_bytes(own), tower):
            kept = own
        if kept is None:
            self._counts["refused"] += 1
            return own
        with self._lock:
            self._answers[request] = (answer, tower)
        return kept

    def remember(self, request: str, answer: Answer, tower: str | None = None) -> None:
        """Another request for tokens that are kept already."""
        with self._lock:
            self._answers[request] = (answer, tower)
        if self._folder is not None and tower is None:
            self._folder.write_answer(request, answer)

    def keep(self, key: str, value: Any, size: int, tower: str | None = None) -> bool:
        """Keep anything in memory, within the same budget as the tokens. False: no room."""
        with self._lock:
            if key in self._kept:
                return True
            if self.memory_bytes + size > self._memory_bytes:
                return False
            self._kept[key] = _Kept(value, size, tower)
            return True

    def kept(self, key: str) -> Any | None:
        found = self._kept.get(key)
        return None if found is None else found.value

    def drop_stale(self, tower: str) -> None:
        """Forget what was made with trained weights of any other name."""
        with self._lock:
            self._kept = {key: kept for key, kept in self._kept.items() if kept.tower in (None, tower)}
            self._answers = {key: known for key, known in self._answers.items() if known[1] in (None, tower)}

    @property
    def memory_bytes(self) -> int:
        """Bytes held in memory; mapped files are the kernel's, which drops their pages when it needs room."""
        with self._lock:
            return sum(kept.num_bytes for kept in self._kept.values())

    def metrics(self) -> dict[str, float]:
        """Counts since the start of the process."""
        names = ("hits", "disk_hits", "misses", "refused", "disk_refused", "damaged")
        return {f"cache/{name}": float(self._counts[name]) for name in names} | {"cache/memory_bytes": float(self.memory_bytes)}

    def _tokens(self, digest: str) -> VideoTokens | None:
        """From memory, a mapped file or a file; counts a hit."""
        tokens: VideoTokens | None = self.kept(f"tokens {digest}") or self._mapped.get(digest)
        if tokens is None and self._folder is not None:
            tokens = self._folder.read(digest)
            if tokens is not None:
                self._map(tokens)
                self._counts["disk_hits"] += 1
        self._counts["hits"] += tokens is not None
        return tokens

    def _to_folder(self, request: str, tokens: VideoTokens, answer: Answer) -> VideoTokens | None:
        """Write and map; what is read back has been checked like any other file. A damaged file that stood there is replaced, once."""
        if self._folder is None:
            return None
        for _ in range(2):
            if not self._folder.write(tokens):
                return None
            mapped = self._folder.read(tokens.digest)
            if mapped is not None:
                self._folder.write_answer(request, answer)
                self._map(mapped)
                return mapped
        return None

    def _map(self, tokens: VideoTokens) -> None:
        with self._lock:
            self._mapped[tokens.digest] = tokens
            while len(self._mapped) > MAX_MAPPED:
                self._mapped.popitem(last=False)


def digest_index(config: CacheConfig, otherwise: Path | None, limits: VideoLimits) -> DigestIndex:
    """The index of the digests of files: beside the cache where it has a folder, so that it is shared too, else at `otherwise`."""
    path = config.folder / "digests.json" if config.folder is not None else otherwise
    return DigestIndex(path, max_bytes=limits.max_bytes, max_image_bytes=limits.max_image_bytes)


def _with_own_memory(tokens: VideoTokens) -> VideoTokens:
    """Tensors that are parts of larger ones are copied: they would hold all of it."""
    tensors = [
        tensor.detach().clone() if tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous() else tensor.detach()
        for tensor in (tokens.embeddings, *tokens.deepstack)
    ]
    return replace(tokens, embeddings=tensors[0].cpu(), deepstack=tuple(tensor.cpu() for tensor in tensors[1:]))
