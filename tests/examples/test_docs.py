"""The pages are true: commands parse, configurations load, links resolve, rows are rows, fields exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from longtake.cli import COMMANDS, find_command, main
from longtake.config.curate import CurateConfig
from longtake.config.describe import list_fields
from longtake.config.load import load_config
from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig
from longtake.data.row_files import parse_row
from longtake.data.rows import parse_answer, parse_options
from longtake.rewards.functions import call_function, load_function
from longtake.testing.models import random_tiny
from longtake.types import Example

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("dev/*.md")])
OURS = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("configuration.md", "curation.md", "data.md", "method.md", "vllm.md"))]
KINDS = {"sft": SftConfig, "rl": RlConfig, "evaluate": EvaluateConfig}
TOMLS = sorted((ROOT / "docs" / "examples").glob("*.toml"))


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def blocks(text: str, language: str) -> Iterator[str]:
    """Fenced blocks marked with `language` (empty: unmarked)."""
    for marked, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if marked == language:
            yield body


def fenced_commands(page: Path) -> list[list[str]]:
    lines = [line for body in blocks(page.read_text(encoding="utf-8"), "") for line in body.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("longtake ")]


def inline_commands(page: Path) -> list[list[str]]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(found) for found in re.findall(r"`longtake ([^`]+)`", prose)]


COMMANDS_SHOWN = [(page, arguments) for page in OURS for arguments in fenced_commands(page) + inline_commands(page)]


def test_there_is_something_to_check():
    assert len(COMMANDS_SHOWN) > 20
    assert [path.stem for path in TOMLS] == ["curate", "evaluate", "mixture", "rl", "sft"]


@pytest.mark.parametrize("path", TOMLS, ids=names(TOMLS))
def test_the_examples_load(path: Path):
    if path.stem == "curate":
        curation = load_config(CurateConfig, path)
        assert not curation.out.is_absolute() and not curation.videos.is_absolute()
        return
    config = load_config(KINDS.get(path.stem, RlConfig), path)
    assert not config.out.is_absolute() and not any(part.rows.is_absolute() for part in config.data.parts.values())


def test_the_examples_hand_on_to_each_other():
    """SFT's export is what RL starts from, RL's is what is evaluated, and no two stages share rows."""
    sft, rl, evaluate = (load_config(kind, ROOT / "docs" / "examples" / f"{stem}.toml") for stem, kind in KINDS.items())
    exported = {
        command[1]: command[command.index("--out") + 1] for command in fenced_commands(ROOT / "README.md") if command[0] == "export"
    }
    assert exported == {str(sft.out): rl.model.path, str(rl.out): evaluate.model.path}
    assert len({config.data.rows for config in (sft, rl, evaluate)} | {sft.validation.data.rows}) == 4
    assert sft.video.max_frames == rl.video.max_frames == max(evaluate.frames)
    assert sft.video.max_pixels_per_frame == rl.video.max_pixels_per_frame == evaluate.video.max_pixels_per_frame


@pytest.mark.parametrize(("page", "arguments"), COMMANDS_SHOWN, ids=[" ".join(arguments)[:60] for _, arguments in COMMANDS_SHOWN])
def test_commands_exist_with_their_options(page: Path, arguments: list[str], monkeypatch, capsys):
    """Run with --print-config, which checks every option and file and starts nothing; a bare stage name with --help."""
    monkeypatch.chdir(ROOT)
    if arguments[0].startswith("--"):
        assert main(arguments) == 0
        return
    named = [command for command in COMMANDS if arguments == command.name.split()]
    if arguments[-1] == "runs/my_rl/config.json":  # of a run that the reader has made
        find_command(arguments)
        return
    assert main([*arguments, "--help" if named else "--print-config"]) == 0
    assert capsys.readouterr().out


def test_a_wrong_option_is_noticed(monkeypatch):
    """Negative control of the test above."""
    monkeypatch.chdir(ROOT)
    assert main(["rl", "docs/examples/rl.toml", "--video.max-frame", "3", "--print-config"]) == 2


def test_the_error_that_the_page_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["rl", "docs/examples/rl.toml", "--video.max-frame", "3"])
    shown = next(blocks((ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), "text"))
    assert " ".join(capsys.readouterr().err.split()) == shown.strip()


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_resolve(page: Path):
    text = page.read_text(encoding="utf-8")
    targets = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://", "mailto:"))]
    broken = [link for link in targets if not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []


@pytest.mark.parametrize("page", OURS, ids=names(OURS))
def test_fields_and_paths_named_in_the_text_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    fields = {field.key for command in COMMANDS for field in list_fields(command.kind)}
    sections = {key.partition(".")[0] for key in fields if "." in key}
    dotted = {name for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text) if name.partition(".")[0] in sections}
    assert dotted <= fields, dotted - fields
    options = {name.replace("-", "_") for name in re.findall(r"`--([a-z_-]+(?:\.[a-z_-]+)+)", text)}
    assert {name for name in options if not name.startswith(("rewards.weights.", "data.sources."))} <= fields
    files = re.findall(r"`((?:src|docs|dev|examples|tests)/[\w./-]+)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_modules_named_by_the_method_page_exist():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+/(?:[a-z_]+\.py)?)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "src" / "longtake" / name).exists()] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {name for page in OURS for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {"quickstart", "test", "install"} <= shown <= targets


@pytest.mark.parametrize("page", OURS, ids=names(OURS))
def test_rows_shown_are_rows(page: Path):
    rows = [
        parse_row(json.loads(line), page.name) for body in blocks(page.read_text(encoding="utf-8"), "json") for line in body.splitlines()
    ]
    kinds = [parse_answer(row.answer, parse_options(row.problem, page.name), page.name)[1] for row in rows]
    assert kinds == {"README.md": ["letter"], "data.md": ["letter", "number", "letter"]}.get(page.name, [])


def test_the_reward_of_the_example(monkeypatch):
    monkeypatch.chdir(ROOT)
    brevity = load_function("docs/examples/rewards.py:brevity")
    example = Example(1, "?", (), "x", "text", "plot", "", (), None, None)
    assert [call_function("brevity", brevity, example, "x" * count) for count in (0, 250, 5000)] == [1.0, 0.75, 0.0]


def test_the_readme_has_its_place_for_the_measured_table():
    assert "<!-- quickstart-table -->" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_readmes_commands_run(tmp_path: Path, monkeypatch, capsys):
    """Your own videos, from world make to ask, at the sizes the README gives for trying them; a random model stands for the tiny one."""
    random_tiny(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    for seed, part in enumerate(("sft", "rl", "validation", "test"), 1):
        assert main(["world", "make", "--out", f"my_videos/{part}", "--num-videos", "3", "--seed", str(seed)]) == 0
    commands = fenced_commands(ROOT / "README.md")
    small = {command[0]: command for command in commands if "--video.max-pixels-per-frame" in command}
    exports = [command for command in commands if command[0] == "export"]
    ask = next(command for command in commands if command[0] == "ask" and "runs/my_rl_model" in command)
    small["sft"][small["sft"].index("tiny")] = "random_tiny_0"
    for command in (small["sft"], exports[0], small["rl"], exports[1], small["evaluate"], [*ask, "--rollout.max-new-tokens", "8"]):
        assert main(command) == 0, command
    assert main(["rl", "runs/my_rl/config.json", "--steps", "3"]) == 0  # goes on
    assert main(["report", "runs/my_rl"]) == 0
    lines = (tmp_path / "runs/my_rl/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    for file in ("my_rl/config.json", "my_rl/takes.jsonl", "my_rl/tensorboard", "my_rl/report.html", "my_evaluation/answers.jsonl"):
        assert (tmp_path / "runs" / file).exists(), file
    results = json.loads((tmp_path / "runs/my_evaluation/results.json").read_text())
    assert results["summary"]["n"] == 12 and list(results["summary"]["by_frames"]) == ["16", "64"]
