"""`longtake plan` from the command line: the figures, the refusal with remedies that work, and nothing but a config.json needed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.cli import main
from longtake.config.plan import HardwareConfig, PlanConfig
from longtake.config.sections import DataConfig, ModelConfig, PromptConfig, VideoConfig
from longtake.config.stages import WorldConfig
from longtake.data.render import render_prompt
from longtake.data.rows import read_examples
from longtake.data.videos import VideoSource
from longtake.errors import ConfigError
from longtake.models import load_model
from longtake.models.costs import model_costs
from longtake.observe.timing import Phases
from longtake.parallel.setting import GIB
from longtake.stages.plan_assessment import assess, shortfalls_of, spread_evenly
from longtake.stages.plan_hardware import cluster_of, rates_of
from longtake.stages.plan_remedies import changed_all, largest_that_works
from longtake.stages.plan_workload import SampledRow, hypothetical, read_workload, sample_rows, token_counter
from longtake.world.write import write_world

HERE = Path(__file__).parent
SEVEN = str(HERE / "qwen2_5_vl_7b")
HOUR = [
    "plan",
    "--model",
    SEVEN,
    "--model.dtype",
    "bfloat16",
    "--frames",
    "3600",
    "--device",
    "h100",
    "--gpus",
    "8",
    "--host-memory",
    "1000",
]
LONG_PROMPTS = ["--prompt.max-prompt-tokens", "1000000", "--video.max-pixels-per-frame", "50176"]
ADAPTERS = ["--model.lora.rank", "16", "--model.gradient-checkpointing"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(out=folder, num_videos=3, seed=3, workers=1, questions_per_video=2))
    return folder


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    """The record of a plan that fits."""
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_hour_by_hand(capsys: pytest.CaptureFixture[str]):
    found = planned(capsys, *HOUR, *LONG_PROMPTS, *ADAPTERS, "--prompts-per-step", "2")
    # 1280 x 720 within 50,176 pixels is 280 x 168: 10 x 6 tokens for each pair of frames, and 256 of text
    assert found["median"]["video"]["num_frames"] == 3600 and found["median"]["video_tokens"] == 108_000
    assert found["largest"]["prompt_tokens"] == 108_256
    assert found["memory"]["rollout"]["keys_values"] == pytest.approx(57_344 * (108_256 + 8 * 2048 * 29 / 28))
    assert found["host"]["frames"] == 8 * 3600 * 280 * 168 * 3
    assert found["fits"] and found["largest_step"]["layouts"][0]["shared_prompt"]
    assert found["largest_step"]["layouts"][0]["ulysses"] * found["largest_step"]["layouts"][0]["ring"] == 4  # two prompts on eight ranks
    assert found["hardware"]["rank_bytes"] == round(79 * GIB * 0.9)


def test_the_tables_say_the_same(capsys: pytest.CaptureFixture[str]):
    assert main([*HOUR, *LONG_PROMPTS, *ADAPTERS, "--prompts-per-step", "2"]) == 0
    out, err = capsys.readouterr()
    for text in (
        "108,256",
        "280 x 168",
        "4 ranks a sequence",
        "a prompt once for",
        "1 node of 8 GPUs: h100 (assumed)",
        "71.1 usable",
    ):
        assert text in " ".join(out.replace("│", " ").split()), text
    assert "not on measurements" in out and err == ""
    shares = [
        line.split("│")[3].strip()
        for line in out.splitlines()
        if line.startswith(("│ sample", "│ update", "│ prefill", "│ decode", "│ encode"))
    ]
    assert 97 <= sum(int(share.rstrip("%")) for share in shares) <= 103


def test_what_does_not_fit_is_refused_with_remedies(capsys: pytest.CaptureFixture[str]):
    assert main([*HOUR, *LONG_PROMPTS]) == 2  # full training, unsharded
    out, err = capsys.readouterr()
    assert "does not fit" in out and "Traceback" not in err
    assert "error: update needs" in err and "model.lora.rank = 16" in err


REFUSED = [
    pytest.param(["--model.lora.rank", "16"], id="no checkpointing"),
    pytest.param(["--model.lora.rank", "16", "--gpus", "1", "--model.gradient-checkpointing"], id="one GPU"),
    pytest.param([*ADAPTERS, "--rollout.max-new-tokens", "131072", "--gpus", "2"], id="long takes"),
    pytest.param([*ADAPTERS, "--gpu-memory", "24"], id="small GPUs"),
    pytest.param([*ADAPTERS, "--host-memory", "10"], id="little host memory"),
    pytest.param(
        [*ADAPTERS, "--video.encode-groups", "1800", "--gpu-memory", "30", "--video.max-pixels-per-frame", "200704"], id="large chunks"
    ),
    pytest.param(["--gpu-memory", "20", "--model.dtype", "float32"], id="several at once"),
]


@pytest.mark.parametrize("options", REFUSED)
def test_every_remedy_offered_works_and_is_no_larger_than_needed(capsys: pytest.CaptureFixture[str], options: list[str]):
    argv = [*HOUR, *LONG_PROMPTS, *options, "--prompts-per-step", "2", "--json"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    ways = json.loads(out)["remedies"]
    assert ways and "Remedy: set" in err
    for way in ways:
        changed = [text for key, value in way.items() for text in (f"--{key}", str(value).lower())]
        assert main([*argv, *changed]) == 0, way
        assert json.loads(capsys.readouterr().out)["fits"]
        steps = {"frames": 2, "rollout.max_new_tokens": 64, "rollout.max_rows": 1, "video.encode_groups": 1}
        for key in way.keys() & steps.keys():
            one_more = [
                text for name, value in way.items() for text in (f"--{name}", str(value + steps[key] if name == key else value).lower())
            ]
            assert main([*argv, *one_more]) == 2, (key, way)
            capsys.readouterr()


def test_rows_are_probed_and_sampled_as_the_run_will(world: Path, tmp_path: Path):
    config = PlanConfig(data=DataConfig(rows=world / "rows.jsonl"), video=VideoConfig(max_frames=16), out=tmp_path)
    rows, refused = sample_rows(config, model_costs("tiny", "float32"), read_workload(config))
    model, phases = load_model(ModelConfig(path="tiny")), Phases()
    source = VideoSource(model, config.video, phases)
    examples = read_examples(config.data)
    real = [render_prompt(example, [source.tokens(ref) for ref in example.media], model, config.prompt) for example in examples]
    assert [row.video_tokens for row in rows] == [len(prompt.spans[0].tokens.embeddings) for prompt in real]
    # Text: the tokenizer's own count, and an allowance for the template that the tiny model's does not use up.
    over = [row.prompt_tokens - len(prompt.token_ids) for row, prompt in zip(rows, real, strict=True)]
    assert all(0 <= extra <= 32 for extra in over)
    assert not refused


def test_rows_that_cannot_be_used_are_counted_and_an_empty_set_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = (world / "rows.jsonl").read_text().splitlines()
    gone = json.dumps(json.loads(lines[0]) | {"problem_id": 10_000, "videos": "gone.mp4"})
    (tmp_path / "some.jsonl").write_text("\n".join([*lines, gone, "{"]) + "\n")
    (tmp_path / "none.jsonl").write_text(gone + "\n")
    options = ["--data.root", str(world), "--device", "h100", "--gpus", "1", "--host-memory", "64"]
    found = planned(capsys, "plan", "--data.rows", str(tmp_path / "some.jsonl"), *options)
    assert found["rows"] == {"usable": len(lines), "failures": {"VideoMissingError": 1, "RowError": 1}}
    assert main(["plan", "--data.rows", str(tmp_path / "none.jsonl"), *options]) == 2
    assert "no row" in capsys.readouterr().err


def test_a_text_only_run_has_no_video(world: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--device", "h100", "--gpus", "1", "--host-memory", "64", "--data.with-video", "false"]
    found = planned(capsys, "plan", "--data.rows", str(world / "rows.jsonl"), *options)
    assert found["largest"]["video"] is None and found["usual_step"]["seconds"]["encode"] == 0
    assert found["memory"]["encode"]["pixels"] == 0


def test_prompts_that_are_all_too_long_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(HOUR) == 2
    err = capsys.readouterr().err
    assert "longer than allowed" in err and "prompt.max_prompt_tokens = 131072" in err


def test_an_rl_configuration_can_be_given_as_it_is(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = Path(__file__).parents[2] / "docs" / "examples" / "rl.toml"
    options = [
        "--model",
        "tiny",
        "--model.dtype",
        "float32",
        "--data.rows",
        str(world / "rows.jsonl"),
        "--video.max-pixels-per-frame",
        "784",
    ]
    found = planned(capsys, "plan", str(file), *options, "--device", "a100", "--gpus", "2", "--host-memory", "64")
    assert found["training"]["adapters"] and found["hardware"]["ranks_per_node"] == 2


def test_this_machine_is_measured(world: Path, capsys: pytest.CaptureFixture[str]):
    found = planned(capsys, "plan", "--device", "cpu", "--data.rows", str(world / "rows.jsonl"), "--prompts-per-step", "2", "--gpus", "2")
    assert found["rates"]["name"].startswith("cpu") and found["rates"]["matmul_flops"] > 1e8
    hardware = found["hardware"]
    assert hardware["rank_bytes"] == hardware["host_bytes"] // 2
    assert found["host"]["device"] == 2 * max(size["total"] for size in found["memory"].values())


def test_fast_and_full_checks_agree():
    """The quick check that remedies are tried with, against the whole assessment, around the border of what fits."""
    config = PlanConfig(
        model=ModelConfig(path=SEVEN, dtype="bfloat16"), prompts_per_step=2, frames=1200, prompt=PromptConfig(max_prompt_tokens=10**6)
    )
    config = changed_all(config, [("hardware.device", "h100"), ("hardware.gpus_per_node", 4), ("model.lora.rank", 16)])
    config = changed_all(config, [("model.gradient_checkpointing", True), ("hardware.host_memory_gib", 64)])
    rates = rates_of(config, model_costs(SEVEN, "bfloat16"))
    workload, verdicts = hypothetical(config), set()
    for gib in range(20, 130, 10):
        cluster = replace(cluster_of(config.hardware), rank_bytes=gib * GIB)
        full = assess(config, workload, cluster, rates)
        assert (full.largest is None) == any(shortfall.phase == "update" for shortfall in full.shortfalls)
        assert bool(full.shortfalls) == bool(shortfalls_of(config, workload, cluster, rates))
        verdicts.add(bool(full.shortfalls))
    assert verdicts == {True, False}


def test_text_is_counted_by_bytes_where_there_is_no_tokenizer():
    count = token_counter(SEVEN)
    assert (count("abcdef"), count("aé")) == (2, 1)
    assert token_counter("tiny")("Where is the key?") < 10


def test_the_largest_value_is_found_where_less_is_not_always_enough():
    every = range(1, 1000)
    assert largest_that_works(every, lambda value: value <= 777) == 777
    assert largest_that_works(every, lambda value: value <= 400 or 600 <= value <= 900) == 900
    assert largest_that_works(every, lambda value: value == 1) == 1
    assert largest_that_works(range(3), lambda value: value < 2) == 1
    assert largest_that_works(every, lambda value: False) is None and largest_that_works((), lambda value: True) is None


def test_a_shorter_video_is_not_made_shorter_than_it_must(capsys: pytest.CaptureFixture[str]):
    """Of prompts below 65,536 tokens two are decoded together and need more than one of 100,000."""
    argv = [*HOUR, *LONG_PROMPTS, *ADAPTERS, "--frames", "3400", "--gpu-memory", "40", "--rollout.max-new-tokens", "1024", "--json"]
    assert main(argv) == 2
    shorter = next(way["frames"] for way in json.loads(capsys.readouterr().out)["remedies"] if "frames" in way)
    assert shorter * 30 > 65_536  # 60 tokens for two frames
    assert main([*argv, "--frames", "2170"]) == 2  # two prompts of 65,356


def test_degrees_of_the_configuration_are_kept(capsys: pytest.CaptureFixture[str]):
    short = [*HOUR, *ADAPTERS, "--frames", "64", "--response-tokens", "128"]
    free = planned(capsys, *short)
    assert free["settings"] == {} and {layout["ulysses"] for layout in free["usual_step"]["layouts"]} == {1}  # short ones: a rank each
    kept = planned(capsys, *short, "--parallel.ulysses", "2", "--parallel.ring", "2")
    assert {(layout["ulysses"], layout["ring"]) for step in ("usual_step", "largest_step") for layout in kept[step]["layouts"]} == {(2, 2)}
    assert kept["usual_step"]["seconds"]["update"] > free["usual_step"]["seconds"]["update"]
    assert main([*short, "--parallel.ulysses", "3"]) == 2  # 28 heads, 8 processes
    assert "8 processes and 28 query heads" in capsys.readouterr().err


def test_a_chosen_degree_is_named_as_settings_which_then_give_the_same_plan(capsys: pytest.CaptureFixture[str]):
    argv = [*HOUR, *LONG_PROMPTS, *ADAPTERS, "--prompts-per-step", "2"]
    chosen = planned(capsys, *argv)
    assert chosen["settings"]
    asked = planned(capsys, *argv, *(text for key, value in chosen["settings"].items() for text in (f"--{key}", str(value))))
    assert asked["settings"] == {} and asked["largest_step"] == chosen["largest_step"] and asked["memory"] == chosen["memory"]


def test_too_low_a_degree_is_refused_with_one_that_does(capsys: pytest.CaptureFixture[str]):
    argv = [*HOUR, *LONG_PROMPTS, *ADAPTERS, "--gpu-memory", "70", "--rollout.max-rows", "1", "--frames", "7200", "--json"]
    assert main([*argv, "--parallel.ulysses", "2"]) == 2
    ways = json.loads(capsys.readouterr().out)["remedies"]
    assert set(ways[0]) == {"parallel.ulysses", "parallel.ring"}
    assert main([*argv, *(text for key, value in ways[0].items() for text in (f"--{key}", str(value)))]) == 0


def test_hours_count_a_video_where_it_is_decoded_and_encoded(world: Path, capsys: pytest.CaptureFixture[str]):
    """Six rows over three videos: every step of six prompts sees all three, so the first step alone decodes and encodes."""
    options = ["--device", "h100", "--gpus", "1", "--host-memory", "64", "--prompts-per-step", "6", "--steps", "10"]
    argv = ["plan", "--data.rows", str(world / "rows.jsonl"), *options]
    found = planned(capsys, *argv)
    seconds = found["usual_step"]["seconds"]
    once = seconds["decode"] + seconds["encode"]
    assert found["videos"] == {"different": 3, "kept": 3} and once > 0
    assert found["run_seconds"] == pytest.approx(10 * (seconds["total"] - once) + once)
    nothing_kept = planned(capsys, *argv, "--cache.memory-bytes", "0")
    assert nothing_kept["videos"]["kept"] == 0 and nothing_kept["run_seconds"] == pytest.approx(10 * seconds["total"])


def test_missing_rows_can_be_done_without(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--data.rows", "gone.jsonl"]) == 2
    assert "plan without rows, e.g. --frames" in capsys.readouterr().err


def test_processes_of_a_launch_measure_their_links_and_one_prints():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "longtake"]
    argv = ["plan", "--frames", "8", "--device", "cpu", "--prompts-per-step", "2", "--rollout.max-new-tokens", "64", "--json"]
    done = subprocess.run([*launcher, *argv], capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout)  # one record, so one process printed
    assert found["hardware"]["ranks_per_node"] == 2
    assert found["rates"]["link_bytes"] not in (1e9, float("inf")) and found["rates"]["link_bytes"] > 1e6  # measured, not assumed


def test_ranks_are_those_of_the_launch_unless_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for nodes, per_node, ranks in ((1, None, 4), (2, None, 2), (1, 8, 8)):
        assert cluster_of(HardwareConfig(device="h100", nodes=nodes, gpus_per_node=per_node)).ranks_per_node == ranks
    with pytest.raises(ConfigError, match=r"hardware\.nodes = 3 in a launch of 4 processes"):
        cluster_of(HardwareConfig(device="h100", nodes=3))


def test_the_usual_step_draws_sources_by_their_weights() -> None:
    """Rows of 0 to 9 tokens three times as often as those of 10 to 39; without weights as often as there are rows."""
    rows = [SampledRow(number, 0, (), False, "a" if number < 10 else "b") for number in range(40)]
    assert [row.prompt_tokens for row in spread_evenly(rows, {"a": 3.0, "b": 1.0}, 8)] == [0, 2, 4, 5, 7, 9, 17, 32]
    plain = [SampledRow(number, 0, (), False, "") for number in range(40)]
    assert [row.prompt_tokens for row in spread_evenly(plain, {}, 8)] == [2, 7, 12, 17, 22, 27, 32, 37]
