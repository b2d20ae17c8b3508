"""How fields are shown in --help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from longtake.config.describe import REQUIRED, default_text, list_fields, suggestion, type_text
from longtake.config.sections import LoraConfig
from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (bool, "true | false"),
        (Path | None, "path | none"),
        (Literal["a", "b"], "a | b"),
        (tuple[float, float], "float, float"),
        (tuple[int, ...], "int, ..."),
        (dict[str, float], "table of float"),
        (LoraConfig | None, "section | none"),
    ],
)
def test_type_text(annotation: object, text: str) -> None:
    assert type_text(annotation) == text


@pytest.mark.parametrize(
    ("default", "text"),
    [
        (REQUIRED, "required"),
        (None, "none"),
        (True, "true"),
        ((), "empty"),
        ((0.9, 0.999), "0.9,0.999"),
        ({"accuracy": 0.9, "format": 0.1}, "accuracy 0.9, format 0.1"),
        (Path("runs/quickstart"), "runs/quickstart"),
    ],
)
def test_default_text(default: object, text: str) -> None:
    assert default_text(default) == text


def test_defaults_are_those_of_the_place() -> None:
    lr = {kind: {field.key: field.default for field in list_fields(kind)}["optimizer.lr"] for kind in (SftConfig, RlConfig)}
    assert lr == {SftConfig: 1e-5, RlConfig: 1e-6}
    evaluate = {field.key: field.default for field in list_fields(EvaluateConfig)}
    assert (evaluate["rollout.temperature"], evaluate["rollout.max_new_tokens"]) == (0.0, 2048)


def test_fields_of_optional_sections_and_constraints() -> None:
    fields = {field.key: field for field in list_fields(RlConfig)}
    assert fields["data.sources.NAME.rows"].default is REQUIRED
    assert fields["validation"].default is None and fields["validation"].section is not None
    assert fields["video.fps"].type_text == "float > 0 | none"
    assert fields["model.lora.dropout"].type_text == "float >= 0, < 1"
    assert fields["video.max_frames"].option == "--video.max-frames"


def test_suggestion() -> None:
    known = ["optimizer.lr", "optimizer.eps", "video.max_frames", "steps"]
    assert suggestion("optimiser.lr", known) == "optimizer.lr"
    assert suggestion("video.frames", known) == "video.max_frames"
    assert suggestion("stps", known) == "steps"
    assert suggestion("zebra", known) is None
