"""Mixtures: how they are configured, in which order their rows come, and what each source keeps of its own."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.cli import main
from longtake.config.load import dump_config, load_config
from longtake.config.plan import PlanConfig
from longtake.config.sections import DataConfig
from longtake.config.stages import EvaluateConfig, RlConfig, SftConfig
from longtake.data.order import CIRCLE, STEP, Mixture, epoch_order, floor_sum, num_between
from longtake.data.row_files import write_rows
from longtake.data.rows import check_failures, in_turn, read_examples, read_sourced
from longtake.errors import ConfigError, RowError
from longtake.types import Example, Failure, Row

SIZES, WEIGHTS = {"a": 5, "b": 3, "c": 1}, {"a": 2.0, "b": 1.0, "c": 0.5}


# ------------------------------------------------------------------------------------------------------------------- order
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_the_sum_of_floors_is_the_sum_of_floors(count: int, modulus: int, step: int, offset: int) -> None:
    assert floor_sum(count, modulus, step, offset) == sum((offset + index * step) // modulus for index in range(count))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(0, CIRCLE - 1), st.tuples(st.integers(0, CIRCLE), st.integers(0, CIRCLE)).map(sorted))
def test_points_are_counted_as_one_by_one(count: int, offset: int, bounds: list[int]) -> None:
    low, high = bounds
    slow = sum(low <= (offset + place * STEP) % CIRCLE < high for place in range(count))
    assert num_between(count, offset, low, high) == slow


def sources_of(rows: list[int]) -> list[str]:
    """a: rows 0 to 4, b: 5 to 7, c: 8."""
    return ["a" if row < 5 else "b" if row < 8 else "c" for row in rows]


def test_every_stretch_has_each_sources_share_of_it() -> None:
    """2 : 1 : 0.5 of 3.5. Measured: at most 2.4 rows off in 20 seeds, the first 1,000 positions."""
    for seed in range(20):
        counts: Counter[str] = Counter()
        for drawn, source in enumerate(sources_of(Mixture(SIZES, WEIGHTS, seed).at(0, 1000)), 1):
            counts[source] += 1
            off = [abs(counts[name] - Fraction(drawn) * Fraction(weight) / Fraction(3.5)) for name, weight in WEIGHTS.items()]
            assert max(off) < 3
        assert counts["a"] in range(569, 575) and counts["b"] in range(283, 289) and counts["c"] in range(140, 146)


def test_each_source_goes_through_its_own_epochs() -> None:
    """Its k-th row is row k of its own permutations, one after the other: nothing is left out and nothing comes twice in an epoch."""
    rows = Mixture(SIZES, WEIGHTS, 3).at(0, 400)
    for name, first in (("a", 0), ("b", 5), ("c", 8)):
        own = [row - first for row, source in zip(rows, sources_of(rows), strict=True) if source == name]
        size = SIZES[name]
        wanted = [row for epoch in range(len(own) // size + 1) for row in epoch_order(size, 3, epoch, name)]
        assert own == wanted[: len(own)] and len(own) > 3 * size


def test_the_order_hangs_on_seed_and_position_alone() -> None:
    mixture = Mixture(SIZES, WEIGHTS, 7)
    whole = mixture.at(0, 300)
    assert [row for start in range(0, 300, 7) for row in mixture.at(start, min(7, 300 - start))] == whole
    assert Mixture(dict(SIZES), dict(WEIGHTS), 7).at(123, 50) == whole[123:173]
    assert Mixture(SIZES, WEIGHTS, 8).at(0, 300) != whole
    assert Mixture(SIZES, {name: 4 * weight for name, weight in WEIGHTS.items()}, 7).at(0, 300) == whole, "weights are relative"
    assert Mixture(SIZES, WEIGHTS | {"c": 0.6}, 7).at(0, 300) != whole


def test_the_stream_of_a_mixture_is_pinned() -> None:
    """A resumed run must find the order of the run it resumes, whatever the versions."""
    assert Mixture(SIZES, WEIGHTS, 0).at(0, 12) == PINNED


PINNED = [5, 1, 4, 7, 2, 8, 0, 3, 6, 4, 8, 5]


def test_a_far_position_costs_no_walk_to_it() -> None:
    """Position 10^15: one by one it would take years. 10^15 * 2 / 3.5 rows of source a were drawn before; measured: 23 more."""
    far = 10**15
    low, high = Mixture(SIZES, WEIGHTS, 0)._shares()[0]
    drawn = num_between(far, Mixture(SIZES, WEIGHTS, 0)._offset, low, high)
    assert abs(drawn - Fraction(far * 2) / Fraction(3.5)) < 50
    assert len(Mixture(SIZES, WEIGHTS, 0).at(far, 4)) == 4


def test_two_sources_of_one_size_do_not_share_their_order() -> None:
    assert epoch_order(20, 0, 0, "a") != epoch_order(20, 0, 0, "b") != epoch_order(20, 0, 0)


def test_rows_in_front_come_before_the_mixture() -> None:
    mixture = Mixture(SIZES, WEIGHTS, 1)
    front = (8, 2)
    assert mixture.at(0, 6, front) == [8, 2, *mixture.at(0, 4)]
    assert mixture.at(1, 3, front) == [2, *mixture.at(0, 2)]
    assert mixture.at(5, 3, front) == mixture.at(3, 3)


# ----------------------------------------------------------------------------------------------------------- configuration
SFT = {"out": "runs/x"}


def loaded(kind: Any, tmp_path: Path, data: dict[str, Any], *overrides: tuple[str, str], **more: Any) -> Any:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SFT, "data": data, **more}))
    return load_config(kind, path, overrides)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "neither rows nor sources are set"),
        ({"max_rows": 3}, "neither rows nor sources are set"),
        ({"rows": "r.jsonl", "sources": {"a": {"rows": "a.jsonl"}}}, "rows and sources are both set"),
        ({"sources": {"a": {"rows": "a.jsonl"}}, "root": "x", "max_rows": 2}, "root beside sources, max_rows beside sources"),
        ({"sources": {"a": {"rows": "a.jsonl"}}, "categories": ["plot"]}, "categories beside sources"),
        ({"sources": {"a": {"rows": "a.jsonl"}}, "format": "video_r1"}, "format beside sources"),
        ({"sources": {"a b": {"rows": "a.jsonl"}}}, "a source named 'a b'"),
        ({"sources": {"a/b": {"rows": "a.jsonl"}}}, "a source named 'a/b'"),
        ({"sources": {"": {"rows": "a.jsonl"}}}, "a source named ''"),
        ({"sources": {"a": {"rows": "a.jsonl", "weight": 0}}}, "data.sources.a.weight = 0"),
        ({"sources": {"a": {"rows": "a.jsonl", "weight": -1}}}, "data.sources.a.weight = -1"),
        ({"sources": {"a": {"rows": "a", "weight": 1e-7}, "b": {"rows": "b"}}}, "data.sources.a.weight = 1e-07 beside 1 in all"),
        ({"sources": {"a": {"rows": "a.jsonl", "wieght": 2}}}, "did you mean data.sources.NAME.weight"),
        ({"sources": {"a": {}}}, "data.sources.a.rows is not set"),
        ({"sources": {"a": {"rows": "a.jsonl", "format": "vidoe_r1"}}}, "did you mean video_r1"),
    ],
)
def test_what_is_no_mixture_is_told(tmp_path: Path, data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(SftConfig, tmp_path, data)
    assert told in str(caught.value)


def test_all_problems_of_a_mixture_are_told_at_once(tmp_path: Path) -> None:
    data = {"sources": {"a": {"weight": 0}, "b": {"rows": "b.jsonl", "max_rows": 0}}}
    with pytest.raises(ConfigError) as caught:
        loaded(SftConfig, tmp_path, data, ("data.sources.c.rwos", "c.jsonl"))
    told = str(caught.value)
    for one in (
        "data.sources.a.rows is not set",
        "data.sources.a.weight = 0",
        "data.sources.b.max_rows = 0",
        "option --data.sources.c.rwos",
    ):
        assert one in told


def test_a_missing_section_names_rows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SFT))
    with pytest.raises(ConfigError, match=r"pass --data\.rows VALUE"):
        load_config(SftConfig, tmp_path / "config.json")


def test_the_command_line_makes_and_changes_a_mixture(tmp_path: Path) -> None:
    config = loaded(
        RlConfig,
        tmp_path,
        {"sources": {"kitchen": {"rows": "k.jsonl", "weight": 3}}},
        ("data.sources.kitchen.weight", "2"),
        ("data.sources.kitchen.max-rows", "10"),
        ("data.sources.my_own-rows.rows", "m.jsonl"),
        ("data.sources.my_own-rows.with-subtitles", "true"),
        ("data.sources.my_own-rows.rewards.format", "1"),
        ("data.sources.my_own-rows.categories", "plot,goal"),
        ("data.sources.third", '{"rows": "t.jsonl", "weight": 0.5}'),
    )
    kitchen, own, third = (config.data.sources[name] for name in ("kitchen", "my_own-rows", "third"))
    assert (kitchen.rows, kitchen.weight, kitchen.max_rows) == (Path("k.jsonl"), 2.0, 10)
    assert (own.with_subtitles, own.rewards, own.categories, own.weight) == (True, {"format": 1.0}, ("plot", "goal"), 1.0)
    assert third.weight == 0.5 and list(config.data.parts) == ["kitchen", "my_own-rows", "third"]


def test_a_resolved_configuration_can_be_fed_back(tmp_path: Path) -> None:
    config = loaded(EvaluateConfig, tmp_path, {"sources": {"a": {"rows": "a.jsonl", "root": "r"}}})
    (tmp_path / "again.json").write_text(dump_config(config))
    assert load_config(EvaluateConfig, tmp_path / "again.json") == config
    single = loaded(EvaluateConfig, tmp_path, {"rows": "a.jsonl", "root": "r", "max_rows": 4, "categories": ["plot"], "format": "video_r1"})
    (tmp_path / "again.json").write_text(dump_config(single))
    assert load_config(EvaluateConfig, tmp_path / "again.json") == single
    (part,) = single.data.parts.values()
    assert (part.rows, part.root, part.max_rows, part.categories, part.format) == (Path("a.jsonl"), Path("r"), 4, ("plot",), "video_r1")


def test_a_mixture_takes_the_place_of_the_plans_default_rows(tmp_path: Path) -> None:
    assert loaded(PlanConfig, tmp_path, {"sources": {"a": {"rows": "a.jsonl"}}}).data.rows is None
    assert load_config(PlanConfig, None, [("data.sources.a.rows", "a.jsonl")]).data.parts["a"].rows == Path("a.jsonl")
    assert load_config(PlanConfig, None).data.rows == Path("rows.jsonl")


def test_the_validation_may_be_a_mixture(tmp_path: Path) -> None:
    validation = {"data": {"sources": {"a": {"rows": "a.jsonl"}}}}
    config = loaded(SftConfig, tmp_path, {"rows": "r.jsonl"}, ("validation.data.sources.b.rows", "b.jsonl"), validation=validation)
    assert list(config.validation.data.sources) == ["a", "b"]


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ({"accurcay": 1.0}, "each must be one of ['accuracy', 'format', 'mine']"),
        ({"overlong": 1.0}, "each must be one of ['accuracy', 'format', 'mine']"),
        ({"accuracy": 0.0}, "at least one weight must not be 0"),
        ({"mine": 1.0, "accuracy": 0.5}, None),
    ],
)
def test_rewards_of_a_source_are_known_ones(tmp_path: Path, rewards: dict[str, float], told: str | None) -> None:
    data = {"sources": {"a": {"rows": "a.jsonl", "rewards": rewards}}}
    own = {"weights": {"accuracy": 1.0, "mine": 0.0}, "functions": {"mine": "m.py:f"}}
    if told is None:
        assert loaded(RlConfig, tmp_path, data, rewards=own).data.sources["a"].rewards == rewards
        return
    with pytest.raises(ConfigError) as caught:
        loaded(RlConfig, tmp_path, data, rewards=own)
    assert told in str(caught.value) and "data.sources.a.rewards" in str(caught.value)


def test_help_shows_the_fields_of_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--data.sources.NAME.weight" in told and "--data.sources.NAME.with-subtitles" in told
    assert "--validation.data.sources.NAME.rows" in told


# -------------------------------------------------------------------------------------------------------------------- rows
def row(number: int, **fields: Any) -> Row:
    given = Row(number, f"Who is it, {number}?\nA. red\nB. blue", "text", "plot", "see", (), "<answer>A</answer>")
    return replace(given, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files with the same ids and the same name of a video, each in a folder of its own; the second one's third row is malformed."""
    for name, seconds in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "v.mp4").write_bytes(name.encode())
        (tmp_path / name / "v.srt").write_text(f"1\n00:00:0{seconds},000 --> 00:00:0{seconds + 1},000\nsaid in {name}\n")
        rows = [row(number, data_type="video", videos=("v.mp4",), subtitles="v.srt") for number in (1, 2, 3)]
        rows[0] = replace(rows[0], problem_type="goal")
        write_rows(tmp_path / name / "rows.jsonl", rows)
    lines = (tmp_path / "two" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "two" / "rows.jsonl").write_text("\n".join([*lines[:2], lines[2].replace("<answer>A", "<answer>Z")]) + "\n")
    return tmp_path


def mixture(folder: Path, **sources: dict[str, Any]) -> DataConfig:
    parts = {name: {"rows": folder / name / "rows.jsonl", **fields} for name, fields in sources.items()}
    return DataConfig.model_validate({"sources": parts})


def test_each_source_has_its_own_root_ids_and_failures(folder: Path) -> None:
    items = read_examples(mixture(folder, one={}, two={}))
    assert [(item.source, item.problem_id, item.name) for item in items] == [
        *(("one", number, f"one/{number}") for number in (1, 2, 3)),
        *(("two", number, f"two/{number}") for number in (1, 2, 3)),
    ]
    assert [isinstance(item, Failure) for item in items] == [False] * 5 + [True]
    paths = [item.media[0].path.parent.name for item in items if isinstance(item, Example)]
    assert paths == ["one"] * 3 + ["two"] * 2
    (alone,) = {item.name for item in read_examples(DataConfig(rows=folder / "one" / "rows.jsonl", max_rows=1))}
    assert alone == 1, "the rows of one file keep their numbers"


def test_each_source_chooses_its_own_rows(folder: Path) -> None:
    items = read_examples(mixture(folder, one={"categories": ["plot"], "max_rows": 1}, two={"categories": ["goal"]}))
    assert [item.name for item in items] == ["one/2", "two/1"]
    with pytest.raises(RowError, match=r"two/rows\.jsonl has no row of category spatial.*change data\.sources\.two\.categories"):
        read_examples(mixture(folder, one={}, two={"categories": ["spatial"]}))


def test_subtitles_by_source(folder: Path) -> None:
    def told(config: DataConfig) -> dict[str, str | None]:
        return {str(item.name): item.subtitles for item in read_examples(config) if isinstance(item, Example) and item.problem_id == 1}

    assert told(mixture(folder, one={}, two={"with_subtitles": True})) == {"one/1": None, "two/1": "said in two"}
    everywhere = mixture(folder, one={}, two={"with_subtitles": False}).model_copy(update={"with_subtitles": True})
    assert told(everywhere) == {"one/1": "said in one", "two/1": None}


def test_each_source_has_its_own_format(folder: Path) -> None:
    theirs = {"id": "x", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "The red circle."}]}
    (folder / "theirs.json").write_text(json.dumps([theirs]))
    parts = {"one": {"rows": folder / "one" / "rows.jsonl"}, "theirs": {"rows": folder / "theirs.json", "format": "llava_video"}}
    items = read_examples(DataConfig.model_validate({"sources": parts}))
    assert [type(item) for item in items] == [Example] * 4 and items[-1].source == "theirs"


def test_failures_of_all_sources_are_counted_together(folder: Path) -> None:
    items = read_examples(mixture(folder, one={}, two={}))
    assert check_failures(items, 0.2) == 1
    with pytest.raises(RowError, match="1 of 6 rows cannot be used"):
        check_failures(items, 0.1)


def test_a_part_of_a_mixture_has_all_sources_in_it(folder: Path) -> None:
    rows = read_sourced(mixture(folder, one={}, two={"max_rows": 2}))
    assert [one.name for one in in_turn(rows)] == ["one/1", "two/1", "one/2", "two/2", "one/3"]
    single = read_sourced(DataConfig(rows=folder / "one" / "rows.jsonl"))
    assert [one.name for one in in_turn(single)] == [1, 2, 3]
