"""SIGTERM and Ctrl-C become a flag that the training loop reads between steps, so that it can save and leave."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from longtake.errors import StopRequested

REPEAT_S = 1.0
"""A launcher passes Ctrl-C on to processes that the terminal has already told: a SIGINT this soon after the first is the same one."""


class StopFlag:
    """Context manager that installs the handlers and puts the former ones back.

    >>> with StopFlag() as stop:
    ...     for step in steps:
    ...         train(step)
    ...         if stop.requested:
    ...             save()
    ...             stop.leave("saved step 12 in runs/rl")

    The first signal sets `requested`. A second Ctrl-C raises KeyboardInterrupt at once, wherever the program is. A second SIGTERM changes
    nothing: the sender's next word is SIGKILL. Outside the main thread Python has no handlers, and the flag stays False.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._first_at = 0.0
        self._former: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def leave(self, done: str) -> None:
        """Raise StopRequested, which the command line turns into one line and exit code 128 + signal; `done` says what was saved."""
        raise StopRequested(done, self.signal_number or signal.SIGINT)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._former.items():
            # None: the handler was installed by C code and cannot be named.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._first_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first_at > REPEAT_S:
            raise KeyboardInterrupt
