"""The only reader of the environment: everything else is in the configuration, which is saved with the run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from longtake.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """This process among those started together, as torchrun says."""

    rank: int = 0
    local_rank: int = 0
    """Among the processes of this node; its GPU."""
    world_size: int = 1
    address: str = ""
    """Host and port of the store where the processes meet; empty in a launch of one."""
    port: int = 0


def world_size() -> int:
    """Processes in this launch, as torchrun says; 1 without a launcher. Raises ConfigError for a value that is not a count."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE = {text!r} in the environment", rule="it counts the processes of a launch", remedy="unset it")
    return int(text)


def launch() -> Launch:
    """Which process this is. Raises ConfigError for a rank outside the launch, or a launch of several without an address to meet at."""
    size = world_size()
    rank, local_rank = (_rank(name, size) for name in ("RANK", "LOCAL_RANK"))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if size > 1 and name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE = {size}, but no {' and no '.join(missing)}", rule="torchrun sets them all", remedy="use torchrun")
    if size == 1:
        return Launch(rank, local_rank)
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal():
        raise ConfigError(f"MASTER_PORT = {port!r} in the environment", rule="it is a number", remedy="use torchrun")
    return Launch(rank, local_rank, size, os.environ["MASTER_ADDR"], int(port))


def _rank(name: str, size: int) -> int:
    text = os.environ.get(name, "0")
    if not text.isdecimal() or int(text) >= size:
        raise ConfigError(f"{name} = {text!r} in the environment", rule=f"it is a number below WORLD_SIZE = {size}", remedy="use torchrun")
    return int(text)


def rank_label() -> str:
    """`rank 1: ` among several processes, for messages that each of them prints; empty in a launch of one."""
    return f"rank {os.environ.get('RANK', '?')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def enter_launch(this: Launch) -> None:
    """Make this process one of a launch, as torchrun would; the store listens already. For whoever starts processes."""
    os.environ |= {
        "RANK": str(this.rank),
        "LOCAL_RANK": str(this.local_rank),
        "WORLD_SIZE": str(this.world_size),
        "MASTER_ADDR": this.address,
        "MASTER_PORT": str(this.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def one_thread() -> dict[str, str]:
    """The environment of a process that computes with one thread, for whoever starts it."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serves_longtake() -> bool:
    """Whether this process of vLLM belongs to an engine of ours: LONGTAKE_ENGINE=1, which whoever starts it sets."""
    return os.environ.get("LONGTAKE_ENGINE", "") == "1"


def api_key(variable: str) -> str | None:
    """The key of a server; None where the variable is not set or empty. Raises ConfigError, which never shows the value."""
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ConfigError(
            f"the key in the environment variable {variable} cannot be sent",
            rule="a key is one word of printable ASCII characters",
            remedy="copy it once more: no spaces or line ends inside, no typographic characters",
        )
    return key or None


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Other variables inside, for a library that has no other settings and writes some of its own; afterwards all is as it was."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def wants_traceback() -> bool:
    """LONGTAKE_TRACEBACK=1 shows where an error came from, for whoever debugs longtake itself."""
    return os.environ.get("LONGTAKE_TRACEBACK", "") not in ("", "0")
