"""Progress with rate and time left, on stderr: a live line on a terminal, else a plain line now and then so that CI logs stay short."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as LiveProgress

CONSOLE = Console(stderr=True, highlight=False)
"""The one console for people. stdout belongs to results (`--json`)."""

PLAIN_EVERY_S = 20.0
ERROR_STYLE = "red"
_muted = False


@contextmanager
def muted(quiet: bool = True) -> Iterator[None]:
    """While it lasts `say` tells nothing but errors, and no progress is shown: for processes beside the one that speaks."""
    global _muted
    before, _muted = _muted, quiet
    try:
        yield
    finally:
        _muted = before


def say(text: str, style: str | None = None) -> None:
    """One line for the user on stderr; does not tear a live progress line. The text is printed as it is, never as markup."""
    if _muted and style != ERROR_STYLE:
        return
    CONSOLE.print(text, style=style, markup=False, soft_wrap=True)


class Progress:
    """Counts units of work.

    >>> with Progress("rl", total=200, done=start) as progress:
    ...     progress.advance(1, reward=0.7)

    `done` units were finished by an earlier run: they are shown, but do not count in the rate. `total=None`: no end is known.
    `enabled=False` prints nothing.
    """

    def __init__(self, label: str, total: int | None, enabled: bool = True, *, done: int = 0, plain_every_s: float = PLAIN_EVERY_S) -> None:
        self.label, self.total, self.done = label, total, done
        self._start_done = done
        self._start = self._printed = time.monotonic()
        self._figures = ""
        self._enabled = enabled and not _muted
        self._plain_every_s = plain_every_s
        self._live: LiveProgress | None = None

    def __enter__(self) -> Self:
        self._start = self._printed = time.monotonic()
        if self._enabled and CONSOLE.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[line]}", markup=False))
            self._live = LiveProgress(*columns, console=CONSOLE, refresh_per_second=4)
            self._task = self._live.add_task(self.label, total=self.total, completed=self.done, line="")
            self._live.start()
        return self

    def advance(self, num: int = 1, **figures: float) -> None:
        """`num` more units are done; `figures` (e.g. reward=0.7) are shown beside the count."""
        self.done += num
        self._figures = "".join(f"  {name} {value:.4g}" for name, value in figures.items())
        if self._live is not None:
            self._live.update(self._task, completed=self.done, line=self._line())
        elif self._enabled and time.monotonic() - self._printed >= self._plain_every_s:
            self._print_plain()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._enabled and self.done > self._start_done:
            self._print_plain()

    def _print_plain(self) -> None:
        self._printed = time.monotonic()
        say(f"{self.label}: {self._line()}")

    def _line(self) -> str:
        return progress_line(self.done, self.total, self.done - self._start_done, time.monotonic() - self._start) + self._figures


def progress_line(done: int, total: int | None, done_now: int, seconds: float) -> str:
    """`30/200  2.0 s each  0:05:40 left`; `done_now` of the `done` units took `seconds`."""
    count = f"{done}" if total is None else f"{done}/{total}"
    if done_now <= 0 or seconds <= 0:
        return count
    each_s = seconds / done_now
    rate = f"{each_s:.1f} s each" if each_s >= 1 else f"{1 / each_s:.1f}/s"
    left = "" if total is None or done >= total else f"  {clock((total - done) * each_s)} left"
    return f"{count}  {rate}{left}" if left else f"{count}  {rate}  {clock(seconds)} taken"


def clock(seconds: float) -> str:
    """h:mm:ss, rounded to seconds."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
