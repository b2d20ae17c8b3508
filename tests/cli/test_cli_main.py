"""The command line as a user meets it: what reaches the stage, what is printed where, and with which exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from longtake import __version__
from longtake.cli import COMMANDS, main
from longtake.config.base import Section
from longtake.config.describe import list_fields
from longtake.config.stages import AskConfig, BenchDecodeConfig, ExportConfig, ReportConfig, RlConfig, WorldConfig
from longtake.errors import StopRequested, VideoDamagedError

RL = ["rl", "--out", "runs/x", "--data.rows", "rows.jsonl"]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands for every stage: keeps the configuration it was run with, then does `act`."""
    seen = types.SimpleNamespace(module=None, config=None, act=lambda: None)
    for command in COMMANDS:
        module = types.ModuleType(command.module)

        def run(config: Section, name: str = command.module) -> None:
            seen.module, seen.config = name, config
            seen.act()

        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, command.module, module)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LONGTAKE_TRACEBACK", raising=False)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize(
    ("argv", "module", "expected"),
    [
        ([*RL, "--steps", "3", "--optimizer.lr=1e-4", "--video.max_frames", "8"], "rl", {"steps": 3}),
        (["world", "make", "--out", "w", "--num-videos", "2", "--variable-rate"], "world", {"num_videos": 2, "variable_rate": True}),
        (["ask", "--video", "v.mp4", "who waits?"], "ask", {"video": Path("v.mp4"), "question": "who waits?"}),
        (["ask", "who waits?", "--video=v.mp4"], "ask", {"question": "who waits?"}),
        (["ask", "--video", "v.mp4", "--question", "-", "--seed", "1"], "ask", {"question": "-", "seed": 1}),
        (["bench", "decode", "--json", "--frames", "64"], "bench", {"as_json": True, "frames": 64}),
        (["bench", "decode", "--frames", "64"], "bench", {"as_json": False}),
        (["bench", "decode", "--json", "false"], "bench", {"as_json": False}),
        (["bench", "update", "--prompt", "64", "--json"], "bench_update", {"prompt": 64, "as_json": True}),
        (["report", "runs/x"], "report", {"run": Path("runs/x")}),
        (["export", "runs/x", "--out", "model"], "export", {"run": Path("runs/x"), "out": Path("model")}),
        (["quickstart"], "quickstart", {"out": Path("runs/quickstart"), "seed": 0}),
        ([*RL, "--resume", "--seed", "4"], "rl", {"resume": True, "seed": 4}),
        ([*RL, "--resume", "no"], "rl", {"resume": False}),
    ],
)
def test_what_reaches_the_stage(stage: types.SimpleNamespace, argv: list[str], module: str, expected: dict[str, object]) -> None:
    assert main(argv) == 0
    assert stage.module == f"longtake.stages.{module}"
    assert {name: getattr(stage.config, name) for name in expected} == expected


def test_model_is_a_short_form_where_there_is_a_model(stage: types.SimpleNamespace) -> None:
    main(["ask", "--model", "dir", "--video", "v.mp4", "q"])
    assert isinstance(stage.config, AskConfig) and stage.config.model.path == "dir"
    main(["ask", "--video", "v.mp4", "q"])
    assert stage.config.model.path == "tiny"
    main([*RL, "--model=dir", "--model.dtype", "bfloat16"])
    assert (stage.config.model.path, stage.config.model.dtype) == ("dir", "bfloat16")


def test_configuration_file_bare_or_as_option(stage: types.SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "rl.toml"
    file.write_text("out = 'runs/y'\nsteps = 4\nseed = 9\ndata.rows = 'r'\n")
    for argv in (["rl", str(file), "--steps", "5"], ["rl", "--steps", "5", "--config", str(file)], ["rl", f"--config={file}", "--steps=5"]):
        assert main(argv) == 0
        assert (stage.config.steps, stage.config.seed, stage.config.out) == (5, 9, Path("runs/y"))


def test_print_config_is_the_resolved_one_and_runs_nothing(
    stage: types.SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RL, "--seed", "6", "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert stage.config is None and err == ""
    (tmp_path / "again.json").write_text(out)
    assert main(["rl", str(tmp_path / "again.json")]) == 0
    assert stage.config == RlConfig.model_validate(json.loads(out)) and stage.config.seed == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rll"], "unknown stage rll. Rule: the stages are quickstart, ask, world make"),
        (["rll"], "did you mean longtake rl?"),
        (["tiny", "trian"], "did you mean longtake tiny train?"),
        (["--seed", "1"], "unknown stage --seed"),
        ([*RL, "--optimzer.lr", "1"], "did you mean --optimizer.lr?"),
        ([*RL, "--seed"], "--seed without a value. Rule: an option is followed by its value"),
        ([*RL, "--seed", "--steps", "3"], "--seed without a value"),
        ([*RL, "-s", "3"], "options begin with two dashes"),
        ([*RL, "a.toml", "b.toml"], "longtake rl takes one, the configuration file"),
        (["rl", "none.toml"], "configuration file none.toml: No such file or directory"),
        (["ask", "--video", "v.mp4", "who", "waits"], "bare arguments who, waits"),
        (["ask", "q"], "video is not set"),
        (["ask", "--video", "v.mp4", ""], "at least 1 character"),
        (["report"], "run is not set"),
        ([*RL, "--seed", "-1"], "--seed = -1. Rule: must be greater than or equal to 0"),
    ],
)
def test_errors_of_use_are_one_clear_message(
    stage: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in refused(capsys, *argv)
    assert stage.config is None


def test_several_problems_are_told_at_once(stage: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "rl", "--seed", "x", "--lr", "1e-4").splitlines()
    assert lines[0] == "error: 4 problems in the configuration:"
    assert len(lines) == 5  # --lr, --seed, out, data.rows


def test_an_error_of_the_users_files_is_one_line_and_exit_code_2(
    stage: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act() -> None:
        raise VideoDamagedError("[red]x.mp4[/red] is cut", rule="a video is whole", remedy="copy it again")

    stage.act = act
    assert refused(capsys, *RL) == "error: [red]x.mp4[/red] is cut. Rule: a video is whole. Remedy: copy it again.\n"
    monkeypatch.setenv("LONGTAKE_TRACEBACK", "1")
    with pytest.raises(VideoDamagedError):
        main(RL)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_told_with_what_was_saved(
    stage: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], number: signal.Signals, exit_code: int
) -> None:
    def act() -> None:
        raise StopRequested("saved step 12 in runs/x", number)

    stage.act = act
    assert main(RL) == exit_code
    assert capsys.readouterr().err == "stopped: saved step 12 in runs/x\n"


def test_second_ctrl_c(stage: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        raise KeyboardInterrupt

    stage.act = act
    assert main(RL) == 130
    assert "stopped at once" in capsys.readouterr().err


def test_our_own_faults_keep_their_traceback(stage: types.SimpleNamespace) -> None:
    def act() -> None:
        raise ZeroDivisionError

    stage.act = act
    with pytest.raises(ZeroDivisionError):
        main(RL)


def test_several_processes_are_refused(
    stage: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stages that would do their work twice; those that share it are started."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["report", "runs/x"]) == 2
    assert capsys.readouterr().err.startswith("rank 1: error: WORLD_SIZE = 2")
    assert stage.config is None
    assert main(RL) == 0 and stage.config is not None


def test_overview_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    assert all(f"  {command.name}  " in bare for command in COMMANDS)
    assert main(["world"]) == 2 and main(["world", "--help"]) == 0
    out = capsys.readouterr().out
    assert "world make" in out and "tiny train" not in out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_lists_every_field_with_type_default_and_doc(capsys: pytest.CaptureFixture[str], command) -> None:  # type: ignore[no-untyped-def]
    assert main([*command.name.split(), "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert command.summary and command.summary in out
    for field in list_fields(command.kind):
        assert field.doc in out, field.key
        assert (f"{field.key}:" if field.section else f" {field.option} ") in out
        assert field.section or field.type_text in out


def test_commands_fit_their_configurations() -> None:
    kinds = {command.name: command.kind for command in COMMANDS}
    assert kinds["world make"] is WorldConfig and kinds["bench decode"] is BenchDecodeConfig
    assert kinds["report"] is ReportConfig and kinds["export"] is ExportConfig
    for command in COMMANDS:
        keys = {field.key for field in list_fields(command.kind)}
        assert {*command.aliases.values(), *([command.argument] if command.argument else [])} <= keys
        assert command.kind.__doc__ and command.kind.__doc__.startswith(f"`longtake {command.name}"), "the doc string names the command"


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, check=False)


def test_python_dash_m() -> None:
    done = run_python("-m", "longtake", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"longtake {__version__}\n", "")
    done = run_python("-m", "longtake", "rl")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


def test_help_and_mistakes_do_not_load_torch() -> None:
    code = (
        "import sys; from longtake.cli import main; main(['rl', '--help']); main(['rl', '--lr', '1'])\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'av') if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


def test_curation_does_not_load_torch_before_a_policy_is_asked() -> None:
    code = "import sys, longtake.stages.curate; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"
