"""Frames of the next step, decoded by a thread while this one trains. The decoder lets go of Python's lock; bits do not depend on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from longtake.errors import LongtakeError
from longtake.types import Frames


@dataclass(frozen=True)
class Ahead:
    """Frames that will be asked for."""

    key: str
    num_bytes: int
    load: Callable[[], Frames]


class Prefetch:
    """One thread, within a budget of bytes. What it has not begun when it is asked for is left to whoever asks.

    >>> prefetch.start(lambda: [Ahead("a", 3 * 64 * 64, load_a), Ahead("b", 3 * 64 * 64, load_b)])
    >>> frames = prefetch.take("a")    # None: decode it yourself
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._run: _Run | None = None
        self.taken = 0
        """Frames handed over so far, in videos or parts of them."""

    def start(self, plan: Callable[[], Iterable[Ahead]]) -> None:
        """Begin anew; what an earlier start left over is dropped. `plan` runs in the thread too."""
        if self._budget_bytes == 0:
            return
        self.stop()
        self._run = _Run(plan, self._budget_bytes)

    def take(self, key: str) -> Frames | None:
        """The frames, waited for if they are being decoded; raises the error that they ended in; None when nobody has begun with them."""
        found = self._run.take(key) if self._run is not None else None
        if isinstance(found, LongtakeError):
            raise found
        self.taken += found is not None
        return found

    def stop(self, *, wait: bool = True) -> None:
        """Let the thread end after the video it is at, and drop what it has."""
        if self._run is not None:
            self._run.stopped = True
            if wait:
                self._run.thread.join()
            self._run = None


class _Run:
    def __init__(self, plan: Callable[[], Iterable[Ahead]], budget_bytes: int) -> None:
        self._plan, self._left = plan, budget_bytes
        self._ready: dict[str, Frames | LongtakeError] = {}
        self._claimed: set[str] = set()
        self._current: str | None = None
        self._changed = threading.Condition()
        self.stopped = False
        self.thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self.thread.start()

    def take(self, key: str) -> Frames | LongtakeError | None:
        with self._changed:
            self._claimed.add(key)
            self._changed.wait_for(lambda: self._current != key)
            return self._ready.pop(key, None)

    def _work(self) -> None:
        for ahead in self._plan():
            if self.stopped:
                return
            if not self._begin(ahead):
                continue
            found: Frames | LongtakeError | None = None
            try:
                found = ahead.load()
            except LongtakeError as error:
                found = error
            finally:
                self._finish(ahead.key, found)

    def _begin(self, ahead: Ahead) -> bool:
        with self._changed:
            if ahead.key in self._claimed or ahead.key in self._ready or ahead.num_bytes > self._left:
                return False
            self._left -= ahead.num_bytes
            self._current = ahead.key
            return True

    def _finish(self, key: str, found: Frames | LongtakeError | None) -> None:
        with self._changed:
            if found is not None:
                self._ready[key] = found
            self._current = None
            self._changed.notify_all()
