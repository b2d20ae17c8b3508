"""Every stage on a mixture: a world of videos, and a second source of pictures and texts whose rows have the same ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longtake.cli import main
from longtake.config.load import dump_config
from longtake.config.score import ScoreConfig
from longtake.config.stages import EncodeConfig, EvaluateConfig, RlConfig, SftConfig
from longtake.data.order import Mixture
from longtake.data.row_files import write_rows
from longtake.errors import CheckpointError, RowError
from longtake.evaluation.records import read_records
from longtake.models.family import Model
from longtake.observe.lines import read_lines
from longtake.stages import evaluate, training_run
from longtake.stages import rl as rl_stage
from longtake.stages import sft as sft_stage
from longtake.stages.training_rows import validation_items
from longtake.testing.training import assert_same_run, metrics_of
from longtake.types import Example, Prompt, Row
from longtake.video.index import DigestIndex

Make = Callable[..., RlConfig]
NUM_WORLD, NUM_STILLS = 12, 4
"""Rows of the two sources."""


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 0 to 3: a picture, two pictures, a text, a picture; the world has rows 0 to 11."""
    folder = tmp_path_factory.mktemp("stills")
    rng = np.random.default_rng(0)
    for name in ("x.png", "y.png"):
        Image.fromarray(rng.integers(0, 256, (56, 84, 3), dtype=np.uint8)).save(folder / name)
    media: list[tuple[str, ...]] = [("x.png",), ("x.png", "y.png"), (), ("y.png",)]
    write_rows(
        folder / "rows.jsonl",
        [
            Row(number, f"What is it? {number}\nA. red\nB. blue", kind, "plot", "seen", (), "<answer>A</answer>", images=images)
            for number, images in enumerate(media)
            for kind in ["image" if images else "text"]
        ],
    )
    return folder / "rows.jsonl"


def data(rows: Path, stills: Path, **of_stills: Any) -> dict[str, Any]:
    sources = {"world": {"rows": rows, "weight": 1.0}, "stills": {"rows": stills, "weight": 2.0, **of_stills}}
    return {"rows": "none", "sources": sources}


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Example, Prompt, Model]]:
    """What a training run has asked."""
    seen: list[tuple[Example, Prompt, Model]] = []
    plain = training_run.render_prompt

    def render(example: Example, tokens: Any, model: Model, config: Any) -> Prompt:
        prompt = plain(example, tokens, model, config)
        seen.append((example, prompt, model))
        return prompt

    monkeypatch.setattr(training_run, "render_prompt", render)
    return seen


def text_of(prompt: Prompt, model: Model) -> str:
    text = model.tokenizer.decode(prompt.token_ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def test_rl_draws_rewards_and_logs_each_source_for_itself(rl: Make, rows: Path, stills: Path, rewards: Path, tmp_path: Path) -> None:
    """Weights 1 : 2; rewards of the stills are their own; ids stand in both sources."""
    functions = {name: f"{rewards}:{name}" for name in ("parity", "short")}
    own = {"weights": {"parity": 1.0, "short": 0.0}, "functions": functions}
    config = rl("mixed", data=data(rows, stills, rewards={"short": 2.0}), rewards=own, steps=3, prompts_per_step=4)
    rl_stage.run(config)
    takes = read_lines(config.out / "takes.jsonl")
    order = Mixture({"world": NUM_WORLD, "stills": NUM_STILLS}, {"world": 1.0, "stills": 2.0}, config.seed).at(0, 12)
    wanted = [("world", row) if row < NUM_WORLD else ("stills", row - NUM_WORLD) for row in order]
    asked = [(take["source"], take["problem_id"]) for take in takes if take["take"] == 0]
    assert asked == wanted and {source for source, _ in wanted} == {"world", "stills"}
    for take in takes:
        reward = take["rewards"]["parity"] if take["source"] == "world" else 2 * take["rewards"]["short"]
        assert take["total_reward"] == pytest.approx(reward, abs=1e-6)
    assert len({take["total_reward"] for take in takes if take["source"] == "stills"}) > 2
    for step, line in enumerate(metrics_of(config.out), 1):
        counts = Counter(source for source, _ in wanted[4 * (step - 1) : 4 * step])
        for source, count in counts.items():
            own_takes = [take for take in takes if take["step"] == step and take["source"] == source]
            assert line[f"count/groups_of_{source}"] == count
            assert line[f"accuracy/{source}"] == pytest.approx(np.mean([take["rewards"]["accuracy"] for take in own_takes]))


def test_a_resumed_mixture_is_the_uninterrupted_one_and_another_is_refused(rl: Make, rows: Path, stills: Path) -> None:
    own = {"data": data(rows, stills), "prompts_per_step": 2}
    rl_stage.run(rl("whole", steps=4, **own))
    for stop in (1, 3, 4):
        rl_stage.run(rl("parts", steps=stop, **own))
    assert_same_run(rl("whole").out, rl("parts").out)
    changed = data(rows, stills, max_rows=2)
    with pytest.raises(CheckpointError):
        rl_stage.run(rl("parts", steps=5, prompts_per_step=2, data=changed))
    heavier = data(rows, stills)
    heavier["sources"]["world"]["weight"] = 3.0
    with pytest.raises(CheckpointError, match=r"data\.sources\.world\.weight"):
        rl_stage.run(rl("parts", steps=5, prompts_per_step=2, data=heavier))


def test_an_epoch_of_sft_is_as_many_rows_as_the_sources_have_together(
    sft: Callable[..., SftConfig], rows: Path, stills: Path, prompts: list[tuple[Example, Prompt, Model]]
) -> None:
    config = sft("mixed", data=data(rows, stills), max_steps="none", epochs=1.0, batch_size=4)
    sft_stage.run(config)
    assert len(metrics_of(config.out)) == (NUM_WORLD + NUM_STILLS) / 4
    counts = Counter(example.source for example, _, _ in prompts)
    assert counts["world"] + counts["stills"] == 16 and counts["stills"] in (10, 11), "16 rows, two thirds of them stills"
    stills_seen = Counter(example.problem_id for example, _, _ in prompts if example.source == "stills")
    assert min(stills_seen.values()) >= 2, "a small source with a large weight goes round more often"
    kinds = {(example.source, tuple(span.tokens.kind for span in prompt.spans)) for example, prompt, _ in prompts}
    assert kinds == {("world", ("video",)), ("stills", ("image",)), ("stills", ("image", "image")), ("stills", ())}


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_subtitles_stand_in_training_prompts(
    sft: Callable[..., SftConfig], rl: Make, rows: Path, prompts: list[tuple[Example, Prompt, Model]], kind: str
) -> None:
    """Of one file, and of the one source that is set so; the other's prompts have none."""
    stage, make = (sft_stage, sft) if kind == "sft" else (rl_stage, rl)
    stage.run(make("plain"))
    assert prompts and not any("Subtitles:" in text_of(prompt, model) for _, prompt, model in prompts)
    prompts.clear()
    stage.run(make("single", data={"with_subtitles": True}))
    assert prompts
    for example, prompt, model in prompts:
        assert example.subtitles and f"Subtitles:\n{example.subtitles}\n\n{example.question}" in text_of(prompt, model)
    prompts.clear()
    both = {"with": {"rows": rows, "with_subtitles": True}, "without": {"rows": rows}}
    stage.run(make("mixed", data={"rows": "none", "sources": both}))
    told = {example.source: "Subtitles:" in text_of(prompt, model) for example, prompt, model in prompts}
    assert told == {"with": True, "without": False}


def test_subtitles_that_make_a_prompt_too_long_refuse_the_row(
    sft: Callable[..., SftConfig], rows: Path, prompts: list[tuple[Example, Prompt, Model]]
) -> None:
    sft_stage.run(sft("plain"))
    longest = max(len(prompt.token_ids) for _, prompt, _ in prompts)
    fits = sft("fits", prompt={"max_prompt_tokens": longest + 1})
    sft_stage.run(fits)
    with pytest.raises(RowError, match="found out while training"):
        sft_stage.run(sft("long", prompt={"max_prompt_tokens": longest + 1}, data={"with_subtitles": True}))


def test_a_source_without_a_usable_row_is_refused(rl: Make, rows: Path, stills: Path, tmp_path: Path) -> None:
    gone = Row(1, "?\nA. red\nB. blue", "video", "plot", "", ("gone.mp4",), "<answer>A</answer>")
    write_rows(tmp_path / "gone.jsonl", [gone])
    mixed = data(rows, stills)
    mixed["sources"]["gone"] = {"rows": tmp_path / "gone.jsonl"}
    with pytest.raises(RowError, match=r"1 of 17 rows cannot be used \(gone 1 of 1\), 25% of what is drawn"):
        rl_stage.run(rl("empty", data=mixed))


def test_a_source_whose_videos_do_not_decode_counts_by_its_weight(rl: Make, rows: Path, stills: Path, tmp_path: Path) -> None:
    """One row of fourteen, and most of what is drawn: found out by the first that is decoded."""
    picture = (stills.parent / "x.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(picture[: len(picture) // 2])
    (tmp_path / "whole.png").write_bytes(picture)
    text = "?\nA. red\nB. blue"
    broken = [
        Row(number, text, "image", "plot", "", (), "<answer>A</answer>", images=(f"{name}.png",))
        for number, name in enumerate(("cut", "whole"))
    ]
    write_rows(tmp_path / "rows.jsonl", broken)

    def mixed(weight: float, count: int) -> dict[str, Any]:
        found = data(rows, stills)
        found["sources"]["broken"] = {"rows": tmp_path / "rows.jsonl", "weight": weight, "max_rows": count}
        return found | {"max_failed_fraction": 0.2}

    with pytest.raises(RowError, match=r"1 of 18 rows .* found out while training; see above \(broken 1 of 2\), 25% of what is drawn"):
        rl_stage.run(rl("heavy", data=mixed(3.0, 2), steps=4, prompts_per_step=4))
    rl_stage.run(rl("light", data=mixed(0.5, 2), steps=4, prompts_per_step=4))
    with pytest.raises(RowError, match=r"broken 1 of 1\), 14% of what is drawn"):
        rl_stage.run(rl("nothing_left", data=mixed(0.5, 1), steps=4, prompts_per_step=4))


def test_a_validation_of_a_mixture_takes_its_sources_in_turn(rl: Make, rows: Path, stills: Path) -> None:
    validation = {"data": data(rows, stills), "num_rows": 5, "every": 2, "max_new_tokens": 4}
    config = rl("validated", validation=validation)
    names = [item.name for item in validation_items(config, DigestIndex(None))]
    assert names == ["world/0", "stills/0", "world/1", "stills/1", "world/2"]
    rl_stage.run(config)
    (last,) = [line for line in metrics_of(config.out) if line["step"] == 2]
    assert {"validation/accuracy/world", "validation/accuracy/stills"} <= last.keys()


def settings(base: Path, rows: Path, stills: Path, out: Path) -> dict[str, Any]:
    return {
        "out": out,
        "model": {"path": str(base), "device": "cpu"},
        "video": {"max_frames": 4, "max_pixels_per_frame": 28 * 28},
        "prompt": {"instruction": ""},
        "data": {"sources": data(rows, stills)["sources"]},
    }


def test_an_evaluation_answers_every_row_of_every_source(base: Path, rows: Path, stills: Path, tmp_path: Path) -> None:
    """Rows 0 to 3 stand in both: each keeps its own answer. With a temperature, each has random numbers of its own."""
    rollout = {"num_takes": 1, "temperature": 1.0, "max_new_tokens": 6}
    config = EvaluateConfig.model_validate(settings(base, rows, stills, tmp_path / "out") | {"rollout": rollout})
    summary = evaluate.run(config)
    records = read_records(tmp_path / "out" / "answers.jsonl")
    names = [record.name for record in records]
    assert names == [*(f"world/{number}" for number in range(12)), *(f"stills/{number}" for number in range(4))]
    assert {name: share["n"] for name, share in summary["by_source"].items()} == {"world": 12, "stills": 4}
    assert summary["n"] == 16 and summary["num_failures"] == 0
    texts = {name: record.text for name, record in zip(names, records, strict=True)}
    assert texts["world/2"] != texts["stills/2"]
    single = evaluate.run(config.model_copy(update={"out": tmp_path / "single", "data": config.data.model_validate({"rows": rows})}))
    assert single["by_source"] == {}


def test_the_takes_of_a_run_on_a_mixture_are_scored(rl: Make, base: Path, rows: Path, stills: Path, tmp_path: Path) -> None:
    """Against what the run itself found, 1e-5; a response that names no source or another one is a failure in its line."""
    config = rl("scored", data=data(rows, stills), prompts_per_step=4)
    rl_stage.run(config)
    takes = [take for take in read_lines(config.out / "takes.jsonl") if take["step"] == 1]
    assert {take["source"] for take in takes} == {"world", "stills"}
    bad = [
        {name: value for name, value in takes[0].items() if name != "source"},
        {**takes[0], "source": "nowhere"},
        {**takes[0], "problem_id": 99},
    ]
    (tmp_path / "takes.jsonl").write_text("".join(json.dumps(take) + "\n" for take in [*takes, *bad]))
    more = {"responses": tmp_path / "takes.jsonl", "out": tmp_path / "scored.jsonl"}
    common = settings(base, rows, stills, tmp_path) | more
    common["data"]["max_failed_fraction"] = 0.5
    (tmp_path / "score.json").write_text(dump_config(ScoreConfig.model_validate(common)))
    assert main(["score", str(tmp_path / "score.json")]) == 0
    found = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    for take, one in zip(takes, found[: len(takes)], strict=True):
        assert np.abs(np.array(one["logprobs"]) - np.array(take["policy_logprobs"])).max() < 1e-5
    told = [one["error"]["message"] for one in found[len(takes) :]]
    assert "without a source" in told[0] and "source 'nowhere'" in told[1] and "problem_id 99 is in no row of rows.jsonl" in told[2]


def test_encoding_ahead_leaves_nothing_for_the_run(rl: Make, rows: Path, stills: Path, tmp_path: Path) -> None:
    cache = {"folder": tmp_path / "cache"}
    config = rl("ahead", data=data(rows, stills), cache=cache)
    (tmp_path / "ahead.json").write_text(dump_config(config))
    assert main(["encode", str(tmp_path / "ahead.json")]) == 0
    assert EncodeConfig.model_validate(config.model_dump()).data.sources.keys() == {"world", "stills"}
    assert len(list(cache["folder"].rglob("*.safetensors"))) == 6 + 2, "six videos and two pictures"
    rl_stage.run(config)
    assert {line["video/decoded"] for line in metrics_of(config.out)} == {0.0}


def test_a_plan_of_a_mixture_counts_pictures_too(rows: Path, stills: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of 84 x 56 pixels within 28 x 56: 84 x 56 shrunk by sqrt(4704 / 1568) = 1.73 is 48.5 x 32.3, so 28 x 28: one token each."""
    mixed = ["--data.sources.world.rows", str(rows), "--data.sources.stills.rows", str(stills)]
    options = ["--video.max-frames", "4", "--video.max-pixels-per-frame", str(28 * 56), "--device", "h100", "--gpus", "1"]
    assert main(["plan", *mixed, *options, "--host-memory", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"usable": NUM_WORLD + NUM_STILLS, "failures": {}}
    assert found["videos"]["different"] == 6 + 2
    assert main(["plan", *mixed[2:], *options, "--host-memory", "64", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["largest"]["video_tokens"] == 2 and alone["videos"]["different"] == 2


def test_a_report_shows_the_rows_of_all_sources(rl: Make, rows: Path, stills: Path) -> None:
    config = rl("reported", data=data(rows, stills), prompts_per_step=4)
    rl_stage.run(config)
    assert main(["report", str(config.out)]) == 0
    page = (config.out / "report.html").read_text(encoding="utf-8")
    assert "question world/" in page or "question stills/" in page
    assert "is not there: questions are shown without text" not in page


def test_the_longest_rows_of_a_mixture_begin(rl: Make, rows: Path, stills: Path, prompts: list[tuple[Example, Prompt, Model]]) -> None:
    mixed = data(rows, stills) | {"longest_first": True}
    rl_stage.run(rl("longest", data=mixed, steps=1, prompts_per_step=3))
    first = [len(prompt.token_ids) for _, prompt, _ in prompts]
    assert len(first) == 3 and {example.source for example, _, _ in prompts} == {"world"}
    prompts.clear()
    rl_stage.run(rl("plain", data=data(rows, stills), steps=8, prompts_per_step=4))
    assert min(first) >= max(len(prompt.token_ids) for example, prompt, _ in prompts if example.source == "stills")


def test_two_ids_in_one_source_still_collide(rl: Make, rows: Path, stills: Path, tmp_path: Path) -> None:
    """Negative control: sources keep ids apart, a file does not."""
    (first, *others) = [json.loads(line) for line in stills.read_text().splitlines()]
    twice = [first, {**others[0], "problem_id": first["problem_id"]}]
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes((stills.parent / name).read_bytes())
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(one) + "\n" for one in twice))
    mixed = data(rows, tmp_path / "twice.jsonl")
    mixed["max_failed_fraction"] = 0.0
    with pytest.raises(RowError, match="problem_id 0 is that of row 1 too"):
        rl_stage.run(rl("twice", data=mixed))
