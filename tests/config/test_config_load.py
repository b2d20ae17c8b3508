"""One loader for files and options: every problem is told at once, nothing is guessed, and what is saved can be fed back in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, model_validator

from longtake.config import stages
from longtake.config.base import Section
from longtake.config.describe import list_fields
from longtake.config.load import dump_config, load_config
from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig, WorldConfig
from longtake.errors import ConfigError

NEEDED = [("out", "runs/x"), ("data.rows", "rows.jsonl")]
SECTIONS = [kind for kind in vars(stages).values() if isinstance(kind, type) and issubclass(kind, Section)]
KINDS = [kind for kind in SECTIONS if kind.__module__ == stages.__name__]


def rl(*overrides: tuple[str, str], path: Path | None = None) -> RlConfig:
    return load_config(RlConfig, path, [*NEEDED, *overrides])


def refusal(*overrides: tuple[str, str], kind: type[Section] = RlConfig) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, None, [*NEEDED, *overrides])
    return caught.value


def test_values_of_every_type_from_the_command_line() -> None:
    config = rl(
        ("optimizer.lr", "1e-4"),
        ("video.max-frames", "64"),
        ("video.fps", "0.5"),
        ("resume", "false"),
        ("optimizer.betas", "0.9,0.95"),
        ("data.categories", '["goal", "plot"]'),
        ("algorithm.dual_clip", "none"),
        ("algorithm.loss", "gspo"),
        ("algorithm.kl", '{"coefficient": 0.01}'),
        ("data.root", "videos"),
    )
    assert (config.optimizer.lr, config.video.max_frames, config.video.fps, config.resume) == (1e-4, 64, 0.5, False)
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.data.categories == ("goal", "plot")
    assert (config.algorithm.dual_clip, config.algorithm.loss, config.algorithm.kl.coefficient) == (None, "gspo", 0.01)
    assert (config.data.root, config.out) == (Path("videos"), Path("runs/x"))


def test_later_wins_defaults_file_options(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\nsteps = 7\n[optimizer]\nlr = 2e-5\n[algorithm]\ndual_clip = "none"\n')
    config = rl(("steps", "8"), ("steps", "9"), path=file)
    assert (config.seed, config.steps, config.optimizer.lr, config.prompts_per_step) == (3, 9, 2e-5, 16)
    assert config.algorithm.dual_clip is None  # TOML has no null


def test_part_of_a_section_keeps_the_defaults_of_its_owner() -> None:
    """SFT's optimizer starts at 1e-5 and evaluation is greedy; setting a neighbour must not bring back OptimizerConfig's 1e-6."""
    assert SftConfig.model_fields["optimizer"].default.lr == 1e-5
    sft = load_config(SftConfig, None, [*NEEDED, ("optimizer.weight-decay", "0")])
    assert (sft.optimizer.lr, sft.optimizer.weight_decay) == (1e-5, 0.0)
    evaluate = load_config(EvaluateConfig, None, [*NEEDED, ("rollout.max-new-tokens", "32")])
    assert (evaluate.rollout.num_takes, evaluate.rollout.temperature, evaluate.rollout.max_new_tokens) == (1, 0.0, 32)
    in_python = RlConfig.model_validate({"out": "x", "data": {"rows": "r"}, "optimizer": {"lr": 1e-4}})
    assert in_python.optimizer.schedule == "constant"


def test_one_item_of_a_table_keeps_the_others() -> None:
    config = rl(("rewards.weights.format", "0.3"), ("rewards.functions.my-own", "mine.py:score"), ("rewards.weights.my-own", "1"))
    assert config.rewards.weights == {"accuracy": 0.9, "format": 0.3, "my-own": 1.0}
    assert config.rewards.functions == {"my-own": "mine.py:score"}


def test_all_problems_at_once_each_with_value_rule_and_remedy() -> None:
    error = refusal(
        ("optimizer.lr", "abc"),
        ("optimzer.lr", "1"),
        ("video.max-frames", "1"),
        ("algorithm.loss", "clp"),
        ("validation.num-rows", "3"),
        ("algorithm.kl", "x"),
        ("rollout", "[3"),
        ("algorithm.kl.coefficient", "nan"),
    )
    lines = [str(problem) for problem in error.problems]
    assert str(error).splitlines() == ["8 problems in the configuration:", *(f"  {line}" for line in lines)]
    assert all(". Rule: " in line and ". Remedy: " in line for line in lines)
    text = "\n".join(lines)
    assert "unknown option --optimzer.lr" in text and "did you mean --optimizer.lr?" in text
    assert "--optimizer.lr = abc. Rule: must be a valid number" in text
    assert "--video.max-frames = 1. Rule: must be greater than or equal to 2. Remedy: give int >= 2." in text
    assert "--algorithm.loss = clp. Rule: must be 'clip', 'gspo' or 'cispo'. Remedy: did you mean clip?" in text
    assert "validation.data.rows is not set" in text and "pass --validation.data.rows VALUE" in text
    assert "set its fields one by one, e.g. --algorithm.kl.coefficient VALUE" in text
    assert "--algorithm.kl.coefficient = nan. Rule: must be a finite number" in text


def test_missing_fields_are_named_down_to_the_leaf() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RlConfig, None, [])
    assert [problem.given for problem in caught.value.problems] == ["out is not set", "data.rows is not set"]


def test_unknown_key_of_a_file_names_the_file_and_the_nearest_field(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[video]\nmax_frame = 8\n[data]\nlearning = 1\nrows = 'r'\n")
    with pytest.raises(ConfigError) as caught:
        rl(path=file)
    first, second = caught.value.problems
    assert first.given == "unknown field run.toml: video.max_frame" and "did you mean video.max_frames?" in first.remedy
    assert "data.learning" in second.given


def test_a_field_of_another_section_is_suggested_by_its_last_name() -> None:
    assert "did you mean --optimizer.lr?" in refusal(("lr", "1e-4")).remedy
    assert "did you mean --rollout.num-takes?" in refusal(("num_takes", "4")).remedy


@pytest.mark.parametrize(
    ("key", "text", "rule"),
    [
        ("seed", "-1", "greater than or equal to 0"),
        ("steps", "1.5", "valid integer"),
        ("optimizer.lr", "inf", "finite"),
        ("optimizer.lr", "0", "greater than 0"),
        ("optimizer.betas", "0.9", "needs all its items"),
        ("optimizer.betas", "0.9,1.0", "below 1"),
        ("model.lora", "16", "section with fields of its own"),
        ("resume", "maybe", "valid boolean"),
        ("rollout.temperature", "0", "greedy takes of a prompt are all alike"),
        ("rollout.num-takes", "1", "at least 2"),
        ("updates-per-step", "17", "at least one group"),
        ("algorithm.importance.kind", "truncated", "'auto', 'off', 'truncate' or 'mask'"),
        ("algorithm.importance.cap", "0.5", "greater than or equal to 1"),
        ("algorithm.importance.low", "1.5", "less than or equal to 1"),
        ("algorithm.overlong.cache-tokens", "4096", "inside the longest response"),
        ("rewards.weights.overlong", "1", "needs algorithm.overlong"),
        ("rewards.weights.brevity", "1", "each must be one of"),
        ("rewards.functions.accuracy", "a.py:f", "built-in"),
        ("rewards.functions.mine", "a.py", "file.py:function"),
        ("rewards.weights", '{"accuracy": 0}', "at least one weight must not be 0"),
        ("data.max-failed-fraction", "1.1", "less than or equal to 1"),
    ],
)
def test_wrong_values_are_refused_with_their_rule(key: str, text: str, rule: str) -> None:
    error = refusal((key, text))
    assert rule in str(error), str(error)
    assert "\n" not in str(error)


def test_the_smallest_frame_is_not_larger_than_the_largest() -> None:
    error = refusal(("video.min-pixels-per-frame", "300000"), ("video.max-pixels-per-frame", "200704"))
    assert "not be larger than the largest" in str(error)


def test_a_valid_neighbour_of_each_cross_check_is_taken() -> None:
    """Negative control of the checks over several fields."""
    rl(("video.min-pixels-per-frame", "200704"), ("video.max-pixels-per-frame", "200704"))
    rl(("updates-per-step", "16"), ("algorithm.overlong.cache-tokens", "2048"))
    rl(("rewards.weights.overlong", "1"), ("algorithm.overlong.cache-tokens", "100"), ("rollout.num-takes", "2"))


def test_a_plain_value_error_of_a_validator_is_told_too() -> None:
    class Inner(Section):
        low: int = 2

        @model_validator(mode="after")
        def check(self) -> Inner:
            raise ValueError("low is out of season")

    class Outer(Section):
        inner: Inner | None = None

    with pytest.raises(ConfigError, match=r"^--inner. Rule: low is out of season"):
        load_config(Outer, None, [("inner", '{"low": 3}')])
    with pytest.raises(ConfigError, match=r"^the configuration. Rule: low is out of season"):
        load_config(Inner, None, [])


@pytest.mark.parametrize(
    ("engine", "kind", "decided"),
    [
        *[("transformers", "auto", None), ("transformers", "off", None), ("transformers", "mask", "mask")],
        *[("vllm", "auto", "truncate"), ("vllm", "off", None), ("vllm", "truncate", "truncate"), ("vllm", "mask", "mask")],
    ],
)
def test_the_engine_decides_about_importance_correction(engine: str, kind: str, decided: str | None) -> None:
    found = rl(("rollout.engine", engine), ("algorithm.importance.kind", kind)).importance
    assert (None if found is None else (found.kind, found.level, found.cap)) == (None if decided is None else (decided, "token", 2.0))


def test_other_fields_of_the_correction_leave_the_decision_to_the_engine() -> None:
    given = [("algorithm.importance.level", "sequence"), ("algorithm.importance.cap", "5")]
    assert rl(*given).importance is None
    found = rl(("rollout.engine", "vllm"), *given).importance
    assert found is not None and (found.kind, found.level, found.cap, found.low) == ("truncate", "sequence", 5.0, 0.5)


def test_world_ranges() -> None:
    assert "smaller first" in str(refusal(("seconds", "80,48"), kind=WorldConfig).problems[-1])
    config = load_config(WorldConfig, None, [("out", "w"), ("seconds", "80,80"), ("num-scenes", "1,1")])
    assert (config.seconds, config.num_scenes) == ((80.0, 80.0), (1, 1))


def test_a_bool_is_not_a_number(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"steps": true, "resume": true}')
    with pytest.raises(ConfigError, match=r"run.json: steps = True. Rule: must be a number"):
        rl(path=file)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("run.toml", "steps = ", "valid TOML"),
        ("run.toml", "steps = 1\nsteps = 2", "valid TOML"),
        ("run.json", "{", "valid JSON"),
        ("run.json", "[1]", "holds a list"),
        ("run.yaml", "steps: 1", "ends in .toml or .json"),
        ("run.toml", "\udcff", "UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=reason):
        rl(path=tmp_path / name)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="configuration file"):
            rl(path=path)


def test_saved_configuration_feeds_back_in(tmp_path: Path) -> None:
    config = rl(("model.lora.rank", "4"), ("algorithm.dual-clip", "none"), ("validation.data.rows", "v.jsonl"), ("video.fps", "0.1"))
    saved = tmp_path / "config.json"
    saved.write_text(dump_config(config, {"longtake": "9.9.9", "argv": ["--steps", "3"]}))
    assert json.loads(saved.read_text())["_meta"]["longtake"] == "9.9.9"
    assert load_config(RlConfig, saved) == config
    assert load_config(RlConfig, saved, [("steps", "5")]).steps == 5
    assert "_meta" not in json.loads(dump_config(config))


def test_values_in_messages_cannot_forge_lines_or_fill_the_screen() -> None:
    error = refusal(("steps", "1\nerror: all is well\x1b[2J" + "x" * 500))
    assert "\x1b" not in str(error) and "\n" not in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_and_every_field_is_documented(kind: type[Section]) -> None:
    assert kind.__doc__
    undocumented = [field.key for field in list_fields(kind) if not field.doc]
    assert undocumented == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_hides_a_method_of_pydantic(kind: type[Section]) -> None:
    assert [name for name in kind.model_fields if hasattr(BaseModel, name)] == []


def test_configuration_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, longtake.config.load, longtake.config.stages, longtake.config.env, longtake.config.meta\n"
        "from longtake.config.meta import run_meta; run_meta()\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'av') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
