"""What produced a run: saved beside its configuration, never read back."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from longtake import __version__

PACKAGES = ("torch", "transformers", "numpy", "av", "pydantic", "peft")


def run_meta(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Version and commit of the code, versions of what it stands on (read without importing it), and the command line."""
    return {
        "longtake": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "argv": list(sys.argv if argv is None else argv),
    }


def versions() -> dict[str, str]:
    """Of this package and of what it stands on, as far as it is installed."""
    found = {"longtake": __version__} | {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version is not None}


def git_commit() -> str | None:
    """The commit of the checkout this code runs from, with `+` when files were changed; None when it is not a checkout of ours."""
    here = Path(__file__).resolve().parent
    # An installed package may lie inside a checkout of something else: only a tracked file tells that the commit is ours.
    if _git(here, "ls-files", "--error-unmatch", "meta.py") is None:
        return None
    commit, changes = _git(here, "rev-parse", "HEAD"), _git(here, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else commit + ("+" if changes else "")


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
