"""What is pinned is what pyproject.toml names, inside its ranges, and installable anywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins() -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): Version(str(requirement.specifier).removeprefix("==")) for requirement in requirements}


def test_every_dependency_is_pinned_inside_its_range():
    pins = _pins()
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_pins_name_no_build():
    """`torch==2.13.0+cpu` would fail where only a CUDA build is offered, and the other way round."""
    assert [f"{name} {version}" for name, version in _pins().items() if version.local] == []


def test_the_versions_the_project_was_built_for():
    pins = _pins()
    assert pins["torch"] == Version("2.13.0") and pins["torchvision"] == Version("0.28.0")
    assert pins["transformers"].release[:2] == (5, 19)
    assert not {"torchaudio", "torchcodec"} & pins.keys()
