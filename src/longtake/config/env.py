"""The only reader of the environment: everything else is in the configuration, which is saved with the run."""

from __future__ import annotations

import os

from longtake.errors import ConfigError


def world_size() -> int:
    """Processes in this launch, as torchrun says; 1 without a launcher. Raises ConfigError for a value that is not a count."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE = {text!r} in the environment", rule="it counts the processes of a launch", remedy="unset it")
    return int(text)


def wants_traceback() -> bool:
    """LONGTAKE_TRACEBACK=1 shows where an error came from, for whoever debugs longtake itself."""
    return os.environ.get("LONGTAKE_TRACEBACK", "") not in ("", "0")
