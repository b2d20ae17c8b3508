"""Who is missing: a process that hangs or dies makes the others stop within a stated time, with a message that names it.

The main thread of every rank says which places it passes (`beat`). A thread beside it publishes in the store of the launch, every few
seconds: a tick, the place, and whether the process is inside a call of torch.distributed, waiting for others. Each rank reads what all
published. When one has waited for too long, those that do not wait are the ones it waits for; who no longer ticks is dead or stopped.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Self

import torch.distributed as dist

from longtake.config.env import Launch
from longtake.observe.progress import say

EXIT_CODE = 1
_STORE_TIMEOUT_S = 10.0
_WAITING_FRAMES = 4
"""A process waits for others when one of so many innermost frames of a thread belongs to torch.distributed."""


@dataclass(frozen=True)
class Report:
    """What a rank publishes."""

    ticks: int = 0
    beats: int = 0
    place: str = "start"
    waiting: bool = False
    line: str = ""
    """File, line and function where its main thread is."""
    done: bool = False


@dataclass
class Seen:
    """The last report of a rank, and since when by this process's own clock."""

    report: Report
    ticks_since: float
    beats_since: float
    waits_since: float
    """Only when it waits."""

    def update(self, report: Report, now: float) -> None:
        if report.ticks != self.report.ticks:
            self.ticks_since = now
        if report.beats != self.report.beats:
            self.beats_since = now
        if not (report.waiting and self.report.waiting and report.beats == self.report.beats):
            self.waits_since = now
        self.report = report


class Heartbeat:
    """A context manager around the run. In a launch of one process it does nothing.

    `timeout_s`: how long a rank may wait for others, stay behind the furthest one, or be silent. Choose it below the timeout of
    collectives, so that this message comes before theirs, and above the longest that one rank works while others wait for it.
    """

    def __init__(self, launch: Launch, timeout_s: float, interval_s: float = 2.0) -> None:
        self._launch, self._timeout_s, self._interval_s = launch, timeout_s, interval_s
        self._ticks = self._beats = 0
        self._place = "start"
        self._seen: dict[int, Seen] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._main = threading.get_ident()

    def beat(self, place: str) -> None:
        """The main thread got here; `place` names it for people. Every rank passes the same places in the same order."""
        self._beats, self._place = self._beats + 1, place

    def __enter__(self) -> Self:
        if self._launch.world_size > 1:
            self._main = threading.get_ident()
            # A connection of its own: the one of torch's process group is busy while that waits.
            timeout = timedelta(seconds=_STORE_TIMEOUT_S)
            self._store = dist.TCPStore(self._launch.address, self._launch.port, is_master=False, timeout=timeout, wait_for_workers=False)
            now = time.monotonic()
            self._seen = {rank: Seen(Report(), now, now, now) for rank in range(self._launch.world_size)}
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A collective that breaks off says "connection closed" and not by whom: then it is found out and told before the error leaves."""
        if self._launch.world_size == 1:
            return
        self._stop.set()
        self._thread.join()
        if isinstance(error, RuntimeError):
            self._tell_who_is_gone()
        self._publish(done=True)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._publish()
            self._look()
            running = {rank: seen for rank, seen in self._seen.items() if not seen.report.done}
            missing = who_is_missing(running, self._timeout_s, time.monotonic())
            if missing:
                say(f"rank {self._launch.rank} stops: {missing}", style="red")
                os._exit(EXIT_CODE)

    def _publish(self, done: bool = False) -> None:
        self._ticks += 1
        waiting, line = whereabouts(self._main, threading.get_ident())
        report = Report(self._ticks, self._beats, self._place, waiting, line, done)
        self._store.set(_key(self._launch.rank), json.dumps(asdict(report)))

    def _look(self) -> None:
        """Read what all published; a rank that has not begun is waited for as any other."""
        now = time.monotonic()
        for rank, seen in self._seen.items():
            if self._store.check([_key(rank)]):
                seen.update(Report(**json.loads(self._store.get(_key(rank)))), now)

    def _tell_who_is_gone(self) -> None:
        """Those that do not tick any more."""
        self._publish()
        self._look()
        before = {rank: seen.report.ticks for rank, seen in self._seen.items()}
        time.sleep(2.5 * self._interval_s)
        self._publish()
        self._look()
        for rank, seen in self._seen.items():
            if seen.report.ticks == before[rank] and not seen.report.done:
                say(f"rank {self._launch.rank} stops: rank {rank} is gone; it was last seen at: {seen.report.place}", style="red")


def who_is_missing(running: dict[int, Seen], timeout_s: float, now: float) -> str:
    """What to tell when a rank is silent, behind or awaited for more than `timeout_s` seconds before `now`; empty when none is."""
    for rank, seen in running.items():
        if now - seen.ticks_since > timeout_s:
            return f"rank {rank} gave no sign of life for {now - seen.ticks_since:.0f} s; it was last seen at: {seen.report.place}"
    furthest = max(seen.report.beats for seen in running.values()) if running else 0
    behind = [rank for rank, seen in running.items() if seen.report.beats < furthest and now - seen.beats_since > timeout_s]
    if behind:
        return f"others went on without {_told(behind, running)}"
    waited = max((now - seen.waits_since for seen in running.values() if seen.report.waiting), default=0.0)
    if waited > timeout_s:
        awaited = [rank for rank, seen in running.items() if not seen.report.waiting]
        if awaited:
            return f"others have waited {waited:.0f} s for {_told(awaited, running)}"
        return f"all ranks have waited {waited:.0f} s for each other: {_told(list(running), running)}"
    return ""


def _told(ranks: list[int], seen: dict[int, Seen]) -> str:
    return ", ".join(f"rank {rank} (at: {seen[rank].report.place}; {seen[rank].report.line})" for rank in ranks)


def whereabouts(main: int, own: int) -> tuple[bool, str]:
    """Whether some thread but `own` is inside torch.distributed, and the innermost line of the thread `main`.

    No frame is kept: the frame of this very call would then hold itself, and with it, until garbage is next collected, whatever the
    frames of other threads hold. A process group that lives on so until the interpreter ends can abort the process there.
    """
    frames = sys._current_frames()
    try:
        waiting = any(_waits(frame) for thread, frame in frames.items() if thread != own)
        return waiting, _line(frames.get(main))
    finally:
        frames.clear()


def _line(frame: FrameType | None) -> str:
    if frame is None:
        return "its main thread has ended"
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


def _waits(frame: FrameType | None) -> bool:
    for _ in range(_WAITING_FRAMES):
        if frame is None:
            return False
        if "torch/distributed" in frame.f_code.co_filename.replace(os.sep, "/"):
            return True
        frame = frame.f_back
    return False


def _key(rank: int) -> str:
    return f"longtake/heartbeat/{rank}"
