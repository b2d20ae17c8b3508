"""The data set on disk: read by our stages and by the `datasets` library as it is."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longtake.cli import main
from longtake.config.curate import CurateConfig
from longtake.config.sections import DataConfig
from longtake.curation import publish as module
from longtake.curation.card import CardFacts
from longtake.curation.publish import SCHEMA, publish
from longtake.curation.records import Draft, Drop, PlacedRow, RatedRow, SourceVideo, TimeRange, named
from longtake.curation.split import split_rows
from longtake.data.rows import read_examples, read_rows
from longtake.errors import CurationError
from longtake.testing import training
from longtake.testing.curated_run import World
from longtake.testing.policy import drafts_of, small_world, sources_of
from longtake.types import Example, Row
from longtake.video.index import DigestIndex


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("published_world"))


@pytest.fixture(scope="session")
def rows(world: World) -> tuple[PlacedRow, ...]:
    """Two videos for SFT, one for RL, one for evaluation."""
    drafts = drafts_of(world)
    splits = dict(zip(sorted({draft.digest for draft in drafts}), ("sft", "rl", "eval", "sft"), strict=True))
    return tuple(PlacedRow(RatedRow(draft, 3 + number % 4, 10, ("A",) * 10), splits[draft.digest]) for number, draft in enumerate(drafts))


def facts_of(world: World, out: Path, **changes: Any) -> CardFacts:
    config = CurateConfig.model_validate({"videos": world.folder, "out": out, "publish": changes.pop("publish", {})})
    return CardFacts(config, **changes)


def published(world: World, rows: tuple[PlacedRow, ...], out: Path, **changes: Any) -> Path:
    publish(rows, sources_of(world), world.folder, out, facts_of(world, out, **changes))
    return out / "dataset"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_read_back_as_they_were_meant(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    """By the readers of training, from the rows file alone: no data.root."""
    folder = published(world, rows, tmp_path)
    of_key = {one.row.draft.key: one for one in rows}
    seen: list[str] = []
    for split, suffix in product(("sft", "rl", "eval"), ("jsonl", "parquet")):
        items = read_examples(DataConfig(rows=folder / f"{split}.{suffix}"))
        for example, record in zip(items, lines(folder / f"{split}.jsonl"), strict=True):
            assert isinstance(example, Example) and len(example.media) == 1, example
            one = of_key[record["key"]]
            draft = one.row.draft
            assert one.split == split and example.media[0].digest == draft.digest
            assert example.question.split("\n")[0] == draft.question
            assert tuple(option.text for option in example.options) == draft.options
            assert example.answer == (draft.letter if draft.options else draft.answer)
            assert (example.problem_id, example.category, example.reasoning) == (record["problem_id"], draft.category, draft.reasoning)
            assert example.duration_s is not None and 5 < example.duration_s < 20
            seen.append(draft.key)
    assert sorted(seen) == sorted([*of_key, *of_key])


def test_columns(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    folder = published(world, rows, tmp_path)
    every = [record for split in ("sft", "rl", "eval") for record in lines(folder / f"{split}.jsonl")]
    assert all(list(record) == SCHEMA.names for record in every)
    keys = sorted(one.row.draft.key for one in rows)
    assert {record["key"]: record["problem_id"] for record in every} == {key: number for number, key in enumerate(keys)}
    of_key = {one.row.draft.key: one for one in rows}
    for record in every:
        one = of_key[record["key"]]
        assert record["split"] == one.split and record["video_digest"] == one.row.draft.digest
        assert (record["pass_rate"], record["num_takes"]) == (one.row.pass_rate, 10)
        assert record["ranges"] == [{"start": 1.0, "stop": 3.5}]
        assert (record["licence"], record["source"], record["data_type"]) == ("CC BY 4.0", "made by longtake world", "video")
        assert re.fullmatch(r"videos/videos/\d{6}\.mp4", record["videos"])
        assert (folder / record["videos"]).stat().st_ino == (world.folder / one.row.draft.video).stat().st_ino
    assert pq.read_table(folder / "rl.parquet").to_pylist() == lines(folder / "rl.jsonl")


def test_problem_ids_do_not_depend_on_the_order_of_the_rows(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    folders = [published(world, own, tmp_path / name) for name, own in (("one", rows), ("two", rows[::-1]))]
    first, second = ({record["key"]: record["problem_id"] for record in lines(folder / "sft.jsonl")} for folder in folders)
    assert first == second and len(first) == 16


def test_rows_that_no_policy_was_asked_about(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    unasked = tuple(PlacedRow(RatedRow(one.row.draft, None, None), "rl") for one in rows)
    folder = published(world, unasked, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "card.json", "drops.jsonl", "rl.jsonl", "rl.parquet", "videos"]
    table = pq.read_table(folder / "rl.parquet")
    assert table.schema.equals(SCHEMA) and table["pass_rate"].null_count == len(rows)
    assert isinstance(read_rows(folder / "rl.parquet")[0], Row)


def test_videos_as_copies_or_not_at_all(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    copied = published(world, rows, tmp_path / "copied", publish={"videos": "copy"})
    video = lines(copied / "rl.jsonl")[0]["videos"]
    assert (copied / video).read_bytes() == (world.folder / video.removeprefix("videos/")).read_bytes()
    assert (copied / video).stat().st_ino != (world.folder / video.removeprefix("videos/")).stat().st_ino
    bare = published(world, rows, tmp_path / "bare", publish={"videos": "none"})
    assert not (bare / "videos").exists()
    items = read_examples(DataConfig(rows=bare / "rl.jsonl", root=world.folder))
    assert items and all(isinstance(item, Example) for item in items)
    assert "`--data.root` is the folder that holds them" in (bare / "README.md").read_text()
    assert "`--data.root` is the folder" not in (copied / "README.md").read_text()


def test_only_videos_of_rows_are_there(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    folder = published(world, tuple(one for one in rows if one.split == "rl"), tmp_path)
    assert len(list((folder / "videos").rglob("*.mp4"))) == 1 and len(list((world.folder / "videos").glob("*.mp4"))) == 4
    assert not (folder / "sft.jsonl").exists()


LOADS = """
import json, sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({split: [len(own), own.column_names, own[0]] for split, own in rows.items()}))
"""


def test_the_datasets_library_loads_the_folder(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    """The real library, offline, in a process of its own."""
    folder = published(world, rows, tmp_path)
    environment = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOADS, str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {split: count for split, (count, _, _) in found.items()} == {"sft": 16, "rl": 8, "eval": 8}
    for split, (_, columns, first) in found.items():
        assert columns == SCHEMA.names
        assert first == lines(folder / f"{split}.jsonl")[0]


def test_it_is_trained_and_evaluated_on_as_it_is(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    """The commands of the card, on the rows files alone."""
    folder = published(world, rows, tmp_path)
    base = training.small_model(tmp_path / "base")
    rewards = training.small_rewards(tmp_path)
    sft = training.sft_config(folder / "sft.jsonl", base, tmp_path / "sft", max_steps=1)
    rl = training.rl_config(folder / "rl.jsonl", base, tmp_path / "rl", rewards, steps=1)
    for name, config in (("sft", sft), ("rl", rl)):
        path = training.write_config(config.model_copy(update={"data": DataConfig(rows=Path("elsewhere"))}), tmp_path / f"{name}.json")
        assert main([name, str(path), "--data.rows", str(folder / f"{name}.jsonl")]) == 0
        assert [line["step"] for line in training.metrics_of(tmp_path / name)][-1] == 1
    shown = re.findall(r"^longtake (\w+) CONFIG --data.rows FOLDER/(\S+)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert shown == [("sft", "sft.jsonl"), ("rl", "rl.jsonl"), ("evaluate", "eval.jsonl")]


def test_publishing_again_replaces_everything(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    drop = Drop("check", "blind", "6 of 6", "v.mp4", "k")
    folder = published(world, rows, tmp_path, prompts={"caption": "What is seen?"}, drops=[drop])
    assert [one["reason"] for one in lines(folder / "drops.jsonl")] == ["blind"]
    assert (folder / "prompts" / "caption.txt").read_text() == "What is seen?"
    stray = folder / "stray.txt"
    stray.write_text("of somebody")
    with pytest.raises(CurationError, match=r"1 files that no earlier run wrote, such as stray\.txt"):
        published(world, rows, tmp_path)
    stray.unlink()
    again = published(world, tuple(one for one in rows if one.split == "rl"), tmp_path)
    assert again == folder
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "card.json", "drops.jsonl", "rl.jsonl", "rl.parquet", "videos"]
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert len(list((world.folder / "videos").glob("*.mp4"))) == 4, "links were removed, not the videos"


def test_the_same_rows_give_the_same_bytes(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    first, second = (published(world, rows, tmp_path / name) for name in ("one", "two"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 9
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


def test_what_is_no_data_set_of_ours_is_not_removed(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "precious.txt").write_text("mine")
    with pytest.raises(CurationError, match=r"is no data set of an earlier run.*move it away"):
        published(world, rows, tmp_path)
    assert (tmp_path / "dataset" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("broken_at", ["link", "parquet", "card"])
def test_a_run_that_breaks_leaves_the_old_data_set(
    broken_at: str, world: World, rows: tuple[PlacedRow, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = published(world, rows, tmp_path)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    place = {"link": (module.os, "link"), "parquet": (module.pq, "write_table"), "card": (module, "write_card")}[broken_at]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place, broken)
        published(world, rows[:9], tmp_path)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    published(world, rows, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"], "what was left over is gone"


def test_a_link_over_file_systems_says_what_to_do(
    world: World, rows: tuple[PlacedRow, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other_file_system(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(module.os, "link", other_file_system)
    with pytest.raises(CurationError, match=r"cannot be linked.*publish\.videos = copy"):
        published(world, rows, tmp_path)
    assert not (tmp_path / "dataset").exists()
    published(world, rows, tmp_path, publish={"videos": "copy"})


def test_videos_that_are_gone_or_changed_are_all_named(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    root = tmp_path / "videos"
    (root / "videos").mkdir(parents=True)
    for path in sorted((world.folder / "videos").glob("*.mp4"))[1:]:
        (root / "videos" / path.name).write_bytes(path.read_bytes())
    changed = root / "videos" / "000002.mp4"
    changed.write_bytes(changed.read_bytes() + b"more")
    with pytest.raises(CurationError) as caught:
        publish(rows, sources_of(world), root, tmp_path, facts_of(world, tmp_path), index=DigestIndex())
    assert "videos/000000.mp4 is not there; videos/000002.mp4 holds other bytes" in str(caught.value)


def bad(rows: tuple[PlacedRow, ...], **changes: Any) -> tuple[PlacedRow, ...]:
    first = rows[0]
    return (replace(first, row=replace(first.row, draft=replace(first.row.draft, **changes))), *rows[1:])


def test_rows_that_cannot_be_published_are_refused(world: World, rows: tuple[PlacedRow, ...], tmp_path: Path):
    with pytest.raises(CurationError, match="no row is left"):
        published(world, (), tmp_path)
    with pytest.raises(CurationError, match=r"1 rows that training would refuse.*<think>"):
        published(world, bad(rows, reasoning="a <think> b"), tmp_path)
    with pytest.raises(CurationError, match="two rows have the same key"):
        published(world, (*rows, rows[0]), tmp_path)
    with pytest.raises(CurationError, match="ingest did not take"):
        published(world, bad(rows, digest="0" * 64), tmp_path)
    with pytest.raises(CurationError, match="surrogate"):
        sources = [replace(one, licence="\ud800") for one in sources_of(world)]
        publish(rows, sources, world.folder, tmp_path, facts_of(world, tmp_path))


def test_ten_thousand_rows_take_seconds(world: World, tmp_path: Path):
    """Split, published and described; measured: 3 s on one core."""
    real = sources_of(world)
    videos = [replace(real[number % 4], digest=f"{number:064x}") for number in range(1_000)]
    for number, video in enumerate(videos):
        path = tmp_path / "raw" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"video")
        videos[number] = replace(video, video=f"{number}.mp4")
    rated = [RatedRow(_draft(videos[number % 1_000], number), number % 9 + 1, 10, ("A",) * 10) for number in range(10_000)]
    started = time.perf_counter()
    placed = split_rows(rated, facts_of(world, tmp_path).config.split.model_copy(update={"eval_rows": {"plot": 200, "goal": 200}}), 0)
    figures = publish(placed.kept, videos, tmp_path / "raw", tmp_path, facts_of(world, tmp_path, drops=placed.dropped))
    assert time.perf_counter() - started < 60
    assert figures["num_rows"] + len(placed.dropped) == 10_000 and figures["splits"]["eval"]["rows"] == 400


def _draft(video: SourceVideo, number: int) -> Draft:
    options = tuple(f"the {colour} cat {number}" for colour in ("red", "blue", "green", "grey"))
    category = ("plot", "goal", "temporal")[number % 3]
    return named(
        Draft(
            video.video, video.digest, category, f"Who is {number}?", options, options[number % 4], "It is seen." * 20, (TimeRange(1, 2),)
        )
    )
