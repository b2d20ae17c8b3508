"""Where the time goes, and how much memory was needed at most."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Phases:
    """Seconds per named phase of a step.

    >>> with phases("decode"):
    ...     frames = load_frames(...)
    >>> phases.take()
    {'decode': 0.31}

    Phases never overlap, so that their sum is at most the seconds of the step: opening one inside another raises RuntimeError. On a CUDA
    machine the end of a phase waits for the device, or the work of one phase would be charged to the next.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: str | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._open is not None:
            raise RuntimeError(f"phase {name!r} was opened inside {self._open!r}; phases must not nest, or seconds count twice")
        self._open = name
        start = time.perf_counter()
        try:
            yield
            _wait_for_device()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            self._open = None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per phase since the last `take`, in the order the phases were first used."""
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """The seconds, which then start again from nothing. Raises RuntimeError inside a phase."""
        if self._open is not None:
            raise RuntimeError(f"take() inside phase {self._open!r}; its seconds would be split over two steps")
        taken, self._seconds = self._seconds, {}
        return taken


def peak_memory_bytes() -> int:
    """Most resident host memory this process has had, in bytes."""
    # VmHWM starts anew at exec; ru_maxrss does not, and shows the peak of a large parent (a test runner, a launcher) as ours.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_cuda_bytes() -> int | None:
    """Most device memory allocated by torch, in bytes; None when torch is not loaded or CUDA is unused."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())


def memory_metrics() -> dict[str, float]:
    """Peaks as metrics: `memory/peak_host_bytes` and, with CUDA, `memory/peak_cuda_bytes`."""
    metrics = {"memory/peak_host_bytes": float(peak_memory_bytes())}
    cuda = peak_cuda_bytes()
    return metrics if cuda is None else metrics | {"memory/peak_cuda_bytes": float(cuda)}


def _wait_for_device() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
