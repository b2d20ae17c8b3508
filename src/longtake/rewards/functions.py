"""Loading a user's own reward: `path/to/file.py:function` or `module:function`, called as `function(example, response_text) -> float`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from types import ModuleType

from longtake.errors import RewardError
from longtake.types import Example

RewardFunction = Callable[[Example, str], float]
"""(checked row, text of the response without special tokens) -> a finite number; bool counts as 0 or 1."""

MAX_REWARD = 1e30
"""Larger ones would be inf in float32."""
RULE = "a reward function is `path/to/file.py:function` or `module:function`, called as function(example, response_text) -> float"


def load_function(spec: str) -> RewardFunction:
    """The function that `spec` names. Importing its module runs it: it is the user's own code, named in his own configuration.

    Raises RewardError when there is no such file, module or function, or when importing it fails.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise RewardError(f"reward function {spec!r}", rule=RULE, remedy="write the file or module, a colon, and the function's name")
    module = load_file(Path(place), spec) if place.endswith(".py") else load_module(place, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise RewardError(f"reward function {spec!r}: {place} has no function {name}", rule=RULE, remedy="check the name")
    return function


def load_file(path: Path, spec: str) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location(f"longtake_user_reward_{path.stem}", path)
    if not path.is_file() or module_spec is None or module_spec.loader is None:
        raise RewardError(f"reward function {spec!r}: no file {path}", rule=RULE, remedy="check the path, relative to where you start")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # a user's module may raise anything
        raise import_failed(spec, error) from error
    return module


def load_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise import_failed(spec, error) from error


def import_failed(spec: str, error: Exception) -> RewardError:
    return RewardError(
        f"reward function {spec!r}: {type(error).__name__}: {error}", rule=RULE, remedy="mend the module, see the cause above"
    )


def call_function(name: str, function: RewardFunction, example: Example, text: str) -> float:
    """The reward of one response. Raises RewardError naming function, problem and cause when it raises or returns no finite number."""
    where = f"reward {name} on row {example.name}"
    try:
        value = function(example, text)
    except Exception as error:  # a user's function may raise anything; a wrong reward must not pass for a low one
        given = f"{where}: {type(error).__name__}: {error}"
        raise RewardError(given, rule="a reward function returns a number for every response", remedy="mend the function") from error
    if not isinstance(value, Real) or not abs(value) <= MAX_REWARD:  # nan compares false
        # Python refuses to print a huge int
        shown = f"a number beyond {MAX_REWARD:g}" if isinstance(value, Real) and value == value else repr(value)[:80]
        raise RewardError(f"{where} returned {shown}", rule="a reward is a finite int, float or bool", remedy="mend the function")
    return float(value)
