"""Named rewards by hand, user functions with their failures, DAPO's overlong punishment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from longtake.config.sections import OverlongConfig, RewardConfig
from longtake.errors import ConfigError, RewardError
from longtake.rewards import Rewards, overlong_reward
from longtake.rewards.functions import load_function
from longtake.types import Example, FinishReason, Option, Take

EXAMPLE = Example(
    problem_id=41,
    question="Which?\nA. red\nB. blue",
    options=(Option("A", "red"), Option("B", "blue")),
    answer="B",
    answer_kind="letter",
    category="plot",
    reasoning="",
    media=(),
    subtitles=None,
    duration_s=None,
)
TEXTS = ("<think>a</think><answer>B</answer>", "<think>a</think><answer>A</answer>", "<answer>blue</answer>", "B")


def take(text: str, num_tokens: int = 5, finish_reason: FinishReason = "stop") -> Take:
    return Take(torch.zeros(num_tokens, dtype=torch.int64), torch.zeros(num_tokens), finish_reason, text, 0)


def user_file(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(body)
    return f"{path}:reward"


def test_accuracy_and_format_with_the_default_weights() -> None:
    scores = Rewards(RewardConfig(), 64).score(EXAMPLE, [take(text) for text in TEXTS])
    assert scores.named["accuracy"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert scores.named["format"].tolist() == [1.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(scores.total, torch.tensor([1.0, 0.1, 0.9, 0.0]), atol=0, rtol=1e-7)
    assert scores.valid.tolist() == [True] * 4
    assert set(scores.named) == {"accuracy", "format"}


def test_a_source_has_weights_of_its_own() -> None:
    """Those of the run for a source without any; overlong weighs 1 unless it is given a weight."""
    takes = [take(TEXTS[0], num_tokens=100), take(TEXTS[1], num_tokens=10)]
    of_sources = {"a": {"format": 2.0}, "b": {}, "c": {"accuracy": 1.0, "overlong": 0.0}}
    rewards = Rewards(RewardConfig(), 100, OverlongConfig(cache_tokens=20), of_sources=of_sources)
    totals = {source: rewards.score(replace(EXAMPLE, source=source), takes).total.tolist() for source in ("", "a", "b", "c", "d")}
    run = pytest.approx([0.9 + 0.1 - 1.0, 0.1])
    assert totals == {"": run, "a": pytest.approx([2.0 - 1.0, 2.0]), "b": run, "c": [1.0, 0.0], "d": run}


def test_a_function_is_asked_about_the_rows_of_sources_that_name_it(tmp_path: Path) -> None:
    """A reward for boxes need not make sense of texts."""
    body = "    assert example.source == 'boxes'\n    return 0.5\n"
    config = RewardConfig(
        weights={"accuracy": 1.0, "mine": 0.0}, functions={"mine": user_file(tmp_path, f"def reward(example, text):\n{body}")}
    )
    own = {"boxes": {"mine": 1.0}, "texts": {"accuracy": 2.0}}
    boxes, texts = (
        Rewards(config, 64, of_sources=own).score(replace(EXAMPLE, source=source), [take(TEXTS[0])]) for source in ("boxes", "texts")
    )
    assert boxes.total.tolist() == [0.5] and boxes.named["mine"].tolist() == [0.5]
    assert texts.total.tolist() == [2.0] and texts.named["mine"].isnan().all() and texts.valid.all()
    with pytest.raises(RewardError, match="reward mine on row others/41"):
        Rewards(config, 64, of_sources=own).score(replace(EXAMPLE, source="others"), [take(TEXTS[0])])


def test_equal_takes_have_equal_totals() -> None:
    """Bit for bit, so that a uniform group is seen as one."""
    weights = {"accuracy": 0.7, "format": 0.1}
    total = Rewards(RewardConfig(weights=weights), 64).score(EXAMPLE, [take(TEXTS[0])] * 8).total
    assert total.unique().numel() == 1


def test_a_reward_without_weight_is_logged_and_counts_nothing() -> None:
    scores = Rewards(RewardConfig(weights={"accuracy": 2.0}), 64).score(EXAMPLE, [take(TEXTS[0]), take(TEXTS[1])])
    assert scores.named["format"].tolist() == [1.0, 1.0]
    assert scores.total.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("num_tokens", "reward"),
    [(1, 0.0), (79, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (500, -1.0)],
)
def test_overlong_by_hand(num_tokens: int, reward: float) -> None:
    assert overlong_reward(num_tokens, max_new_tokens=100, cache_tokens=20) == pytest.approx(reward, abs=1e-15)


def test_overlong_counts_with_weight_one_unless_told_otherwise() -> None:
    takes = [take(TEXTS[0], num_tokens) for num_tokens in (80, 90, 100)]
    scores = Rewards(RewardConfig(), 100, OverlongConfig(cache_tokens=20)).score(EXAMPLE, takes)
    assert scores.named["overlong"].tolist() == [0.0, -0.5, -1.0]
    torch.testing.assert_close(scores.total, torch.tensor([1.0, 0.5, 0.0]), atol=1e-7, rtol=0)
    weights = {"accuracy": 1.0, "overlong": 0.5}
    scores = Rewards(RewardConfig(weights=weights), 100, OverlongConfig(cache_tokens=20)).score(EXAMPLE, takes)
    assert scores.total.tolist() == [1.0, 0.75, 0.5]


def test_mask_truncated() -> None:
    takes = [take(TEXTS[0], 100, "length"), take(TEXTS[0], 100, "stop")]
    for mask_truncated, valid in ((True, [False, True]), (False, [True, True])):
        overlong = OverlongConfig(cache_tokens=20, mask_truncated=mask_truncated)
        assert Rewards(RewardConfig(), 100, overlong).score(EXAMPLE, takes).valid.tolist() == valid


def test_user_function_from_a_file(tmp_path: Path) -> None:
    spec = user_file(tmp_path, "def reward(example, response_text):\n    return len(response_text) / 100 + (example.answer == 'B')\n")
    config = RewardConfig(weights={"accuracy": 1.0, "length": 0.5}, functions={"length": spec})
    scores = Rewards(config, 64).score(EXAMPLE, [take(TEXTS[3]), take(TEXTS[0])])
    torch.testing.assert_close(scores.named["length"], torch.tensor([1.01, 1.34]), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.total, torch.tensor([0.505, 1.67]), atol=1e-6, rtol=0)


def test_user_function_from_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_longtake_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "brief.py").write_text("def reward(example, response_text):\n    return len(response_text) < 10\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = RewardConfig(weights={"brief": 1.0}, functions={"brief": "my_longtake_rewards.brief:reward"})
    assert Rewards(config, 64).score(EXAMPLE, [take("B"), take(TEXTS[0])]).total.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise KeyError('gone')", "KeyError: 'gone'"),
        ("return None", "returned None"),
        ("return '1.0'", "returned '1.0'"),
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned a number beyond 1e+30"),
        ("return [1.0]", "returned [1.0]"),
        ("return 10 ** 400", "returned a number beyond 1e+30"),
        ("return unknown_name", "NameError"),
        ("return 10 ** 5000", "returned a number beyond 1e+30"),
        ("return 1j", "returned 1j"),
    ],
)
def test_a_user_function_that_fails_names_itself_the_problem_and_the_cause(tmp_path: Path, body: str, message: str) -> None:
    spec = user_file(tmp_path, f"def reward(example, response_text):\n    {body}\n")
    rewards = Rewards(RewardConfig(weights={"mine": 1.0}, functions={"mine": spec}), 64)
    with pytest.raises(RewardError) as caught:
        rewards.score(EXAMPLE, [take("B")])
    assert "reward mine on row 41" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "a colon"),
        ("/no/such/file.py:reward", "no file"),
        ("no_such_module_at_all:reward", "ModuleNotFoundError"),
        ("json:no_such_function", "has no function"),
        ("json:__doc__", "has no function"),
        ("json:loads()", "a colon"),
        (":reward", "a colon"),
        ("json:", "a colon"),
    ],
)
def test_functions_that_cannot_be_loaded(spec: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load_function(spec)


@pytest.mark.parametrize("body", ["def reward(:", "raise SystemError('bad')", "import no_such_module_at_all", "x = 1"])
def test_files_that_cannot_be_loaded(tmp_path: Path, body: str) -> None:
    with pytest.raises(RewardError, match=r"mine\.py"):
        Rewards(RewardConfig(weights={"mine": 1.0}, functions={"mine": user_file(tmp_path, body)}), 64)


def test_unknown_reward_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"accuracy.*format.*overlong"):
        RewardConfig(weights={"acuracy": 1.0})


def test_config_problems_are_told_all_at_once() -> None:
    config = RewardConfig(weights={"accuracy": 1.0, "overlong": 1.0}, functions={"one": "json:loads", "two": "json:loads"})
    with pytest.raises(ConfigError) as caught:
        Rewards(config, 64)
    for part in ("'one' has no weight", "'two' has no weight", "'overlong' without"):
        assert part in str(caught.value)


def test_overlong_zone_longer_than_the_response() -> None:
    with pytest.raises(ConfigError, match="cache_tokens 65 > max_new_tokens 64"):
        Rewards(RewardConfig(), 64, OverlongConfig(cache_tokens=65))


def test_config_may_come_from_json() -> None:
    config = RewardConfig.model_validate(json.loads('{"weights": {"accuracy": 1, "format": 0}}'))
    assert Rewards(config, 64).score(EXAMPLE, [take(TEXTS[2])]).total.tolist() == [1.0]
