"""Phases by two clocks: seconds on the wall, and seconds in which this process had a core.

On a machine with other work the second is what can be compared: it leaves out waiting for a core. It leaves out waiting for other ranks
too (gloo sleeps), so of several ranks the busiest counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from longtake.observe.timing import Phases


class BusyPhases(Phases):
    """`take_busy` beside `take`; both start again from nothing at a `take_both`."""

    def __init__(self) -> None:
        super().__init__()
        self._busy: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with super().__call__(name):
            begin = time.process_time()
            try:
                yield
            finally:
                self._busy[name] = self._busy.get(name, 0.0) + time.process_time() - begin

    def take_both(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds per phase since the last call: (wall, busy)."""
        busy, self._busy = self._busy, {}
        return self.take(), busy
